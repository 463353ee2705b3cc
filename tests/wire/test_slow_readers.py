"""Clients that stop reading: what they may cost, and how they read on."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from tests.conftest import House
from tests.engine.test_responses import ask, stored, until
from tests.wire.conftest import Agents
from turnloom.domain.errors import TurnGoesOn
from turnloom.engine import inline
from turnloom.engine.follow import Followed
from turnloom.engine.inline import Run
from turnloom.ports import Finished, TextChunk
from turnloom.testing import USAGE
from turnloom.wire import sse

READER_EVENTS = 300
WORDS = [f"{number}{' ' * 1500}" for number in range(READER_EVENTS * 10)]
"""More than sockets hold that nobody reads from."""


@pytest.fixture(autouse=True)
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline, "READER_EVENTS", READER_EVENTS)
    monkeypatch.setattr(sse, "STALLED_SECONDS", 0.3)


def say_much(house: House) -> None:
    house.model.answers(*map(TextChunk, WORDS), Finished("stop", USAGE))


async def test_what_a_reader_has_not_read_of_a_stored_turn_is_bounded_and_read_on_later(house: House) -> None:
    say_much(house)
    run = await ask(house, "Hi")
    assert isinstance(run, Run)
    await until(lambda: run._drive is not None and run._drive.done())
    assert run._told.qsize() <= READER_EVENTS + 2
    for _ in range(READER_EVENTS):
        await run.next_event()
    with pytest.raises(TurnGoesOn):
        await run.next_event()
    final = await stored(house, run.record)
    assert final.turn.status == "completed"
    turn = await Followed(house.engine, run.record).settled()
    assert turn.last_inference is not None and turn.last_inference.said("text") == "".join(WORDS)


async def test_the_model_waits_for_the_reader_of_a_turn_that_is_not_stored(house: House) -> None:
    say_much(house)
    run = await ask(house, "Hi", store=False)
    assert isinstance(run, Run)
    await until(lambda: run._told.qsize() >= READER_EVENTS)
    now = house.clock.time
    await until(lambda: house.clock.time > now or house.model.closed == 0)
    assert run._told.qsize() == READER_EVENTS and house.model.closed == 0
    turn = await run.settled()
    assert turn.last_inference is not None and turn.last_inference.said("text") == "".join(WORDS)


def connected(api: Agents, **body: Any) -> socket.socket:
    """A connection on which a streaming response was asked for and nothing has been read."""
    host, port = api.url.removeprefix("http://").split(":")
    content = json.dumps({"model": "m", "input": "Hi", "stream": True, **body}).encode()
    head = f"POST /v1/responses HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(20)
    client.connect((host, int(port)))
    client.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    return client


def rest_of(client: socket.socket) -> str:
    parts = []
    while part := client.recv(1 << 20):
        parts.append(part)
    return b"".join(parts).decode()


def events(text: str) -> list[Any]:
    """The whole frames of a body, of which the last may be cut off."""
    whole = text[: text.rfind("\n\n")]
    return [json.loads(line.removeprefix("data: ")) for line in whole.splitlines() if line.startswith("data: {")]


def test_a_client_that_does_not_read_loses_its_connection_and_reads_on(api: Agents) -> None:
    say_much(api.house)
    with connected(api) as client:
        [made] = _ended(api)
        before = events(rest_of(client))
    assert before[-1]["type"] == "response.output_text.delta" and len(before) < len(WORDS)
    after = before[-1]["sequence_number"]
    rest = events(api.http.get(f"/v1/responses/{made['id']}?stream=true&starting_after={after}").text)
    numbers = [event["sequence_number"] for event in (*before, *rest)]
    assert numbers == list(range(len(numbers))) and rest[-1]["type"] == "response.completed"
    deltas = [event["delta"] for event in (*before, *rest) if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "".join(WORDS)


def _ended(api: Agents) -> Any:
    """The responses there are, once they have all ended."""
    for _ in range(2000):
        found = api.http.get("/v1/responses").json()["data"]
        if found and all(response["status"] == "completed" for response in found):
            return found
    raise AssertionError("it did not end")


async def test_a_turn_that_is_not_stored_ends_with_the_connection_of_a_client_that_does_not_read(api: Agents) -> None:
    say_much(api.house)
    with connected(api, store=False) as client:
        await until(lambda: api.house.model.closed == 1)
        before = events(rest_of(client))
    assert before[-1]["type"] == "response.output_text.delta" and len(before) < len(WORDS)
