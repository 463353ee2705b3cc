"""Tools of the groups that the caller may name."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request

from turnloom.usecases import toolgroups
from turnloom.wire.app import Home, Owner, Route, caller_of
from turnloom.wire.neighbours.objects import tool_json


async def list_tools(
    request: Request,
    services: Home,
    owner: Owner,
    toolgroup_id: str | None = None,
    # The asynchronous helper puts the whole toolgroup object into the query.
    name: Annotated[str | None, Query(alias="toolgroup_id[name]")] = None,
) -> Any:
    offers = await toolgroups.list_tools(services, caller_of(request, owner), toolgroup_id or name)
    return {"data": [tool_json(offer) for offer in offers]}


async def get_tool(request: Request, tool_name: str, services: Home, owner: Owner) -> Any:
    return tool_json(await toolgroups.get_tool(services, caller_of(request, owner), tool_name))


ROUTES = (
    Route("tools", "GET", "/v1/tools", list_tools),
    Route("tools", "GET", "/v1/tools/{tool_name:path}", get_tool),
)
