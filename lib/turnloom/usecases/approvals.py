"""Calls that wait for the client's approval, and its answers to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from turnloom.domain.errors import InvalidRequest
from turnloom.domain.layout import input_ids, item_id, placed
from turnloom.domain.message import JSON, AllowedCall, Spec
from turnloom.domain.turn import Call, Resumption, Turn


def with_calls(history: Iterable[Turn], items: Sequence[Mapping[str, Any]]) -> list[JSON]:
    """The new items, each answer to an approval request with the id of the call that it is about.

    Raises InvalidRequest for an answer to a request that is not in the context.
    """
    answers = [item for item in items if item["type"] == "mcp_approval_response"]
    if not answers:
        return list(items)
    asked = {call.request: call for call in (*_asked(history), *_asked_in(items))}
    return [
        {**item, "call_id": _found(asked, item["approval_request_id"]).call_id} if item in answers else item
        for item in items
    ]


def allowed_calls(history: Sequence[Turn], items: Sequence[Mapping[str, Any]], spec: Spec) -> tuple[AllowedCall, ...]:
    """The calls that the client has just allowed, and that have not been made yet; only as many run as may.

    Raises InvalidRequest when a request was deleted since the client was taken at its word, and when a call's server is
    not among the tools again: its secrets were not kept.
    """
    answers = [item for item in items if item["type"] == "mcp_approval_response"]
    denied = {answer["approval_request_id"] for answer in answers if not answer["approve"]}
    approved = [answer["approval_request_id"] for answer in answers if answer["approval_request_id"] not in denied]
    if not approved:
        return ()
    asked = {call.request: call for call in (*_asked(history), *_asked_in(items))}
    made = {*_made(history), *_made_in(items)}
    calls = tuple(_found(asked, request) for request in dict.fromkeys(approved) if request not in made)
    servers = {server.label for server in spec.servers}
    for call in calls:
        if call.group not in servers:
            message = f"The call that was approved needs the MCP server '{call.group}' among the tools again."
            raise InvalidRequest(message, code="missing_required_parameter", param="tools")
    most = len(calls) if spec.max_hosted_calls is None else spec.max_hosted_calls
    return (*calls[:most], *(replace(call, runner="unknown") for call in calls[most:]))


def _found(asked: Mapping[str, AllowedCall], request: str) -> AllowedCall:
    if request not in asked:
        raise InvalidRequest(f"No approval request found with id '{request}'.", param="input")
    return asked[request]


def _asked(history: Iterable[Turn]) -> Iterator[AllowedCall]:
    for turn in history:
        for item in placed(turn):
            if item.kind == "mcp_approval_request":
                yield _wanted(item.blocks[0], item_id(item.kind, turn.id, item.position))
        if any(given.get("type") == "mcp_approval_request" for given in turn.input):
            named = ({**given, "id": name} for given, name in zip(turn.input, input_ids(turn), strict=True))
            yield from _asked_in(named)


def _wanted(call: object, request: str) -> AllowedCall:
    assert isinstance(call, Call)
    return AllowedCall(call.call_id, call.name, call.group or "", call.arguments, request)


def _asked_in(items: Iterable[Mapping[str, Any]]) -> Iterator[AllowedCall]:
    """The requests that a client has sent back to us: what stands in them is all that is known of the call."""
    for item in items:
        if item["type"] == "mcp_approval_request" and item.get("id"):
            yield AllowedCall(item["id"], item["name"], item["server_label"], item["arguments"], item["id"])


def _made(history: Iterable[Turn]) -> Iterator[str]:
    for turn in history:
        for step in turn.steps:
            if isinstance(step, Resumption):
                yield from (call.request for call in step.calls if call.request is not None)
        yield from _made_in(turn.input)


def _made_in(items: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    return (item["approval_request_id"] for item in items if _is_made(item))


def _is_made(item: Mapping[str, Any]) -> bool:
    return item.get("type") == "mcp_call" and item.get("approval_request_id") is not None
