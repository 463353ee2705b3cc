"""Tool groups: those built in, and those that an owner registered, with the tools they had at that moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from turnloom.domain.agent import ToolGroup
from turnloom.domain.errors import InvalidRequest, NotFound, Problem, Unauthenticated, UpstreamBroken
from turnloom.domain.message import JSON, Tool, ToolSource
from turnloom.ports import ToolError, ToolResult, ToolScope
from turnloom.usecases.agent_spec import storable, stored_tool
from turnloom.usecases.callers import Caller
from turnloom.usecases.services import Services

BUILTIN = "builtin"
MCP = "model-context-protocol"
HTTP = "http"

MOST_BYTES = 300_000
"""What the args and tools of one group may take, as JSON: a table's row holds little more."""

INVOKE_SECONDS = 25.0
"""How long a tool or its server may take outside of a turn: API Gateway waits for 29 seconds."""


@dataclass(frozen=True, slots=True)
class Registration:
    """A tool group as asked for. `endpoint` is the address of its server; `args` are laid over every call's own."""

    identifier: str
    provider_id: str
    endpoint: str | None = None
    args: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Offer:
    """A tool, and the group that offers it."""

    tool: Tool
    group: ToolGroup


# --- groups


async def register_group(services: Services, caller: Caller, asked: Registration) -> ToolGroup:
    """Ask the group's server for its tools and keep them; a registered group of the same id is replaced.

    Only what an MCP server lists to everybody is kept. One that wants a credential is registered all the same, and
    asked for its tools with each caller's own.

    Raises InvalidRequest, Unauthenticated (`mcp_unauthenticated`), UpstreamError (`toolgroup_unreachable`).
    """
    if asked.identifier in services.builtin_groups:
        raise InvalidRequest(f"Toolgroup '{asked.identifier}' is built in and cannot be replaced")
    source = _source(asked)
    async with _in_time():
        tools = await _public_tools(services, caller, source)
    kept = tuple(map(storable, _with_args(source, asked.args, tools or ())))
    _check_size(asked, kept)
    group = ToolGroup(asked.identifier, asked.provider_id, asked.endpoint, asked.args, kept, guarded=tools is None)
    await services.registry.put_group(caller.owner, group)
    return group


async def list_groups(services: Services, owner: str) -> list[ToolGroup]:
    """Every tool group that the owner may name, the built-in ones first."""
    builtin = [
        ToolGroup(identifier, BUILTIN, None, {}, tuple(map(storable, tools)), builtin=True)
        for identifier, tools in services.builtin_groups.items()
    ]
    registered = await services.registry.groups(owner)
    return list({group.identifier: group for group in (*builtin, *registered)}.values())


async def get_group(services: Services, owner: str, identifier: str) -> ToolGroup:
    """The tool group of this id; raises NotFound."""
    for group in await list_groups(services, owner):
        if group.identifier == identifier:
            return group
    raise NotFound("toolgroup", identifier)


async def delete_group(services: Services, owner: str, identifier: str) -> None:
    """Forget a registered group; raises NotFound, or InvalidRequest when it is built in."""
    group = await get_group(services, owner, identifier)
    if group.builtin:
        raise InvalidRequest(f"Toolgroup '{identifier}' is built in and cannot be deleted")
    await services.registry.delete_group(owner, identifier)


# --- tools


async def list_tools(services: Services, caller: Caller, named: str | None = None) -> list[Offer]:
    """The tools of the group that `named` names, by its id or as `group/tool`; without it, of all groups.

    Raises NotFound for a group that is not there. For a guarded one that is named, raises as `register_group` does;
    unnamed, it is left out if its server does not list its tools to this caller.
    """
    groups = await list_groups(services, caller.owner)
    async with _in_time():
        if named:
            return await _offers(services, caller, _named(groups, named))
        found = await asyncio.gather(*(_offers_or_problem(services, caller, group) for group in groups))
    return [offer for offers in found if not isinstance(offers, Problem) for offer in offers]


async def get_tool(services: Services, caller: Caller, name: str) -> Offer:
    """The tool of this name; of several groups' the first group's.

    Raises NotFound, or if a guarded group may have the tool, what keeps its server from listing it to this caller.
    """
    groups = await list_groups(services, caller.owner)
    kept = (offer for group in groups for offer in _kept(group))
    if (known := next((offer for offer in kept if offer.tool.name == name), None)) is not None:
        return known
    guarded = (group for group in groups if group.guarded)
    async with _in_time():
        found = await asyncio.gather(*(_offers_or_problem(services, caller, group) for group in guarded))
    problem: Problem = NotFound("tool", name)
    for offers in found:
        if isinstance(offers, Problem):
            problem = offers
            continue
        for offer in offers:
            if offer.tool.name == name:
                return offer
    raise problem


async def list_server_tools(services: Services, caller: Caller, endpoint: str) -> list[Tool]:
    """The tools that the MCP server at this address has now; raises as `register_group` does."""
    async with _in_time():
        return await _offered(services, caller, ToolSource("mcp", endpoint, "", endpoint))


async def invoke_tool(services: Services, caller: Caller, name: str, arguments: Mapping[str, JSON]) -> ToolResult:
    """Run a tool outside of any turn; a failing tool is a result.

    Raises NotFound, and Unauthenticated (`mcp_unauthenticated`) when its server refuses the caller's credentials.
    """
    source = (await get_tool(services, caller, name)).tool.source
    assert source is not None
    try:
        async with asyncio.timeout(INVOKE_SECONDS):
            result = await services.engine.world.tools.call(source, arguments, _scope(caller))
    except TimeoutError:
        message = f"'{name}' did not answer within {INVOKE_SECONDS:g} seconds; in a turn it has a minute."
        return ToolResult(message, error=ToolError("timeout", message))
    if source.kind == "mcp" and result.error is not None and (result.error.kind, result.error.code) == ("http", 401):
        raise Unauthenticated(result.error.message, code="mcp_unauthenticated")
    return result


async def _public_tools(services: Services, caller: Caller, source: ToolSource) -> list[Tool] | None:
    """The tools that the server lists to everybody; None when it does so only to callers with credentials."""
    if source.kind != "mcp":
        return await _offered(services, caller, source)
    try:
        return await _offered(services, Caller(caller.owner), source)
    except Unauthenticated:
        return None
    except UpstreamBroken:
        # Perhaps it is one that refuses strangers in another way.
        if not (caller.headers or caller.provider_data):
            raise
    await _offered(services, caller, source)
    return None


async def _offers(services: Services, caller: Caller, group: ToolGroup) -> list[Offer]:
    """The tools of a group; those of a guarded one as its server lists them to this caller."""
    if not group.guarded:
        return _kept(group)
    source = ToolSource("mcp", group.identifier, "", group.endpoint)
    listed = await _offered(services, caller, source)
    return [Offer(tool, group) for tool in _with_args(source, group.args, listed)]


async def _offers_or_problem(services: Services, caller: Caller, group: ToolGroup) -> list[Offer] | Problem:
    try:
        return await _offers(services, caller, group)
    except Problem as problem:
        return problem


def _kept(group: ToolGroup) -> list[Offer]:
    return [Offer(stored_tool(tool), group) for tool in group.tools]


async def _offered(services: Services, caller: Caller, source: ToolSource) -> list[Tool]:
    return await services.engine.world.tools.offered(source, _scope(caller))


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    """Raises UpstreamBroken when a tool server does not answer within the time that API Gateway leaves."""
    try:
        async with asyncio.timeout(INVOKE_SECONDS):
            yield
    except TimeoutError:
        message = f"The tool server did not answer within {INVOKE_SECONDS:g} seconds"
        raise UpstreamBroken(message, code="toolgroup_unreachable") from None


def _source(asked: Registration) -> ToolSource:
    """Where the group's tools come from, by its provider; an endpoint under any other name is an MCP server's."""
    if asked.provider_id == HTTP:
        return ToolSource("http", asked.identifier, "", asked.endpoint, settings=asked.args)
    if asked.endpoint:
        return ToolSource("mcp", asked.identifier, "", asked.endpoint)
    if asked.provider_id == MCP:
        raise InvalidRequest("An MCP tool group needs an address in mcp_endpoint.uri", param="mcp_endpoint")
    message = f"Provider '{asked.provider_id}' has no tool groups to register; there are: {MCP}, {HTTP}"
    raise InvalidRequest(message, param="provider_id")


def _with_args(group: ToolSource, args: Mapping[str, JSON], tools: Iterable[Tool]) -> list[Tool]:
    """The tools of an MCP server with the args of their group laid over; an HTTP group's args describe its tools."""
    if group.kind != "mcp":
        return list(tools)
    return [
        replace(tool, source=replace(tool.source, args={**tool.source.args, **args})) for tool in tools if tool.source
    ]


def _check_size(asked: Registration, kept: Sequence[Mapping[str, JSON]]) -> None:
    size = len(json.dumps([dict(asked.args), kept]))
    if size > MOST_BYTES:
        message = f"The tools of '{asked.identifier}' take {size} bytes; {MOST_BYTES} are the most that is kept"
        raise InvalidRequest(message)


def _named(groups: Sequence[ToolGroup], name: str) -> ToolGroup:
    known = {group.identifier: group for group in groups}
    found = known.get(name) or known.get(name.rpartition("/")[0])
    if found is None:
        raise NotFound("toolgroup", name)
    return found


def _scope(caller: Caller) -> ToolScope:
    return ToolScope(caller.owner, headers=caller.headers, provider_data=caller.provider_data)
