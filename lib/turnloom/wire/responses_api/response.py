"""The Response object: what a turn is, as one JSON object, and what it repeats of its request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

from turnloom.domain.event import Reason, TurnFailed
from turnloom.domain.message import JSON, Usage
from turnloom.domain.turn import Turn
from turnloom.wire.problems import responses_envelope
from turnloom.wire.responses_api.items import output_items
from turnloom.wire.responses_api.sealing import Seal
from turnloom.wire.responses_api.tools import tool_json

Verdict = dict[str, Any]
"""What a Response says of how far it has come."""

RUNNING: Verdict = {
    "status": "in_progress",
    "completed_at": None,
    "error": None,
    "incomplete_details": None,
    "usage": None,
}
QUEUED: Verdict = {**RUNNING, "status": "queued"}

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


def response_json(turn: Turn, *, alias: bool = False, seal: Seal | None = None) -> dict[str, JSON]:
    """The Response object of a turn in whatever state it is, as a reader on this path sees it.

    `seal` seals a text for the owner, the same text always the same way; without it, nothing that is to be sealed is
    shown.
    """
    base = request_json(turn.id, turn.started_at, turn.settings or {})
    return {**base, **_verdict(turn, alias=alias), "output": output_items(turn, alias=alias, seal=seal)}


def _verdict(turn: Turn, *, alias: bool) -> Verdict:
    usage = usage_json(turn.usage)
    match turn.status:
        case "in_progress" | "awaiting_input":
            return QUEUED if turn.queued else RUNNING
        case "completed":
            assert turn.ended_at is not None
            return {**completed(turn.ended_at, turn.reason, alias=alias), "usage": usage}
        case "failed":
            assert turn.failure is not None
            return {**failed(turn.failure), "usage": usage}
        case "cancelled" | "abandoned":
            return {**RUNNING, "status": "cancelled", "usage": usage}
        case _:
            assert_never(turn.status)


def completed(at: int, reason: Reason | None, *, alias: bool) -> Verdict:
    """How a turn ended that came to its end, still without its usage."""
    if reason is None or (alias and reason == "max_infer_iters"):
        return {**RUNNING, "status": "completed", "completed_at": at // 1_000_000}
    return {**RUNNING, "status": "incomplete", "incomplete_details": {"reason": _INCOMPLETE[reason]}}


def failed(failure: TurnFailed) -> Verdict:
    """How a turn ended that came to none, still without its usage."""
    error = responses_envelope(failure.code, failure.message, None, alias=False)["error"]
    if error["code"] not in _FAILURES:
        error["code"] = "invalid_prompt" if error["type"] == "invalid_request_error" else "server_error"
    return {**RUNNING, "status": "failed", "error": error}


def usage_json(usage: Usage) -> JSON:
    """The tokens that were used, every figure there."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


# --- what the request said


def request_json(turn_id: str, started_at: int, settings: Mapping[str, Any]) -> dict[str, JSON]:
    """What a Response repeats of its request, defaults filled in; `service_tier` is the one in fact used."""
    echoed = {key: settings.get(key, default) for key, default in _DEFAULTS.items()}
    return {
        "id": turn_id,
        "object": "response",
        "created_at": started_at // 1_000_000,
        "model": settings.get("model", ""),
        **echoed,
        "tools": [tool_json(tool) for tool in settings.get("tools", ())],
        "text": _text_json(settings.get("text", {})),
        "reasoning": {"effort": None, "summary": None, **settings.get("reasoning", {})},
        "service_tier": "default",
    }


def _text_json(text: Mapping[str, Any]) -> JSON:
    given = text.get("format", {"type": "text"})
    if given["type"] == "json_schema":
        # Open Responses requires both keys and refuses a `strict` of null; upstream takes false when it is not told.
        given = {"description": None, "strict": False, **given}
    return {**text, "format": given}
