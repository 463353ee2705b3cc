"""Items of the Responses API and their parts, as JSON.

A key that may be absent is left out unless it is set: some clients refuse null there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from turnloom.domain.layout import call_kind
from turnloom.domain.message import JSON
from turnloom.domain.tool_result import as_output
from turnloom.domain.turn import Call
from turnloom.usecases.response_spec import LOGPROBS
from turnloom.wire.responses_api.sealing import Seal

Item = dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete", "failed"]

SEALED_THOUGHTS = "reasoning.encrypted_content"


# --- what the model says


def message(identifier: str, status: Status, content: list[Item], phase: str | None = None) -> Item:
    """An assistant's message; the phase is absent unless set."""
    item = {"id": identifier, "type": "message", "status": status, "role": "assistant", "content": content}
    return item if phase is None else {**item, "phase": phase}


def output_text(text: str, logprobs: Sequence[JSON] = ()) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs_json(logprobs)}


def refusal(text: str) -> Item:
    return {"type": "refusal", "refusal": text}


def summary_text(text: str) -> Item:
    return {"type": "summary_text", "text": text}


def opened_reasoning(identifier: str) -> Item:
    return {"id": identifier, "type": "reasoning", "status": "in_progress", "summary": []}


def reasoning(identifier: str, status: Status, text: str, seal: Seal | None) -> Item:
    """What the model shows of its thoughts; with a `seal` also for the client to bring back when nothing is stored."""
    item = {"id": identifier, "type": "reasoning", "status": status, "summary": [summary_text(text)]}
    return item if seal is None else {**item, "encrypted_content": seal(text)}


def thought_seal(settings: Mapping[str, Any], seal: Seal | None) -> Seal | None:
    """The seal for reasoning, if the request asked for it."""
    return seal if SEALED_THOUGHTS in settings.get("include", ()) else None


def shows_logprobs(settings: Mapping[str, Any]) -> bool:
    """Whether the request asked for log probabilities: some upstreams send them all the same."""
    return bool(settings.get("top_logprobs")) or LOGPROBS in settings.get("include", ())


def logprobs_json(logprobs: Sequence[JSON]) -> list[Item]:
    """Log probabilities with every field set; upstreams may leave out `bytes` and `top_logprobs`."""
    return [
        {**_logprob(token), "top_logprobs": [_logprob(other) for other in token.get("top_logprobs") or ()]}
        for token in logprobs
    ]


def _logprob(token: Mapping[str, Any]) -> Item:
    text = str(token["token"])
    told = token.get("bytes")
    return {"token": text, "logprob": token["logprob"], "bytes": list(text.encode()) if told is None else told}


# --- calls


def call_item(identifier: str, status: Status, call: Call, text: str) -> Item:
    """The item of a call with this `text` as its arguments or input; of a hosted one still without its outcome."""
    item: Item = {"id": identifier, "type": call_kind(call.runner, call.kind), "status": status}
    match call.runner:
        case "client":
            key = "input" if call.kind == "custom" else "arguments"
            item |= {"call_id": call.call_id, "name": call.name, key: text}
            return {**item, "namespace": call.group} if call.group else item
        case "approval":
            return {**item, "server_label": call.group or "", "name": call.name, "arguments": text}
        case "server":
            item |= {"server_label": call.group or "", "name": call.name, "arguments": text}
            return {**item, "output": None, "error": None, "approval_request_id": call.request}
        case "unknown":
            raise ValueError("a call that nobody may run is no item")


def call_text(call: Call, written: str, whole: bool) -> str:
    """What the item shows of what the model wrote: a call that it finished without arguments has none, as JSON."""
    return written or ("{}" if whole and call.kind != "custom" else "")


def with_outcome(call: Item, content: JSON, error: Mapping[str, JSON] | None, *, alias: bool) -> Item:
    """An `mcp_call` with what the server answered; on the alias an error is a string."""
    if error is None:
        return {**call, "status": "completed", "output": as_output(content)}
    return {**call, "status": "failed", "error": str(error["message"]) if alias else _call_error(content, error)}


def _call_error(content: JSON, error: Mapping[str, JSON]) -> Item:
    match error["kind"]:
        case "protocol":
            return {"type": "mcp_protocol_error", "code": error["code"], "message": error["message"]}
        case "http":
            return {"type": "http_error", "code": error["code"], "message": error["message"]}
        case _:
            shown = [{"type": "text", "text": content}] if isinstance(content, str) else content
            return {"type": "mcp_tool_execution_error", "content": shown}


# --- what the server adds


def mcp_list_tools(identifier: str, status: Status, label: str, tools: Sequence[JSON], error: str | None) -> Item:
    """What a server offers, or why it does not tell; the error is absent when there is none."""
    kind = "mcp_list_tools"
    item = {"id": identifier, "type": kind, "status": status, "server_label": label, "tools": list(tools)}
    return item if error is None else {**item, "error": error}


def compaction(identifier: str, status: Status, sealed: str) -> Item:
    """The place where a summary takes over from what was said before it."""
    return {"id": identifier, "type": "compaction", "status": status, "encrypted_content": sealed}


def sealed_summary(summary: str, seal: Seal | None) -> str:
    """The summary as its item holds it; nothing where there is no seal, for it must not go out readable."""
    return "" if seal is None else seal(summary)
