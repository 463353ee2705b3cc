"""A turn as a response: its events as the frames of a stream, and the Response object.

The encoder always reads from the first event on and counts its frames, so a frame's number is a function of the log
alone. It keeps only the text of what is open and the items that are done; a delta costs one small dict.

- The model writes one item at a time: what belongs to another closes the one that is open.
- Hosted calls stay open while they run, side by side, and close in the order of the calls: what is answered early
  waits.
- A driver that was lost may have sent frames that the log lacks. Their numbers are filled with repeated
  `response.in_progress`, then what the lost driver had logged of an unfinished model message is closed.
- `items.output_items` tells the same items from the folded turn; the two are held together by a property test.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from secrets import token_bytes
from typing import Any, assert_never
from urllib.parse import urlsplit

from turnloom.domain.event import (
    CallStarted,
    ContextInserted,
    Delta,
    Event,
    Gathered,
    InferenceCompleted,
    InferenceStarted,
    InputAwaited,
    InputProvided,
    Reason,
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
from turnloom.domain.message import JSON, Usage
from turnloom.domain.turn import Turn
from turnloom.wire.problems import responses_envelope
from turnloom.wire.responses_api import items
from turnloom.wire.responses_api.items import Item, output_items
from turnloom.wire.responses_api.writers import (
    CallWriter,
    Frame,
    HostedCallWriter,
    MessageWriter,
    ReasoningWriter,
    Writer,
    frame,
)

Verdict = dict[str, Any]

_RUNNING: Verdict = {
    "status": "in_progress",
    "completed_at": None,
    "error": None,
    "incomplete_details": None,
    "usage": None,
}

# Codes of `response.error` that clients know; every other one is told as whose fault it was.
_FAILURES = (
    "server_error",
    "rate_limit_exceeded",
    "context_length_exceeded",
    "insufficient_quota",
    "invalid_prompt",
    "upstream_timeout",
)
_INCOMPLETE: dict[Reason, str] = {
    "out_of_tokens": "max_output_tokens",
    "content_filter": "content_filter",
    "max_infer_iters": "max_iterations_exceeded",
}

_DEFAULTS: dict[str, JSON] = {
    "instructions": None,
    "previous_response_id": None,
    "conversation": None,
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "store": True,
    "background": False,
    "temperature": 1.0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_logprobs": 0,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "truncation": "disabled",
    "metadata": {},
    "user": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
}

PAD_CHARACTERS = 16
"""Deltas are padded to a multiple of this, so that their length on the wire does not tell the words."""


class ResponseEncoder:
    """Encodes one turn. `alias` says that the reader came by the llama-stack path, which pads no deltas.

    `chance` gives random bytes for the padding.
    """

    def __init__(
        self,
        turn_id: str,
        *,
        alias: bool = False,
        obfuscation: bool = True,
        chance: Callable[[int], bytes] = token_bytes,
    ) -> None:
        self._id = turn_id
        self._alias = alias
        self._chance = chance if obfuscation and not alias else None
        self._number = 0
        self._base: dict[str, JSON] = {}
        self._usage = Usage()
        self._position = 0
        self._current: Writer | None = None
        self._hosted: dict[str, HostedCallWriter] = {}
        self._done: dict[int, Item] = {}
        self._inferring = False

    def encode(self, event: Event) -> list[Frame]:
        """The frames for the next event, each with its `type` and `sequence_number`."""
        frames = self._said(event) if isinstance(event, Delta) else self._frames(event)
        for told in frames:
            told["sequence_number"] = self._number
            self._number += 1
            if self._chance is not None and "delta" in told:
                told["obfuscation"] = _padding(told["delta"], self._chance)
        return frames

    def _frames(self, event: Event) -> list[Frame]:
        match event:
            case TurnStarted():
                self._base = _request_json(self._id, event.at, event.settings)
                return [self._lifecycle("created", _RUNNING), self._lifecycle("in_progress", _RUNNING)]
            case ToolsListed():
                return self._listed(event)
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
                verdict = _completed(event.at, event.reason, alias=self._alias)
                return self._ended(verdict["status"], verdict)
            case TurnFailed():
                return self._ended("failed", _failed(event))
            case TurnCancelled() | TurnAbandoned():
                return self._close_all()
            case ContextInserted() | Gathered() | ShieldsRun() | ToolStarted() | InputAwaited() | InputProvided():
                return []
            case _:
                assert_never(event)

    # --- the response

    def _lifecycle(self, kind: str, verdict: Verdict) -> Frame:
        output = [self._done[position] for position in sorted(self._done)]
        return frame(kind, response={**self._base, **verdict, "output": output})

    def _ended(self, kind: str, verdict: Verdict) -> list[Frame]:
        closing = self._close_all()
        return [*closing, self._lifecycle(kind, {**verdict, "usage": _usage_json(self._usage)})]

    def _taken_over(self, event: TakenOver) -> list[Frame]:
        """The numbers that the lost driver may have used come first: a reader may have seen them all."""
        filler = self._lifecycle("in_progress", _RUNNING)
        fillers = [dict(filler) for _ in range(event.unlogged)]
        return [*fillers, *self._close_all(cut=True)] if self._inferring else fillers

    # --- items

    def _said(self, delta: Delta) -> list[Frame]:
        writer = self._current
        if writer is not None and delta.block in writer.blocks:
            return writer.add(delta)
        if delta.block == "arguments":
            return []  # of a call to a tool that was never offered
        closing = self._leave()
        kind: type[Writer] = ReasoningWriter if delta.block == "reasoning" else MessageWriter
        writer = kind(*self._next_item("reasoning" if delta.block == "reasoning" else "message"))
        return [*closing, *self._open(writer), *writer.add(delta)]

    def _called(self, event: CallStarted) -> list[Frame]:
        closing = self._leave()
        match event.runner:
            case "unknown":
                return closing
            case "client":
                writer = CallWriter(*self._next_item("function_call"), event.call_id, event.name)
            case "server":
                place = self._next_item("mcp_call")
                writer = HostedCallWriter(*place, event.call_id, event.name, event.group or "", alias=self._alias)
                self._hosted[event.call_id] = writer
            case _:
                assert_never(event.runner)
        return [*closing, *self._open(writer)]

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
        opened = items.mcp_list_tools(identifier, "in_progress", event.server, [], None)
        status: items.Status = "completed" if event.error is None else "failed"
        item = items.mcp_list_tools(identifier, status, event.server, event.tools, event.error)
        self._done[position] = item
        return [
            frame("output_item.added", output_index=position, item=opened),
            frame("mcp_list_tools.in_progress", item_id=identifier, output_index=position),
            frame(f"mcp_list_tools.{status}", item_id=identifier, output_index=position),
            frame("output_item.done", output_index=position, item=item),
        ]

    def _next_item(self, kind: str) -> tuple[str, int]:
        position = self._position
        self._position += 1
        return items.item_id(kind, self._id, position), position

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
        del self._hosted[writer.call_id]
        return frames

    def _close_all(self, *, cut: bool = False) -> list[Frame]:
        """Close every open item with what it has."""
        self._inferring = False
        frames = self._leave(whole=False, cut=cut)
        for writer in list(self._hosted.values()):
            frames += self._close(writer)
        return frames


def response_json(turn: Turn, *, alias: bool = False) -> dict[str, JSON]:
    """The Response object of a turn in whatever state it is, as a reader on this path sees it."""
    base = _request_json(turn.id, turn.started_at, turn.settings or {})
    return {**base, **_verdict(turn, alias=alias), "output": output_items(turn, alias=alias)}


def _verdict(turn: Turn, *, alias: bool) -> Verdict:
    usage = _usage_json(turn.usage)
    match turn.status:
        case "in_progress" | "awaiting_input":
            return _RUNNING
        case "completed":
            assert turn.ended_at is not None
            return {**_completed(turn.ended_at, turn.reason, alias=alias), "usage": usage}
        case "failed":
            assert turn.failure is not None
            return {**_failed(turn.failure), "usage": usage}
        case "cancelled" | "abandoned":
            return {**_RUNNING, "status": "cancelled", "usage": usage}
        case _:
            assert_never(turn.status)


def _completed(at: int, reason: Reason | None, *, alias: bool) -> Verdict:
    if reason is None or (alias and reason == "max_infer_iters"):
        return {**_RUNNING, "status": "completed", "completed_at": at // 1_000_000}
    return {**_RUNNING, "status": "incomplete", "incomplete_details": {"reason": _INCOMPLETE[reason]}}


def _failed(failure: TurnFailed) -> Verdict:
    error = responses_envelope(failure.code, failure.message, None, alias=False)["error"]
    if error["code"] not in _FAILURES:
        error["code"] = "invalid_prompt" if error["type"] == "invalid_request_error" else "server_error"
    return {**_RUNNING, "status": "failed", "error": error}


def _usage_json(usage: Usage) -> JSON:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


# --- what the request said


def _request_json(turn_id: str, started_at: int, settings: Mapping[str, Any]) -> dict[str, JSON]:
    """What a Response repeats of its request, defaults filled in; `service_tier` is the one in fact used."""
    echoed = {key: settings.get(key, default) for key, default in _DEFAULTS.items()}
    return {
        "id": turn_id,
        "object": "response",
        "created_at": started_at // 1_000_000,
        "model": settings.get("model", ""),
        **echoed,
        "tools": [_tool_json(tool) for tool in settings.get("tools", ())],
        "text": _text_json(settings.get("text", {})),
        "reasoning": {"effort": None, "summary": None, **settings.get("reasoning", {})},
        "service_tier": "default",
    }


def _tool_json(tool: Mapping[str, Any]) -> JSON:
    match tool["type"]:
        case "function":
            return {"type": "function", "name": "", "description": None, "parameters": None, "strict": None, **tool}
        case "mcp":
            return {**tool, "server_url": _redacted(tool["server_url"])}
        case _:
            return dict(tool)


def _text_json(text: Mapping[str, Any]) -> JSON:
    given = text.get("format", {"type": "text"})
    if given["type"] == "json_schema":
        given = {"description": None, "strict": False, **given}
    return {**text, "format": given}


def _redacted(url: str) -> str:
    """The address as far as it cannot hold a secret."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    origin = f"{parts.scheme}://{host}"
    return f"{origin}/<redacted>" if parts.path.strip("/") or parts.query else origin


def _padding(text: str, chance: Callable[[int], bytes]) -> str:
    length = PAD_CHARACTERS - len(text) % PAD_CHARACTERS
    return base64.urlsafe_b64encode(chance(PAD_CHARACTERS)).decode()[:length]
