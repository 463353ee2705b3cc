"""Going on with a turn whose driver was lost: any reader may find one, and the sweeper looks for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace

from turnloom.domain.action import CallTools
from turnloom.domain.decide import decide
from turnloom.domain.errors import Problem, ServerFault
from turnloom.domain.event import (
    CallsAllowed,
    InferenceCompleted,
    InputProvided,
    TakenOver,
    ToolCompleted,
    ToolStarted,
    TurnStarted,
)
from turnloom.domain.message import Spec
from turnloom.domain.turn import Turn, fold
from turnloom.engine.engine import Engine
from turnloom.engine.journal import AHEAD_FRAMES
from turnloom.ports import ConditionFailed
from turnloom.store.turns import SHARDS, Place, Record, Turns

logger = logging.getLogger(__name__)

MOST_LOST_DRIVERS = 3
SWEEP_SECONDS = 45
START_SECONDS = 3600
"""How long a turn waits for a state machine that refuses to start: as long as one does whose task is throttled."""
START_PAUSE_SECONDS = 60
"""The longest pause between two starts; the first pause is a lease, and each is as long as all before it."""


async def take_over(engine: Engine, place: Place) -> bool:
    """Fence the lost driver off and let the state machine go on, or fail a turn that has lost too many.

    Whether that was done. A turn that the state machine has is not lost, though it may wait there, nor is one that the
    state machine was never started for: that is tried again. Harmless when someone else was quicker, or the driver
    turns out to be alive: one of them gets on.
    """
    found = await _overdue(engine, place)
    if found is None:
        return False
    lost = sum(isinstance(event, TakenOver) and event.lost for event in found.events)
    status = await engine.execution_status(found, lost)
    if status == "running" or _moved(found, await _overdue(engine, place)):
        return False
    try:
        await _go_on(engine, found, lost, started=status == "ended")
    except ConditionFailed:
        return False
    return True


async def _overdue(engine: Engine, place: Place) -> Record | None:
    found = await engine.stores[place.api].load(place)
    overdue = found is not None and found.running and found.lease < engine.world.clock.now()
    return found if overdue else None


def _moved(before: Record, now: Record | None) -> bool:
    """Whether a driver that was slow has written while Step Functions was asked."""
    return now is None or (before.version, before.batches) != (now.version, now.batches)


async def _go_on(engine: Engine, found: Record, lost: int, *, started: bool) -> None:
    """Hand the turn over; one that has lost too many drivers, or whose rules or history are gone, fails."""
    if lost >= MOST_LOST_DRIVERS and (started or not isinstance(found.events[-1], TakenOver)):
        await engine.fail(found, _worn_out(engine, found))
        return
    try:
        spec = (await engine.brief(found)).spec
    except Problem as problem:
        await engine.fail(found, problem)
        return
    if not started and _awaits_start(found, spec):
        await _start_again(engine, found, spec, lost)
    else:
        await engine.hand_over(await _fenced_off(engine, found), spec, lost + 1)


async def _fenced_off(engine: Engine, found: Record) -> Record:
    """The turn, which is ours now. Raises ConditionFailed when someone else has come first."""
    store, lease = engine.stores[found.place.api], engine.lease()
    taken = TakenOver(max(engine.world.clock.now(), found.turn.last_at + 1), frames_ahead(found), lost=True)
    fenced = await store.fence(await store.settle(replace(found, lease=lease)), lease, [taken])
    logger.warning("a turn lost its driver and goes on", extra={"turn_id": found.turn.id})
    engine.saw(found.place.api, taken)
    return fenced


def _awaits_start(record: Record, spec: Spec) -> bool:
    """Whether the state machine is to have the turn and nothing has happened since: no driver is lost.

    An execution that is not known may have run all the same: the laptop's state machine forgets.
    """
    match record.events[-1]:
        case TakenOver(lost=True):
            return True
        case TurnStarted():
            return record.turn.queued
        case ToolStarted() | ToolCompleted():
            return False
    return isinstance(decide(record.turn, spec), CallTools)


async def _start_again(engine: Engine, record: Record, spec: Spec, lost: int) -> None:
    """Try the start that was refused; only one of those who try at once takes the lease. Raises ConditionFailed."""
    seconds = (engine.world.clock.now() - record.turn.last_at) / 1e6
    if seconds > START_SECONDS:
        await engine.fail(record, ServerFault("The turn could not be started within an hour."))
        return
    lease = engine.lease(max(engine.pace.lease, min(seconds, START_PAUSE_SECONDS)))
    await engine.hand_over(await engine.stores[record.place.api].append(record, (), lease), spec, lost)


def _worn_out(engine: Engine, record: Record) -> ServerFault:
    """The failure of a turn that lost too many drivers: when, and what they were doing."""
    losses = [*_losses(record), (engine.world.clock.now(), record.turn)]
    attempts = [f"{_time_of_day(at)} {_activity(turn)}" for at, turn in losses]
    return ServerFault(f"The turn lost its driver {len(losses)} times (UTC): {', '.join(attempts)}.")


def _losses(record: Record) -> Iterator[tuple[int, Turn]]:
    """The times at which drivers were found to be lost, and the turn as each left it."""
    turn = Turn(record.turn.id)
    for event in record.events:
        if isinstance(event, TakenOver) and event.lost:
            yield event.at, turn
        turn = fold(turn, [event])


def _time_of_day(at: int) -> str:
    seconds = at // 1_000_000 % 86_400
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _activity(turn: Turn) -> str:
    if turn.cut:
        return "in a model call"
    return "in tool calls" if turn.started_calls else "between actions"


def frames_ahead(record: Record) -> int:
    """How many frames the driver of this turn may have sent that are not in the log.

    The state machine sends nothing. It has the turn from the start if that runs in the background, and otherwise once
    tools are due or another driver was lost. And a model call that has ended is followed by another one only there.
    """
    if (record.turn.settings or {}).get("background"):
        return 0
    for event in reversed(record.events):
        if isinstance(event, InferenceCompleted | CallsAllowed | ToolStarted | ToolCompleted | TakenOver):
            return 0
        if isinstance(event, InputProvided):
            break
    return AHEAD_FRAMES


async def sweep(engine: Engine) -> int:
    """Take over the turns whose driver is lost; the number of those that were.

    It ends before the next sweep begins. Those lost last come first: behind them are turns that have been looked at
    before, most of which wait in the state machine.
    """
    ends = engine.world.clock.now() + SWEEP_SECONDS * 1_000_000
    shards = [(store, shard) for store in engine.stores.values() for shard in range(SHARDS)]
    return sum(await asyncio.gather(*(_sweep_shard(engine, store, shard, ends) for store, shard in shards)))


async def _sweep_shard(engine: Engine, store: Turns, shard: int, ends: int) -> int:
    taken = 0
    async for turn_id, place in store.overdue(shard, engine.world.clock.now()):
        if engine.world.clock.now() > ends:
            logger.warning("a sweep ended before it had looked at all turns whose lease is over")
            return taken
        try:
            taken += await take_over(engine, place)
        except Exception:  # one turn must not keep the others from going on
            logger.exception("a turn could not be taken over", extra={"turn_id": turn_id})
    return taken
