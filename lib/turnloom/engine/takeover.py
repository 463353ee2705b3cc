"""Going on with a turn whose driver was lost: any reader may find one, and the sweeper looks for them."""

from __future__ import annotations

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
from turnloom.store.turns import Record

logger = logging.getLogger(__name__)

MOST_LOST_DRIVERS = 3


async def take_over(engine: Engine, record: Record) -> None:
    """Fence the lost driver off and let the state machine go on, or fail a turn that has lost too many.

    Harmless when someone else was quicker, or the driver turns out to be alive: one of them gets on.
    """
    store = engine.stores[record.place.api]
    found = await store.load(record.place)
    now = engine.world.clock.now()
    if found is None or not found.running or found.lease >= now:
        return
    lost = sum(isinstance(event, TakenOver) for event in found.events)
    try:
        if lost >= MOST_LOST_DRIVERS:
            await engine.fail(found, ServerFault(f"The turn lost its driver {lost + 1} times."))
            return
        lease = engine.lease()
        found = await store.settle(replace(found, lease=lease))
        taken = TakenOver(max(now, found.turn.last_at + 1), frames_ahead(found))
        fenced = await store.fence(found, lease, [taken])
        engine.saw(found.place.api, taken)
        await _go_on(engine, fenced, lost + 1)
    except ConditionFailed:
        return


async def _go_on(engine: Engine, record: Record, lost: int) -> None:
    """Hand the turn over; one whose rules or history are gone has failed."""
    try:
        spec = (await engine.brief(record)).spec
    except Problem as problem:
        await engine.fail(record, problem)
        return
    await engine.hand_over(f"{record.turn.id}-{record.turn.leg}-{lost}", record, spec)


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
    """Take over every turn whose lease has run out; the number of those found."""
    overdue = [record for store in engine.stores.values() for record in await store.overdue(engine.world.clock.now())]
    for record in overdue:
        try:
            await take_over(engine, record)
        except Exception:  # one turn must not keep the others from going on
            logger.exception("a turn could not be taken over", extra={"turn_id": record.turn.id})
    return len(overdue)
