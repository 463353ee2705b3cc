"""Reading a turn that someone else drives: from the log, then from its row once it rests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from turnloom.domain.errors import Problem
from turnloom.domain.event import Event
from turnloom.domain.turn import Turn, fold
from turnloom.engine.engine import Engine, gone, out_of_touch
from turnloom.engine.takeover import take_over
from turnloom.store.turns import Record, check_content, content_lost


class Followed:
    """A turn driven elsewhere, or long over, as a reader sees it; `record` holds what is known of it already."""

    problem: Problem | None = None

    def __init__(self, engine: Engine, record: Record) -> None:
        self.record = _without_provisional(record) if record.closing > engine.world.clock.now() else record
        self._engine = engine

    def events(self) -> AsyncGenerator[Event]:
        return follow(self._engine, self.record)

    async def settled(self) -> Turn:
        """The turn once it rests."""
        return fold(self.record.turn, [event async for event in self.events()])


async def follow(engine: Engine, record: Record) -> AsyncGenerator[Event]:
    """The events after those that `record` knows, as they are logged, until the turn rests.

    A turn whose driver is lost is taken over on the way. Raises NotFound when the turn is deleted, ContentLost when a
    part of it is missing, and TurnGoesOn when the store fails.
    """
    try:
        async with aclosing(_follow(engine, record)) as events:
            async for event in events:
                yield event
    except Problem:
        raise
    except Exception as failure:
        raise out_of_touch(failure, record) from failure


async def _follow(engine: Engine, record: Record) -> AsyncGenerator[Event]:
    store = engine.stores[record.place.api]
    soonest, latest = engine.pace.poll
    delay, patient_until = soonest, 0
    row: Record | None = None
    while record.running:
        batches = await store.tail(record)
        for batch in batches:
            if batch.content_lost:
                raise content_lost(record)
            for event in batch.events:
                yield event
            record = replace(record.with_events(batch.events), batches=batch.number + 1, lease=batch.lease)
        delay = soonest if batches else min(delay * 1.5, latest)
        row = await store.peek(record.place, row)
        if row is None:
            raise gone(record)
        if not row.running:
            check_content(row)
        if not row.running and row.closing <= engine.world.clock.now():
            for event in row.events[len(record.events) :]:
                yield event
            return
        lease = record.lease if record.batches > row.batches else row.lease
        if row.running and max(lease, patient_until) < engine.world.clock.now():
            await take_over(engine, record.place)
            patient_until = engine.lease()
        await engine.world.clock.sleep(delay)


def _without_provisional(record: Record) -> Record:
    """The record of a turn that was cancelled a moment ago, as it was before."""
    events = record.events[:-2]
    return replace(record, events=events, turn=fold(Turn(record.turn.id), events))
