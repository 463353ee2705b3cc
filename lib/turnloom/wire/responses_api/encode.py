"""A turn as a response: its events as the frames of a stream.

The encoder always reads from the first event on and counts its frames, so a frame's number is a function of the log
alone. It keeps only the text of what is open and the items that are done; a delta costs one small dict.

- A turn in the background is queued until the first event after its start; one that is cancelled or fails before
  anything was done for it never was in progress.
- The model writes one item at a time: what belongs to another closes the one that is open.
- Hosted calls stay open while they run, side by side, and close in the order of the calls: what is answered early
  waits. Those that the client has allowed are told whole, and run before the model is asked.
- A driver that was lost may have sent frames that the log lacks. Their numbers are filled with repeated
  `response.in_progress`, then what the lost driver had logged of an unfinished model message is closed.
- `items.output_items` tells the same items from the folded turn; the two are held together by a property test.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import replace
from secrets import token_bytes
from typing import assert_never

from turnloom.domain.event import (
    CallsAllowed,
    CallStarted,
    Compacted,
    ContextInserted,
    Delta,
    Event,
    Gathered,
    InferenceCompleted,
    InferenceStarted,
    InputAwaited,
    InputProvided,
    ShieldsRun,
    TakenOver,
    ToolCompleted,
    ToolsListed,
    ToolStarted,
    TurnAbandoned,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnStarted,
)
from turnloom.domain.layout import call_kind, item_id
from turnloom.domain.message import JSON, AllowedCall, Usage
from turnloom.domain.turn import Call
from turnloom.wire.responses_api import shapes
from turnloom.wire.responses_api.response import (
    QUEUED,
    RUNNING,
    Verdict,
    completed,
    failed,
    request_json,
    usage_json,
)
from turnloom.wire.responses_api.sealing import Seal
from turnloom.wire.responses_api.shapes import Item, Status
from turnloom.wire.responses_api.writers import (
    ApprovalRequestWriter,
    CallWriter,
    CustomCallWriter,
    Frame,
    HostedCallWriter,
    MessageWriter,
    ReasoningWriter,
    Writer,
    frame,
)

PAD_CHARACTERS = 16
"""Deltas are padded to a multiple of this, so that their length on the wire does not tell the words."""

ALIAS_TYPES = {
    "response.mcp_call_arguments.delta": "response.mcp_call.arguments.delta",
    "response.mcp_call_arguments.done": "response.mcp_call.arguments.done",
}
"""Event types that have another name on the llama-stack path."""

TYPES_WITH_RESPONSE_ID = frozenset(
    f"response.{part}.{verb}" for part in ("output_item", "content_part") for verb in ("added", "done")
)
"""Event types that carry a `response_id` on the llama-stack path."""


class ResponseEncoder:
    """Encodes one turn. `alias` says that the reader came by the llama-stack path.

    That path pads no deltas, names some events differently and repeats the response's id in others.

    `chance` gives random bytes for the padding; `seal` seals a text for the owner, the same text always the same way.
    """

    def __init__(
        self,
        turn_id: str,
        *,
        alias: bool = False,
        obfuscation: bool = True,
        chance: Callable[[int], bytes] = token_bytes,
        seal: Seal | None = None,
    ) -> None:
        self._id = turn_id
        self._alias = alias
        self._chance = chance if obfuscation and not alias else None
        self._seal = seal
        self._thought_seal: Seal | None = None
        self._logprobs = False
        self._number = 0
        self._base: dict[str, JSON] = {}
        self._queued = False
        self._usage = Usage()
        self._position = 0
        self._current: Writer | None = None
        self._hosted: dict[str, HostedCallWriter] = {}
        self._done: dict[int, Item] = {}
        self._inferring = False

    def encode(self, event: Event) -> list[Frame]:
        """The frames for the next event, each with its `type` and `sequence_number`."""
        frames = self._said(event) if isinstance(event, Delta) else [*self._begun(event), *self._frames(event)]
        for told in frames:
            told["sequence_number"] = self._number
            self._number += 1
            if self._chance is not None and "delta" in told:
                told["obfuscation"] = _padding(told["delta"], self._chance)
            if self._alias:
                self._adapt_to_alias(told)
        return frames

    def _adapt_to_alias(self, event: Frame) -> None:
        kind = event["type"]
        event["type"] = ALIAS_TYPES.get(kind, kind)
        if kind in TYPES_WITH_RESPONSE_ID:
            event["response_id"] = self._id

    def _frames(self, event: Event) -> list[Frame]:
        match event:
            case TurnStarted():
                return self._started(event)
            case ToolsListed():
                return self._listed(event)
            case Compacted():
                return self._compacted(event)
            case CallsAllowed():
                allowed = (AllowedCall(**given) for given in event.calls)
                return [told for call in allowed if call.runner != "unknown" for told in self._allowed(call)]
            case InferenceStarted():
                self._inferring = True
                return []
            case CallStarted():
                return self._called(event)
            case Delta():
                return self._said(event)
            case InferenceCompleted():
                return self._inferred(event)
            case ToolCompleted():
                return self._answered(event)
            case TakenOver():
                return self._taken_over(event)
            case TurnCompleted():
                verdict = completed(event.at, event.reason, alias=self._alias)
                return self._ended(verdict["status"], verdict)
            case TurnFailed():
                return self._ended("failed", failed(event))
            case TurnCancelled() | TurnAbandoned():
                return self._close_all()
            case ContextInserted() | Gathered() | ShieldsRun() | ToolStarted() | InputAwaited() | InputProvided():
                return []
            case _:
                assert_never(event)

    # --- the response

    def _started(self, event: TurnStarted) -> list[Frame]:
        self._base = request_json(self._id, event.at, event.settings)
        self._thought_seal = shapes.thought_seal(event.settings, self._seal)
        self._logprobs = shapes.shows_logprobs(event.settings)
        self._queued = bool(self._base["background"])
        if self._queued:
            return [self._lifecycle("created", QUEUED), self._lifecycle("queued", QUEUED)]
        return [self._lifecycle("created", RUNNING), self._lifecycle("in_progress", RUNNING)]

    def _begun(self, event: Event) -> list[Frame]:
        """Say that a queued turn runs, unless it ends before anything was done for it."""
        if not self._queued:
            return []
        self._queued = False
        return [] if isinstance(event, TurnFailed | TurnCancelled) else [self._lifecycle("in_progress", RUNNING)]

    def _lifecycle(self, kind: str, verdict: Verdict) -> Frame:
        output = [self._done[position] for position in sorted(self._done)]
        return frame(kind, response={**self._base, **verdict, "output": output})

    def _ended(self, kind: str, verdict: Verdict) -> list[Frame]:
        closing = self._close_all()
        return [*closing, self._lifecycle(kind, {**verdict, "usage": usage_json(self._usage)})]

    def _taken_over(self, event: TakenOver) -> list[Frame]:
        """The numbers that the lost driver may have used come first: a reader may have seen them all."""
        filler = self._lifecycle("in_progress", RUNNING)
        fillers = [dict(filler) for _ in range(event.unlogged)]
        return [*fillers, *self._close_all(cut=True)] if self._inferring else fillers

    # --- items

    def _said(self, delta: Delta) -> list[Frame]:
        if delta.logprobs and not self._logprobs:
            delta = replace(delta, logprobs=())
        writer = self._current
        if writer is not None and delta.block in writer.blocks:
            return writer.add(delta)
        if delta.block == "arguments":
            return []  # of a call to a tool that was never offered
        closing = self._leave()
        if delta.block == "reasoning":
            writer = ReasoningWriter(*self._next_item("reasoning"), self._thought_seal)
        else:
            writer = MessageWriter(*self._next_item("message"))
        return [*closing, *self._open(writer), *writer.add(delta)]

    def _called(self, event: CallStarted) -> list[Frame]:
        closing = self._leave()
        if event.runner == "unknown":
            return closing
        call = Call(event.call_id, event.name, event.runner, event.group, kind=event.kind)
        return [*closing, *self._open(self._call_writer(call))]

    def _allowed(self, allowed: AllowedCall) -> list[Frame]:
        """A call of an earlier turn, which runs now: it was whole when the client was asked."""
        call = Call(allowed.call_id, allowed.name, "server", allowed.group, request=allowed.request)
        writer = self._call_writer(call)
        frames = writer.start()
        if allowed.arguments:
            frames += writer.add(Delta("arguments", allowed.arguments))
        return [*frames, *writer.end(whole=True)]

    def _call_writer(self, call: Call) -> CallWriter:
        place = self._next_item(call_kind(call.runner, call.kind))
        match call.runner:
            case "client":
                return CustomCallWriter(*place, call) if call.kind == "custom" else CallWriter(*place, call)
            case "approval":
                return ApprovalRequestWriter(*place, call)
            case "server":
                hosted = HostedCallWriter(*place, call, alias=self._alias)
                self._hosted[call.call_id] = hosted
                return hosted
            case "unknown":
                raise ValueError("a call that nobody may run is no item")

    def _inferred(self, event: InferenceCompleted) -> list[Frame]:
        self._inferring = False
        self._usage += event.usage
        return self._leave(whole=event.finish in ("stop", "tool_calls"))

    def _answered(self, event: ToolCompleted) -> list[Frame]:
        if event.call_id not in self._hosted:
            return []
        self._hosted[event.call_id].answer = event
        frames: list[Frame] = []
        for writer in list(self._hosted.values()):
            if writer.answer is None:
                break
            frames += self._close(writer)
        return frames

    def _listed(self, event: ToolsListed) -> list[Frame]:
        identifier, position = self._next_item("mcp_list_tools")
        opened = shapes.mcp_list_tools(identifier, "in_progress", event.server, [], None)
        status: Status = "completed" if event.error is None else "failed"
        item = shapes.mcp_list_tools(identifier, status, event.server, event.tools, event.error)
        kinds = ("mcp_list_tools.in_progress", f"mcp_list_tools.{status}")
        return self._told_at_once(position, opened, kinds, item)

    def _compacted(self, event: Compacted) -> list[Frame]:
        self._usage += event.usage
        identifier, position = self._next_item("compaction")
        opened = shapes.compaction(identifier, "in_progress", "")
        item = shapes.compaction(identifier, "completed", shapes.sealed_summary(event.summary, self._seal))
        return self._told_at_once(position, opened, ("compaction.compacting",), item)

    def _told_at_once(self, position: int, opened: Item, kinds: Sequence[str], item: Item) -> list[Frame]:
        self._done[position] = item
        return [
            frame("output_item.added", output_index=position, item=opened),
            *(frame(kind, item_id=item["id"], output_index=position) for kind in kinds),
            frame("output_item.done", output_index=position, item=item),
        ]

    def _next_item(self, kind: str) -> tuple[str, int]:
        position = self._position
        self._position += 1
        return item_id(kind, self._id, position), position

    def _open(self, writer: Writer) -> list[Frame]:
        self._current = writer
        return writer.start()

    def _leave(self, *, whole: bool = True, cut: bool = False) -> list[Frame]:
        """Close what the model was writing; a hosted call stays open until it is answered."""
        writer, self._current = self._current, None
        if writer is None:
            return []
        frames = writer.end(whole, cut=cut)
        if writer.item is not None:
            self._done[writer.position] = writer.item
        return frames

    def _close(self, writer: HostedCallWriter) -> list[Frame]:
        frames = writer.close()
        assert writer.item is not None
        self._done[writer.position] = writer.item
        del self._hosted[writer.call.call_id]
        return frames

    def _close_all(self, *, cut: bool = False) -> list[Frame]:
        """Close every open item with what it has."""
        self._inferring = False
        frames = self._leave(whole=False, cut=cut)
        for writer in list(self._hosted.values()):
            frames += self._close(writer)
        return frames


def _padding(text: str, chance: Callable[[int], bytes]) -> str:
    length = PAD_CHARACTERS - len(text) % PAD_CHARACTERS
    return base64.urlsafe_b64encode(chance(PAD_CHARACTERS)).decode()[:length]
