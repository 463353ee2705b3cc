"""What every driver shares: the ports, the stores, and how a stored turn gets its rules back."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from turnloom.domain.action import Action, CallModel, CallTools, Gather, RunShields
from turnloom.domain.decide import decide
from turnloom.domain.errors import NotFound, Problem, TurnGoesOn
from turnloom.domain.event import Event, TurnFailed
from turnloom.domain.message import JSON, Spec
from turnloom.domain.transcript import Dialect, transcript
from turnloom.domain.turn import Turn
from turnloom.engine.journal import Journal
from turnloom.engine.offer import names
from turnloom.engine.scene import Scene, World
from turnloom.ports import ExecutionStatus, Meter, NotStarted, Orchestrator, ToolScope
from turnloom.store.turns import Place, Record, Turns, Unstored

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Brief:
    """What a driver must know beside the turn: its rules, the turns before it, and for whom its tools run."""

    spec: Spec
    history: tuple[Turn, ...]
    dialect: Dialect
    scope: ToolScope

    def scene(self, turn: Turn, action: Action, patience: float) -> Scene:
        """The turn as this action needs it; only the model, the shields and a summary get to see messages."""
        shown = isinstance(action, CallModel | RunShields)
        shown = shown or (isinstance(action, Gather) and self.spec.compact_above is not None)
        if not shown:
            return Scene(turn, self.spec, (), self.scope, patience)
        messages = transcript(self.spec, self.history, turn, self.dialect, names(self.spec, turn))
        return Scene(turn, self.spec, messages, self.scope, patience)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast things are written and looked for, in seconds.

    `logged` is how old an event may get before a driver that nobody is connected to logs it; `poll` how often a
    follower looks, at first and at most; `lease` how long a driver is believed in after its last write. `patience` is
    how long the upstream may ask us to wait: for a reader whose stream has not begun and who can be told so (two such
    waits must leave the model time to answer before the status is due), for a caller who waits for the whole, and for
    nobody.
    """

    logged: float = 0.5
    poll: tuple[float, float] = (0.05, 0.5)
    lease: float = 30.0
    patience: tuple[float, float, float] = (0.3, 5.0, 60.0)


@dataclass(frozen=True, slots=True)
class Engine:
    """Runs turns. `brief` resolves a stored turn's rules and history; without an orchestrator tools run inline."""

    world: World
    stores: Mapping[str, Turns]
    brief: Callable[[Record], Awaitable[Brief]]
    orchestrator: Orchestrator
    pace: Pace = Pace()
    meter: Meter | None = None

    def journal(self, store: Turns | Unstored, record: Record, spec: Spec, ahead_seconds: float) -> Journal:
        """The pen for a driver of this turn, whose events are measured."""
        seen = partial(self.saw, record.place.api, model=spec.model)
        return Journal(store, record, self.world.clock, ahead_seconds, self.pace.lease, seen)

    def saw(self, api: str, event: Event, *, model: str | None = None) -> None:
        """Measure what has happened, where figures are kept."""
        if self.meter is not None:
            self.meter.saw(event, api=api, model=model)

    async def hand_over(self, record: Record, spec: Spec, lost: int = 0) -> None:
        """Let the state machine go on with a turn that has lost so many drivers.

        A start that is refused is tried again when the lease is over.
        """
        try:
            await self.orchestrator.start(_execution(record, lost), state_of(record, spec))
        except NotStarted as failure:
            logger.warning("the state machine was not started: %s", failure, extra={"turn_id": record.turn.id})

    async def execution_status(self, record: Record, lost: int) -> ExecutionStatus:
        """The status of the leg's newest execution; `running` also while an earlier one runs or waits to."""
        newest = await self.orchestrator.status(_execution(record, lost))
        for number in range(lost):
            if newest != "running":
                earlier = await self.orchestrator.status(_execution(record, number))
                newest = "running" if earlier == "running" else newest
        return newest

    async def fail(self, record: Record, problem: Problem) -> None:
        """End a turn that cannot go on. Raises ConditionFailed when someone else has come first."""
        failure = TurnFailed(max(self.world.clock.now(), record.turn.last_at + 1), problem.code, problem.message)
        await self.stores[record.place.api].settle(replace(record.with_events([failure]), lease=0, secrets=None))
        logger.warning("a turn failed: %s", problem.code, extra={"turn_id": record.turn.id})
        self.saw(record.place.api, failure)

    def lease(self, seconds: float | None = None) -> int:
        """The time until which a driver that writes now is taken to be alive."""
        return self.world.clock.now() + int((seconds or self.pace.lease) * 1_000_000)


def gone(record: Record) -> NotFound:
    """That the turn was deleted, in the words of its API."""
    return NotFound("response" if record.place.api == "responses" else "turn", record.turn.id)


def out_of_touch(failure: Exception, record: Record) -> Problem:
    """The problem of a reader whose turn could not be written or read, so that nobody knows how it ends."""
    if isinstance(failure, NotFound | TurnGoesOn):
        return failure
    logger.error("a turn could not be written or read", exc_info=failure, extra={"turn_id": record.turn.id})
    return TurnGoesOn(record.turn.id)


def _execution(record: Record, lost: int) -> str:
    """The name of an execution for this leg of the turn. It is started once, whoever starts it."""
    return f"{record.turn.id}-{record.turn.leg}-{lost}"


def state_of(record: Record, spec: Spec) -> dict[str, JSON]:
    """The state machine's view of a turn: where it is and what it wants next, ids only."""
    place = record.place
    turn = {
        "api": place.api,
        "owner": place.owner,
        "thread": place.thread,
        "ordinal": place.ordinal,
        "leg": record.turn.leg,
        "id": record.turn.id,
    }
    if not record.running:
        return {"turn": turn, "next": "done", "calls": []}
    action = decide(record.turn, spec)
    calls = list(action.call_ids) if isinstance(action, CallTools) else []
    return {"turn": turn, "next": action.kind, "calls": calls}


def place_of(turn: Mapping[str, JSON]) -> Place:
    """The place that `state_of` wrote down."""
    return Place(turn["api"], turn["owner"], turn["thread"], turn["ordinal"])
