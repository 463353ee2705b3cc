"""Kills parts of the laptop at random while many responses run: each of them ends, and no reader loses its place.

`TURNLOOM_CHAOS=100 python -m pytest tests/e2e/test_chaos.py -s` is the long form, and prints its figures.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from tests.e2e.conftest import Laptop, laptop_in
from tests.mcp_servers import McpServer
from tests.upstream import Answer, Pause, Received, call, say
from tests.wire.responses_stream_checker import check_response, check_stream

RESPONSES = int(os.environ.get("TURNLOOM_CHAOS", "12"))
READERS = 8
FIRST_KILL_SECONDS = (2.0, 4.0)
KILL_SECONDS = (10.0, 13.0)
"""Between two kills, the parts taking turns: the supervisor gives up on a part that dies four times a minute."""
LONGEST_SECONDS = 180.0
"""How long one response may take, all its losses included."""
FIRST_BACKOFF = 0.2

TERMINAL = ("completed", "failed", "incomplete")


@pytest.fixture
def laptop(tmp_path: Any) -> Iterator[Laptop]:
    with laptop_in(tmp_path) as running:
        yield running


@dataclass
class Reader:
    """A client that keeps at it: it sends its request again under one key, and resumes its stream where it broke."""

    laptop: Laptop
    number: int
    background: bool
    server: str
    frames: dict[int, str] = field(default_factory=dict)
    response_id: str | None = None
    done: bool = False
    losses: int = 0

    def read(self) -> dict[str, Any]:
        """Everything to the end; the response as it is stored then."""
        deadline = time.monotonic() + LONGEST_SECONDS
        backoff = FIRST_BACKOFF
        while not self.done:
            assert self.laptop.process is not None and self.laptop.process.poll() is None, "the laptop gave up"
            assert time.monotonic() < deadline, f"response {self.number} ({self.response_id}) never ended"
            before = len(self.frames)
            with suppress(httpx2.HTTPError):
                self._stream_once()
            if not self.done:
                self.losses += 1
                backoff = FIRST_BACKOFF if len(self.frames) > before else min(backoff * 2, 2.0)
                time.sleep(backoff)
        return self._stored(deadline)

    def _stream_once(self) -> None:
        with httpx2.stream(**self._asked(), timeout=httpx2.Timeout(30, connect=2)) as answer:
            if answer.status_code != 200:
                answer.read()
                assert answer.status_code in (409, 429, 500, 502, 503, 504), answer.text
                return
            for line in answer.iter_lines():
                self._take(line)

    def _asked(self) -> dict[str, Any]:
        if self.response_id is not None:
            after = {"starting_after": max(self.frames)} if self.frames else {}
            return {
                "method": "GET",
                "url": f"{self.laptop.url}/v1/responses/{self.response_id}",
                "params": {"stream": "true", **after},
            }
        tool = {"type": "mcp", "server_label": "test", "server_url": self.server, "require_approval": "never"}
        body = {
            "model": "scripted",
            "input": f"Question {self.number}",
            "stream": True,
            "background": self.background,
            "tools": [tool] if self.number % 3 else [],
        }
        headers = {"idempotency-key": f"chaos-{self.number}"}
        return {"method": "POST", "url": f"{self.laptop.url}/v1/responses", "json": body, "headers": headers}

    def _take(self, line: str) -> None:
        if line == "data: [DONE]":
            self.done = True
        if not line.startswith("data: {"):
            return
        data = json.loads(line[6:])
        number = data["sequence_number"]
        assert number not in self.frames, f"frame {number} of response {self.number} came twice"
        assert number == len(self.frames), f"frame {len(self.frames)} of response {self.number} is missing"
        data.pop("obfuscation", None)
        self.frames[number] = f"event: {data['type']}\ndata: {json.dumps(data)}\n\n"
        self.response_id = self.response_id or data.get("response", {}).get("id")

    def _stored(self, deadline: float) -> dict[str, Any]:
        while time.monotonic() < deadline:
            try:
                answer = httpx2.get(f"{self.laptop.url}/v1/responses/{self.response_id}", timeout=10)
                answer.raise_for_status()
                found: dict[str, Any] = answer.json()
                return found
            except httpx2.HTTPError:
                time.sleep(FIRST_BACKOFF)
        raise AssertionError(f"response {self.number} cannot be read")


def model(request: Received) -> Answer:
    """Two rounds of tools where there are tools, then an answer that takes its time."""
    body = request.body
    results = sum(message["role"] == "tool" for message in body["messages"])
    if body.get("tools") and results < 2:
        return call(("echo", {"round": results}), size=4)
    question = next(message["content"] for message in body["messages"] if message["role"] == "user")
    pieces = [
        piece for word in f"The answer to {question} is forty-two.".split(" ") for piece in (f"{word} ", Pause(0.2))
    ]
    return say(*pieces)


def kill_now_and_then(laptop: Laptop, over: threading.Event, chance: random.Random, killed: Counter[str]) -> None:
    while True:
        for part in ("gateway", "engine"):
            pause = KILL_SECONDS if killed[part] else FIRST_KILL_SECONDS
            if over.wait(chance.uniform(*pause)):
                return
            laptop.kill(part)
            killed[part] += 1
            laptop.wait_until_ready()


def test_every_response_ends_and_every_reader_gets_all_of_it(laptop: Laptop) -> None:
    chance = random.Random(7)
    laptop.upstream.answer = model
    over, killed = threading.Event(), Counter[str]()
    with McpServer() as server:
        readers = [Reader(laptop, number, bool(number % 2), server.url) for number in range(RESPONSES)]
        started = time.monotonic()
        with ThreadPoolExecutor(READERS + 1) as pool:
            killing = pool.submit(kill_now_and_then, laptop, over, chance, killed)
            try:
                stored = list(pool.map(Reader.read, readers))
            finally:
                over.set()
            killing.result(60)
    statuses = Counter(response["status"] for response in stored)
    took = time.monotonic() - started
    print(
        f"\n{RESPONSES} responses, {sum(r.losses for r in readers)} broken streams, kills {dict(killed)}, "
        f"{dict(statuses)}, {sum(len(r.frames) for r in readers)} frames, {took:.0f} s"
    )
    for reader, response in zip(readers, stored, strict=True):
        assert response["status"] in TERMINAL
        check_response(response)
        raw = "".join(reader.frames[number] for number in sorted(reader.frames)) + "data: [DONE]\n\n"
        events = check_stream(raw.encode(), crashed=True)
        assert events[-1]["response"]["output"] == response["output"]
        assert told_text(events) == stored_text(response)
    assert statuses["completed"] == RESPONSES


def told_text(events: list[dict[str, Any]]) -> str:
    """The text as each part was closed: of a driver that was lost, a reader may have heard more than counts."""
    return "".join(event["text"] for event in events if event["type"] == "response.output_text.done")


def stored_text(response: dict[str, Any]) -> str:
    messages = (item for item in response["output"] if item["type"] == "message")
    return "".join(part["text"] for item in messages for part in item["content"])
