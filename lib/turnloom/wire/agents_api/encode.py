"""A turn's events as the frames of the Agents API.

The encoder always reads from the first event on; so a frame's number is a function of the log alone, and the same in
the first telling and every later one. Numbers start at 1: whoever has seen nothing asks for what comes after 0.

Tool steps are told in the order of their calls, grouped, although the calls run side by side: what finishes early
waits. With output shields, what the model says is told once the shield has passed it.
"""

from __future__ import annotations

from typing import Any, assert_never

from turnloom.domain import ids
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
from turnloom.domain.message import JSON
from turnloom.domain.turn import Call, Inference, ToolRun, Turn, evolve
from turnloom.store.turns import Record
from turnloom.wire.agents_api.objects import call_json, shown_steps, step_kind, steps_json, turn_json
from turnloom.wire.problems import agents_code, status_of

Frame = dict[str, Any]


class AgentsEncoder:
    """Encodes one turn. `holds` says that the agent has output shields."""

    def __init__(self, record: Record, *, holds: bool = False) -> None:
        self._record = record
        self._turn = Turn(record.turn.id)
        self._holds = holds
        self._held: list[Frame] = []
        self._number = 0
        self._told = 0
        self._calls: list[Call] = []
        self._opened = False

    def encode(self, event: Event) -> list[Frame]:
        """The frames for the next event, each with its `sequence_number`."""
        self._turn = evolve(self._turn, event)
        frames = self._frames(event)
        for frame in frames:
            self._number += 1
            frame["sequence_number"] = self._number
        if isinstance(event, TakenOver):
            self._number += event.unlogged
        return frames

    def broken_off(self, code: str, message: str) -> Frame:
        """The last frame of a stream that ends before its turn, or whose turn was deleted.

        It is not in the log, and so has no number: a reader goes on after the last frame that has one.
        """
        return self._error(code, message)

    def _frames(self, event: Event) -> list[Frame]:
        match event:
            case TurnStarted():
                return [_payload("turn_start", turn_id=self._turn.id)]
            case InferenceStarted():
                return [self._start("inference")]
            case Delta():
                return self._hold(self._said(event))
            case InferenceCompleted():
                return self._hold(self._inferred())
            case ShieldsRun():
                return self._shielded(event)
            case ContextInserted():
                return [self._start("memory_retrieval"), self._complete()]
            case ToolStarted() | ToolCompleted():
                return self._tools()
            case InputProvided():
                return [self._complete()]
            case InputAwaited():
                return [_payload("turn_awaiting_input", turn=self._turn_json())]
            case TurnCompleted():
                return [_payload("turn_complete", turn=self._turn_json())]
            case TurnFailed():
                return [self._error(event.code, event.message)]
            case TurnCancelled():
                return [self._error("turn_cancelled", "The turn was cancelled.")]
            case TurnAbandoned():
                return [self._error("turn_abandoned", "A newer turn of the session took this one's place.")]
            case CallStarted() | ToolsListed() | Compacted() | CallsAllowed() | Gathered() | TakenOver():
                return []
            case _:
                assert_never(event)

    # --- frames of a kind

    def _start(self, kind: str, **metadata: JSON) -> Frame:
        return _payload("step_start", step_type=kind, step_id=self._step_id(), metadata=metadata)

    def _progress(self, kind: str, delta: JSON) -> Frame:
        return _payload("step_progress", step_type=kind, step_id=self._step_id(), delta=delta)

    def _complete(self) -> Frame:
        step = shown_steps(self._turn)[self._told]
        details = steps_json(self._turn)[self._told]
        frame = _payload("step_complete", step_type=step_kind(step), step_id=self._step_id(), step_details=details)
        self._told += 1
        return frame

    def _step_id(self) -> str:
        return ids.step_id(self._turn.id, self._told)

    def _turn_json(self) -> JSON:
        return turn_json(self._record, self._turn)

    def _error(self, code: str, message: str) -> Frame:
        error = {
            "message": f"{status_of(code)}: {message}",
            "code": agents_code(code),
            "turn_id": self._turn.id,
        }
        return {"error": error}

    # --- what the model says

    def _said(self, delta: Delta) -> list[Frame]:
        if delta.block not in ("text", "refusal") or not delta.text:
            return []
        return [self._progress("inference", {"type": "text", "text": delta.text})]

    def _inferred(self) -> list[Frame]:
        inference = self._turn.last_inference
        assert inference is not None
        self._calls = [call for call in inference.calls if call.runner != "client" or call.parsed() is None]
        calls = [self._progress("inference", _call_delta(call)) for call in inference.calls]
        return [*calls, self._complete()]

    def _hold(self, frames: list[Frame]) -> list[Frame]:
        if not self._holds:
            return frames
        self._held += frames
        inference = self._turn.steps[-1]
        assert isinstance(inference, Inference)
        # Between rounds of server tools no shield runs, and so nothing that was said is told.
        if any(call.runner != "client" for call in inference.calls) and inference.completed_at is not None:
            return self._let_go(silent=True)
        return []

    def _shielded(self, event: ShieldsRun) -> list[Frame]:
        blocked = event.touchpoint == "assistant-output" and event.violation is not None
        frames = self._let_go(silent=blocked)
        return [*frames, self._start("shield_call", touchpoint=event.touchpoint), self._complete()]

    def _let_go(self, *, silent: bool) -> list[Frame]:
        frames, self._held = self._held, []
        return [_silenced(frame) for frame in frames if not _is_text(frame)] if silent else frames

    # --- tools

    def _tools(self) -> list[Frame]:
        """The frames of the tool steps whose turn it is: a step is told when those before it are over."""
        frames: list[Frame] = []
        runs = {step.call.call_id for step in self._turn.steps if isinstance(step, ToolRun)}
        begun = runs | set(self._turn.started_calls or ())
        while self._calls and self._calls[0].call_id in begun:
            call = self._calls[0]
            if not self._opened:
                delta = {"type": "tool_call", "tool_call": call_json(call), "parse_status": "in_progress"}
                frames += [self._start("tool_execution"), self._progress("tool_execution", delta)]
            self._opened = call.call_id not in runs
            if self._opened:
                break
            frames.append(self._complete())
            self._calls.pop(0)
        return frames


def _call_delta(call: Call) -> JSON:
    if call.parsed() is None:
        return {"type": "tool_call", "tool_call": call.arguments, "parse_status": "failed"}
    return {"type": "tool_call", "tool_call": call_json(call), "parse_status": "succeeded"}


def _is_text(frame: Frame) -> bool:
    return bool(frame["event"]["payload"].get("delta", {}).get("type") == "text")


def _silenced(frame: Frame) -> Frame:
    details = frame["event"]["payload"].get("step_details")
    if details is not None:
        details["model_response"]["content"] = ""
    return frame


def _payload(event_type: str, **fields: JSON) -> Frame:
    return {"event": {"payload": {"event_type": event_type, **fields}}}
