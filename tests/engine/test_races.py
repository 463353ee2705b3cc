"""Creates, resumes, cancels, takeovers and deletes at the same time, any of them cut off at any operation of the store.

When the removals have run, nothing is stored that no request could read. `TURNLOOM_RACES=600 python -m pytest
tests/engine/test_races.py -s` goes on for so many seconds, and prints its figures.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.conftest import House, build_house
from tests.engine.conversations import CLIENT_TOOL, FUNCTIONS
from turnloom.adapters.sqlite import SqliteDatabase
from turnloom.domain.errors import Problem
from turnloom.domain.message import ToolMessage, UserMessage
from turnloom.engine.takeover import sweep
from turnloom.ports import Chunk, Condition, Finished, ModelRequest, Page, Row, Table, TextChunk, Version
from turnloom.store.conversations import thread_of
from turnloom.store.keys import partition
from turnloom.store.turns import Record, Turns, days_of
from turnloom.testing import USAGE, FrozenClock, ScriptedModel, SteppedOrchestrator, call_chunks
from turnloom.usecases import agents, conversations, responses, turns
from turnloom.usecases.callers import Caller
from turnloom.usecases.disposal import dispose_due
from turnloom.usecases.responses import ResponseRequest
from turnloom.usecases.services import Limits
from turnloom.usecases.turns import TurnRequest
from turnloom.wire.agents_api.models import AgentConfig

SECONDS = float(os.environ.get("TURNLOOM_RACES", "0"))
ROUNDS = 12
"""How many are run when no time is set."""
OPERATIONS, AT_A_TIME = 120, 12
RISK = 0.004
"""The chance that a process ends at an operation of the store."""
LARGE = 310_000
LONGEST_ROUND = 600 * 1_000_000
"""In microseconds of the round's clock: less than a request may take."""
MARK = re.compile(r"zq\d+zq")
OWNER = "me"

DAY, HOUR = 86_400, 3_600


class Process:
    """Some work that ends together, at once and without a word."""

    def __init__(self, risk: float) -> None:
        self.risk = risk
        self.over = asyncio.Event()


PROCESS: ContextVar[Process | None] = ContextVar("PROCESS", default=None)


class Chance:
    """Decides, by its seed, who goes on next and who is cut off."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.processes: list[Process] = []
        self.kills = 0
        self._never = asyncio.Event()
        self.points = 0

    async def point(self) -> None:
        """Let others go first; a process that is over gets no further."""
        process = PROCESS.get()
        self.points += 1
        for _ in range(self.random.choice((0, 0, 1, 2, 4)) if process is not None else 0):
            await asyncio.sleep(0)
        if process is None:
            return
        if not process.over.is_set() and self.random.random() < process.risk:
            self.kills += 1
            process.over.set()
        if process.over.is_set():
            await self._never.wait()

    async def run(self, work: Coroutine[Any, Any, object]) -> None:
        """Do this as a process of its own, until it is done or cut off."""
        process = self.process()
        token = PROCESS.set(process)
        tasks = {asyncio.create_task(work), asyncio.create_task(process.over.wait())}
        PROCESS.reset(token)
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    def process(self) -> Process:
        process = Process(self.random.choice((0, RISK, 10 * RISK)))
        self.processes.append(process)
        return process


class RacingTable:
    def __init__(self, table: Table, chance: Chance) -> None:
        self._table = table
        self._chance = chance

    async def get(self, partition: str, sort: str) -> Row | None:
        return await self._around(self._table.get(partition, sort))

    async def get_many(self, keys: Sequence[tuple[str, str]]) -> list[Row]:
        return await self._around(self._table.get_many(keys))

    async def put(self, row: Row, when: Condition | None = None) -> None:
        await self._around(self._table.put(row, when))

    async def delete(self, partition: str, sort: str, when: Version | None = None) -> None:
        await self._around(self._table.delete(partition, sort, when))

    async def query(self, partition: str, **bounds: Any) -> Page:
        return await self._around(self._table.query(partition, **bounds))

    async def _around(self, call: Coroutine[Any, Any, Any]) -> Any:
        try:
            await self._chance.point()
        except BaseException:
            call.close()
            raise
        result = await call
        await self._chance.point()
        return result


class RacingBlobs:
    """Blobs in memory; those that a bucket's rules would remove are gone in time."""

    def __init__(self, chance: Chance, clock: FrozenClock) -> None:
        self._chance = chance
        self._clock = clock
        self._contents: dict[str, tuple[bytes, int]] = {}

    async def put(self, key: str, content: bytes) -> None:
        await self._chance.point()
        self._contents[key] = content, self._clock.time
        await self._chance.point()

    async def get(self, key: str) -> bytes | None:
        await self._chance.point()
        return self.all().get(key)

    async def delete(self, key: str) -> None:
        await self._chance.point()
        self._contents.pop(key, None)
        await self._chance.point()

    def all(self) -> dict[str, bytes]:
        return {key: content for key, (content, at) in self._contents.items() if not self._expired(key, at)}

    def _expired(self, key: str, at: int) -> bool:
        days = days_of(key)
        return days is not None and at + days * DAY * 1_000_000 < self._clock.time


class RacingClock(FrozenClock):
    """Time that passes while somebody sleeps, as long as the round may last."""

    def __init__(self, chance: Chance) -> None:
        super().__init__()
        self._chance = chance
        self._last = self.time + LONGEST_ROUND

    async def sleep(self, seconds: float) -> None:
        await self._chance.point()
        await asyncio.sleep(0)
        if PROCESS.get() is None or self.time < self._last:
            self.advance(0.1)


class RacingOrchestrator(SteppedOrchestrator):
    """Each execution is a process; one that is cut off does not run any more."""

    def __init__(self, chance: Chance) -> None:
        super().__init__()
        self._chance = chance
        self._processes: dict[str, Process] = {}

    async def start(self, name: str, given: Mapping[str, Any]) -> None:
        process = self._processes.setdefault(name, self._chance.process())
        token = PROCESS.set(process if PROCESS.get() is not None else None)
        await super().start(name, given)
        PROCESS.reset(token)

    async def runs(self, name: str) -> bool:
        return await super().runs(name) and not self._processes[name].over.is_set()


class RacingModel(ScriptedModel):
    """Calls the tools that the newest message of the user names, then repeats that message."""

    def __init__(self, chance: Chance) -> None:
        super().__init__()
        self._chance = chance

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Chunk]:
        last = next(m for m in reversed(request.messages) if isinstance(m, UserMessage | ToolMessage))
        text = str(last.content)
        mark = MARK.search(text)
        for word in (mark[0] if mark else "", " is", " what", " you", " said."):
            await self._chance.point()
            if word:
                yield TextChunk(word)
        named = [name for name in ("echo", "lookup") if isinstance(last, UserMessage) and name in text]
        for chunk in call_chunks(*((name, {"text": text[:40]} if name == "echo" else {}) for name in named)):
            yield chunk
        yield Finished("tool_calls" if named else "stop", USAGE)


class Race:
    """A store and clients that know what they were told of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = Chance(seed)
        self.random = self.chance.random
        self.clock = RacingClock(self.chance)
        self.blobs = RacingBlobs(self.chance, self.clock)
        self.house = racing_house(folder, self)
        self.services = self.house.services
        self.agents: list[str] = []
        self.sessions: list[tuple[str, str]] = []
        self.turns: list[tuple[str, str, str]] = []
        self.responses: list[str] = []
        self.conversations: list[str] = []
        self.done = Counter[str]()
        self._marks = 0

    def mark(self) -> str:
        self._marks += 1
        return f"zq{self._marks}zq" + "x" * (LARGE if self.random.random() < 0.04 else 0)

    # --- what clients do

    async def create_agent(self) -> None:
        config = {
            "model": "m",
            "instructions": self.mark(),
            "toolgroups": ["test::tools"],
            "client_tools": [CLIENT_TOOL],
            "enable_session_persistence": self.random.random() < 0.8,
        }
        made = await agents.create_agent(self.services, OWNER, AgentConfig.model_validate(config).model_dump())
        self.agents.append(made.agent_id)

    async def create_session(self) -> None:
        agent = self.random.choice(self.agents)
        made = await agents.create_session(self.services, OWNER, agent, self.mark())
        self.sessions.append((agent, made.session_id))

    async def create_turn(self) -> None:
        agent, session = self.random.choice(self.sessions[-6:])
        key = self.random.choice((None, None, self.mark()[:20]))
        text = f"{self.mark()} {self.random.choice(('', '', 'echo', 'lookup'))}"
        request = TurnRequest([{"role": "user", "content": text}], {}, "f", key)
        for _ in range(1 if key is None else 2):
            reading = await turns.create_turn(self.services, Caller(OWNER), agent, session, request)
            self.turns.append((agent, session, reading.run.record.turn.id))
            await self.read(reading.run)

    async def resume_turn(self) -> None:
        agent, session, turn = self.random.choice(self.turns[-10:])
        record = await turns.get_turn(self.services, OWNER, agent, session, turn)
        open_calls = [(call.call_id, call.name) for call in record.turn.open_calls]
        answers = [
            {"call_id": call_id, "tool_name": name, "content": self.mark(), "metadata": {}}
            for call_id, name in open_calls or [(self.mark()[:20], "lookup")]
        ]
        reading = await turns.resume_turn(self.services, Caller(OWNER), agent, session, turn, answers)
        await self.read(reading.run)

    async def cancel_turn(self) -> None:
        await turns.cancel_turn(self.services, OWNER, *self.random.choice(self.turns[-10:]))

    async def delete_session(self) -> None:
        await agents.delete_session(self.services, OWNER, *self.random.choice(self.sessions[-6:]))

    async def delete_agent(self) -> None:
        await agents.delete_agent(self.services, OWNER, self.random.choice(self.agents))

    async def create_response(self) -> None:
        settings: dict[str, Any] = {"model": "m", "background": self.random.random() < 0.3}
        store = settings["background"] or self.random.random() < 0.8
        if self.conversations and self.random.random() < 0.6:
            settings["conversation"] = {"id": self.random.choice(self.conversations[-3:])}
        elif self.responses and self.random.random() < 0.5:
            settings["previous_response_id"] = self.random.choice(self.responses[-5:])
        key = self.random.choice((None, None, self.mark()[:20]))
        request = ResponseRequest([said(self.mark())], settings, store, key, "f")
        for _ in range(1 if key is None else 2):
            run = await responses.create_response(self.services, Caller(OWNER), request)
            self.responses.append(run.record.turn.id)
            await self.read(run)

    async def cancel_response(self) -> None:
        await responses.cancel_response(self.services, OWNER, self.random.choice(self.responses[-6:]))

    async def delete_response(self) -> None:
        response = self.random.choice(self.responses[-6:])
        await responses.delete_response(self.services, OWNER, response)

    async def create_conversation(self) -> None:
        items = [said(self.mark()) for _ in range(self.random.choice((0, 1, 2)))]
        made = await conversations.create_conversation(self.services, OWNER, items, {"topic": self.mark()[:20]})
        self.conversations.append(made.conversation_id)

    async def append_items(self) -> None:
        conversation = self.random.choice(self.conversations[-3:])
        items = [{**said(self.mark()), "id": f"msg_{self.random.randrange(40)}"} for _ in range(2)]
        await conversations.append_items(self.services, OWNER, conversation, items)

    async def delete_item(self) -> None:
        conversation = self.random.choice(self.conversations[-3:])
        item = f"msg_{self.random.randrange(40)}"
        await conversations.delete_item(self.services, OWNER, conversation, item)

    async def delete_conversation(self) -> None:
        conversation = self.random.choice(self.conversations[-3:])
        await conversations.delete_conversation(self.services, OWNER, conversation)

    async def sweep_up(self) -> None:
        await sweep(self.services.engine)
        await dispose_due(self.services)

    async def read(self, run: Any) -> None:
        if self.random.random() < 0.8:
            await run.settled()

    # --- the race

    async def hold(self) -> None:
        """All of it, until nobody does anything any more."""
        for work in (self.create_agent, self.create_session, self.create_conversation):
            await work()
        runners = [asyncio.create_task(self._client()) for _ in range(AT_A_TIME)]
        await asyncio.gather(*runners)
        for process in self.chance.processes:
            process.over.set()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        while rest:
            for task in rest:
                task.cancel()
            await asyncio.wait(rest, timeout=0.1)
            rest = {task for task in rest if not task.done()}

    async def _client(self) -> None:
        kinds = [
            *[self.create_turn] * 6,
            *[self.create_response] * 5,
            *[self.create_session, self.resume_turn, self.cancel_turn, self.delete_session] * 2,
            *[self.append_items, self.delete_response, self.cancel_response] * 2,
            *[self.create_agent, self.delete_agent, self.create_conversation, self.delete_conversation],
            *[self.delete_item, self.sweep_up],
        ]
        for _ in range(OPERATIONS // AT_A_TIME):
            work = self.random.choice(kinds)
            with suppress(Problem, IndexError):
                self.done[work.__name__] += 1
                await self._bounded(self.chance.run(work()))

    async def _bounded(self, work: Awaitable[None]) -> None:
        """One who reads a turn that nobody drives gives up when the round's time is over."""
        with suppress(TimeoutError):
            await asyncio.wait_for(work, 2)

    async def later(self, seconds: float, times: int = 1) -> None:
        """The sweeper's visits, so many seconds apart."""
        for _ in range(times):
            self.clock.advance(seconds)
            await sweep(self.services.engine)
            await asyncio.wait_for(self.house.orchestrator.finished(), 20)
            await dispose_due(self.services)

    # --- what is left

    def stored(self, *, logs: bool) -> dict[str, str]:
        """The marks in all rows and blobs, each with the place where it was found."""
        marks: dict[str, str] = {}
        tables = [name for name in TABLES if logs or name != "events"]
        for table in tables:
            for row in live_rows(self.house, table):
                marks |= dict.fromkeys(MARK.findall(str(row)), f"{table}: {str(row)[:300]}")
        for key, content in self.blobs.all().items():
            if logs or not key.startswith("log/"):
                marks |= dict.fromkeys(MARK.findall(content[:2000].decode() + content[-2000:].decode()), key)
        return marks

    async def readable(self) -> set[str]:
        """The marks in what is there for somebody who asks."""
        services, found = self.services, ""
        for agent in await services.agents.all(OWNER):
            found += str(agent.config)[:2000]
            for session in await services.sessions.all(OWNER, agent.agent_id):
                found += session.session_name
                found += await told(services.turns, await services.turns.thread(OWNER, session.session_id))
        registry = services.conversations._table
        for row in (await registry.query(partition(OWNER, "conversations"))).rows:
            found += str(row.value)
            thread = thread_of(row.sort)
            found += await told(services.responses, await services.responses.thread(OWNER, thread))
        records, _ = await services.responses.listed(OWNER, after=None, descending=False, limit=10_000)
        return set(MARK.findall(found + await told(services.responses, records)))


TABLES = ("agents", "sessions", "turns", "responses", "registry", "events")


def said(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


async def told(store: Turns, records: Sequence[Record]) -> str:
    return "".join([str([await store.load(record.place), record]) for record in records])


def racing_house(folder: Path, race: Race) -> House:
    house = build_house(folder, race.clock, **FUNCTIONS)
    services = house.services
    stores: list[Any] = [services.agents, services.sessions, services.registry, services.disposal]
    stores += [services.conversations, services.claims, services.turns, services.responses]
    for store in stores:
        for name in ("_table", "_log"):
            if hasattr(store, name):
                setattr(store, name, RacingTable(getattr(store, name), race.chance))
        if hasattr(store, "_blobs"):
            store._blobs = race.blobs
    limits = Limits(retention_days=race.random.choice((None, 30)))
    orchestrator = RacingOrchestrator(race.chance)
    world = replace(services.engine.world, model=RacingModel(race.chance))
    engine = replace(services.engine, world=world, orchestrator=orchestrator)
    orchestrator.engine = engine
    house.orchestrator, house.services = orchestrator, replace(services, engine=engine, limits=limits)
    return house


def live_rows(house: House, table: str) -> list[Any]:
    database: SqliteDatabase = house.services.turns._table._table._database  # type: ignore[attr-defined]
    statement = f"SELECT * FROM {table} WHERE expires IS NULL OR expires > ?"
    return list(database._file.execute(statement, [house.clock.time / 1_000_000]))


async def run_race(folder: Path, seed: int) -> Race:
    """A race, and the removals after it, from which nothing must be left."""
    race = Race(folder, seed)
    await race.hold()
    await race.later(60, times=3)
    await race.later(21 * 60, times=3)
    await check_nothing_left(race, logs=False)
    await race.later(DAY, times=3)
    await check_nothing_left(race, logs=True)
    await race.later(15 * DAY, times=5)
    await check_nothing_left(race, logs=True)
    return race


async def check_nothing_left(race: Race, *, logs: bool) -> None:
    marks, readable = race.stored(logs=logs), await race.readable()
    left = {mark: place for mark, place in marks.items() if mark not in readable}
    assert not left, f"{len(left)} marks are left, among them {list(left.items())[:3]}"


async def test_no_interleaving_of_creates_and_deletes_leaves_a_byte(tmp_path: Path) -> None:
    began, done, rounds, kills, points = time.monotonic(), Counter[str](), 0, 0, 0
    while time.monotonic() - began < SECONDS if SECONDS else rounds < ROUNDS:
        race = await run_race(tmp_path / str(rounds), rounds)
        shutil.rmtree(tmp_path / str(rounds))
        rounds, done, kills = rounds + 1, done + race.done, kills + race.chance.kills
        points += race.chance.points
    print(f"\n{rounds} races, {kills} kills, {points} points, {dict(done)}, {time.monotonic() - began:.0f} s")
