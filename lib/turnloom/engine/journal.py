"""A driver's pen: notes events, writes them to the log in small batches, keeps the lease alive.

What has been noted but not logged is what a crash loses; `AHEAD_EVENTS`, `AHEAD_CHARACTERS` and `AHEAD_SECONDS` bound
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from turnloom.domain.event import Event, TurnCancelled
from turnloom.domain.turn import Turn, evolve, withheld
from turnloom.ports import Clock, ConditionFailed
from turnloom.store.turns import Record, Turns, Unstored

AHEAD_EVENTS = 64
AHEAD_FRAMES = AHEAD_EVENTS + 2
"""As frames: the first delta also opens its item and its part."""
AHEAD_CHARACTERS = 50_000
"""As Python shows the events. In UTF-8 that is at most 200,000 bytes, so that a row holds them and some more."""
AHEAD_SECONDS = 2.0
LOOK_SECONDS = 2.0
"""After how long, at the latest, a driver that has nothing to log knows that the turn is not its own any more."""


class Journal:
    """Writes one turn on from `record`. Every write raises ConditionFailed once another driver or a cancel came first.

    `ahead_seconds` is how old an unlogged event may get: short where readers see only the log. Every write of a turn
    that goes on holds for `lease_seconds`. `seen` is called with every event that is noted.
    """

    def __init__(
        self,
        store: Turns | Unstored,
        record: Record,
        clock: Clock,
        ahead_seconds: float,
        lease_seconds: float,
        seen: Callable[[Event], None],
    ) -> None:
        self.record = record
        self.turn: Turn = record.turn
        self.opened: asyncio.Future[Record] | None = None
        self._store = store
        self._clock = clock
        self._ahead_seconds = ahead_seconds
        self._lease_seconds = lease_seconds
        self._pending: list[Event] = []
        self._characters = 0
        self._written = clock.now()
        self._looked = self._written
        self._seen = seen
        self._lock = asyncio.Lock()

    def note(self, event: Event) -> None:
        """Let the event have happened; it is stored by one of the next writes."""
        self.turn = evolve(self.turn, event)
        self._pending.append(event)
        self._characters += _length(event)
        self._seen(event)

    @property
    def unlogged(self) -> int:
        """How many events have happened that no write has stored."""
        return len(self._pending)

    @property
    def full(self) -> bool:
        return len(self._pending) >= AHEAD_EVENTS or self._characters >= AHEAD_CHARACTERS

    async def flush(self) -> None:
        """Log what was noted."""
        async with self._lock:
            if self._pending:
                await self._append()

    async def settle(self) -> None:
        """Write the turn's row with all its events: the turn rests, or has ended."""
        async with self._lock:
            await self._await_opening()
            events = self.record.events + tuple(self._pending)
            check = self.turn.violation
            if check is not None and check.touchpoint == "assistant-output":
                events = withheld(events)
            record = replace(self.record, events=events, turn=self.turn, lease=0, secrets=None)
            self.record = await self._store.settle(record)
            self._forget(len(self._pending))

    async def amend(self, cancelled: Record, untold: int) -> TurnCancelled:
        """Complete the row of a turn that was cancelled with what was told, all but the last `untold` events.

        Raises ConditionFailed when there is another such driver, or the turn was deleted.
        """
        kept = self._pending[: max(0, len(self._pending) - untold)]
        before = self.record.with_events(kept)
        end = TurnCancelled(max(cancelled.turn.last_at, before.turn.last_at))
        after = before.with_events([end])
        await self._store.settle(replace(cancelled, events=after.events, turn=after.turn, closing=0))
        self._forget(len(self._pending))
        return end

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """While inside, unlogged events do not grow old and the lease does not run out.

        A failing write cancels what runs inside and is raised in its place.
        """
        try:
            async with asyncio.TaskGroup() as group:
                pulse = group.create_task(self._pulse())
                yield
                pulse.cancel()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _pulse(self) -> None:
        while True:
            await self._clock.sleep(self._ahead_seconds)
            async with self._lock:
                await self._beat(self._clock.now())

    async def _beat(self, now: int) -> None:
        if self._pending or now - self._written > self._lease_seconds / 3 * 1e6:
            await self._append()
        elif now - max(self._looked, self._written) > (LOOK_SECONDS - self._ahead_seconds) * 1e6:
            self._looked = now
            await self._look()

    async def _await_opening(self) -> None:
        if self.opened is not None:
            self.record = replace(self.record, blob=self.record.blob or (await self.opened).blob)

    async def _look(self) -> None:
        await self._await_opening()
        if await self._store.fenced(self.record):
            raise ConditionFailed

    async def _append(self) -> None:
        await self._await_opening()
        # Taken before the write: what is noted meanwhile belongs to the next batch.
        events, turn = tuple(self._pending), self.turn
        now = self._clock.now()
        lease = now + int(self._lease_seconds * 1e6)
        self.record = await self._store.append(self.record, events, lease, turn)
        self._forget(len(events))
        self._written = now

    def _forget(self, count: int) -> None:
        """Forget this many of the events noted, for they are stored, or are not to be."""
        del self._pending[:count]
        self._characters = sum(map(_length, self._pending))


def _length(event: Event) -> int:
    return len(str(event))
