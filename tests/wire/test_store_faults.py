"""A store that fails in the middle of a turn: nobody is sent an end that is not stored."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conftest import House
from tests.engine.test_responses import until
from tests.wire.conftest import Agents, frames
from turnloom.engine.takeover import sweep
from turnloom.ports import Finished, TextChunk
from turnloom.testing import USAGE, FaultyTable

FULL = sqlite3.OperationalError("database or disk is full")


@dataclass
class FaultyStore:
    """The tables of both APIs' turns and of their log, which fail together."""

    house: House
    tables: list[FaultyTable] = field(default_factory=list)

    def __post_init__(self) -> None:
        for store in (self.house.services.turns, self.house.services.responses):
            store._table, store._log = FaultyTable(store._table), FaultyTable(store._log)
            self.tables += [store._table, store._log]

    def fail(self, fault: Exception | None = FULL, *, done: bool = False, reads: bool = False) -> None:
        for table in self.tables:
            table.fault, table.done, table.unreadable = fault, done, fault if reads else None

    def recover(self) -> None:
        """Let the store work again, and whoever finds turns without a driver go on with them."""
        self.fail(None)
        self.house.model.says("Hello again")
        self.house.clock.advance(31)

        async def go_on() -> None:
            await sweep(self.house.engine)
            await self.house.orchestrator.finished()

        asyncio.run(go_on())


class Fault(asyncio.Event):
    """The moment of an answer at which the store fails, once the turn is stored."""

    def __init__(self, store: FaultyStore, **how: bool) -> None:
        super().__init__()
        self._store = store
        self._how = how

    async def wait(self) -> Any:
        await until(lambda: any(table.writes for table in self._store.tables))
        self._store.fail(**self._how)


@pytest.fixture
def store(api: Agents) -> FaultyStore:
    return FaultyStore(api.house)


def break_off(store: FaultyStore, **how: bool) -> None:
    store.house.model.answers(TextChunk("Hel"), Fault(store, **how), TextChunk("lo"), Finished("stop", USAGE))


def respond(api: Agents, **body: Any) -> Any:
    headers = body.pop("headers", {})
    return api.http.post("/v1/responses", json={"model": "m", "input": "Hi", **body}, headers=headers)


def data(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


# --- the Agents API


def test_an_agents_stream_ends_without_an_end_and_is_read_on_later(api: Agents, store: FaultyStore) -> None:
    session = api.talk()
    break_off(store)
    *before, last = data(api.turn(session, stream=True).text)
    turn_id = last["error"]["turn_id"]
    assert last["error"]["code"] == "turn_goes_on" and "read it" in last["error"]["message"]
    assert "sequence_number" not in last, "its number would be another frame's"
    assert api.http.get(f"{session}/turn/{turn_id}").json()["status"] == "in_progress"
    store.recover()
    after = before[-1]["sequence_number"]
    rest = frames(api.resume(session, turn_id, [], stream=True, starting_after=after))
    assert rest[-1]["event"]["payload"]["event_type"] == "turn_complete"
    assert all(frame["sequence_number"] > after for frame in rest)


def test_an_agents_turn_without_stream_is_an_error_that_names_it(api: Agents, store: FaultyStore) -> None:
    session = api.talk()
    break_off(store)
    answer = api.turn(session)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (500, "false")
    error = answer.json()["error"]
    assert error["code"] == "turn_goes_on"
    store.recover()
    assert api.http.get(f"{session}/turn/{error['turn_id']}").json()["status"] == "completed"


def test_a_reader_of_a_turn_that_cannot_be_read_is_sent_no_end(api: Agents, store: FaultyStore) -> None:
    session = api.talk()
    break_off(store)
    turn_id = api.turn(session).json()["error"]["turn_id"]
    api.house.clock.advance(31)
    [*_, last] = data(api.resume(session, turn_id, [], stream=True).text)
    assert last["error"]["code"] == "turn_goes_on", "it could not be taken over"


# --- the Responses API


def test_a_stream_of_a_response_breaks_off_and_is_read_on_later(api: Agents, store: FaultyStore) -> None:
    break_off(store)
    text = respond(api, stream=True).text
    before = data(text)
    assert text.endswith(": reconnect\n\n") and "[DONE]" not in text
    assert not {"response.completed", "response.failed"} & {event["type"] for event in before}
    response_id = before[0]["response"]["id"]
    assert api.http.get(f"/v1/responses/{response_id}").json()["status"] == "in_progress"
    store.recover()
    last = before[-1]["sequence_number"]
    rest = data(api.http.get(f"/v1/responses/{response_id}?stream=true&starting_after={last}").text)
    assert rest[-1]["type"] == "response.completed"
    assert [event["sequence_number"] for event in rest] == list(range(last + 1, last + 1 + len(rest)))


def test_a_response_without_stream_is_an_error_that_names_it_and_keeps_its_key(api: Agents, store: FaultyStore) -> None:
    break_off(store)
    headers = {"idempotency-key": "k"}
    answer = respond(api, headers=headers)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (500, "false")
    assert answer.json()["error"]["code"] == "server_error" and "'resp_" in answer.json()["error"]["message"]
    store.recover()
    again = respond(api, headers=headers).json()
    assert again["status"] == "completed" and f"'{again['id']}'" in answer.json()["error"]["message"]
    assert len(api.house.model.requests) == 2, "one that broke off, one of the driver that took over"


def test_a_response_that_is_not_stored_needs_no_store(api: Agents, store: FaultyStore) -> None:
    store.fail(reads=True)
    api.house.model.says("Hello")
    assert data(respond(api, stream=True, store=False).text)[-1]["type"] == "response.completed"


# --- the first write


def test_a_turn_whose_first_write_lost_its_answer_goes_on(api: Agents, store: FaultyStore) -> None:
    api.house.model.says("Hello")
    opening = store.tables[2]
    put = opening.put

    async def put_without_answer(row: Any, when: Any = None) -> None:
        opening.put = put  # type: ignore[method-assign]
        await put(row, when)
        raise FULL

    opening.put = put_without_answer  # type: ignore[method-assign]
    made = respond(api).json()
    assert made["status"] == "completed"
    assert len(api.http.get("/v1/responses").json()["data"]) == 1


def test_a_first_write_that_is_repeated_does_not_meet_itself(api: Agents, store: FaultyStore) -> None:
    api.house.model.says("Hello")
    opening = store.tables[2]
    put = opening.put

    async def put_twice(row: Any, when: Any = None) -> None:
        opening.put = put  # type: ignore[method-assign]
        await put(row, when)
        await put(row, when)

    opening.put = put_twice  # type: ignore[method-assign]
    assert respond(api).json()["status"] == "completed"
    assert len(api.http.get("/v1/responses").json()["data"]) == 1


@pytest.mark.parametrize(("reads", "code", "retry"), [(False, "internal_error", None), (True, "turn_goes_on", "false")])
def test_a_first_write_that_failed_says_whether_a_turn_may_exist(
    api: Agents, store: FaultyStore, reads: bool, code: str, retry: str | None
) -> None:
    session = api.talk()
    api.house.model.says("Hello")
    table = store.tables[0]
    put = table.put

    async def fail(row: Any, when: Any = None) -> None:
        table.unreadable = FULL if reads else None
        raise FULL

    table.put = fail  # type: ignore[method-assign]
    answer = api.turn(session)
    assert answer.status_code == 500 and answer.json()["error"]["code"] == code
    assert answer.headers.get("x-should-retry") == retry and ("turn_id" in answer.json()["error"]) == reads
    table.put, table.unreadable = put, None  # type: ignore[method-assign]
    assert api.http.get(session).json()["turns"] == []
