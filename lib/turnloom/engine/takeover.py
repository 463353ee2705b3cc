"""Going on with a turn whose driver was lost: any reader may find one, and the sweeper looks for them."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from turnloom.domain.errors import Problem, ServerFault
from turnloom.domain.event import (
    CallsAllowed,
    InferenceCompleted,
    InputProvided,
    TakenOver,
    ToolCompleted,
    ToolStarted,
)
from turnloom.engine.engine import Engine
from turnloom.engine.journal import AHEAD_FRAMES
from turnloom.ports import ConditionFailed
from turnloom.store.turns import SHARDS, Place, Record, Turns

logger = logging.getLogger(__name__)

MOST_LOST_DRIVERS = 3
SWEEP_SECONDS = 45


async def take_over(engine: Engine, place: Place) -> bool:
    """Fence the lost driver off and let the state machine go on, or fail a turn that has lost too many.

    Whether that was done. A turn that the state machine has is not lost, though it may wait there. Harmless when
    someone else was quicker, or the driver turns out to be alive: one of them gets on.
    """
    found = await _overdue(engine, place)
    if found is None:
        return False
    lost = sum(isinstance(event, TakenOver) and event.lost for event in found.events)
    if await engine.handed_over(found, lost) or _moved(found, await _overdue(engine, place)):
        return False
    try:
        if lost >= MOST_LOST_DRIVERS:
            await engine.fail(found, ServerFault(f"The turn lost its driver {lost + 1} times."))
        else:
            await _go_on(engine, await _fenced_off(engine, found), lost + 1)
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


async def _fenced_off(engine: Engine, found: Record) -> Record:
    """The turn, which is ours now. Raises ConditionFailed when someone else has come first."""
    store, lease = engine.stores[found.place.api], engine.lease()
    taken = TakenOver(max(engine.world.clock.now(), found.turn.last_at + 1), frames_ahead(found), lost=True)
    fenced = await store.fence(await store.settle(replace(found, lease=lease)), lease, [taken])
    logger.warning("a turn lost its driver and goes on", extra={"turn_id": found.turn.id})
    engine.saw(found.place.api, taken)
    return fenced


async def _go_on(engine: Engine, record: Record, lost: int) -> None:
    """Hand the turn over; one whose rules or history are gone has failed."""
    try:
        spec = (await engine.brief(record)).spec
    except Problem as problem:
        await engine.fail(record, problem)
        return
    await engine.hand_over(record, spec, lost)


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
