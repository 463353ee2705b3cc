"""What a create request may say, what is kept of it, and the rules that follow from it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import Spec
from turnloom.usecases.response_spec import spec_of
from turnloom.wire.responses_api.models import CreateRequest, parse_create

FUNCTION: dict[str, Any] = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
SERVER: dict[str, Any] = {
    "type": "mcp",
    "server_label": "docs",
    "server_url": "https://mcp.example.com/mcp",
    "require_approval": "never",
}


def parsed(*, alias: bool = False, **body: Any) -> CreateRequest:
    return parse_create({"model": "m", "input": "Hi", **body}, alias)


def refused(body: Any, *, alias: bool = False) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        parse_create(body, alias)
    return raised.value


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
    [b"", b"{", b"[1]", b'"x"', b"\xff{}", b'{"model": NaN}', b'{"model": "\\ud800", "input": "x"}', b"[" * 100_000],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    assert refused(body).code == "invalid_request"


def test_a_pair_of_surrogates_is_a_character() -> None:
    asked = parse_create(b'{"model":"m","input":"\\ud83d\\ude00"}')
    assert asked.input[0]["content"] == "\U0001f600"


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
        ({"text": {"format": {"type": "grammar"}}}, "invalid_value", "text.format.type"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n"}}},
            "missing_required_parameter",
            "text.format.schema",
        ),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "missing_required_parameter", "text.format.name"),
        ({"text": {"verbosity": 1}}, "invalid_type", "text.verbosity"),
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
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"guardrails": True}, "guardrails"),
        ({"moderation": {"model": "x", "policy": {"input": {"mode": "block"}}}}, "moderation"),
        ({"tools": [{**SERVER, "connector_id": "c"}]}, "tools[0].connector_id"),
        ({"tools": [{**SERVER, "require_approval": "always"}]}, "tools[0].require_approval"),
        ({"tools": [{**SERVER, "require_approval": {"never": {}}}]}, "tools[0].require_approval"),
        ({"tools": [{**SERVER, "require_approval": None}]}, "tools[0].require_approval"),
        ({"input": [{"type": "mcp_approval_response", "approve": True}]}, "input[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "f"}]}]},
            "input[0].content[0].file_url",
        ),
    ],
)
def test_what_is_not_built_is_refused_aloud(body: dict[str, Any], param: str) -> None:
    problem = refused({"model": "m", "input": "x", **body})
    assert (problem.code, problem.param) == ("unsupported_parameter", param)


def test_what_may_be_passed_over_is_passed_over() -> None:
    score = {"model": "x", "policy": {"input": {"mode": "score"}}}
    assert parsed(background=False, moderation=score, guardrails=[]).settings == {"model": "m"}


def test_a_follow_up_may_have_no_input() -> None:
    empty: list[dict[str, Any]] = [{}, {"input": []}, {"input": ""}]
    for given in empty:
        asked = parse_create({"model": "m", "previous_response_id": "resp_1", **given})
        assert asked.input == ()


# --- tools and their secrets


def test_secrets_are_in_nothing_but_the_secrets() -> None:
    tool = {**SERVER, "headers": {"X-Key": "hidden-1"}, "authorization": "hidden-2"}
    asked = parsed(tools=[tool])
    assert "hidden" not in json.dumps([asked.settings, asked.input])
    assert asked.secrets == {
        "https://mcp.example.com/mcp": {"X-Key": "hidden-1", "Authorization": "Bearer hidden-2"},
    }
    assert parsed(tools=[SERVER]).secrets == {}


def test_one_server_cannot_have_two_credentials() -> None:
    body = {"tools": [{**SERVER, "authorization": "a"}, {**SERVER, "server_label": "b", "authorization": "b"}]}
    assert refused({"model": "m", "input": "x", **body}).param == "tools[1]"


def test_on_the_alias_a_server_needs_no_approval_unless_asked() -> None:
    tool = {key: value for key, value in SERVER.items() if key != "require_approval"}
    assert parsed(tools=[tool], alias=True).settings["tools"] == [tool]


def test_tools_of_unknown_types_are_kept_as_given() -> None:
    tools = [{"type": "namespace", "name": "n", "x": None}, {"type": "web_search"}, {"type": "custom", "name": "c"}]
    assert parsed(tools=tools).settings["tools"] == tools
    assert spec(tools=tools).tools == ()


# --- input items


def test_items_lose_nulls_and_keys_that_mean_nothing_here() -> None:
    given: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "Hi", "extra": 1}], "name": "x", "id": None},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "phase": None,
            "content": [{"type": "output_text", "text": "Ho", "annotations": [], "logprobs": None, "parsed": 1}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}", "namespace": None},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "t", "x": 1}],
            "content": None,
        },
        {"id": "msg_9"},
    ]
    assert list(parsed(input=given).input) == [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Ho", "annotations": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "t"}]},
        {"type": "item_reference", "id": "msg_9"},
    ]


def test_items_of_unknown_types_are_kept_as_given() -> None:
    given: list[Any] = [{"type": "computer_call", "call_id": "c", "action": None}, {"type": "turnip", "x": [None]}]
    assert list(parsed(input=given).input) == given


def test_an_overlong_id_of_the_clients_is_dropped() -> None:
    [item] = parsed(input=[{"role": "user", "content": "x", "id": "a" * 65}]).input
    assert "id" not in item


PDF = "data:application/pdf;base64," + base64.b64encode(b"%PDF").decode()


@pytest.mark.parametrize(
    ("item", "code", "param"),
    [
        (1, "invalid_type", "input[0]"),
        ({}, "missing_required_parameter", "input[0].type"),
        ({"type": 1}, "invalid_type", "input[0].type"),
        ({"role": "robot", "content": "x"}, "invalid_value", "input[0].role"),
        ({"type": "message", "content": "x"}, "missing_required_parameter", "input[0].role"),
        ({"role": "user"}, "missing_required_parameter", "input[0].content"),
        ({"role": "user", "content": {}}, "invalid_type", "input[0].content"),
        ({"role": "user", "content": ["x"]}, "invalid_type", "input[0].content[0]"),
        ({"role": "user", "content": [{"type": "smell"}]}, "invalid_value", "input[0].content[0].type"),
        (
            {"role": "user", "content": [{"type": "input_text"}]},
            "missing_required_parameter",
            "input[0].content[0].text",
        ),
        (
            {"role": "user", "content": [{"type": "input_image"}]},
            "missing_required_parameter",
            "input[0].content[0].image_url",
        ),
        (
            {"role": "user", "content": [{"type": "input_image", "image_url": "x", "detail": "best"}]},
            "invalid_value",
            "input[0].content[0].detail",
        ),
        (
            {"role": "user", "content": [{"type": "input_file", "file_data": "%%%"}]},
            "invalid_value",
            "input[0].content[0].file_data",
        ),
        (
            {"role": "user", "content": [{"type": "input_file", "file_data": PDF, "filename": 1}]},
            "invalid_type",
            "input[0].content[0].filename",
        ),
        ({"type": "function_call", "call_id": "c", "name": "f"}, "missing_required_parameter", "input[0].arguments"),
        ({"type": "function_call_output", "output": "x"}, "missing_required_parameter", "input[0].call_id"),
        ({"type": "function_call_output", "call_id": "c", "output": 1}, "invalid_type", "input[0].output"),
        ({"type": "reasoning", "summary": ["x"]}, "invalid_type", "input[0].summary[0]"),
        ({"type": "compaction", "encrypted_content": "x"}, "invalid_encrypted_content", "input[0]"),
    ],
)
def test_an_invalid_item_is_named_by_its_path(item: Any, code: str, param: str) -> None:
    problem = refused({"model": "m", "input": [item]})
    assert (problem.code, problem.param) == (code, param)


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
    assert (first.label, first.endpoint, first.allowed) == ("docs", "https://mcp.example.com/mcp", None)
    assert second.allowed == frozenset("x")
    assert (third.allowed, third.read_only) == (frozenset("y"), True)


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
        ({"type": "mcp", "server_label": "docs"}, [SERVER], "required"),
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
    assert [(server.label, server.allowed) for server in offered.servers] == [("b", frozenset("xy"))]
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
        ({"type": "mcp", "server_label": "docs"}, [FUNCTION, SERVER], "unsupported_parameter"),
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
