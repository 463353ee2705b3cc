"""Going on with a turn whose driver was lost: any reader may find one, and the sweeper looks for them."""

from __future__ import annotations

from dataclasses import replace

from turnloom.domain.event import TakenOver, TurnFailed
from turnloom.engine.engine import Engine
from turnloom.engine.journal import AHEAD_FRAMES
from turnloom.ports import ConditionFailed
from turnloom.store.turns import Record

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
    at = max(now, found.turn.last_at + 1)
    try:
        if lost >= MOST_LOST_DRIVERS:
            failure = TurnFailed(at, "internal_error", f"The turn lost its driver {lost + 1} times.")
            await store.settle(replace(found.with_events([failure]), lease=0, secrets=None))
            return
        lease = engine.lease()
        found = await store.settle(replace(found, lease=lease))
        found = await store.fence(found, lease, [TakenOver(at, AHEAD_FRAMES)])
    except ConditionFailed:
        return
    spec = (await engine.brief(found)).spec
    await engine.hand_over(f"{found.turn.id}-{found.turn.leg}-{lost + 1}", found, spec)


async def sweep(engine: Engine) -> int:
    """Take over every turn whose lease has run out; the number of those found."""
    overdue = [record for store in engine.stores.values() for record in await store.overdue(engine.world.clock.now())]
    for record in overdue:
        await take_over(engine, record)
    return len(overdue)
