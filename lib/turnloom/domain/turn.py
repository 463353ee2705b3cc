"""A turn, as the fold of its events.

    evolve(turn, event) -> turn

A turn is a list of *steps* in the order a reader is told of them. The calls of one model message run at the same time
and may finish in any order; their steps stand in the order of the calls, whoever was first. While an inference runs,
it is the last step, with `completed_at` None. Nothing here reads a clock: times come with the events.

The ugly corner: a turn that is `completed` can go on. A client may find tool calls in the text of the answer and
send their results; `InputProvided` then reopens the turn (contract of the Agents API, "reopens it").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce, wraps
from typing import Literal, TypeVar, assert_never
from weakref import WeakKeyDictionary

from turnloom.domain.event import (
    CallsAllowed,
    CallStarted,
    Compacted,
    ContextInserted,
    Delta,
    Event,
    FinishReason,
    Gathered,
    InferenceCompleted,
    InferenceStarted,
    InputAwaited,
    InputProvided,
    Reason,
    Runner,
    ShieldsRun,
    TakenOver,
    ToolCompleted,
    ToolsListed,
    ToolStarted,
    Touchpoint,
    TurnAbandoned,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnStarted,
)
from turnloom.domain.message import JSON, AllowedCall, ToolCall, ToolKind, Usage
from turnloom.domain.portable_json import MOST_LEVELS, finite, levels

T = TypeVar("T")
Status = Literal["in_progress", "awaiting_input", "completed", "failed", "abandoned", "cancelled"]


class IllegalEvent(Exception):
    """The event cannot happen to a turn in this state; the log or its writer is wrong."""


@dataclass(frozen=True, slots=True)
class Said:
    """A run of text in one voice: the answer, a refusal, or reasoning."""

    block: Literal["text", "refusal", "reasoning"]
    text: str
    logprobs: tuple[JSON, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call of the model, and who answers it; `request` is the item that asked for its approval, if one did."""

    call_id: str
    name: str
    runner: Runner
    group: str | None = None
    arguments: str = ""
    kind: ToolKind = "function"
    request: str | None = None

    def parsed(self) -> dict[str, JSON] | None:
        """The arguments as an object; no text at all means none; None when they are anything else.

        That includes what cannot be written as JSON again: NaN, infinite numbers, nesting beyond `MOST_LEVELS`.
        """
        try:
            value = json.loads(self.arguments or "{}", parse_constant=finite, parse_float=finite)
            return value if isinstance(value, dict) and levels(value) <= MOST_LEVELS else None
        except (ValueError, RecursionError):
            return None

    def as_message(self) -> ToolCall:
        """The call as the model is shown it again."""
        custom = self.kind == "custom"
        arguments = json.dumps({"input": self.arguments}, ensure_ascii=False) if custom else self.arguments or "{}"
        return ToolCall(self.call_id, self.name, arguments, self.group, self.runner in ("server", "approval"))


@dataclass(frozen=True, slots=True)
class Inference:
    started_at: int
    blocks: tuple[Said | Call, ...] = ()
    completed_at: int | None = None
    finish: FinishReason | None = None
    usage: Usage = Usage()
    extras: Mapping[str, JSON] = field(default_factory=dict)

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(block for block in self.blocks if isinstance(block, Call))

    @property
    def whole_calls(self) -> tuple[Call, ...]:
        """The calls that the model finished writing: of an answer that was cut, the last block may be a fragment."""
        whole = self.blocks if self.finish in ("stop", "tool_calls") else self.blocks[:-1]
        return tuple(block for block in whole if isinstance(block, Call))

    def said(self, block: Literal["text", "refusal", "reasoning"]) -> str:
        """All text of one voice, joined."""
        return "".join(b.text for b in self.blocks if isinstance(b, Said) and b.block == block)


@dataclass(frozen=True, slots=True)
class Resumption:
    """The calls of an earlier turn that the client allowed; their runs follow, in this order."""

    at: int
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Compaction:
    """The place where a summary took over from all that was said before."""

    completed_at: int
    summary: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class ToolRun:
    """A server-side call and its answer."""

    call: Call
    started_at: int
    completed_at: int
    content: JSON
    metadata: Mapping[str, JSON]
    error: Mapping[str, JSON] | None


@dataclass(frozen=True, slots=True)
class ClientRun:
    """The calls that the client was asked to answer, and its responses as sent; no calls when it found them in text."""

    calls: tuple[Call, ...]
    started_at: int
    completed_at: int
    responses: tuple[Mapping[str, JSON], ...]


@dataclass(frozen=True, slots=True)
class Retrieval:
    started_at: int
    completed_at: int
    text: str


@dataclass(frozen=True, slots=True)
class Listing:
    completed_at: int
    server: str
    tools: tuple[JSON, ...]
    error: str | None


@dataclass(frozen=True, slots=True)
class ShieldCheck:
    started_at: int
    completed_at: int
    touchpoint: Touchpoint
    violation: Mapping[str, JSON] | None
    leg: int


Step = Inference | Resumption | ToolRun | ClientRun | Retrieval | Listing | Compaction | ShieldCheck


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Turn:
    """What is known of a turn after some of its events; `last_at` is the time of the newest one.

    Turns are told apart by identity: comparing two by their contents would cost more than it is ever worth.

    A *leg* is the run from a create or a resume to the next rest. `started_calls` are server calls that have begun
    and not ended: after a crash, these may or may not have had their effect.
    """

    id: str
    status: Status = "in_progress"
    started_at: int = 0
    input: tuple[JSON, ...] = ()
    settings: Mapping[str, JSON] | None = None
    steps: tuple[Step, ...] = ()
    gathered: bool = False
    leg: int = 0
    leg_inferences: int = 0
    started_calls: Mapping[str, int] | None = None
    awaiting_since: int | None = None
    ended_at: int | None = None
    reason: Reason | None = None
    failure: TurnFailed | None = None
    last_at: int = 0

    @property
    def running(self) -> bool:
        return self.status == "in_progress"

    @property
    def queued(self) -> bool:
        """Whether the turn is to run in the background, and no driver has done anything for it yet."""
        in_background = bool((self.settings or {}).get("background"))
        return self.running and in_background and self.last_at == self.started_at

    @property
    def inferences(self) -> tuple[Inference, ...]:
        """The model calls, without those that a lost driver left half done."""
        return tuple(
            step for step in self.steps if isinstance(step, Inference) and (step.finish or step.completed_at is None)
        )

    @property
    def last_inference(self) -> Inference | None:
        return next((step for step in reversed(self.steps) if isinstance(step, Inference)), None)

    @property
    def cut(self) -> bool:
        """Whether the newest step is a model call that has not ended."""
        last = self.steps[-1] if self.steps else None
        return isinstance(last, Inference) and last.completed_at is None

    @property
    def usage(self) -> Usage:
        """Of all model calls of the turn, that for a summary among them."""
        compactions = (step.usage for step in self.steps if isinstance(step, Compaction))
        return sum(compactions, sum((inference.usage for inference in self.inferences), Usage()))

    @property
    def hosted_calls(self) -> int:
        """How many calls of the turn were for tools that are run here."""
        asked = (call for inference in self.inferences for call in inference.calls)
        allowed = (call for step in self.steps if isinstance(step, Resumption) for call in step.calls)
        return sum(call.runner == "server" for call in (*asked, *allowed))

    @property
    def violation(self) -> ShieldCheck | None:
        """The check that blocked the turn, if one did."""
        blocked = (step for step in self.steps if isinstance(step, ShieldCheck) and step.violation is not None)
        return next(blocked, None)

    @property
    def open_calls(self) -> tuple[Call, ...]:
        """The newest calls, of the model or allowed by the client, that nobody has answered yet."""
        source = next((step for step in reversed(self.steps) if isinstance(step, Inference | Resumption)), None)
        if source is None or (isinstance(source, Inference) and source.finish is None):
            return ()
        answered = self.answered_calls
        return tuple(call for call in source.calls if call.call_id not in answered)

    @property
    def answered_calls(self) -> frozenset[str]:
        runs = {step.call.call_id for step in self.steps if isinstance(step, ToolRun)}
        answers = {
            str(answer["call_id"]) for step in self.steps if isinstance(step, ClientRun) for answer in step.responses
        }
        return frozenset(runs | answers)


def remembered(work: Callable[[Turn], T]) -> Callable[[Turn], T]:
    """The function, which works out its result for a turn once, for as long as somebody holds that turn."""
    known: WeakKeyDictionary[Turn, T] = WeakKeyDictionary()

    @wraps(work)
    def recalled(turn: Turn) -> T:
        try:
            return known[turn]
        except KeyError:
            known[turn] = found = work(turn)
            return found

    return recalled


def fold(turn: Turn, events: Iterable[Event]) -> Turn:
    """The turn after all of these events."""
    return reduce(evolve, events, turn)


def evolve(turn: Turn, event: Event) -> Turn:
    """The turn after this event. Raises IllegalEvent when the event cannot follow."""
    if not (turn.running or isinstance(event, InputProvided | TurnAbandoned | TurnCancelled)):
        raise IllegalEvent(f"{type(event).__name__} cannot happen to a turn that is {turn.status}")
    match event:
        case TurnStarted():
            turn = replace(turn, started_at=event.at, input=event.input, settings=event.settings)
        case InferenceStarted() | CallStarted() | Delta() | InferenceCompleted():
            return _infer(turn, event)
        case ToolStarted() | ToolCompleted():
            turn = _run_tool(turn, event)
        case ContextInserted() | ToolsListed() | Compacted() | CallsAllowed() | ShieldsRun():
            turn = _add_step(turn, event)
        case Gathered():
            turn = replace(turn, gathered=True)
        case InputAwaited():
            turn = replace(turn, status="awaiting_input", awaiting_since=event.at)
        case InputProvided():
            turn = _accept_input(turn, event)
        case TurnCompleted() | TurnFailed() | TurnAbandoned() | TurnCancelled():
            turn = _end(turn, event)
        case TakenOver():
            turn = _close_cut_inference(turn, event)
        case _:
            assert_never(event)
    return replace(turn, last_at=max(turn.last_at, event.at))


def withheld(events: Sequence[Event]) -> tuple[Event, ...]:
    """The events with what the model said last made empty: a blocked answer is neither shown nor kept.

    Their number stays, and with it the number of every event after them.
    """
    start = max(place for place, event in enumerate(events) if isinstance(event, InferenceStarted))
    return (*events[:start], *(_emptied(event) for event in events[start:]))


def _emptied(event: Event) -> Event:
    match event:
        case Delta() if event.block != "arguments":
            return Delta(event.block, "")
        case InferenceCompleted():
            return replace(event, extras={})
        case _:
            return event


def _infer(turn: Turn, event: InferenceStarted | CallStarted | Delta | InferenceCompleted) -> Turn:
    if isinstance(event, InferenceStarted):
        steps = (*turn.steps, Inference(event.at))
        return replace(turn, steps=steps, leg_inferences=turn.leg_inferences + 1, last_at=event.at)
    last = turn.steps[-1] if turn.steps else None
    if not isinstance(last, Inference) or last.completed_at is not None:
        raise IllegalEvent(f"{type(event).__name__} outside an inference")
    match event:
        case CallStarted():
            call = Call(event.call_id, event.name, event.runner, event.group, kind=event.kind)
            last = replace(last, blocks=(*last.blocks, call))
        case Delta():
            last = replace(last, blocks=_extend(last.blocks, event))
        case InferenceCompleted():
            last = replace(last, completed_at=event.at, finish=event.finish, usage=event.usage, extras=event.extras)
            turn = replace(turn, last_at=event.at)
        case _:
            assert_never(event)
    return replace(turn, steps=(*turn.steps[:-1], last))


def _extend(blocks: tuple[Said | Call, ...], delta: Delta) -> tuple[Said | Call, ...]:
    last = blocks[-1] if blocks else None
    if delta.block == "arguments":
        if not isinstance(last, Call):
            raise IllegalEvent("arguments outside a call")
        return (*blocks[:-1], replace(last, arguments=last.arguments + delta.text))
    if isinstance(last, Said) and last.block == delta.block:
        return (*blocks[:-1], Said(last.block, last.text + delta.text, last.logprobs + delta.logprobs))
    return (*blocks, Said(delta.block, delta.text, delta.logprobs))


def _run_tool(turn: Turn, event: ToolStarted | ToolCompleted) -> Turn:
    started = dict(turn.started_calls or {})
    if isinstance(event, ToolStarted):
        return replace(turn, started_calls={**started, event.call_id: event.at})
    call = next((call for call in turn.open_calls if call.call_id == event.call_id), None)
    if call is None:
        raise IllegalEvent(f"the answer to {event.call_id}, which is no open call")
    began = started.pop(event.call_id, event.at)
    run = ToolRun(call, began, event.at, event.content, event.metadata, event.error)
    return replace(turn, steps=_in_call_order((*turn.steps, run)), started_calls=started or None)


def _in_call_order(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Sort the newest tool runs by the place of their calls in the step that these come from."""
    at = max(place for place, step in enumerate(steps) if isinstance(step, Inference | Resumption))
    source = steps[at]
    assert isinstance(source, Inference | Resumption)
    order = {call.call_id: place for place, call in enumerate(source.calls)}
    runs = [step for step in steps[at + 1 :] if isinstance(step, ToolRun)]
    others = [step for step in steps[at + 1 :] if not isinstance(step, ToolRun)]
    return (*steps[: at + 1], *sorted(runs, key=lambda run: order[run.call.call_id]), *others)


def _add_step(turn: Turn, event: ContextInserted | ToolsListed | Compacted | CallsAllowed | ShieldsRun) -> Turn:
    match event:
        case Compacted():
            return replace(turn, steps=(*turn.steps, Compaction(event.at, event.summary, event.usage)))
        case CallsAllowed():
            calls = tuple(_allowed(AllowedCall(**call)) for call in event.calls)
            return replace(turn, steps=(*turn.steps, Resumption(event.at, calls)))
        case ContextInserted():
            return replace(turn, steps=(*turn.steps, Retrieval(event.started_at, event.at, event.text)))
        case ToolsListed():
            return replace(turn, steps=(*turn.steps, Listing(event.at, event.server, event.tools, event.error)))
        case ShieldsRun():
            check = ShieldCheck(event.started_at, event.at, event.touchpoint, event.violation, turn.leg)
            steps = turn.steps
            if event.violation is not None and event.touchpoint == "assistant-output":
                steps = _silenced(steps)
            return replace(turn, steps=(*steps, check))
        case _:
            assert_never(event)


def _allowed(call: AllowedCall) -> Call:
    return Call(call.call_id, call.name, call.runner, call.group, call.arguments, request=call.request)


def _silenced(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    *before, last = steps
    assert isinstance(last, Inference)
    return (*before, replace(last, blocks=last.calls))


def _accept_input(turn: Turn, event: InputProvided) -> Turn:
    if turn.status not in ("awaiting_input", "completed"):
        raise IllegalEvent(f"input for a turn that is {turn.status}")
    awaited = turn.status == "awaiting_input"
    calls = turn.open_calls if awaited else ()
    since = turn.awaiting_since if awaited else turn.ended_at
    run = ClientRun(calls, since or turn.last_at, event.at, event.responses)
    return replace(
        turn,
        status="in_progress",
        steps=(*turn.steps, run),
        leg=turn.leg + 1,
        leg_inferences=0,
        awaiting_since=None,
        ended_at=None,
        reason=None,
    )


def _end(turn: Turn, event: TurnCompleted | TurnFailed | TurnAbandoned | TurnCancelled) -> Turn:
    match event:
        case TurnCompleted():
            return replace(turn, status="completed", ended_at=event.at, reason=event.reason)
        case TurnFailed():
            return replace(turn, status="failed", ended_at=event.at, failure=event)
        case TurnAbandoned():
            if turn.status != "awaiting_input":
                raise IllegalEvent(f"cannot abandon a turn that is {turn.status}")
            return replace(turn, status="abandoned", ended_at=event.at, awaiting_since=None)
        case TurnCancelled():
            if turn.status not in ("in_progress", "awaiting_input"):
                raise IllegalEvent(f"cannot cancel a turn that is {turn.status}")
            return replace(turn, status="cancelled", ended_at=event.at, awaiting_since=None)
        case _:
            assert_never(event)


def _close_cut_inference(turn: Turn, event: TakenOver) -> Turn:
    """End the model call that a lost driver left half done: it is made again. One that said nothing is forgotten."""
    if not turn.cut:
        return turn
    *before, last = turn.steps
    assert isinstance(last, Inference)
    steps = (*before, replace(last, completed_at=event.at)) if last.blocks else tuple(before)
    return replace(turn, steps=steps, leg_inferences=turn.leg_inferences - 1)
