"""An MCP server that misbehaves, in a process of its own so that its memory and time are not those of the tests.

with HostileServer() as server:
    server.url("silent", "call")      # behaves until a tool is called, then never answers

`python -m tests.hostile_mcp` serves until it is ended, and prints its address; the behaviours are those of `HOSTILE`.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

WHEN = {"first": ("server/discover", "initialize"), "list": ("tools/list",), "call": ("tools/call",)}
_BLOCK = 65_536


@dataclass(frozen=True)
class Asked:
    """A request: the id of its message, its path, and the credential that came with it."""

    id: Any
    path: str
    credential: str


Behaviour = Callable[[Asked], AsyncIterator[bytes]]
HOSTILE: dict[str, Behaviour] = {}


def hostile(behaviour: Behaviour) -> Behaviour:
    HOSTILE[behaviour.__name__] = behaviour
    return behaviour


# --- answers


def head(kind: str = "application/json", status: int = 200, *headers: str) -> bytes:
    lines = (f"HTTP/1.1 {status} Any", f"content-type: {kind}", "connection: close", *headers)
    return "\r\n".join((*lines, "", "")).encode()


def answer(body: Any, status: int = 200, *headers: str) -> bytes:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head("application/json", status, f"content-length: {len(text)}", *headers) + text


def result(asked: Asked, **fields: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": asked.id, "result": fields}


def said(asked: Asked, text: str) -> dict[str, Any]:
    """A result of any method: what a call, a listing and a handshake must have."""
    tools = [{"name": "echo", "description": text, "inputSchema": {"type": "object"}}]
    return result(asked, content=[{"type": "text", "text": text}], tools=tools, **_HANDSHAKE)


_HANDSHAKE = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "hostile", "version": "1"},
}


async def flood(block: bytes) -> AsyncIterator[bytes]:
    while True:
        yield block * (_BLOCK // len(block) + 1)


async def drip(block: bytes) -> AsyncIterator[bytes]:
    while True:
        yield block
        await asyncio.sleep(0.02)


# --- silence and endless streams


@hostile
async def silent(asked: Asked) -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


@hostile
async def endless_headers(asked: Asked) -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    async for block in flood(b"x-header: and another\r\n"):
        yield block


@hostile
async def dripping_headers(asked: Asked) -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    async for block in drip(b"x-header: and another\r\n"):
        yield block


@hostile
async def huge_header(asked: Asked) -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nx-header: "
    async for block in flood(b"x"):
        yield block


@hostile
async def endless_interim_answers(asked: Asked) -> AsyncIterator[bytes]:
    async for block in flood(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"):
        yield block


@hostile
async def endless_comments(asked: Asked) -> AsyncIterator[bytes]:
    yield head("text/event-stream")
    async for block in flood(b": ping\n\n"):
        yield block


@hostile
async def dripping_comments(asked: Asked) -> AsyncIterator[bytes]:
    yield head("text/event-stream")
    async for block in drip(b": ping\n\n"):
        yield block


@hostile
async def endless_line(asked: Asked) -> AsyncIterator[bytes]:
    yield head("text/event-stream") + b"data: "
    async for block in flood(b"x"):
        yield block


@hostile
async def endless_lines(asked: Asked) -> AsyncIterator[bytes]:
    yield head("text/event-stream")
    async for block in flood(b"data: \n"):
        yield block


@hostile
async def endless_events(asked: Asked) -> AsyncIterator[bytes]:
    yield head("text/event-stream")
    async for block in flood(b"event: other\ndata: 1\n\n"):
        yield block


@hostile
async def endless_notifications(asked: Asked) -> AsyncIterator[bytes]:
    note = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}}
    yield head("text/event-stream")
    async for block in flood(b"data: " + json.dumps(note).encode() + b"\n\n"):
        yield block


@hostile
async def endless_requests(asked: Asked) -> AsyncIterator[bytes]:
    yield head("text/event-stream")
    for number in range(100_000):
        yield b'data: {"jsonrpc":"2.0","id":%d,"method":"ping"}\n\n' % number


@hostile
async def single_byte_chunks(asked: Asked) -> AsyncIterator[bytes]:
    yield head("text/event-stream", 200, "transfer-encoding: chunked")
    async for block in flood(b"1\r\n:\r\n"):
        yield block


@hostile
async def carriage_returns(asked: Asked) -> AsyncIterator[bytes]:
    yield head("text/event-stream")
    async for block in flood(b"\r"):
        yield block


@hostile
async def endless_reconnections(asked: Asked) -> AsyncIterator[bytes]:
    yield head("text/event-stream") + b"id: 1\nretry: 0\ndata: \n\n"


@hostile
async def slow_charset(asked: Asked) -> AsyncIterator[bytes]:
    yield head("text/event-stream; charset=punycode") + b"data: -" + b"a" * 500_000


# --- bombs


@hostile
async def huge_body(asked: Asked) -> AsyncIterator[bytes]:
    yield head() + b'{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"'
    for _ in range(200 * 16):
        yield b"x" * _BLOCK


@hostile
async def huge_error(asked: Asked) -> AsyncIterator[bytes]:
    yield head("application/json", 500)
    for _ in range(200 * 16):
        yield b"x" * _BLOCK


@hostile
async def huge_page(asked: Asked) -> AsyncIterator[bytes]:
    yield head("text/html")
    for _ in range(200 * 16):
        yield b"x" * _BLOCK


@hostile
async def compressed_bomb(asked: Asked) -> AsyncIterator[bytes]:
    yield answer(bomb(), 200, "content-encoding: gzip")


@hostile
async def compressed_bomb_twice(asked: Asked) -> AsyncIterator[bytes]:
    yield answer(gzip.compress(bomb()), 200, "content-encoding: gzip, gzip")


@hostile
async def compressed_error(asked: Asked) -> AsyncIterator[bytes]:
    yield answer(bomb(), 400, "content-encoding: deflate, gzip")


@cache
def bomb() -> bytes:
    """300 MB of text in a result, compressed."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    start = packer.compress(b'{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"')
    return start + b"".join(packer.compress(b"x" * 1_000_000) for _ in range(300)) + packer.flush()


@hostile
async def deep_data(asked: Asked) -> AsyncIterator[bytes]:
    yield answer(b'{"jsonrpc":"2.0","id":%s,"result":' % _id(asked) + b"[" * 10_000 + b"]" * 10_000 + b"}")


@hostile
async def deep_error(asked: Asked) -> AsyncIterator[bytes]:
    yield answer(b"[" * 10_000 + b"]" * 10_000, 400)


@hostile
async def wide_data(asked: Asked) -> AsyncIterator[bytes]:
    yield answer(b'{"jsonrpc":"2.0","id":%s,"result":{"a":[' % _id(asked) + b"[]," * 600_000 + b"[]]}}")


@hostile
async def many_quotes(asked: Asked) -> AsyncIterator[bytes]:
    yield answer(b'""' * 1_000_000)


@hostile
async def many_items(asked: Asked) -> AsyncIterator[bytes]:
    items = [{"type": "text", "text": ""}] * 40_000
    yield answer(result(asked, content=items, tools=[], **_HANDSHAKE))


@hostile
async def huge_text(asked: Asked) -> AsyncIterator[bytes]:
    yield answer(said(asked, "x" * 1_500_000))


@hostile
async def huge_event(asked: Asked) -> AsyncIterator[bytes]:
    yield head("text/event-stream") + b"data: " + json.dumps(said(asked, "x" * 3_000_000)).encode() + b"\n\n"


@hostile
async def huge_number(asked: Asked) -> AsyncIterator[bytes]:
    yield answer(b'{"jsonrpc":"2.0","id":%s,"result":{"a":%s}}' % (_id(asked), b"9" * 1_000_000))


@hostile
async def many_tools(asked: Asked) -> AsyncIterator[bytes]:
    tools = [{"name": f"t{number}", "inputSchema": {"type": "object"}} for number in range(5_000)]
    yield answer(result(asked, content=[], tools=tools, **_HANDSHAKE))


@hostile
async def endless_pages(asked: Asked) -> AsyncIterator[bytes]:
    yield answer(result(asked, content=[], tools=[], nextCursor="again", **_HANDSHAKE))


# --- odd messages


@hostile
async def half_surrogates(asked: Asked) -> AsyncIterator[bytes]:
    yield answer(said(asked, "half \ud800"))


@hostile
async def half_surrogates_in_events(asked: Asked) -> AsyncIterator[bytes]:
    yield head("text/event-stream") + b"data: " + json.dumps(said(asked, "half \ud800")).encode() + b"\n\n"


@hostile
async def odd_schemas(asked: Asked) -> AsyncIterator[bytes]:
    deep: dict[str, Any] = {}
    for _ in range(80):
        deep = {"items": deep}
    schemas = [5, None, {"type": "string"}, {"properties": "x"}, {"required": 5}, {"$defs": "x"}, deep]
    schemas.append({"type": "object", "properties": {"a": {"default": float("nan"), "minimum": float("inf")}}})
    tools: list[Any] = [{"name": f"odd_{number}", "inputSchema": schema} for number, schema in enumerate(schemas)]
    tools += [5, {"name": 5}, {"name": "odd_half \udfff", "description": 5, "annotations": 5, "inputSchema": {}}]
    fine = {"name": "echo", "description": "Fine.", "inputSchema": {"type": "object"}}
    yield answer(result(asked, content=[{"type": "text", "text": "fine"}], tools=[*tools, fine], **_HANDSHAKE))


@hostile
async def other_json(asked: Asked) -> AsyncIterator[bytes]:
    yield answer({"error": f"credential {asked.credential} refused"})


@hostile
async def other_json_in_events(asked: Asked) -> AsyncIterator[bytes]:
    yield head("text/event-stream") + b"data: " + json.dumps([asked.credential]).encode() + b"\n\n"


@hostile
async def no_json(asked: Asked) -> AsyncIterator[bytes]:
    yield answer(b'{"jsonrpc":"2.0","result":' + asked.credential.encode())


@hostile
async def malformed_result(asked: Asked) -> AsyncIterator[bytes]:
    yield answer({"jsonrpc": "2.0", "id": asked.id, "result": {"content": asked.credential, "tools": asked.credential}})


@hostile
async def no_result(asked: Asked) -> AsyncIterator[bytes]:
    yield answer({"jsonrpc": "2.0", "id": asked.id, "result": asked.credential})


@hostile
async def telling_error(asked: Asked) -> AsyncIterator[bytes]:
    token = asked.credential.rpartition(" ")[2]
    spellings = (asked.credential, token[:14], token[9:], base64.b64encode(f"u:{token}".encode()).decode(), token)
    error = {"code": -32000, "message": "refused: " + " / ".join(spellings), "data": asked.credential}
    yield answer({"jsonrpc": "2.0", "id": asked.id, "error": error})


@hostile
async def telling_status(asked: Asked) -> AsyncIterator[bytes]:
    yield answer(asked.credential.encode(), 403, f"x-credential: {asked.credential}")


@hostile
async def telling_text(asked: Asked) -> AsyncIterator[bytes]:
    yield answer(said(asked, f"you are {asked.credential}, {asked.credential[-20:]}"))


@hostile
async def telling_type(asked: Asked) -> AsyncIterator[bytes]:
    yield head(f"text/{asked.credential.rpartition(' ')[2]}") + b"x"


@hostile
async def redirect_for_ever(asked: Asked) -> AsyncIterator[bytes]:
    yield answer(b"", 307, f"location: {asked.path}")


@hostile
async def redirect_to_the_metadata(asked: Asked) -> AsyncIterator[bytes]:
    yield answer(b"", 307, "location: http://169.254.169.254/latest")


@hostile
async def accepted(asked: Asked) -> AsyncIterator[bytes]:
    yield answer(b"", 202)


@hostile
async def nothing_at_all(asked: Asked) -> AsyncIterator[bytes]:
    yield b""


@hostile
async def garbage(asked: Asked) -> AsyncIterator[bytes]:
    yield b"\x00\xff" * 1000


# --- the server


def _id(asked: Asked) -> bytes:
    return json.dumps(asked.id).encode()


def _sound(method: str, asked: Asked) -> bytes:
    """What a server of the 2025 era answers; one that has no session to end."""
    match method:
        case "server/discover":
            return answer({"jsonrpc": "2.0", "id": asked.id, "error": {"code": -32601, "message": "no"}}, 400)
        case "initialize":
            return answer(result(asked, **_HANDSHAKE), 200, "mcp-session-id: s1")
        case "tools/list" | "tools/call":
            return answer(said(asked, "fine"))
        case "":
            return answer(b"", 405)
        case _:
            return answer(b"", 202)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        asked, method = await _read(reader)
        behaviour, when = asked.path.strip("/").partition("?")[0].split("/")
        if method in WHEN[when] or (method == "DELETE" and behaviour == "dripping_comments"):
            async for block in HOSTILE[behaviour](asked):
                writer.write(block)
                await writer.drain()
        else:
            writer.write(_sound("" if method in ("GET", "DELETE") else method, asked))
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError, ValueError):
        pass
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> tuple[Asked, str]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    http, path, _ = lines[0].split(" ")
    headers = dict(line.lower().split(": ", 1)[:1] + line.split(": ", 1)[1:] for line in lines[1:] if ": " in line)
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    message = json.loads(body) if body else {}
    return Asked(message.get("id"), path, headers.get("authorization", "")), message.get("method", http)


async def run(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
    """Serve connections on a free port of loopback until the process ends, and print the address."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


class HostileServer:
    """The server of a module as a process, for as long as the context lasts."""

    def __init__(self, module: str = "tests.hostile_mcp") -> None:
        self._module = module

    def __enter__(self) -> HostileServer:
        self._process = subprocess.Popen([sys.executable, "-m", self._module], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._address = self._process.stdout.readline().strip()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def url(self, behaviour: str, when: str) -> str:
        return f"{self._address}/{behaviour}/{when}"


if __name__ == "__main__":
    asyncio.run(run(_serve))
