"""Ending a turn at the wish of a client, whoever drives it."""

from __future__ import annotations

from dataclasses import replace

from turnloom.domain.event import Event, TakenOver, TurnCancelled
from turnloom.engine.engine import Engine, gone
from turnloom.engine.takeover import frames_ahead
from turnloom.ports import ConditionFailed
from turnloom.store.turns import Record


async def cancel(engine: Engine, record: Record) -> Record:
    """The turn, cancelled unless it had ended before; its driver learns of it by its next write. Raises NotFound.

    A driver that may have told its reader more than it has logged gets the length of a lease to add that.
    """
    store = engine.stores[record.place.api]
    while True:
        found = await store.load(record.place)
        if found is None or found.turn.id != record.turn.id:
            raise gone(record)
        if found.turn.status not in ("in_progress", "awaiting_input"):
            return found
        if found.running:
            found = await store.fence(found, found.lease)
        try:
            ended = await store.settle(_ended(engine, found))
        except ConditionFailed:
            continue
        engine.saw(ended.place.api, ended.events[-1])
        return ended


def _ended(engine: Engine, record: Record) -> Record:
    at = max(engine.world.clock.now(), record.turn.last_at + 1)
    ahead = frames_ahead(record) if record.running else 0
    end: list[Event] = [TakenOver(at, ahead), TurnCancelled(at)] if ahead else [TurnCancelled(at)]
    closing = record.lease if ahead else 0
    return replace(record.with_events(end), lease=0, secrets=None, closing=closing)
