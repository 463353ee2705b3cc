"""Which tools the model is offered, under which names, and what happens when a tool server says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.conftest import House
from tests.engine.test_responses import (
    LOOKUP,
    MCP,
    ToolServers,
    answered,
    ask,
    results,
    serve,
    served,
    shown,
    stored,
    systems,
)
from turnloom.domain.errors import Problem, Unauthenticated, UpstreamBroken, UpstreamRejected
from turnloom.domain.event import ToolsListed
from turnloom.domain.message import AssistantMessage, Spec, Tool, ToolServer, ToolSource, distinct_name
from turnloom.domain.turn import Listing, Turn
from turnloom.engine.offer import known_tools, offer

OTHER = {**MCP, "server_label": "other", "server_url": "https://other.test/mcp"}
PATCH = {"type": "custom", "name": "patch"}
SPACE = {"type": "namespace", "name": "space", "tools": [{"type": "function", "name": "fly"}]}
DOWN = UpstreamBroken("The server is down.", code="toolgroup_unreachable")


def servers(house: House, srv: Sequence[Tool] | Problem = (), other: Sequence[Tool] | Problem = ()) -> ToolServers:
    return serve(
        house, {"srv": srv, "other": other}, look=lambda: "looked", act=lambda: "acted", far=lambda: "went far"
    )


def names(house: House, call: int = -1) -> list[str]:
    return [tool.name for tool in house.model.requests[call].tools]


async def offered(house: House, *tools: Any, **settings: Any) -> tuple[list[str], str | None]:
    """What the first model call is offered, and the choice it must make."""
    house.model.says("Fine.")
    turn = await answered(house, "Hi", tools=list(tools), **settings)
    assert turn.status == "completed"
    return names(house), house.model.requests[-1].tool_choice


# --- names


async def test_tools_of_two_servers_may_share_a_name(house: House) -> None:
    tools = servers(house, [served("look")], [served("look")])
    house.model.calls(("other__look", {}))
    house.model.says("Done.")
    turn = await answered(house, "Hi", tools=[MCP, OTHER])
    assert names(house) == ["look", "other__look"]
    [inference, _] = turn.inferences
    assert (inference.calls[0].name, inference.calls[0].group) == ("look", "other"), "the client knows its own name"
    assert results(house) == ["looked"] and len(tools.ran) == 1


def called(house: House) -> list[str]:
    """The names of the calls that the model was shown last."""
    return [call.name for m in shown(house) if isinstance(m, AssistantMessage) for call in m.calls]


async def test_calls_of_tools_that_share_a_name_are_shown_again_as_they_were_made(house: House) -> None:
    servers(house, [served("look")], [served("look")])
    house.model.calls(("other__look", {}), ("look", {}))
    house.model.says("Done.")
    turn = await answered(house, "Hi", tools=[MCP, OTHER])
    assert called(house) == ["other__look", "look"]
    house.model.says("Fine.")
    await answered(house, "And?", previous_response_id=turn.id, tools=[MCP, OTHER])
    assert called(house) == ["other__look", "look"]
    house.model.says("Fine.")
    await answered(house, "And?", previous_response_id=turn.id)
    assert called(house) == ["look", "look"], "without the tools nothing tells them apart"


async def test_a_call_of_a_tool_in_a_namespace_is_shown_again_as_it_was_made(house: House) -> None:
    flat = {"type": "function", "name": "space__fly"}
    house.model.calls(("space__fly__2", {}))
    turn = await answered(house, "Hi", tools=[flat, SPACE])
    [call] = turn.inferences[0].calls
    assert (call.name, call.group) == ("fly", "space")
    house.model.says("Fine.")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "flown"}
    await answered(house, output, previous_response_id=turn.id, tools=[flat, SPACE])
    assert called(house) == ["space__fly__2"]


async def test_a_call_by_a_long_name_is_shown_again_by_the_short_one(house: House) -> None:
    long = {"type": "function", "name": "x" * 100}
    assert (await offered(house, long))[0] == [short := distinct_name("x" * 100, ())]
    echoed = {"type": "function_call", "call_id": "c", "name": "x" * 100, "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "done"}
    for tools in ([long], []):
        house.model.says("Fine.")
        await answered(house, echoed, output, tools=tools)
        assert called(house) == [short] and len(short) == 64


@pytest.mark.parametrize("name", ["files.read", "read file", "prüfe"])
async def test_a_name_that_endpoints_refuse_is_known_upstream_alone(house: House, name: str) -> None:
    upstream = distinct_name(name, ())
    tools = servers(house, [served(name)])
    house.model.calls((upstream, {}))
    house.model.says("Done.")
    turn = await answered(house, "Hi", tools=[MCP])
    assert (names(house), turn.inferences[0].calls[0].name) == ([upstream], name)
    assert [run[0] for run in tools.ran] == [name]
    for tool in ({"type": "function", "name": name}, {"type": "custom", "name": name}):
        house.model.calls((upstream, {}))
        turn = await answered(house, "Hi", tools=[tool], tool_choice={"type": tool["type"], "name": name})
        assert house.model.requests[-1].tool_choice == upstream
        assert turn.inferences[0].calls[0].name == name


def mcp_source(group: str, name: str) -> ToolSource:
    return ToolSource("mcp", group, name, f"https://{group}.test")


@pytest.mark.parametrize(
    "tools",
    [
        [Tool("b"), Tool("a__b"), Tool("b", source=mcp_source("a", "b"))],
        [Tool("x" * 64), Tool("x" * 64, source=mcp_source("a", "x")), Tool("x" * 64, source=mcp_source("b", "x"))],
        [Tool("n" * 90 + str(n), source=mcp_source("a", "n" * 90 + str(n))) for n in range(3)],
        [Tool("b", source=mcp_source("a" * 70, "b")) for _ in range(4)],
    ],
)
def test_names_are_distinct_and_short_whatever_the_servers_call_their_tools(tools: list[Tool]) -> None:
    known = known_tools(Spec("m", tools=tuple(tools)), Turn("t"))
    assert len({tool.name for tool in known}) == len(tools) and all(len(tool.name) <= 64 for tool in known)
    assert known == known_tools(Spec("m", tools=tuple(tools)), Turn("t")), "and the same each time"


async def test_a_tool_that_came_in_an_earlier_turn_is_offered_once_by_its_newest_definition(house: House) -> None:
    def item(*tools: Any) -> Any:
        return {"type": "additional_tools", "tools": list(tools)}

    def described(word: str, *more: str) -> list[Any]:
        inner = [{"type": "function", "name": name, "description": word} for name in ("fly", *more)]
        return [{**LOOKUP, "description": word}, {**PATCH, "description": word}, {**SPACE, "tools": inner}]

    house.model.says("Fine.")
    first = await answered(house, item(*described("old", "land")), "Hi")
    house.model.says("Fine.")
    await answered(house, "Hi", previous_response_id=first.id, tools=described("new"))
    shown = [(tool.name, tool.description) for tool in house.model.requests[-1].tools]
    assert shown == [("lookup", "new"), ("patch", "new"), ("space__fly", "new"), ("space__land", "old")]
    house.model.says("Fine.")
    choice = {"type": "function", "name": "lookup"}
    await answered(house, "Hi", previous_response_id=first.id, tools=described("new"), tool_choice=choice)
    assert house.model.requests[-1].tool_choice == "lookup"


# --- allowed tools and tool choice


@pytest.mark.parametrize(
    ("allowed", "left"),
    [
        ([{"type": "function", "name": "lookup"}], ["lookup"]),
        ([{"type": "custom", "name": "patch"}], ["patch"]),
        ([{"type": "namespace", "name": "space"}], ["space__fly"]),
        ([{"type": "function", "name": "fly", "namespace": "space"}], ["space__fly"]),
        ([{"type": "mcp", "server_label": "srv"}], ["look", "act"]),
        ([{"type": "mcp", "server_label": "srv", "name": "act"}], ["act"]),
        ([{"type": "mcp", "server_label": "srv", "name": n} for n in ("act", "look")], ["look", "act"]),
        (
            [{"type": "mcp", "server_label": "srv", "name": "act"}, {"type": "mcp", "server_label": "srv"}],
            ["look", "act"],
        ),
        ([{"type": "web_search"}], []),
        ([], []),
        ([{"type": "function", "name": "lookup"}, {"type": "mcp", "server_label": "other"}], ["lookup", "far"]),
    ],
)
async def test_allowed_tools_are_all_that_is_offered(house: House, allowed: list[Any], left: list[str]) -> None:
    servers(house, [served("look"), served("act")], [served("far")])
    choice = {"type": "allowed_tools", "mode": "auto", "tools": allowed}
    assert await offered(house, LOOKUP, PATCH, SPACE, MCP, OTHER, tool_choice=choice) == (left, None)


async def test_what_is_not_allowed_is_not_run_either(house: House) -> None:
    tools = servers(house, [served("look"), served("act")])
    allowed = [{"type": "mcp", "server_label": "srv", "name": "look"}]
    house.model.calls(("act", {}))
    house.model.says("Fine.")
    choice = {"type": "allowed_tools", "mode": "required", "tools": allowed}
    turn = await answered(house, "Hi", tools=[MCP], tool_choice=choice)
    assert tools.ran == [] and results(house) == ["There is no tool named 'act'."]
    assert [request.tool_choice for request in house.model.requests] == ["required", None]
    assert [call.runner for call in turn.inferences[0].calls] == ["unknown"]


async def test_a_filtered_tool_is_neither_listed_nor_callable(house: House) -> None:
    tools = servers(house, [served("look", read_only=True), served("act", read_only=False), served("far")])
    house.model.calls(("act", {}))
    house.model.says("Fine.")
    turn = await answered(house, "Hi", tools=[{**MCP, "allowed_tools": {"read_only": True}}])
    [listing] = [step for step in turn.steps if isinstance(step, Listing)]
    assert [tool["name"] for tool in listing.tools] == names(house) == ["look"] and tools.ran == []


async def test_a_choice_of_a_server_binds_the_first_call_to_its_tools(house: House) -> None:
    servers(house, [served("look"), served("act")], [served("far")])
    house.model.calls(("look", {}))
    house.model.says("Fine.")
    await answered(house, "Hi", tools=[LOOKUP, MCP, OTHER], tool_choice={"type": "mcp", "server_label": "srv"})
    assert [request.tool_choice for request in house.model.requests] == ["required", None]
    assert names(house, 0) == ["look", "act"] and names(house, 1) == ["lookup", "look", "act", "far"]


async def test_a_choice_of_a_servers_tool_finds_it_under_the_name_it_goes_by(house: House) -> None:
    servers(house, [served("look")], [served("look")])
    choice = {"type": "mcp", "server_label": "other", "name": "look"}
    assert await offered(house, MCP, OTHER, tool_choice=choice) == (["other__look"], "other__look")


async def test_a_choice_of_a_tool_that_the_server_does_not_have_fails_the_response(house: House) -> None:
    servers(house, [served("look")])
    choice = {"type": "mcp", "server_label": "srv", "name": "nothing"}
    turn = await answered(house, "Hi", tools=[MCP], tool_choice=choice)
    assert turn.failure is not None and turn.failure.code == "invalid_value" and house.model.requests == []


async def test_nothing_is_offered_when_nothing_may_be_chosen(house: House) -> None:
    servers(house, [served("look")])
    assert await offered(house, LOOKUP, MCP, tool_choice="none") == ([], None)


async def test_required_is_not_asked_of_a_model_that_is_offered_nothing(house: House) -> None:
    servers(house, [])
    assert await offered(house, MCP, tool_choice="required") == ([], None)


# --- servers that do not say


async def test_a_server_that_cannot_be_listed_is_told_of_and_the_response_goes_on(house: House) -> None:
    servers(house, DOWN, [served("far")])
    choice = await offered(house, MCP, OTHER)
    assert choice == (["far"], None)
    [told] = systems(house.model.requests[-1].messages)
    assert "srv" in told and "The server is down." in told


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    "choice",
    [
        {"type": "mcp", "server_label": "srv"},
        {"type": "mcp", "server_label": "srv", "name": "look"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "mcp", "server_label": "srv"}]},
    ],
)
async def test_a_response_fails_without_the_server_that_it_needs(house: House, choice: Any, background: bool) -> None:
    servers(house, DOWN, [served("far")])
    run = await ask(house, "Hi", tools=[MCP, OTHER], tool_choice=choice, background=background)
    turn = await run.settled()
    assert turn.failure is not None
    assert (turn.failure.code, turn.failure.message) == ("mcp_server_unavailable", "The server is down.")
    assert house.model.requests == [] and house.orchestrator.errors == []
    if not background:
        assert isinstance(run.problem, UpstreamRejected) and run.problem.param == "tool_choice"


async def test_a_response_needs_only_the_server_that_it_chose(house: House) -> None:
    servers(house, [served("look")], DOWN)
    choice = {"type": "mcp", "server_label": "srv"}
    assert await offered(house, MCP, OTHER, tool_choice=choice) == (["look"], "required")


@pytest.mark.parametrize("alias", [False, True])
async def test_refused_credentials_fail_the_response_only_on_the_alias(house: House, alias: bool) -> None:
    servers(house, Unauthenticated("Who are you?", code="mcp_unauthenticated"))
    house.model.says("Fine.")
    turn = await answered(house, "Hi", tools=[MCP], alias=alias)
    assert turn.status == ("failed" if alias else "completed")
    if turn.failure is not None:
        assert turn.failure.code == "mcp_unauthenticated"


# --- what a chain knows already


@pytest.mark.parametrize(
    ("change", "asks_again"),
    [
        ({}, False),
        ({"require_approval": "always"}, False),
        ({"server_url": "https://elsewhere.test/mcp"}, True),
        ({"server_url": "https://srv.test/another"}, True),
        ({"server_url": "https://srv.test"}, True),
        ({"allowed_tools": ["look"]}, True),
    ],
)
async def test_a_server_is_asked_again_only_if_the_answer_may_differ(
    house: House, change: dict[str, Any], asks_again: bool
) -> None:
    tools = servers(house, [served("look")])
    house.model.says("One.")
    first = await answered(house, "Hi", tools=[MCP])
    house.model.says("Two.")
    second = await answered(house, "And?", previous_response_id=first.id, tools=[{**MCP, **change}])
    assert len(tools.listed) == 1 + asks_again and names(house) == ["look"]
    assert any(isinstance(step, Listing) for step in second.steps) is asks_again


async def test_a_server_that_could_not_be_listed_is_asked_again(house: House) -> None:
    tools = servers(house, DOWN)
    house.model.says("One.")
    first = await answered(house, "Hi", tools=[MCP])
    tools.servers["srv"] = [served("look")]
    house.model.says("Two.")
    await answered(house, "And?", previous_response_id=first.id, tools=[MCP])
    assert names(house) == ["look"]


async def test_a_child_offers_only_the_tools_of_its_own_request(house: House) -> None:
    servers(house, [served("look")])
    house.model.says("One.")
    first = await answered(house, "Hi", tools=[MCP])
    house.model.says("Two.")
    await answered(house, "And?", previous_response_id=first.id)
    assert names(house) == []


async def test_each_server_is_asked_once_although_a_driver_was_lost_on_the_way(house: House) -> None:
    tools = servers(house, [served("look")], [served("far")])
    house.orchestrator.refusals = 1
    house.model.says("Fine.")
    made = await ask(house, "Hi", tools=[MCP, OTHER], background=True)
    listed = ToolsListed(house.clock.now(), "srv", ({"name": "look", "input_schema": {}},))
    await house.services.responses.append(made.record, [listed], house.engine.lease())
    house.clock.advance(60)
    assert (await made.settled()).status == "completed"
    assert tools.listed == ["other"] and names(house) == ["look", "far"]
    told = [event.server for event in (await stored(house, made.record)).events if isinstance(event, ToolsListed)]
    assert told == ["srv", "other"]


def test_a_forcing_choice_binds_only_where_it_is_meant_to() -> None:
    spec = Spec("m", tools=(Tool("f"),), choice="f", servers=(ToolServer("s", "https://s.test"),))
    assert offer(spec, Turn("t"), forced=True).choice == "f"
    assert offer(spec, Turn("t"), forced=False).choice is None
