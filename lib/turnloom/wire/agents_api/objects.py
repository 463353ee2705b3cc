"""Agents, sessions, turns and steps as JSON.

Times on the wire are strictly ordered, each at least a microsecond after the one before, whatever the clocks of the
machines that ran the turn said (contract 3.1): a tie or a step backwards is moved up.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, assert_never

from turnloom.domain import ids
from turnloom.domain.agent import Agent, Session
from turnloom.domain.message import JSON
from turnloom.domain.tool_result import as_output, image_of
from turnloom.domain.transcript import refusal
from turnloom.domain.turn import Call, ClientRun, Inference, Retrieval, ShieldCheck, ToolRun, Turn
from turnloom.store.turns import Record
from turnloom.wire.agents_api.models import AgentConfig
from turnloom.wire.problems import agents_code

_LOST_CONFIG = "The stored configuration of this agent is lost (content_lost)."

_STOP = {"length": "out_of_tokens"}
ShownStep = Inference | ToolRun | ClientRun | Retrieval | ShieldCheck

_KIND: dict[type[ShownStep], str] = {
    Inference: "inference",
    ToolRun: "tool_execution",
    ClientRun: "tool_execution",
    ShieldCheck: "shield_call",
    Retrieval: "memory_retrieval",
}


def timestamp(microseconds: int) -> str:
    """UTC with exactly six fractional digits."""
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + (
        f".{microseconds % 1_000_000:06d}Z"
    )


def agent_json(agent: Agent) -> dict[str, JSON]:
    """The Agent object. One whose configuration is lost says so in its instructions: the schema has no other place."""
    config = AgentConfig(model="", instructions=_LOST_CONFIG).model_dump() if agent.content_lost else agent.config
    return {
        "agent_id": agent.agent_id,
        "agent_config": dict(config),
        "created_at": timestamp(agent.created_at),
    }


def session_json(session: Session, turns: list[dict[str, JSON]]) -> dict[str, JSON]:
    return {
        "session_id": session.session_id,
        "session_name": session.session_name,
        "turns": turns,
        "started_at": timestamp(session.started_at),
    }


def turn_json(record: Record, turn: Turn | None = None) -> dict[str, JSON]:
    """The Turn object, in any state."""
    turn = turn or record.turn
    steps, last = _timed_steps(turn)
    ended = turn.status in ("completed", "failed", "abandoned", "cancelled") and turn.ended_at is not None
    return {
        "turn_id": turn.id,
        "session_id": record.place.thread,
        "input_messages": list(turn.input),
        "steps": steps,
        "output_message": _output_message(turn),
        "output_attachments": [],
        "started_at": timestamp(turn.started_at),
        "completed_at": timestamp(max(turn.ended_at or 0, last + 1)) if ended else None,
        "status": turn.status,
        "status_reason": agents_code(turn.failure.code) if turn.failure else turn.reason,
    }


def steps_json(turn: Turn) -> list[dict[str, JSON]]:
    """The finished steps, in the order in which readers are told of them."""
    return _timed_steps(turn)[0]


def step_kind(step: ShownStep) -> str:
    return _KIND[type(step)]


def step_ids(turn: Turn) -> Iterator[str]:
    """The ids of the steps, one by one: they come from the turn and the position alone."""
    place = 0
    while True:
        yield ids.step_id(turn.id, place)
        place += 1


def call_json(call: Call) -> dict[str, JSON]:
    """A ToolCall: the arguments as object for who can, and verbatim for who must (clients turn integers to floats)."""
    parsed = call.parsed()
    raw = call.arguments or "{}"
    return {
        "call_id": call.call_id,
        "tool_name": call.name,
        "arguments": raw if parsed is None else parsed,
        "arguments_json": raw,
    }


def content_items(result: JSON) -> JSON:
    """The result of a tool as content: a text as it is, the blocks of an MCP server as items of this API."""
    return result if isinstance(result, str) else [_content_item(block) for block in result]


def _content_item(block: JSON) -> JSON:
    image = image_of(block)
    if image is not None:
        return {"type": "image", "image": {"url": {"uri": image.url}}}
    if isinstance(block, dict) and block.get("type") == "text":
        return {"type": "text", "text": block["text"]}
    return {"type": "text", "text": as_output([block])}


def shown_steps(turn: Turn) -> list[ShownStep]:
    """The steps that the Agents API knows and that are over."""
    return [
        step
        for step in turn.steps
        if isinstance(step, ShownStep) and not (isinstance(step, Inference) and step.finish is None)
    ]


def _timed_steps(turn: Turn) -> tuple[list[dict[str, JSON]], int]:
    steps: list[dict[str, JSON]] = []
    last = turn.started_at
    for step, step_id in zip(shown_steps(turn), step_ids(turn), strict=False):
        started, completed = _times(step)
        started = max(started, last + 1)
        last = max(completed, started + 1)
        steps.append(
            {
                "turn_id": turn.id,
                "step_id": step_id,
                "started_at": timestamp(started),
                "completed_at": timestamp(last),
                "step_type": step_kind(step),
                **_details(step),
            }
        )
    return steps, last


def _times(step: ShownStep) -> tuple[int, int]:
    assert step.completed_at is not None
    return step.started_at, step.completed_at


def _details(step: ShownStep) -> dict[str, Any]:
    match step:
        case Inference():
            return {"model_response": _message(step, [call_json(call) for call in step.calls], _stop_reason(step))}
        case ToolRun():
            return {"tool_calls": [call_json(step.call)], "tool_responses": [_tool_response(step)]}
        case ClientRun():
            return {"tool_calls": [call_json(call) for call in step.calls], "tool_responses": list(step.responses)}
        case ShieldCheck():
            return {"violation": step.violation}
        case Retrieval():
            return {"vector_db_ids": "documents", "inserted_context": step.text}
        case _:
            assert_never(step)


def _stop_reason(inference: Inference) -> str:
    return "end_of_message" if inference.calls else _STOP.get(inference.finish or "", "end_of_turn")


def _message(inference: Inference | None, calls: list[dict[str, JSON]], stop_reason: str) -> dict[str, JSON]:
    text = inference.said("text") + inference.said("refusal") if inference else ""
    return {"role": "assistant", "content": text, "stop_reason": stop_reason, "tool_calls": calls}


def _tool_response(run: ToolRun) -> dict[str, JSON]:
    return {
        "call_id": run.call.call_id,
        "tool_name": run.call.name,
        "content": content_items(run.content),
        "metadata": dict(run.metadata),
    }


def _output_message(turn: Turn) -> dict[str, JSON]:
    inference = turn.last_inference
    match turn.status:
        case "completed":
            if turn.violation is not None:
                return {**_message(None, [], "end_of_turn"), "content": refusal(turn.violation)}
            out_of_tokens = turn.reason == "out_of_tokens"
            return _message(inference, [], "out_of_tokens" if out_of_tokens else "end_of_turn")
        case "awaiting_input":
            pending = [call_json(call) for call in turn.open_calls]
            return _message(inference, pending, "end_of_message")
        case "failed" | "cancelled":
            return _message(inference, [], "end_of_message")
        case "in_progress" | "abandoned":
            return _message(None, [], "end_of_message")
        case _:
            assert_never(turn.status)
