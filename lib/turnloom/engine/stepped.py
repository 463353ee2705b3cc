"""The driver of a turn that nobody holds a connection for: load, do one action, log it, say what is next.

Each function is one task of the state machine and takes and returns its state (`engine.state_of`). A task that finds
another action due than its own does nothing: it returns what is. So every task may be repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager

from turnloom.domain.action import Action, AwaitClient, CallTools, Finish
from turnloom.domain.decide import decide
from turnloom.domain.errors import Problem, ServerFault
from turnloom.domain.event import Event, TakenOver, TurnFailed
from turnloom.domain.message import JSON, Spec
from turnloom.domain.turn import evolve
from turnloom.engine.engine import Brief, Engine, place_of, state_of
from turnloom.engine.journal import LOOK_SECONDS, Journal
from turnloom.engine.perform import perform
from turnloom.ports import ConditionFailed
from turnloom.store.turns import Record

State = Mapping[str, JSON]

TOOL_LEASE_SECONDS = 90.0
"""Longer than any tool may take: nothing is logged while one runs."""


class TurnMoved(Exception):
    """Another driver, a cancel or a deletion came first; there is nothing left to do here."""


async def step(engine: Engine, state: State, kind: str) -> dict[str, JSON]:
    """Do the turn's next action if it is of this kind, and return the state after it.

    A failure of the turn itself is stored and ends it; only our own faults are raised. Raises TurnMoved.
    """
    record = await _load(engine, state)
    brief = await _brief(engine, record) if record is not None else None
    if record is None or brief is None:
        return {**state, "next": "done", "calls": []}
    journal = _journal(engine, record, brief.spec)
    if journal.turn.cut:
        journal.note(TakenOver(max(engine.world.clock.now(), record.turn.last_at + 1)))
    action = decide(journal.turn, brief.spec)
    if action.kind == kind:
        await _act(engine, journal, brief, action)
    return state_of(journal.record, brief.spec)


async def call_tool(engine: Engine, state: State, call_id: str) -> None:
    """Run one of the open calls and log its answer; a call that has one already is left alone."""
    record = await _load(engine, state)
    if record is None or call_id not in {call.call_id for call in record.turn.open_calls}:
        return
    brief = await _brief(engine, record)
    if brief is None:
        return
    action = CallTools((call_id,))
    scene = brief.scene(record.turn, action, engine.pace.patience[2])
    async with (
        _while_running(engine, record),
        aclosing(perform(action, scene, engine.world)) as events,
    ):
        async for event in events:
            record = await _append_among_others(engine, record, event, call_id)
            engine.saw(record.place.api, event)


@asynccontextmanager
async def _while_running(engine: Engine, record: Record) -> AsyncIterator[None]:
    """What runs inside is called off when the turn ends meanwhile. Raises TurnMoved then."""
    try:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_watch(engine, record))
            yield
            watch.cancel()
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _watch(engine: Engine, record: Record) -> None:
    running = True
    row: Record | None = None
    while running:
        await engine.world.clock.sleep(LOOK_SECONDS)
        row = await engine.stores[record.place.api].peek(record.place, row)
        running = row is not None and row.running and row.turn.id == record.turn.id
    raise TurnMoved(record.turn.id)


async def fail(engine: Engine, state: State, message: str) -> None:
    """End a turn that the state machine could not bring to its end; the cause is for the logs, not for the client."""
    record = await _load(engine, state)
    if record is not None:
        await _fail(engine, record, ServerFault(message))


async def _load(engine: Engine, state: State) -> Record | None:
    """The record, if its turn is still running the leg that this execution was started for."""
    turn = state["turn"]
    record = await engine.stores[turn["api"]].load(place_of(turn))
    running = record is not None and record.running and record.turn.leg == turn["leg"]
    return record if running else None


async def _brief(engine: Engine, record: Record) -> Brief | None:
    """The brief of the turn; None, and the turn has failed, when its rules or its history are gone."""
    try:
        return await engine.brief(record)
    except Problem as problem:
        await _fail(engine, record, problem)
        return None


def _journal(engine: Engine, record: Record, spec: Spec) -> Journal:
    return engine.journal(engine.stores[record.place.api], record, spec, engine.pace.logged)


async def _act(engine: Engine, journal: Journal, brief: Brief, action: Action) -> None:
    try:
        await _act_or_fail(engine, journal, brief, action)
    except ConditionFailed:
        raise TurnMoved(journal.turn.id) from None


async def _act_or_fail(engine: Engine, journal: Journal, brief: Brief, action: Action) -> None:
    try:
        async with journal.kept_alive():
            await _perform(engine, journal, brief, action)
            if isinstance(action, AwaitClient | Finish):
                await journal.settle()
            else:
                await journal.flush()
    except Problem as problem:
        at = max(engine.world.clock.now(), journal.turn.last_at + 1)
        journal.note(TurnFailed(at, problem.code, problem.message))
        await journal.settle()


async def _perform(engine: Engine, journal: Journal, brief: Brief, action: Action) -> None:
    scene = brief.scene(journal.turn, action, engine.pace.patience[2])
    async with aclosing(perform(action, scene, engine.world)) as events:
        async for event in events:
            # That a turn has left the queue is worth a write of its own: its client may be looking.
            leaves_queue = journal.turn.queued
            journal.note(event)
            if journal.full or leaves_queue:
                await journal.flush()


async def _append_among_others(engine: Engine, record: Record, event: Event, call_id: str) -> Record:
    """Log the event of one call while its siblings log theirs: whoever finds the number taken tries the next."""
    store = engine.stores[record.place.api]
    while True:
        after = evolve(record.turn, event)
        lease = engine.lease(TOOL_LEASE_SECONDS if after.started_calls else None)
        try:
            return await store.append(record, [event], lease, after)
        except ConditionFailed:
            fresh = await store.load(record.place)
            open_calls = fresh.turn.open_calls if fresh is not None and fresh.running else ()
            if fresh is None or call_id not in {call.call_id for call in open_calls}:
                raise TurnMoved(record.turn.id) from None
            record = fresh


async def _fail(engine: Engine, record: Record, problem: Problem) -> None:
    try:
        await engine.fail(record, problem)
    except ConditionFailed:
        raise TurnMoved(record.turn.id) from None
