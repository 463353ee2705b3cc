"""The rules of a response: names upstream, filters, approvals, what a tool choice leaves."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import Approval, Spec, ToolFilter, distinct_name, flat_name
from turnloom.domain.turn import Call
from turnloom.usecases.response_spec import servers_of, spec_of

MCP = {"type": "mcp", "server_label": "srv", "server_url": "https://srv.test/mcp", "require_approval": "always"}
F = {"type": "function", "name": "f"}
TWIN = {"type": "custom", "name": "twin"}
SPACE = {"type": "namespace", "name": "space", "tools": [F, TWIN]}


def spec(*tools: Any, choice: Any = "auto", cap: int = 50, **settings: Any) -> Spec:
    return spec_of({"model": "m", "tools": list(tools), "tool_choice": choice, **settings}, cap)


def refused(*tools: Any, choice: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refusal:
        spec(*tools, choice=choice)
    assert refusal.value.param == "tool_choice"
    return refusal.value


# --- names

letters = st.text(st.sampled_from("ab_"), min_size=1, max_size=64)
functions = letters.map(lambda name: {"type": "function", "name": name})
customs = letters.map(lambda name: {"type": "custom", "name": name})
namespaces = st.builds(
    lambda name, tools: {"type": "namespace", "name": name, "tools": tools},
    letters,
    st.lists(functions | customs, max_size=4),
)


@given(st.lists(functions | customs | namespaces, max_size=12))
def test_names_upstream_are_distinct_and_short_and_come_from_the_tools_alone(tools: list[Any]) -> None:
    offered = spec(*tools).tools
    names = [tool.name for tool in offered]
    assert len(set(names)) == len(names) and all(0 < len(name) <= 64 for name in names)
    assert names == [tool.name for tool in spec(*tools).tools]
    whole = [tool["tools"] if tool["type"] == "namespace" else [tool] for tool in tools]
    assert [tool.called for tool in offered] == [tool["name"] for group in whole for tool in group]


@pytest.mark.parametrize("length", [31, 32, 40, 60, 64])
def test_names_that_look_made_up_are_still_told_apart(length: int) -> None:
    name = "x" * length
    made = [f"{name[:32]}__{n}" for n in range(12)]
    space = {"type": "namespace", "name": "x", "tools": [{"type": "function", "name": name}] * 4}
    tools = [*({"type": "function", "name": n} for n in [*made, f"x__{name}"[:64]]), space]
    names = [tool.name for tool in spec(*tools).tools]
    assert len(set(names)) == len(names) == 17


@given(namespace=st.text(st.sampled_from("abc-_"), min_size=1, max_size=70), name=letters)
def test_a_call_is_replayed_under_the_name_that_the_tool_was_offered_by(namespace: str, name: str) -> None:
    [tool] = spec({"type": "namespace", "name": namespace, "tools": [{"type": "function", "name": name}]}).tools
    call = Call("c", tool.called, "client", tool.namespace)
    assert call.as_message().tool == tool.key
    assert tool.name == flat_name(namespace, name) and len(tool.name) <= 64


def test_long_names_that_begin_alike_do_not_end_alike() -> None:
    assert len({flat_name("n" * 60, f"tool_number_{number}") for number in range(50)}) == 50


@given(st.lists(st.text(max_size=80), max_size=20))
def test_a_distinct_name_is_none_of_those_taken(names: list[str]) -> None:
    taken: set[str] = set()
    for name in names:
        distinct = distinct_name(name, taken)
        assert distinct not in taken and re.fullmatch("[A-Za-z0-9_-]{1,64}", distinct)
        assert distinct == name or name in taken or not re.fullmatch("[A-Za-z0-9_-]{1,64}", name)
        taken.add(distinct)


# --- tools


def test_a_custom_tool_is_a_function_of_one_text_and_tells_its_grammar() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /a+/"}
    [tool] = spec({**TWIN, "description": "Twins.", "format": grammar}).tools
    assert tool.kind == "custom" and list(tool.parameters["properties"]) == ["input"]
    assert tool.description == "Twins.\n\nThe input must match this lark grammar:\nstart: /a+/"


def test_what_is_not_run_here_is_not_offered() -> None:
    assert spec({"type": "web_search"}, {"type": "computer"}, {**SPACE, "tools": [SPACE]}).tools == ()


@pytest.mark.parametrize(
    ("allowed", "passing"),
    [
        ({}, ["look", "write", "other"]),
        (["look"], ["look"]),
        ([], []),
        ({"tool_names": ["look", "write"]}, ["look", "write"]),
        ({"read_only": True}, ["look"]),
        ({"read_only": False}, ["write", "other"]),
        ({"tool_names": ["look", "write"], "read_only": False}, ["write"]),
    ],
)
def test_a_filter_lets_through_what_it_names(allowed: Any, passing: list[str]) -> None:
    [server] = servers_of({"tools": [{**MCP, "allowed_tools": allowed}]})
    hints = {"look": True, "write": False, "other": False}
    assert [name for name, read_only in hints.items() if server.allowed.passes(name, read_only)] == passing


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("always", Approval(always=ToolFilter())),
        ("never", Approval(never=ToolFilter())),
        ({"never": {"tool_names": ["a"]}}, Approval(never=ToolFilter(frozenset("a")))),
        ({"always": {"read_only": False}}, Approval(always=ToolFilter(None, False))),
    ],
)
def test_an_approval_is_read_as_it_was_meant(policy: Any, wanted: Approval) -> None:
    [server] = servers_of({"tools": [{**MCP, "require_approval": policy}]})
    assert server.approval == wanted


@pytest.mark.parametrize(
    ("approval", "needed"),
    [
        (Approval(always=ToolFilter()), True),
        (Approval(never=ToolFilter()), False),
        (Approval(always=ToolFilter(frozenset({"act"})), never=ToolFilter(frozenset({"act"}))), True),
        (Approval(never=ToolFilter(frozenset({"other"}))), True),
        (Approval(always=ToolFilter(frozenset({"other"}))), False),
        (Approval(always=ToolFilter(frozenset({"other"})), never=ToolFilter(frozenset({"look"}))), True),
    ],
)
def test_always_wins_and_a_given_never_leaves_the_others_to_be_approved(approval: Approval, needed: bool) -> None:
    assert approval.needed("act", read_only=False) is needed


# --- tool choice


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ("auto", ("auto", None)),
        ("none", ("none", None)),
        ("required", ("required", None)),
        ({"type": "function", "name": "f"}, ("f", None)),
        ({"type": "function", "name": "f", "namespace": "space"}, ("space__f", None)),
        ({"type": "custom", "name": "twin"}, ("twin", None)),
        ({"type": "mcp", "server_label": "srv"}, ("required", "srv")),
        ({"type": "mcp", "server_label": "srv", "name": "act"}, ("act", "srv")),
        ({"type": "allowed_tools", "mode": "required", "tools": [F]}, ("required", None)),
        ({"type": "allowed_tools", "mode": "auto", "tools": [F]}, ("auto", None)),
    ],
)
def test_a_choice_binds_the_model_to_what_it_names(choice: Any, wanted: tuple[str, str | None]) -> None:
    rules = spec(F, TWIN, SPACE, MCP, choice=choice)
    assert (rules.choice, rules.choice_group) == wanted


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "name": "g"},
        {"type": "function", "name": "twin"},
        {"type": "custom", "name": "f"},
        {"type": "function", "name": "f", "namespace": "elsewhere"},
        {"type": "mcp", "server_label": "elsewhere"},
        {"type": "mcp", "server_label": "srv", "name": 5},
        {"type": "mcp"},
        {"type": "function"},
        {"type": "web_search"},
        {"type": "allowed_tools", "mode": "auto"},
        {"type": "allowed_tools", "mode": "sometimes", "tools": [F]},
        {"type": "allowed_tools", "mode": "auto", "tools": ["f"]},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp", "server_label": "elsewhere"}]},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]},
        "sometimes",
        7,
        {},
    ],
)
def test_a_choice_that_cannot_be_followed_is_refused(choice: Any) -> None:
    assert refused(F, TWIN, MCP, choice=choice).code in ("invalid_value", "invalid_type")


def test_a_choice_cannot_name_a_tool_that_is_filtered_out() -> None:
    filtered = {**MCP, "allowed_tools": ["look"]}
    for choice in ({"type": "mcp", "server_label": "srv", "name": "act"},):
        assert "act" in refused(filtered, choice=choice).message
        allowed = {"type": "allowed_tools", "mode": "auto", "tools": [choice]}
        assert "act" in refused(filtered, choice=allowed).message


def test_only_the_server_that_is_chosen_is_needed() -> None:
    other = {**MCP, "server_label": "other"}
    rules = spec(F, MCP, other, choice={"type": "mcp", "server_label": "srv"})
    assert {server.label: server.needed for server in rules.servers} == {"srv": True, "other": False}
    assert not any(server.needed for server in spec(F, MCP, choice="required").servers), "the function will do"
    assert all(server.needed for server in spec(MCP, choice="required").servers)


def test_of_an_allowed_server_only_the_named_tools_are_offered_but_all_are_listed() -> None:
    named = [{"type": "mcp", "server_label": "srv", "name": name} for name in ("a", "b")]
    [server] = spec(F, MCP, choice={"type": "allowed_tools", "mode": "auto", "tools": named}).servers
    assert server.chosen == ToolFilter(frozenset("ab")) and server.allowed == ToolFilter()


# --- limits


@pytest.mark.parametrize(
    ("settings", "most"),
    [({}, 50), ({"alias": True}, 10), ({"max_infer_iters": 3}, 3), ({"max_infer_iters": 99}, 50)],
)
def test_model_calls_are_limited_by_request_path_and_deployment(settings: Any, most: int) -> None:
    assert spec(**settings).max_inferences == most


def test_limits_and_strategies_are_the_requests() -> None:
    strategies = [{"type": "compaction", "compact_threshold": n} for n in (5000, 3000)]
    rules = spec(max_tool_calls=0, max_output_tokens=7, truncation="auto", context_management=strategies)
    assert (rules.max_hosted_calls, rules.max_tokens, rules.truncates, rules.compact_above) == (0, 7, True, 3000)
    bare = spec()
    assert (bare.max_hosted_calls, bare.max_tokens, bare.truncates, bare.compact_above) == (None, None, False, None)


def test_a_json_schema_goes_upstream_whole() -> None:
    format_ = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}}
    assert json.loads(json.dumps(spec(text={"format": format_}).response_format)) == wanted
