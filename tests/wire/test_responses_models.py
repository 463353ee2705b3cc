"""What a create request may say, what is kept of it, and the rules that follow from it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import Spec, ToolFilter
from turnloom.usecases.response_spec import COMPACT_THRESHOLD, spec_of
from turnloom.wire.responses_api.models import (
    CompactRequest,
    ConversationRequest,
    CreateRequest,
    fingerprint_of,
    parse_compact,
    parse_conversation,
    parse_count,
    parse_create,
    parse_items,
    parse_metadata,
)

FUNCTION: dict[str, Any] = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
SERVER: dict[str, Any] = {
    "type": "mcp",
    "server_label": "docs",
    "server_url": "https://mcp.example.com/mcp",
    "require_approval": "never",
}
CUSTOM: dict[str, Any] = {"type": "custom", "name": "c"}
NAMESPACE: dict[str, Any] = {"type": "namespace", "name": "n", "tools": []}


def parsed(*, alias: bool = False, **body: Any) -> CreateRequest:
    return parse_create({"model": "m", "input": "Hi", **body}, alias)


def refused(body: Any, *, alias: bool = False) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        parse_create(body, alias)
    return raised.value


def problem_of(parse: Callable[[Any], Any], body: Any) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as raised:
        parse(body)
    return raised.value.code, raised.value.param


def spec(*, cap: int = 50, **settings: Any) -> Spec:
    return spec_of({"model": "m", **settings}, cap)


# --- the body


def test_a_string_is_one_message_of_the_user() -> None:
    asked = parse_create(b'{"model":"m","input":"Hi"}')
    assert asked.input == ({"type": "message", "role": "user", "content": "Hi"},)
    assert asked.settings == {"model": "m"}
    assert (asked.stream, asked.store, asked.include_obfuscation) == (False, True, True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'"x"',
        b"\xff{}",
        b'{"model": NaN}',
        b"[" * 100_000,
        b'{"model": "m", "input": "x", "y":' + b"[" * 100 + b"]" * 100 + b"}",
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    assert refused(body).code == "invalid_request"


def test_a_pair_of_surrogates_is_a_character() -> None:
    asked = parse_create(b'{"model":"m","input":"\\ud83d\\ude00"}')
    assert asked.input[0]["content"] == "\U0001f600"


def test_half_of_a_pair_of_surrogates_becomes_the_replacement_character() -> None:
    asked = parse_create(b'{"model":"m","input":"a\\ud83d b\\uDE00"}')
    assert asked.input[0]["content"] == "a\ufffd b\ufffd"


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse_create(b'\xef\xbb\xbf{"model":"m","input":"x"}').settings["model"] == "m"


def test_a_body_in_another_encoding_is_refused_by_its_reason() -> None:
    assert "UTF-8" in refused('{"model":"m","input":"x"}'.encode("utf-16")).message


def test_null_means_not_given() -> None:
    nothing: dict[str, Any] = dict.fromkeys(
        (
            "instructions",
            "tools",
            "tool_choice",
            "include",
            "store",
            "stream",
            "metadata",
            "background",
            "conversation",
        ),
    )
    asked = parsed(**nothing, reasoning={"effort": None}, text={"format": None})
    assert asked.settings == {"model": "m"}
    assert asked.store is True


def test_what_is_unknown_is_ignored_and_not_kept() -> None:
    asked = parsed(
        client_metadata={"a": 1}, service_tier="flex", include=["what.is.this"], tools=[{**FUNCTION, "x": 1}]
    )
    assert asked.settings == {"model": "m", "tools": [FUNCTION]}


def test_everything_that_is_echoed_or_needed_is_kept_as_given() -> None:
    given: dict[str, Any] = {
        "instructions": "Be brief.",
        "previous_response_id": "resp_1",
        "tool_choice": {"type": "function", "name": "weather"},
        "parallel_tool_calls": False,
        "max_tool_calls": 3,
        "max_infer_iters": 4,
        "max_output_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "presence_penalty": -2,
        "frequency_penalty": 2.0,
        "top_logprobs": 20,
        "truncation": "auto",
        "metadata": {"k": "v"},
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "p",
        "include": ["message.output_text.logprobs"],
        "reasoning": {"effort": "low", "summary": "auto", "other": 1},
        "text": {"format": {"type": "json_object"}, "verbosity": "low"},
        "tools": [FUNCTION],
    }
    assert parsed(**given).settings == {"model": "m", **given}


def test_the_stream_parameters_are_not_settings() -> None:
    asked = parsed(stream=True, store=False, stream_options={"include_obfuscation": False}, alias=True)
    assert (asked.stream, asked.store, asked.include_obfuscation) == (True, False, False)
    assert asked.settings == {"model": "m", "store": False, "alias": True}


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"input": "x"}, "missing_required_parameter", "model"),
        ({"model": 1, "input": "x"}, "invalid_type", "model"),
        ({"model": "", "input": "x"}, "invalid_value", "model"),
        ({"model": "m"}, "missing_required_parameter", "input"),
        ({"model": "m", "input": []}, "missing_required_parameter", "input"),
        ({"model": "m", "input": ""}, "missing_required_parameter", "input"),
        ({"model": "m", "input": 1}, "invalid_type", "input"),
        ({"model": "m", "input": {"role": "user"}}, "invalid_type", "input"),
        ({"temperature": 2.1}, "invalid_value", "temperature"),
        ({"temperature": "1"}, "invalid_type", "temperature"),
        ({"temperature": True}, "invalid_type", "temperature"),
        ({"top_p": -0.1}, "invalid_value", "top_p"),
        ({"presence_penalty": 3}, "invalid_value", "presence_penalty"),
        ({"frequency_penalty": -3}, "invalid_value", "frequency_penalty"),
        ({"top_logprobs": 21}, "invalid_value", "top_logprobs"),
        ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
        ({"max_output_tokens": 1.5}, "invalid_type", "max_output_tokens"),
        ({"max_infer_iters": 0}, "invalid_value", "max_infer_iters"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"stream_options": {"include_obfuscation": 1}}, "invalid_type", "stream_options.include_obfuscation"),
        ({"truncation": "middle"}, "invalid_value", "truncation"),
        ({"include": ["a", 1]}, "invalid_type", "include[1]"),
        ({"metadata": {"k": 1}}, "invalid_type", "metadata.k"),
        ({"metadata": {"k": "v" * 513}}, "invalid_value", "metadata.k"),
        ({"metadata": {"k" * 65: "v"}}, "invalid_value", "metadata." + "k" * 65),
        ({"metadata": {str(n): "" for n in range(17)}}, "invalid_value", "metadata"),
        ({"tools": {}}, "invalid_type", "tools"),
        ({"tools": [1]}, "invalid_type", "tools[0]"),
        ({"tools": [{}]}, "missing_required_parameter", "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].name"),
        ({"tools": [FUNCTION, {**FUNCTION, "strict": "no"}]}, "invalid_type", "tools[1].strict"),
        ({"tools": [{**FUNCTION, "parameters": []}]}, "invalid_type", "tools[0].parameters"),
        ({"tools": [{**SERVER, "server_url": None}]}, "missing_required_parameter", "tools[0].server_url"),
        ({"tools": [{**SERVER, "server_url": "file:///etc"}]}, "invalid_value", "tools[0].server_url"),
        ({"tools": [{"type": "mcp", "server_label": "a"}]}, "missing_required_parameter", "tools[0].server_url"),
        ({"tools": [{**SERVER, "headers": {"a": 1}}]}, "invalid_type", "tools[0].headers.a"),
        ({"tools": [{**SERVER, "allowed_tools": [1]}]}, "invalid_type", "tools[0].allowed_tools.tool_names[0]"),
        ({"tools": [SERVER, SERVER]}, "invalid_value", "tools[1].server_label"),
        ({"tools": [{**SERVER, "server_url": "https://[/x"}]}, "invalid_value", "tools[0].server_url"),
        ({"tools": [FUNCTION, {"type": "x"}, FUNCTION]}, "invalid_value", "tools[2].name"),
        ({"tools": [FUNCTION, {"type": "custom", "name": "weather"}]}, "invalid_value", "tools[1].name"),
        ({"tools": [{"type": "custom"}]}, "missing_required_parameter", "tools[0].name"),
        ({"tools": [{**CUSTOM, "format": "text"}]}, "invalid_type", "tools[0].format"),
        ({"tools": [{**CUSTOM, "format": {"type": "yaml"}}]}, "invalid_value", "tools[0].format.type"),
        (
            {"tools": [{**CUSTOM, "format": {"type": "grammar", "syntax": "bnf", "definition": "x"}}]},
            "invalid_value",
            "tools[0].format.syntax",
        ),
        (
            {"tools": [{**CUSTOM, "format": {"type": "grammar", "syntax": "regex"}}]},
            "missing_required_parameter",
            "tools[0].format.definition",
        ),
        ({"tools": [{"type": "namespace", "tools": []}]}, "missing_required_parameter", "tools[0].name"),
        ({"tools": [{**NAMESPACE, "tools": {}}]}, "invalid_type", "tools[0].tools"),
        ({"tools": [{**NAMESPACE, "tools": [1]}]}, "invalid_type", "tools[0].tools[0]"),
        ({"tools": [{**NAMESPACE, "tools": [{}]}]}, "missing_required_parameter", "tools[0].tools[0].type"),
        (
            {"tools": [{**NAMESPACE, "tools": [FUNCTION, {"type": "function", "name": 1}]}]},
            "invalid_type",
            "tools[0].tools[1].name",
        ),
        (
            {"tools": [{**NAMESPACE, "tools": [FUNCTION, {"type": "mcp", "server_label": "s"}]}]},
            "missing_required_parameter",
            "tools[0].tools[1].server_url",
        ),
        (
            {"tools": [{**NAMESPACE, "tools": [{**SERVER, "server_label": 1}]}]},
            "invalid_type",
            "tools[0].tools[0].server_label",
        ),
        (
            {"tools": [{**NAMESPACE, "tools": [{**NAMESPACE, "tools": [{**SERVER, "server_url": "x"}]}]}]},
            "invalid_value",
            "tools[0].tools[0].tools[0].server_url",
        ),
        ({"background": True, "store": False}, "invalid_value", "background"),
        ({"background": "yes"}, "invalid_type", "background"),
        ({"conversation": 1}, "invalid_type", "conversation"),
        ({"conversation": ""}, "invalid_value", "conversation.id"),
        ({"conversation": {}}, "missing_required_parameter", "conversation.id"),
        ({"conversation": {"id": 1}}, "invalid_type", "conversation.id"),
        ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "invalid_value", "conversation"),
        ({"previous_response_id": ""}, "invalid_value", "previous_response_id"),
        ({"context_management": {}}, "invalid_type", "context_management"),
        ({"context_management": [1]}, "invalid_type", "context_management[0]"),
        ({"context_management": [{"type": "trim"}]}, "invalid_value", "context_management[0].type"),
        (
            {"context_management": [{"type": "compaction", "compact_threshold": 0}]},
            "invalid_value",
            "context_management[0].compact_threshold",
        ),
        ({"text": {"format": {"type": "grammar"}}}, "invalid_value", "text.format.type"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n"}}},
            "missing_required_parameter",
            "text.format.schema",
        ),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "missing_required_parameter", "text.format.name"),
        ({"text": {"verbosity": 1}}, "invalid_type", "text.verbosity"),
        ({"text": {"verbosity": "chatty"}}, "invalid_value", "text.verbosity"),
        ({"service_tier": 1}, "invalid_type", "service_tier"),
        ({"truncation": 5}, "invalid_type", "truncation"),
        ({"reasoning": {"effort": 1}}, "invalid_type", "reasoning.effort"),
    ],
)
def test_an_invalid_parameter_is_named_by_its_path(body: dict[str, Any], code: str, param: str) -> None:
    whole = body if "model" in body or "input" in body else {"model": "m", "input": "x", **body}
    problem = refused(whole)
    assert (problem.code, problem.param) == (code, param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"guardrails": True}, "guardrails"),
        ({"moderation": {"model": "x", "policy": {"input": {"mode": "block"}}}}, "moderation"),
        ({"tools": [{**SERVER, "connector_id": "c"}]}, "tools[0].connector_id"),
        ({"tools": [{**SERVER, "tunnel_id": "c"}]}, "tools[0].tunnel_id"),
        ({"tools": [{**NAMESPACE, "tools": [{**SERVER, "connector_id": "c"}]}]}, "tools[0].tools[0].connector_id"),
    ],
)
def test_what_is_not_built_is_refused_aloud(body: dict[str, Any], param: str) -> None:
    problem = refused({"model": "m", "input": "x", **body})
    assert (problem.code, problem.param) == ("unsupported_parameter", param)


def test_what_may_be_passed_over_is_passed_over() -> None:
    score = {"model": "x", "policy": {"input": {"mode": "score"}}}
    assert parsed(background=False, moderation=score, guardrails=[]).settings == {"model": "m"}


def test_a_follow_up_may_have_no_input() -> None:
    standings: list[dict[str, Any]] = [{"previous_response_id": "resp_1"}, {"conversation": "conv_1"}]
    empty: list[dict[str, Any]] = [{}, {"input": None}, {"input": []}, {"input": ""}]
    for standing, given in itertools.product(standings, empty):
        assert parse_create({"model": "m", **standing, **given}).input == ()


@pytest.mark.parametrize("named", ["conv_1", {"id": "conv_1"}, {"id": "conv_1", "object": "conversation"}])
def test_a_conversation_is_named_by_its_id_or_by_an_object(named: Any) -> None:
    asked = parsed(conversation=named)
    assert asked.conversation == "conv_1"
    assert asked.settings == {"model": "m", "conversation": {"id": "conv_1"}}


def test_running_in_the_background_is_a_setting() -> None:
    asked = parsed(background=True, stream=True)
    assert (asked.background, asked.stream) == (True, True)
    assert asked.settings == {"model": "m", "background": True}
    assert (parsed(background=False).background, parsed(background=False).settings) == (False, {"model": "m"})


def test_a_threshold_for_compaction_is_kept() -> None:
    strategy = {"type": "compaction", "compact_threshold": 9}
    asked = parsed(context_management=[{**strategy, "other": 1}])
    assert asked.settings == {"model": "m", "context_management": [strategy]}
    assert spec(**asked.settings).compact_above == 9
    assert parsed(context_management=[]).settings == {"model": "m"}


@pytest.mark.parametrize("given", [{}, {"compact_threshold": None}])
def test_compaction_without_a_threshold_has_that_of_the_server(given: Any) -> None:
    asked = parsed(context_management=[{"type": "compaction", **given}])
    assert spec(**asked.settings).compact_above == COMPACT_THRESHOLD


# --- tools and their secrets


def test_secrets_are_in_nothing_but_the_secrets() -> None:
    tool = {**SERVER, "headers": {"X-Key": "hidden-1"}, "authorization": "hidden-2"}
    inner = {"type": "namespace", "name": "n", "tools": [tool, {"type": "namespace", "name": "n", "tools": [tool]}]}
    asked = parsed(tools=[tool, inner])
    assert "hidden" not in json.dumps([asked.settings, asked.input])
    assert asked.secrets == {
        "https://mcp.example.com/mcp": {"X-Key": "hidden-1", "Authorization": "Bearer hidden-2"},
    }
    assert parsed(tools=[SERVER]).secrets == {}


def test_one_server_cannot_have_two_credentials() -> None:
    body = {"tools": [{**SERVER, "authorization": "a"}, {**SERVER, "server_label": "b", "authorization": "b"}]}
    assert refused({"model": "m", "input": "x", **body}).param == "tools[1]"


@pytest.mark.parametrize(("tool", "key"), [(FUNCTION, "name"), (SERVER, "server_label")])
def test_tools_that_come_as_items_share_no_name_with_those_of_the_request(tool: dict[str, Any], key: str) -> None:
    other = {**tool, key: "other"}
    item = {"type": "additional_tools", "tools": [other, tool]}
    body = {"model": "m", "input": [item]}
    assert parse_create(body).input == (item,)
    assert refused({**body, "tools": [tool]}).param == f"input[0].tools[1].{key}"
    assert refused({**body, "input": [{**item, "tools": [tool, tool]}]}).param == f"input[0].tools[1].{key}"
    newest = {**item, "tools": [other]}
    assert parse_create({**body, "input": [item, newest], "tools": [tool]}).input == (item, newest)


def test_no_tools_are_as_good_as_none_given() -> None:
    assert parsed(tools=[]).settings == {"model": "m"}


@pytest.mark.parametrize(("alias", "wanted"), [(False, "always"), (True, "never")])
def test_whether_a_server_needs_approval_is_always_told(alias: bool, wanted: str) -> None:
    bare = {key: value for key, value in SERVER.items() if key != "require_approval"}
    for tool in (bare, {**bare, "require_approval": None}):
        assert parsed(tools=[tool], alias=alias).settings["tools"] == [{**bare, "require_approval": wanted}]


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("always", "always"),
        ("never", "never"),
        ({}, {}),
        ({"always": None, "never": {}}, {"never": {}}),
        (
            {"always": ["a"], "never": ["b", "c"]},
            {"always": {"tool_names": ["a"]}, "never": {"tool_names": ["b", "c"]}},
        ),
        (
            {"always": {"tool_names": ["a"], "read_only": None}, "never": {"read_only": True}},
            {"always": {"tool_names": ["a"]}, "never": {"read_only": True}},
        ),
    ],
)
def test_approvals_are_kept_in_one_form(policy: Any, wanted: Any) -> None:
    [tool] = parsed(tools=[{**SERVER, "require_approval": policy}]).settings["tools"]
    assert tool["require_approval"] == wanted


@pytest.mark.parametrize(
    ("policy", "code", "path"),
    [
        ("sometimes", "invalid_value", ""),
        (True, "invalid_type", ""),
        (["a"], "invalid_type", ""),
        ({"allways": ["a"]}, "invalid_value", ".allways"),
        ({"always": "a"}, "invalid_type", ".always"),
        ({"always": {"names": ["a"]}}, "invalid_value", ".always.names"),
        ({"never": [1]}, "invalid_type", ".never.tool_names[0]"),
        ({"never": {"read_only": "yes"}}, "invalid_type", ".never.read_only"),
    ],
)
def test_an_approval_that_cannot_be_understood_is_refused(policy: Any, code: str, path: str) -> None:
    problem = refused({"model": "m", "input": "x", "tools": [{**SERVER, "require_approval": policy}]})
    assert (problem.code, problem.param) == (code, f"tools[0].require_approval{path}")


def test_custom_tools_are_kept_without_what_is_unknown() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /a/"}
    given: list[Any] = [
        {"type": "custom", "name": "a", "description": "d", "defer_loading": True, "format": None, "x": 1},
        {"type": "custom", "name": "b", "format": {"type": "text", "x": 1}},
        {"type": "custom", "name": "c", "format": {**grammar, "x": 1}},
    ]
    assert parsed(tools=given).settings["tools"] == [
        {"type": "custom", "name": "a", "description": "d", "defer_loading": True},
        {"type": "custom", "name": "b", "format": {"type": "text"}},
        {"type": "custom", "name": "c", "format": grammar},
    ]


def test_the_tools_of_a_namespace_are_kept_like_others() -> None:
    inner = [{**FUNCTION, "output_schema": {}}, {"type": "custom", "name": "c", "x": 1}, {"type": "turnip", "x": None}]
    given = {"type": "namespace", "name": "crm", "description": "d", "x": 1, "tools": inner}
    kept = [{**FUNCTION, "output_schema": {}}, {"type": "custom", "name": "c"}, {"type": "turnip", "x": None}]
    tool = {"type": "namespace", "name": "crm", "description": "d", "tools": kept}
    asked = parsed(tools=[given, FUNCTION])
    assert asked.settings["tools"] == [tool, FUNCTION]
    assert [(each.called, each.namespace) for each in spec(**asked.settings).tools] == [
        ("weather", "crm"),
        ("c", "crm"),
        ("weather", None),
    ]


def test_a_namespace_may_be_empty() -> None:
    asked = parsed(tools=[{"type": "namespace", "name": "n", "tools": None}])
    assert asked.settings["tools"] == [NAMESPACE]
    assert spec(**asked.settings).tools == ()


def test_tools_of_unknown_types_are_kept_as_given() -> None:
    tools = [{"type": "turnip", "name": "n", "x": None}, {"type": "web_search"}, {"type": "turnip", "name": "n"}]
    assert parsed(tools=tools).settings["tools"] == tools
    assert spec(tools=tools).tools == ()


# --- the same request again


def test_a_request_is_the_same_however_it_is_written() -> None:
    assert fingerprint_of("/p", b'{"model":"m","input":"\xc3\xa9","tools":[{"a":1,"b":2}]}') == fingerprint_of(
        "/p", b' {"tools": [{"b": 2, "a": 1}], "input": "\\u00e9", "user": null, "model": "m"}'
    )


@pytest.mark.parametrize("told", [{"stream": True}, {"stream": False, "stream_options": {"include_obfuscation": True}}])
def test_a_request_is_the_same_however_it_is_to_be_told(told: dict[str, Any]) -> None:
    body = {"model": "m", "input": "Hi"}
    asked, again = (fingerprint_of("/p", json.dumps(given).encode()) for given in (body, {**body, **told}))
    assert asked == again


@pytest.mark.parametrize("more", [{"store": False}, {"background": True}, {"temperature": 0}, {"input": ["Hi"]}])
def test_a_request_for_something_else_is_another(more: dict[str, Any]) -> None:
    body = {"model": "m", "input": "Hi"}
    asked, other = (fingerprint_of("/p", json.dumps(given).encode()) for given in (body, {**body, **more}))
    assert asked != other and asked != fingerprint_of("/q", json.dumps(body).encode())


# --- counting, compaction, conversations


def test_what_is_counted_is_what_would_be_created() -> None:
    given: dict[str, Any] = {"model": "m", "input": "Hi", "tools": [SERVER], "conversation": "conv_1"}
    created = parse_create(given, alias=True)
    assert parse_count({**given, "stream": 7, "store": False, "background": True}, alias=True) == created


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "m"}, "input"),
        ({"model": "m", "input": "x", "tools": [{}]}, "tools[0].type"),
    ],
)
def test_a_count_needs_what_a_response_needs(body: dict[str, Any], param: str) -> None:
    assert problem_of(parse_count, body) == ("missing_required_parameter", param)


def test_a_count_needs_no_model() -> None:
    assert parse_count({"input": "x"}).settings["model"] == "default"
    assert parse_count({"input": "x", "model": "m"}).settings["model"] == "m"


def test_keys_of_a_function_that_mean_nothing_here_are_echoed() -> None:
    keys = {"async": True, "defer_loading": True, "output_schema": {"type": "object"}, "allowed_callers": ["direct"]}
    assert parsed(tools=[{**FUNCTION, **keys}]).settings["tools"] == [{**FUNCTION, **keys}]


def test_a_compaction_takes_new_items_or_an_earlier_response() -> None:
    said = {"type": "message", "role": "user", "content": "Hi"}
    assert parse_compact(b'{"model":"m","input":"Hi","store":true}') == CompactRequest("m", (said,), None, None)
    earlier = parse_compact({"model": "m", "previous_response_id": "resp_1", "instructions": "i", "input": None})
    assert earlier == CompactRequest("m", (), "i", "resp_1")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"input": "x"}, "missing_required_parameter", "model"),
        ({"model": 1, "input": "x"}, "invalid_type", "model"),
        ({"model": "m"}, "missing_required_parameter", "input"),
        ({"model": "m", "input": []}, "missing_required_parameter", "input"),
        ({"model": "m", "input": 0}, "invalid_type", "input"),
        ({"model": "m", "input": [{}]}, "missing_required_parameter", "input[0].type"),
        ({"model": "m", "input": "x", "instructions": 1}, "invalid_type", "instructions"),
        ({"model": "m", "previous_response_id": 1}, "invalid_type", "previous_response_id"),
    ],
)
def test_a_compaction_that_cannot_be_made_is_refused(body: dict[str, Any], code: str, param: str) -> None:
    assert problem_of(parse_compact, body) == (code, param)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"items":null,"metadata":null}', b'{"items":[],"metadata":{}}'])
def test_a_conversation_may_be_opened_with_nothing(body: bytes) -> None:
    assert parse_conversation(body) == ConversationRequest((), {})


def test_a_conversation_is_opened_with_items_and_metadata() -> None:
    opened = parse_conversation(b'{"items":[{"role":"user","content":"Hi","id":null}],"metadata":{"k":"v"},"x":1}')
    assert opened == ConversationRequest(({"type": "message", "role": "user", "content": "Hi"},), {"k": "v"})


@pytest.mark.parametrize(
    ("metadata", "code", "param"),
    [
        ([], "invalid_type", "metadata"),
        ({"k": 1}, "invalid_type", "metadata.k"),
        ({"k": "v" * 513}, "invalid_value", "metadata.k"),
        ({"k" * 65: "v"}, "invalid_value", "metadata." + "k" * 65),
        ({str(n): "" for n in range(17)}, "invalid_value", "metadata"),
    ],
)
def test_metadata_has_the_same_limits_everywhere(metadata: Any, code: str, param: str) -> None:
    body = {"model": "m", "input": "x", "metadata": metadata}
    for parse in (parse_create, parse_conversation, parse_metadata):
        assert problem_of(parse, body) == (code, param)


def test_metadata_that_is_null_is_told_from_none() -> None:
    assert parse_metadata(b'{"metadata":{"k":"v"}}') == {"k": "v"}
    assert parse_metadata(b'{"metadata":{}}') == {}
    assert parse_metadata(b'{"metadata":null}') is None
    assert problem_of(parse_metadata, b"{}") == ("missing_required_parameter", "metadata")


def test_a_conversation_takes_twenty_items_at_once() -> None:
    items = [{"role": "user", "content": str(n)} for n in range(21)]
    assert [item["content"] for item in parse_items({"items": items[:20]})] == [str(n) for n in range(20)]
    assert len(parse_conversation({"items": items[:20]}).items) == 20
    for parse in (parse_items, parse_conversation):
        assert problem_of(parse, {"items": items}) == ("invalid_value", "items")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "items"),
        ({"items": None}, "missing_required_parameter", "items"),
        ({"items": []}, "invalid_value", "items"),
        ({"items": "Hi"}, "invalid_type", "items"),
        ({"items": ["Hi"]}, "invalid_type", "items[0]"),
        ({"items": [{"role": "user", "content": [{"type": "smell"}]}]}, "invalid_value", "items[0].content[0].type"),
    ],
)
def test_items_that_a_conversation_cannot_take_are_refused(body: dict[str, Any], code: str, param: str) -> None:
    assert problem_of(parse_items, body) == (code, param)


# --- the rules of a turn


def test_a_bare_request_is_a_turn_of_the_responses_api() -> None:
    assert spec() == Spec(
        "m", max_inferences=50, suspends_for_client=False, runs_last_calls=True, checks_client_arguments=False
    )


def test_function_tools_are_the_clients_to_run() -> None:
    [plain, bare] = spec(
        tools=[{**FUNCTION, "strict": True, "description": "d"}, {"type": "function", "name": "b"}]
    ).tools
    assert (plain.name, plain.description, plain.parameters, plain.strict) == ("weather", "d", {"type": "object"}, True)
    assert plain.source is None
    assert (bare.parameters, bare.strict) == ({"type": "object", "properties": {}}, None)


def test_mcp_tools_are_servers_to_be_listed() -> None:
    named = {**SERVER, "server_label": "b", "allowed_tools": ["x"]}
    reading = {**SERVER, "server_label": "c", "allowed_tools": {"tool_names": ["y"], "read_only": True}}
    first, second, third = spec(tools=[SERVER, named, reading]).servers
    assert (first.label, first.endpoint, first.allowed) == ("docs", "https://mcp.example.com/mcp", ToolFilter())
    assert second.allowed == ToolFilter(frozenset("x"))
    assert third.allowed == ToolFilter(frozenset("y"), read_only=True)


def test_sampling_is_sent_only_when_given() -> None:
    assert spec().sampling == {}
    given: dict[str, Any] = {"temperature": 0.1, "top_p": 0.2, "presence_penalty": 1, "frequency_penalty": 2}
    assert spec(**given, reasoning={"effort": "low", "summary": "auto"}).sampling == {
        **given,
        "reasoning_effort": "low",
    }


def test_either_way_of_asking_for_logprobs_asks_upstream() -> None:
    assert spec(top_logprobs=2).sampling == {"logprobs": True, "top_logprobs": 2}
    assert spec(include=["message.output_text.logprobs"]).sampling == {"logprobs": True}
    assert spec(top_logprobs=0).sampling == {}


def test_the_text_format_becomes_the_response_format() -> None:
    assert spec(text={"format": {"type": "text"}}).response_format is None
    assert spec(text={"verbosity": "low"}).response_format is None
    assert spec(text={"format": {"type": "json_object"}}).response_format == {"type": "json_object"}
    schema = {"name": "n", "schema": {"type": "object"}, "strict": True}
    asked = spec(text={"format": {"type": "json_schema", **schema}})
    assert asked.response_format == {"type": "json_schema", "json_schema": schema}


def test_model_calls_are_limited_by_the_request_and_the_deployment() -> None:
    assert spec(alias=True).max_inferences == 10
    assert spec(alias=True, cap=5).max_inferences == 5
    assert spec(max_infer_iters=3).max_inferences == 3
    assert spec(max_infer_iters=99).max_inferences == 50
    assert spec(max_output_tokens=7).max_tokens == 7
    assert spec(parallel_tool_calls=False).parallel_calls is False


@pytest.mark.parametrize(
    ("choice", "tools", "wanted"),
    [
        ("auto", [], "auto"),
        ("none", [FUNCTION], "none"),
        ("required", [FUNCTION], "required"),
        ("required", [SERVER], "required"),
        ({"type": "function", "name": "weather"}, [FUNCTION], "weather"),
        ({"type": "mcp", "server_label": "docs", "name": "search"}, [FUNCTION, SERVER], "search"),
        ({"type": "mcp", "server_label": "docs"}, [FUNCTION, SERVER], "required"),
    ],
)
def test_a_tool_choice_binds_the_model(choice: Any, tools: list[Any], wanted: str) -> None:
    assert spec(tool_choice=choice, tools=tools).choice == wanted


def test_allowed_tools_are_all_that_is_offered() -> None:
    other = {**FUNCTION, "name": "clock"}
    tools = [FUNCTION, other, SERVER, {**SERVER, "server_label": "b"}]
    allowed = [
        {"type": "function", "name": "clock"},
        {"type": "mcp", "server_label": "b", "name": "x"},
        {"type": "mcp", "server_label": "b", "name": "y"},
        {"type": "web_search"},
    ]
    offered = spec(tools=tools, tool_choice={"type": "allowed_tools", "mode": "required", "tools": allowed})
    assert [tool.name for tool in offered.tools] == ["clock"]
    assert [(server.label, server.chosen) for server in offered.servers] == [("b", ToolFilter(frozenset("xy")))]
    assert offered.choice == "required"
    nothing = spec(tools=tools, tool_choice={"type": "allowed_tools", "mode": "auto", "tools": []})
    assert (nothing.tools, nothing.servers, nothing.choice) == ((), (), "auto")


@pytest.mark.parametrize(
    ("choice", "tools", "code"),
    [
        ("required", [], "invalid_value"),
        ("required", [{"type": "web_search"}], "invalid_value"),
        ("sometimes", [FUNCTION], "invalid_value"),
        (7, [FUNCTION], "invalid_type"),
        ({"type": "function", "name": "clock"}, [FUNCTION], "invalid_value"),
        ({"type": "function"}, [FUNCTION], "invalid_value"),
        ({"type": "mcp", "server_label": "other"}, [SERVER], "invalid_value"),
        ({"type": "mcp", "server_label": "docs", "name": "z"}, [{**SERVER, "allowed_tools": ["a"]}], "invalid_value"),
        ({"type": "web_search"}, [{"type": "web_search"}], "invalid_value"),
        ({"type": "allowed_tools", "mode": "required", "tools": []}, [FUNCTION], "invalid_value"),
        ({"type": "allowed_tools", "mode": "maybe", "tools": []}, [FUNCTION], "invalid_value"),
        ({"type": "allowed_tools", "mode": "auto", "tools": ["x"]}, [FUNCTION], "invalid_value"),
    ],
)
def test_a_tool_choice_without_its_tool_is_refused(choice: Any, tools: list[Any], code: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        spec(tool_choice=choice, tools=tools)
    assert (raised.value.code, raised.value.param) == (code, "tool_choice")
