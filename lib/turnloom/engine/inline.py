"""The driver of a turn that someone is connected to: decide, perform, evolve until the turn rests or is handed over.

What the reader may be told before it is logged: the opening of an inference and what the model adds to the block it
is writing. Everything that closes something is logged first, and what ends or rests the turn is stored first.

The drive does not depend on its reader: who goes away misses the rest, the turn does not. One who is too far behind is
let go, as the log has the rest; where there is no log, the model waits for the reader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress

from turnloom.domain.action import Action, AwaitClient, CallTools, Finish
from turnloom.domain.decide import decide
from turnloom.domain.errors import NotFound, Problem, ServerFault, TurnGoesOn
from turnloom.domain.event import CallStarted, Delta, Event, InferenceStarted, TurnFailed
from turnloom.domain.turn import Call, Inference, Said, Turn, evolve
from turnloom.engine.cancel import cancel
from turnloom.engine.engine import Brief, Engine, out_of_touch
from turnloom.engine.follow import Followed, follow
from turnloom.engine.journal import AHEAD_SECONDS
from turnloom.engine.perform import perform
from turnloom.engine.scene import Scene
from turnloom.ports import ConditionFailed
from turnloom.store.turns import Record, Turns, Unstored

logger = logging.getLogger(__name__)

VERDICT_LOOKS, VERDICT_SECONDS = 30, 0.1
"""How often, and how many seconds apart, a driver that lost the log looks for the reason."""

READER_EVENTS, BEHIND_SECONDS = 10_000, 0.1
"""How many events a reader may be behind, and for how long at a time a driver waits for one who is."""

_drives: set[asyncio.Task[None]] = set()


class OutrunLog(TurnGoesOn):
    """The reader was told what never got into the log, and another driver goes on from there: it must read again."""

    code = "turn_taken_over"

    def __init__(self, turn_id: str) -> None:
        super().__init__(turn_id, "Another driver took it over; read on from the last frame you have.")


class Run:
    """A turn being driven here, and its events as they may be told. One reader at most.

    `waits` says that the reader only wants the whole, so that the upstream may take its time.
    """

    def __init__(
        self, engine: Engine, store: Turns | Unstored, record: Record, brief: Brief, *, waits: bool = False
    ) -> None:
        self.record = record
        self.brief = brief
        self.problem: Problem | None = None
        self._engine = engine
        self._patience = engine.pace.patience[1 if waits else 0]
        self._store = store
        self._journal = engine.journal(store, record, brief.spec, AHEAD_SECONDS)
        self._spoken = False
        self._held: list[Event] = []
        self._told: asyncio.Queue[Event | Problem | None] = asyncio.Queue()
        self._behind = False
        self._drive: asyncio.Task[None] | None = None
        self._last_work: Callable[[], Awaitable[None]] | None = None

    async def start(self, opening: Awaitable[Record] | None = None) -> None:
        """Begin to drive, and wait until `opening`, the write that makes the turn exist, is done.

        The two overlap. When the opening fails, the drive is called off and the failure raised.
        """
        if opening is not None:
            self._journal.opened = asyncio.ensure_future(opening)
        self._drive = asyncio.create_task(self._to_the_end())
        _drives.add(self._drive)
        self._drive.add_done_callback(_drives.discard)
        if self._journal.opened is not None:
            await self._await_opening(self._journal.opened)

    async def _await_opening(self, opened: asyncio.Future[Record]) -> None:
        try:
            await asyncio.shield(opened)
        except BaseException:
            self.stop()
            raise

    def abandon(self) -> None:
        """End the turn for want of a reader: nobody else is to have it."""
        if isinstance(self._store, Turns):
            task = asyncio.create_task(self._cancel())
            _drives.add(task)
            task.add_done_callback(_drives.discard)
        else:
            self.stop()

    async def _cancel(self) -> None:
        try:
            with suppress(NotFound):
                await cancel(self._engine, self.record)
        except Exception:
            logger.exception("a turn without a reader could not be ended", extra={"turn_id": self.record.turn.id})

    def stop(self) -> None:
        """Call the drive off; a stored turn is then taken over by the sweeper."""
        if self._drive is not None:
            self._drive.cancel()

    def afterwards(self, work: Callable[[], Awaitable[None]]) -> None:
        """Have this done when the drive is over, before its reader is let go; to be said before the start."""
        self._last_work = work

    async def events(self) -> AsyncGenerator[Event]:
        """The events from where this run began, until the turn rests. Raises the Problem that kept it from ending."""
        while (event := await self.next_event()) is not None:
            yield event

    async def next_event(self) -> Event | None:
        """The next event; None, now and ever after, once the turn rests."""
        told = await self._told.get()
        if told is None:
            self._told.put_nowait(None)
        if isinstance(told, Problem):
            raise told
        return told

    async def settled(self) -> Turn:
        """The turn once it rests."""
        turn = self.record.turn
        try:
            async for event in self.events():
                turn = evolve(turn, event)
        except OutrunLog:
            return await self.followed().settled()
        return turn

    def followed(self) -> Followed:
        """The same turn as its log tells it, from where this run began."""
        return Followed(self._engine, self.record)

    async def _to_the_end(self) -> None:
        try:
            try:
                await self._drive_on()
            except ConditionFailed:
                await self._tell_what_others_make_of_it()
        except asyncio.CancelledError:
            raise
        except Exception as failure:
            self._told.put_nowait(self._undecided(failure))
        finally:
            await self._let_go()

    def _undecided(self, failure: Exception) -> Problem:
        """The problem of a turn whose end was not stored; only one that is never stored ends with that."""
        if isinstance(self._store, Turns):
            return out_of_touch(failure, self.record)
        return _as_problem(failure, self.record.turn.id)

    async def _let_go(self) -> None:
        try:
            if self._last_work is not None:
                await self._last_work()
        except Exception:
            logger.exception("what was to be done after a turn failed", extra={"turn_id": self.record.turn.id})
        finally:
            self._told.put_nowait(None)

    async def _tell_what_others_make_of_it(self) -> None:
        """Follow the log, unless the reader has been told of things that never got there: it must read again."""
        untold = min(len(self._held), self._journal.unlogged)
        for event in self._held[: len(self._held) - untold]:  # the pulse has logged them in the meantime
            await self._tell(event)
        row = await self._verdict(self._store) if isinstance(self._store, Turns) else None
        if row is not None and row.closing > self._engine.world.clock.now():
            await self._tell_cancelled(row, untold)
        elif row is not None and self._journal.unlogged > untold:
            self._told.put_nowait(OutrunLog(self.record.turn.id))
        else:
            await self._tell_the_rest()

    async def _verdict(self, store: Turns) -> Record | None:
        """The row as written by whoever took the log: one who cancels takes that first, and writes within moments."""
        for _ in range(VERDICT_LOOKS):
            row = await store.peek(self.record.place)
            if row is None or not row.running or row.version != self._journal.record.version:
                break
            await self._engine.world.clock.sleep(VERDICT_SECONDS)
        return row

    async def _tell_cancelled(self, row: Record, untold: int) -> None:
        try:
            await self._tell(await self._journal.amend(row, untold))
        except ConditionFailed:
            await self._tell_the_rest()

    async def _drive_on(self) -> None:
        try:
            async with self._journal.kept_alive():
                handed_over = await self._act()
        except ConditionFailed:
            raise
        except Exception as failure:
            await self._fail(_as_problem(failure, self.record.turn.id))
            return
        if handed_over:
            await self._tell_the_rest()

    async def _act(self) -> bool:
        """Act until the turn rests (False) or is handed to the state machine (True)."""
        spec = self.brief.spec
        while not isinstance(action := decide(self._journal.turn, spec), AwaitClient | Finish):
            await self._release()
            if isinstance(action, CallTools) and isinstance(self._store, Turns):
                await self._hand_over()
                return True
            await self._perform(action)
        # What came before and what ends the leg are stored by one write, and told after it.
        async for event in perform(action, self._scene(action), self._engine.world):
            self._journal.note(event)
            self._held.append(event)
        await self._journal.settle()
        await self._tell_held()
        return False

    async def _perform(self, action: Action) -> None:
        async with aclosing(perform(action, self._scene(action), self._engine.world)) as events:
            async for event in events:
                await self._take(event)

    def _scene(self, action: Action) -> Scene:
        return self.brief.scene(self._journal.turn, action, self._patience)

    async def _take(self, event: Event) -> None:
        ahead = _may_run_ahead(self._journal.turn, event)
        await self._release()
        self._journal.note(event)
        if ahead:
            await self._tell(event)
        else:
            self._held.append(event)
        if isinstance(event, Delta) and not self._spoken:
            self._spoken = True
            self._measure_first_token()

    def _measure_first_token(self) -> None:
        if self._engine.meter is not None:
            seconds = (self._engine.world.clock.now() - self.record.turn.last_at) / 1e6
            self._engine.meter.first_token(seconds, api=self.record.place.api, model=self.brief.spec.model)

    async def _release(self) -> None:
        """Log what was held back, then tell it."""
        if self._held or self._journal.full:
            await self._journal.flush()
        await self._tell_held()

    async def _tell_held(self) -> None:
        for event in self._held:
            await self._tell(event)
        self._held.clear()

    async def _tell(self, event: Event) -> None:
        """Queue the event for the reader, who misses it and all after it when too far behind a stored turn."""
        while self._told.qsize() >= READER_EVENTS and not self._behind:
            await self._engine.world.clock.sleep(BEHIND_SECONDS)
            if isinstance(self._store, Turns) and self._told.qsize() >= READER_EVENTS:
                self._behind = True
                late = TurnGoesOn(self.record.turn.id, "It was read too slowly; read on from the last frame you have.")
                self._told.put_nowait(late)
        if not self._behind:
            self._told.put_nowait(event)

    async def _hand_over(self) -> None:
        record = self._journal.record
        await self._engine.hand_over(record, self.brief.spec)

    async def _fail(self, problem: Problem) -> None:
        self.problem = problem
        at = max(self._engine.world.clock.now(), self._journal.turn.last_at + 1)
        failure = TurnFailed(at, problem.code, problem.message)
        self._journal.note(failure)
        self._held.append(failure)
        await self._journal.settle()
        await self._tell_held()

    async def _tell_the_rest(self) -> None:
        """Tell what others make of the turn, from the log, or that it was deleted."""
        try:
            async with aclosing(follow(self._engine, self._journal.record)) as events:
                async for event in events:
                    await self._tell(event)
        except Problem as problem:
            self._told.put_nowait(problem)


def _as_problem(failure: Exception, turn_id: str) -> Problem:
    if isinstance(failure, Problem):
        return failure
    logger.error("the driver of a turn broke down", exc_info=failure, extra={"turn_id": turn_id})
    return ServerFault("The turn failed because of an internal error.")


def _may_run_ahead(turn: Turn, event: Event) -> bool:
    """Whether the event only opens an inference or adds to its open block, and so closes nothing."""
    if isinstance(event, InferenceStarted):
        return True
    last = turn.steps[-1] if turn.steps else None
    if not isinstance(last, Inference):
        return False
    block = last.blocks[-1] if last.blocks else None
    match event:
        case CallStarted():
            return block is None
        case Delta(block="arguments"):
            return isinstance(block, Call)
        case Delta():
            return block is None or (isinstance(block, Said) and block.block == event.block)
        case _:
            return False
