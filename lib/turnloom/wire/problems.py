"""The one table from domain errors to HTTP: status, headers, and the words of each API's envelope."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from turnloom.domain.errors import Problem

_STATUS: dict[str, int] = {
    "invalid_request": 400,
    "invalid_type": 400,
    "invalid_value": 400,
    "missing_required_parameter": 400,
    "unsupported_parameter": 400,
    "unsupported_file": 400,
    "previous_response_not_found": 400,
    "unknown_toolgroup": 400,
    "unknown_tool": 400,
    "duplicate_tool": 400,
    "unknown_shield": 400,
    "tool_call_mismatch": 400,
    "document_rejected": 400,
    "upstream_rejected": 400,
    "context_length_exceeded": 400,
    "invalid_encrypted_content": 400,
    "unauthenticated": 401,
    "mcp_unauthenticated": 401,
    "unknown_host": 403,
    "unknown_origin": 403,
    "model_not_found": 404,
    "session_busy": 409,
    "turn_not_awaiting_input": 409,
    "turn_cancelled": 409,
    "turn_abandoned": 409,
    "turn_taken_over": 409,
    "previous_response_in_progress": 409,
    "conversation_locked": 409,
    "idempotency_key_in_use": 409,
    "idempotency_key_reused": 422,
    "payload_too_large": 413,
    "unsupported_content_encoding": 415,
    "mcp_server_unavailable": 424,
    "websocket_not_supported": 426,
    "rate_limited": 429,
    "insufficient_quota": 429,
    "internal_error": 500,
    "turn_goes_on": 500,
    "content_lost": 500,
    "upstream_error": 502,
    "upstream_authentication_error": 502,
    "toolgroup_unreachable": 502,
    "shield_unavailable": 502,
    "store_unavailable": 503,
    "authorizer_unavailable": 503,
    "not_ready": 503,
    "upstream_timeout": 504,
    "storage_full": 507,
}

# The Agents API has fewer words (contract, 2.1); a more exact one is told by the nearest of them.
_AGENTS_CODE = {
    "context_length_exceeded": "upstream_rejected",
    "upstream_authentication_error": "upstream_error",
    "insufficient_quota": "rate_limited",
}


def status_of(code: str) -> int:
    """The HTTP status for an error code, also for one that was stored long ago."""
    return _STATUS.get(code, 404 if code.endswith("_not_found") else 500)


def agents_code(code: str) -> str:
    """The word of the Agents API for an error code."""
    return _AGENTS_CODE.get(code, code)


def agents_envelope(
    code: str, message: str, extra: Mapping[str, Any] | None = None, *, param: str | None = None
) -> dict[str, Any]:
    """An error as the Agents API writes it: for its own clients, its specification, and the openai client at once."""
    status = status_of(code)
    shown = {name: value for name, value in (extra or {}).items() if name not in _UNSHOWN}
    return {
        "status": status,
        "title": HTTPStatus(status).phrase,
        "detail": message,
        "error": {
            "message": message,
            "type": _error_type(status),
            "param": param,
            "code": agents_code(code),
            **shown,
        },
    }


_UNSHOWN = ("retry_after", "upstream_code")

# The words of the Responses API where they differ from the code that the domain uses; None is written as null.
_RESPONSES_CODE: dict[str, str | None] = {
    "invalid_request": None,
    "upstream_rejected": None,
    "response_not_found": None,
    "conversation_not_found": None,
    "item_not_found": None,
    "route_not_found": None,
    "unauthenticated": "invalid_api_key",
    "payload_too_large": "request_too_large",
    "rate_limited": "rate_limit_exceeded",
    "internal_error": "server_error",
    "turn_goes_on": "server_error",
}
_RESPONSES_PARAM = {"context_length_exceeded": "input", "model_not_found": "model"}


_OBJECTS = ("response_not_found", "item_not_found", "conversation_not_found")


def responses_status(code: str, *, alias: bool) -> int:
    """The HTTP status for an error code on the Responses API; its llama-stack path knows no 404 for objects."""
    status = 400 if code == "model_not_found" else status_of(code)
    return 400 if alias and code in _OBJECTS else status


def responses_envelope(
    code: str, message: str, param: str | None, *, alias: bool, upstream_code: str | None = None
) -> dict[str, Any]:
    """An error as the Responses API writes it; its llama-stack path adds the `detail` that older clients read.

    `upstream_code` is the word of an upstream that refused a request, for what we have none of our own for.
    """
    status = responses_status(code, alias=alias)
    error = {
        "message": message,
        "type": _error_type(status),
        "param": param or _RESPONSES_PARAM.get(code),
        "code": _RESPONSES_CODE.get(code, code) or upstream_code,
    }
    return {"error": error, "detail": message} if alias else {"error": error}


def _error_type(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


_NOT_RETRIED = (
    "upstream_authentication_error",
    "turn_not_awaiting_input",
    "turn_taken_over",
    "content_lost",
    "storage_full",
)


def headers_of(problem: Problem) -> dict[str, str]:
    """What the official clients obey when they decide about a retry."""
    headers = {}
    if (seconds := problem.extra.get("retry_after")) is not None:
        headers["retry-after"] = str(seconds)
    turn_exists = "turn_id" in problem.extra and problem.code != "session_busy"
    if turn_exists or problem.code in _NOT_RETRIED:
        headers["x-should-retry"] = "false"
    return headers
