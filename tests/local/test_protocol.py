"""The laptop's gateway against connections whose requests never end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from turnloom.local import protocol
from turnloom.local.protocol import HEADER_BYTES, BoundedProtocol


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """A server whose limits of time are short."""
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.2)
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.2)
    config = uvicorn.Config(app, port=0, http=BoundedProtocol, ws="none", log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


async def answer(port: int, *pieces: bytes) -> bytes:
    """All that the server sends to a client that sends these and then waits until it is hung up on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionError:
        return b"reset"
    finally:
        writer.close()


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nhost: x\r\nx: "])
async def test_headers_that_do_not_come_end_the_connection(port: int, start: bytes) -> None:
    assert await answer(port, start) == b""


async def test_a_request_to_upgrade_is_the_routes_to_answer(port: int, caplog: pytest.LogCaptureFixture) -> None:
    asked = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    assert (await answer(port, asked)).startswith(b"HTTP/1.1 200")
    assert not caplog.records


async def test_a_body_that_does_not_come_ends_the_connection(port: int) -> None:
    start = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n12345"
    assert b"200" not in await answer(port, start)


async def test_headers_without_an_end_are_refused(port: int) -> None:
    pieces = [b"GET / HTTP/1.1\r\nhost: x\r\n", *[b"x: " + b"y" * 8000 + b"\r\n"] * (2 * HEADER_BYTES // 8000)]
    received = await answer(port, *pieces)
    assert received == b"reset" or received.startswith(b"HTTP/1.1 400")


async def test_a_connection_serves_one_request_after_the_other(port: int) -> None:
    request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n12345"
    last = request.replace(b"host: x", b"host: x\r\nconnection: close")
    assert (await answer(port, request, request, last)).count(b"200 OK") == 3
