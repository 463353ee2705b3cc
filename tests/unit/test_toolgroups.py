"""Tool groups: what registering keeps, what is refused, and with what their tools are run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tests.conftest import House
from turnloom.domain.errors import InvalidRequest, NotFound, Unauthenticated, UpstreamBroken
from turnloom.domain.message import Tool, ToolSource
from turnloom.ports import Row, ToolScope
from turnloom.store.keys import partition
from turnloom.testing import FakeTools
from turnloom.usecases import toolgroups
from turnloom.usecases.agent_spec import group_tools, groups_by_id, guarded_servers, stored_tool
from turnloom.usecases.callers import Caller
from turnloom.usecases.services import Services
from turnloom.usecases.toolgroups import HTTP, MCP, Registration

ME = Caller("me", {"http://srv/mcp": {"authorization": "secret"}}, {"tavily_search_api_key": "k"})
SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}


@dataclass
class ToolServer(FakeTools):
    """A server that offers the named tools, or fails; keeps what it was asked with."""

    names: Sequence[str] = ("search",)
    failure: Exception | None = None
    asked: list[tuple[ToolSource, ToolScope]] = field(default_factory=list)

    async def offered(self, source: ToolSource, scope: ToolScope) -> list[Tool]:
        self.asked.append((source, scope))
        if self.failure is not None:
            raise self.failure
        return [Tool(name, f"Does {name}.", SCHEMA, replace(source, name=name)) for name in self.names]


def served(house: House, tools: ToolServer) -> Services:
    engine = house.services.engine
    return replace(house.services, engine=replace(engine, world=replace(engine.world, tools=tools)))


async def register(services: Services, identifier: str = "mine", provider: str = MCP, **given: Any) -> None:
    asked = Registration(identifier, provider, **{"endpoint": "http://srv/mcp", **given})
    await toolgroups.register_group(services, ME, asked)


async def names(services: Services, group: str | None = None) -> list[str]:
    return [offer.tool.name for offer in await toolgroups.list_tools(services, ME, group)]


async def test_registering_keeps_what_the_server_lists_to_everybody(house: House) -> None:
    server = ToolServer()
    services = served(house, server)
    await register(services)
    server.names = ("search", "fetch")
    assert await names(services, "mine") == ["search"], "the snapshot counts"
    source, scope = server.asked[0]
    assert (source.kind, source.group, source.endpoint) == ("mcp", "mine", "http://srv/mcp")
    assert scope == ToolScope("me")
    assert len(server.asked) == 1


async def test_registering_again_replaces_the_group_and_its_snapshot(house: House) -> None:
    server = ToolServer()
    services = served(house, server)
    await register(services)
    server.names = ("fetch",)
    await register(services, endpoint="http://srv/two")
    group = await toolgroups.get_group(services, "me", "mine")
    assert (group.endpoint, await names(services, "mine")) == ("http://srv/two", ["fetch"])


async def test_the_snapshot_keeps_the_whole_schema(house: House) -> None:
    services = served(house, ToolServer())
    await register(services)
    group = await toolgroups.get_group(services, "me", "mine")
    assert stored_tool(group.tools[0]).parameters == SCHEMA


@pytest.mark.parametrize("provider", [MCP, "my-own-server"])
async def test_an_endpoint_makes_an_mcp_group_under_any_providers_name(house: House, provider: str) -> None:
    server = ToolServer()
    services = served(house, server)
    await register(services, provider=provider)
    assert server.asked[0][0].kind == "mcp"
    assert (await toolgroups.get_group(services, "me", "mine")).provider_id == provider


async def test_args_of_an_mcp_group_are_laid_over_every_call(house: House) -> None:
    services = served(house, server := ToolServer({"search": lambda q, limit: f"{q} {limit}"}))
    await register(services, args={"limit": 3})
    result = await toolgroups.invoke_tool(services, ME, "search", {"q": "x", "limit": 99})
    assert (result.content, result.error) == ("x 3", None)
    assert server.ran[0][2].headers == ME.headers


async def test_args_of_an_http_group_are_its_settings_and_not_arguments(house: House) -> None:
    services = served(house, server := ToolServer({"search": lambda q: q}))
    args = {"tools": [{"name": "search"}]}
    await register(services, provider=HTTP, endpoint="https://api.example/v1", args=args)
    source = server.asked[0][0]
    assert (source.kind, source.endpoint, source.settings) == ("http", "https://api.example/v1", args)
    assert (await toolgroups.invoke_tool(services, ME, "search", {"q": "x"})).content == "x"
    assert (await toolgroups.get_group(services, "me", "mine")).args == args


async def test_a_provider_that_is_not_known_is_refused_naming_those_that_are(house: House) -> None:
    with pytest.raises(InvalidRequest, match=r"'nobody'.*model-context-protocol, http"):
        await register(house.services, provider="nobody", endpoint=None)


async def test_an_mcp_group_needs_an_endpoint(house: House) -> None:
    with pytest.raises(InvalidRequest, match=r"mcp_endpoint\.uri"):
        await register(house.services, endpoint=None)


@pytest.mark.parametrize("caller", [ME, Caller("me")], ids=["with credentials", "without"])
async def test_a_server_that_does_not_answer_leaves_the_registry_as_it_was(house: House, caller: Caller) -> None:
    server = ToolServer()
    services = served(house, server)
    await register(services)
    server.failure = UpstreamBroken("gone", code="toolgroup_unreachable")
    with pytest.raises(UpstreamBroken):
        await toolgroups.register_group(services, caller, Registration("mine", MCP, "http://srv/other"))
    assert (await toolgroups.get_group(services, "me", "mine")).endpoint == "http://srv/mcp"


@dataclass
class GuardedServer(ToolServer):
    """One that refuses whoever brings it no header."""

    refusal: Exception = field(default_factory=lambda: Unauthenticated("Who is it?", code="mcp_unauthenticated"))

    async def offered(self, source: ToolSource, scope: ToolScope) -> list[Tool]:
        if not scope.headers:
            raise self.refusal
        return await super().offered(source, scope)


@pytest.mark.parametrize("who", [ME, Caller("me")], ids=["with credentials", "without"])
async def test_a_guarded_group_keeps_no_tools_whoever_registers_it(house: House, who: Caller) -> None:
    services = served(house, GuardedServer())
    await toolgroups.register_group(services, who, Registration("mine", MCP, "http://srv/mcp"))
    group = await toolgroups.get_group(services, "me", "mine")
    assert (group.guarded, group.tools) == (True, ())


async def test_tools_of_a_guarded_group_are_listed_to_who_brings_a_credential(house: House) -> None:
    services = served(house, GuardedServer())
    await register(services, args={"limit": 3})
    assert await names(services, "mine") == ["search"]
    assert (await toolgroups.get_tool(services, ME, "search")).tool.source.args == {"limit": 3}
    listed = await toolgroups.list_tools(services, Caller("me"))
    assert "search" not in [offer.tool.name for offer in listed]
    with pytest.raises(Unauthenticated):
        await toolgroups.list_tools(services, Caller("me"), "mine")


async def test_a_tool_of_a_guarded_group_is_run_for_who_brings_a_credential(house: House) -> None:
    services = served(house, GuardedServer({"search": lambda q: q}))
    await register(services)
    assert (await toolgroups.invoke_tool(services, ME, "search", {"q": "x"})).content == "x"
    with pytest.raises(Unauthenticated):
        await toolgroups.invoke_tool(services, Caller("me"), "search", {"q": "x"})
    with pytest.raises(NotFound):
        await toolgroups.invoke_tool(services, ME, "other", {})


async def test_a_server_that_refuses_strangers_in_its_own_way_counts_as_guarded(house: House) -> None:
    services = served(house, GuardedServer(refusal=UpstreamBroken("500", code="toolgroup_unreachable")))
    await register(services)
    assert (await toolgroups.get_group(services, "me", "mine")).guarded


@pytest.mark.parametrize(
    ("named", "allowed", "args"),
    [
        (["mine"], None, {"": {"limit": 3}}),
        (["mine/search"], {"search"}, {"": {"limit": 3}, "search": {}}),
        (["mine/search", {"name": "mine/fetch", "args": {"limit": 1}}], {"search", "fetch"}, None),
        (["mine/search", "mine"], None, None),
        (["mine", "mine/search"], None, None),
    ],
)
async def test_the_server_of_a_guarded_group_is_asked_in_the_turn(
    house: House, named: list[Any], allowed: set[str] | None, args: Any
) -> None:
    services = served(house, GuardedServer())
    await register(services, args={"limit": 3})
    groups = groups_by_id({}, await toolgroups.list_groups(services, "me"))
    assert group_tools(named, groups) == []
    (server,) = guarded_servers(named, groups)
    assert (server.label, server.endpoint, server.allowed.names) == ("mine", "http://srv/mcp", allowed)
    assert args is None or server.args == args


async def test_more_tools_than_a_row_holds_are_refused(house: House) -> None:
    services = served(house, ToolServer(names=[f"tool_{n}" for n in range(2000)]))
    with pytest.raises(InvalidRequest, match="300000"):
        await register(services)
    with pytest.raises(NotFound):
        await toolgroups.get_group(services, "me", "mine")


async def test_a_builtin_group_can_neither_be_replaced_nor_deleted(house: House) -> None:
    server = ToolServer()
    services = served(house, server)
    with pytest.raises(InvalidRequest, match="built in"):
        await register(services, "test::tools")
    with pytest.raises(InvalidRequest, match="built in"):
        await toolgroups.delete_group(services, "me", "test::tools")
    assert server.asked == []


async def test_a_deleted_group_and_its_tools_are_gone(house: House) -> None:
    services = served(house, ToolServer())
    await register(services)
    await toolgroups.delete_group(services, "me", "mine")
    with pytest.raises(NotFound) as failure:
        await toolgroups.delete_group(services, "me", "mine")
    assert failure.value.code == "toolgroup_not_found"
    assert "search" not in await names(services)


async def test_a_group_belongs_to_who_registered_it(house: House) -> None:
    services = served(house, ToolServer())
    await register(services)
    groups = [group.identifier for group in await toolgroups.list_groups(services, "you")]
    assert groups == ["test::tools"]
    with pytest.raises(NotFound):
        await toolgroups.invoke_tool(services, Caller("you"), "search", {"q": "x"})


@pytest.mark.parametrize("named", ["mine", "mine/search", "mine/whatever"])
async def test_a_group_is_named_by_its_id_or_with_one_of_its_tools(house: House, named: str) -> None:
    services = served(house, ToolServer(names=("search", "fetch")))
    await register(services)
    assert await names(services, named) == ["search", "fetch"]


async def test_the_id_of_a_group_may_hold_a_slash(house: House) -> None:
    services = served(house, ToolServer())
    await register(services, "team/mine")
    assert await names(services, "team/mine") == await names(services, "team/mine/search") == ["search"]
    with pytest.raises(NotFound):
        await toolgroups.list_tools(services, ME, "team")


async def test_a_failing_tool_is_a_result(house: House) -> None:
    services = served(house, ToolServer({}))
    await register(services)
    result = await toolgroups.invoke_tool(services, ME, "search", {"q": "x"})
    assert result.error is not None and result.error.kind == "tool"


async def test_a_tool_that_takes_too_long_for_a_request_is_a_result(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def search(q: str) -> str:
        await asyncio.Event().wait()
        return q

    services = served(house, ToolServer({"search": search}))
    await register(services)
    monkeypatch.setattr(toolgroups, "INVOKE_SECONDS", 0.01)
    result = await toolgroups.invoke_tool(services, ME, "search", {"q": "x"})
    assert result.error is not None and result.error.kind == "timeout"


async def test_a_tool_that_nobody_offers_is_not_found(house: House) -> None:
    with pytest.raises(NotFound) as failure:
        await toolgroups.invoke_tool(house.services, ME, "nothing", {})
    assert failure.value.code == "tool_not_found"


# --- at rest, and in answers


async def stored(house: House, owner: str = "me") -> Row:
    [row] = (await house.services.registry._table.query(partition(owner, "toolgroups"))).rows
    return row


async def test_a_group_is_sealed_at_rest(house: House) -> None:
    services = served(house, ToolServer())
    await register(services, endpoint="http://srv/mcp/path-secret", args={"api_key": "args-secret"})
    value = (await stored(house)).value
    assert set(value) == {"provider_id", "sealed"}
    group = await toolgroups.get_group(services, "me", "mine")
    assert (group.endpoint, group.args) == ("http://srv/mcp/path-secret", {"api_key": "args-secret"})


async def test_a_group_of_an_earlier_version_is_read_without_its_malformed_tools(house: House) -> None:
    services = served(house, ToolServer(names=("search", "fetch")))
    source = {"kind": "mcp", "group": "old", "name": "a"}
    tools = [
        {"name": "fine", "description": "", "parameters": SCHEMA, "source": source},
        {"name": "odd", "description": "", "parameters": {"properties": "x"}, "source": source},
    ]
    value = {"provider_id": MCP, "endpoint": "http://srv/mcp", "args": {}, "tools": tools}
    await house.services.registry._table.put(Row(partition("me", "toolgroups"), "old", value))
    assert await names(services, "old") == ["fine"]


async def test_a_group_that_was_sealed_with_another_key_leaves_the_others_readable(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    services = served(house, ToolServer())
    await register(services)
    row = await stored(house)
    await house.services.registry._table.put(replace(row, sort="moved"))
    groups = {group.identifier: group.readable for group in await toolgroups.list_groups(services, "me")}
    assert groups == {"test::tools": True, "mine": True, "moved": False}
    assert "moved" in caplog.text
    known = groups_by_id({}, await house.services.registry.groups("me"))
    assert [tool.name for tool in group_tools(["mine"], known)] == ["search"]
    with pytest.raises(InvalidRequest, match="Register it again"):
        group_tools(["moved"], known)
    await toolgroups.delete_group(services, "me", "moved")


async def test_a_server_that_is_slow_to_list_leaves_time_for_the_answer(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SlowServer(ToolServer):
        async def offered(self, source: ToolSource, scope: ToolScope) -> list[Tool]:
            await asyncio.Event().wait()
            return []

    services = served(house, SlowServer())
    monkeypatch.setattr(toolgroups, "INVOKE_SECONDS", 0.01)
    for request in (register(services), toolgroups.list_server_tools(services, ME, "http://srv/mcp")):
        with pytest.raises(UpstreamBroken) as failure:
            await request
        assert failure.value.code == "toolgroup_unreachable"
