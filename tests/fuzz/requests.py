"""Requests of every route of template.yaml, right and wrong: a right body with nasty values put into it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.asgi import Request

USER: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
FUNCTION: Any = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}
RESPONSE: Any = {
    "model": "m",
    "input": [
        USER,
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "assistant", "content": "Yes"},
    ],
    "instructions": "Be brief.",
    "tools": [FUNCTION, {"type": "custom", "name": "g", "format": {"type": "text"}}],
    "tool_choice": "auto",
    "text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}}},
    "reasoning": {"effort": "low", "summary": "auto"},
    "metadata": {"a": "b"},
    "include": ["reasoning.encrypted_content"],
    "stream": False,
    "store": True,
    "temperature": 0.5,
    "top_logprobs": 2,
    "max_output_tokens": 100,
    "max_tool_calls": 3,
    "truncation": "disabled",
    "background": False,
}
AGENT: Any = {
    "model": "m",
    "instructions": "Be brief.",
    "name": "a",
    "sampling_params": {
        "strategy": {"type": "top_p", "temperature": 0.5, "top_p": 0.9},
        "max_tokens": 9,
        "stop": ["x"],
    },
    "toolgroups": ["test::tools", {"name": "test::tools", "args": {"a": 1}}],
    "client_tools": [{"name": "f", "description": "d", "parameters": [{"name": "a", "parameter_type": "string"}]}],
    "tool_config": {"tool_choice": "auto", "system_message_behavior": "append"},
    "max_infer_iters": 3,
    "enable_session_persistence": True,
    "response_format": {"type": "json_schema", "json_schema": {"type": "object"}},
}
MESSAGES: Any = [{"role": "user", "content": [{"type": "text", "text": "Hi"}], "context": "c"}]
BODIES: dict[str, Any] = {
    "/v1/agents": {"agent_config": {**AGENT, "toolgroups": []}},
    "/v1/agents/{agent_id}/session": {"session_name": "s"},
    "/v1/agents/{agent_id}/session/{session_id}/turn": {
        "messages": MESSAGES,
        "stream": False,
        "documents": [{"content": "text", "mime_type": "text/plain"}],
        "toolgroups": ["test::tools"],
        "tool_config": {"tool_choice": "none"},
    },
    "/v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}/resume": {
        "tool_responses": [{"call_id": "c", "tool_name": "f", "content": "1", "metadata": {}}],
        "stream": False,
        "starting_after": 0,
    },
    "/v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}/cancel": {},
    "/v1/responses": RESPONSE,
    "/v1/responses/input_tokens": {"model": "m", "input": [USER], "tools": [FUNCTION]},
    "/v1/responses/compact": {"model": "m", "input": [USER], "instructions": "Short."},
    "/v1/responses/{response_id}/cancel": {},
    "/v1/conversations": {"items": [USER], "metadata": {"a": "b"}},
    "/v1/conversations/{conversation_id}": {"metadata": {"a": "b"}},
    "/v1/conversations/{conversation_id}/items": {"items": [USER, {**USER, "id": "msg_mine"}]},
    "/v1/models": {"model_id": "m", "provider_model_id": "m", "metadata": {}},
    "/v1/toolgroups": {"toolgroup_id": "builtin::none", "provider_id": "p", "args": {}},
    "/v1/tool-runtime/invoke": {"tool_name": "add", "kwargs": {"a": 1}},
}
IDS = ("agent_id", "session_id", "turn_id", "step_id", "conversation_id", "response_id", "item_id", "model_id")
IDS += ("toolgroup_id", "tool_name", "chained_id")
NAMES = tuple(f"<{name}>" for name in IDS)
"""What stands in a request for the id of an object that is there."""

QUERY = (
    "limit",
    "start_index",
    "after",
    "before",
    "order",
    "stream",
    "starting_after",
    "include",
    "include[]",
    "model",
)
QUERY += ("turn_ids", "turn_ids[]", "toolgroup_id", "toolgroup_id[name]", "include_obfuscation", "tool_group_id")

NASTY_TEXT = st.one_of(
    st.sampled_from(["", " ", "\x00", "a\x00b", "\u202eright to left", "\U0001f600", "x" * 5000, "..", "%2F", "null"]),
    st.sampled_from(["\ud800", "a\udc00b", "\n", "\r\nx: y", "true", "-1", "1e999", "${x}", "{}", "[]"]),
    st.text(max_size=20),
)
NASTY = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 2**31, 2**63, -(2**63) - 1, 10**40, 0.5, -0.0, 1e308, float("nan"), float("inf")]),
    NASTY_TEXT,
    st.sampled_from([[], {}, [[]], [None], [{}], {"": None}, {"type": None}, {"type": "x"}, [0] * 500]),
    st.integers(2, 300).map(lambda levels: _nested(levels)),
    st.recursive(NASTY_TEXT | st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=5),
)
SEGMENTS = st.one_of(
    st.sampled_from(["%2F", "%00", "%FF%FE", "..", "%2e%2e", "a" * 5000, "%E2%80%AE", "null", "0", "%0d%0a", "{a}"]),
    st.text("abc-_.~%:@!$&'()*+,;=0123456789", min_size=1, max_size=12),
)
JSON = (("content-type", "application/json"),)
HEADERS = st.lists(
    st.sampled_from(
        [
            ("content-type", "text/plain"),
            ("content-type", "application/json; charset=utf-16"),
            ("content-type", "application/x-www-form-urlencoded"),
            ("content-type", "multipart/form-data; boundary=x"),
            ("content-type", ""),
            ("content-encoding", "gzip"),
            ("content-encoding", "br, zstd"),
            ("content-length", "-1"),
            ("transfer-encoding", "gzip, chunked"),
            ("expect", "100-continue"),
            ("range", "bytes=0-1"),
            ("accept", "image/png"),
            ("accept-encoding", "*;q=0"),
            ("authorization", "Bearer \u00e9"),
            ("idempotency-key", "k"),
            ("idempotency-key", ""),
            ("idempotency-key", "x" * 5000),
            ("x-stainless-retry-count", "x"),
            ("x-stainless-retry-count", "1"),
            ("x-llamastack-provider-data", "{"),
            ("x-llamastack-provider-data", "null"),
            ("x-llamastack-provider-data", '{"mcp_headers": {"a": {"b": 1}}}'),
            ("x-llamastack-provider-data", '{"mcp_headers": {"http://a": {"b": "c"}}}'),
            ("x-amzn-request-context", "{"),
            ("origin", "null"),
            ("x-forwarded-for", "\u00ff"),
        ]
    ),
    max_size=3,
)


def _nested(levels: int) -> Any:
    value: Any = 0
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside of this one."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def _with(value: Any, path: Sequence[Any], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = _with(value[path[0]], path[1:], new)
    return copy


@st.composite
def bodies(draw: st.DrawFn, path: str) -> bytes:
    """The body of a route with a few values replaced, as text that may be cut, doubled or no JSON."""
    body = BODIES.get(path.replace("/v1/openai/", "/"), {})
    for _ in range(draw(st.integers(0, 3))):
        if places := list(_places(body)):
            body = _with(body, draw(st.sampled_from(places)), draw(NASTY | st.sampled_from(NAMES)))
    if draw(st.integers(0, 5)) == 0:
        key = draw(st.sampled_from(["previous_response_id", "conversation", "stream", "x", "", "input", "id"]))
        body = {**body, key: draw(NASTY | st.sampled_from(NAMES))}
    text = json.dumps(body).encode()
    match draw(st.integers(0, 30)):
        case 0:
            return text[: draw(st.integers(0, len(text)))]
        case 1:
            return text[:-1] + b"," + text[1:]
        case 2:
            return draw(st.binary(max_size=30))
        case 3:
            return b"\xef\xbb\xbf" + text
        case 4:
            return json.dumps(draw(NASTY)).encode()
        case _:
            return text


@st.composite
def requests(draw: st.DrawFn, routes: Sequence[tuple[str, str]]) -> Request:
    """Any request of these routes, about objects of the right kind, of another, or none."""
    method, path = draw(st.sampled_from(routes))
    body = draw(bodies(path)) if method == "POST" else b""
    if draw(st.integers(0, 3)):
        path = re.sub(r"\{(\w+)\+?\}", r"<\1>", path)
    path = re.sub(r"\{[^}]+\}", lambda _: draw(SEGMENTS | st.sampled_from(NAMES)), path)
    names = draw(st.lists(st.sampled_from(QUERY), max_size=3))
    query = "&".join(f"{name}={draw(SEGMENTS | st.sampled_from(NAMES))}" for name in names)
    cut = draw(st.integers(0, len(body)))
    return Request(
        method=method if draw(st.integers(0, 20)) else draw(st.sampled_from(["HEAD", "OPTIONS", "TRACE", "PUT"])),
        path=path,
        query=query,
        headers=[*(JSON if draw(st.integers(0, 20)) else ()), *(draw(HEADERS) if draw(st.integers(0, 2)) == 0 else ())],
        chunks=(body[:cut], body[cut:]) if draw(st.booleans()) else (body,),
        complete=draw(st.integers(0, 30)) > 0,
    )
