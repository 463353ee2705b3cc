"""Tool groups: those built in, and those that an owner registered, with the tools they had at that moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from turnloom.domain.agent import ToolGroup
from turnloom.domain.errors import InvalidRequest, NotFound, UpstreamBroken
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

    Raises InvalidRequest, Unauthenticated (`mcp_unauthenticated`), UpstreamError (`toolgroup_unreachable`).
    """
    if asked.identifier in services.builtin_groups:
        raise InvalidRequest(f"Toolgroup '{asked.identifier}' is built in and cannot be replaced")
    source = _source(asked)
    tools = await _offered(services, caller, source)
    if source.kind == "mcp":
        tools = [_with_args(tool, asked.args) for tool in tools]
    kept = tuple(map(storable, tools))
    _check_size(asked, kept)
    group = ToolGroup(asked.identifier, asked.provider_id, asked.endpoint, asked.args, kept)
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


async def list_tools(services: Services, owner: str, named: str | None = None) -> list[Offer]:
    """The tools of the group that `named` names, by its id or as `group/tool`; without it, of all groups.

    Raises NotFound for a group that is not there.
    """
    groups = await list_groups(services, owner)
    chosen = [_named(groups, named)] if named else groups
    return [Offer(stored_tool(tool), group) for group in chosen for tool in group.tools]


async def get_tool(services: Services, owner: str, name: str) -> Offer:
    """The tool of this name; of several groups' the first group's. Raises NotFound."""
    for offer in await list_tools(services, owner):
        if offer.tool.name == name:
            return offer
    raise NotFound("tool", name)


async def list_server_tools(services: Services, caller: Caller, endpoint: str) -> list[Tool]:
    """The tools that the MCP server at this address has now; raises as `register_group` does."""
    return await _offered(services, caller, ToolSource("mcp", endpoint, "", endpoint))


async def invoke_tool(services: Services, caller: Caller, name: str, arguments: Mapping[str, JSON]) -> ToolResult:
    """Run a tool outside of any turn; a failing tool is a result. Raises NotFound."""
    tool = (await get_tool(services, caller.owner, name)).tool
    assert tool.source is not None
    try:
        async with asyncio.timeout(INVOKE_SECONDS):
            return await services.engine.world.tools.call(tool.source, arguments, _scope(caller))
    except TimeoutError:
        message = f"'{name}' did not answer within {INVOKE_SECONDS:g} seconds; in a turn it has a minute."
        return ToolResult(message, error=ToolError("timeout", message))


async def _offered(services: Services, caller: Caller, source: ToolSource) -> list[Tool]:
    try:
        async with asyncio.timeout(INVOKE_SECONDS):
            return await services.engine.world.tools.offered(source, _scope(caller))
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


def _with_args(tool: Tool, args: Mapping[str, JSON]) -> Tool:
    assert tool.source is not None
    return replace(tool, source=replace(tool.source, args={**tool.source.args, **args}))


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
