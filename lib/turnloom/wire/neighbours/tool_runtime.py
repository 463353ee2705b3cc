"""Tools outside of any turn: listed live, and run."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request

from turnloom.usecases import toolgroups
from turnloom.wire.agents_api.objects import content_items
from turnloom.wire.app import Home, Owner, Route, caller_of
from turnloom.wire.neighbours.models import InvokeTool
from turnloom.wire.neighbours.objects import tool_def_json


async def list_runtime_tools(
    request: Request,
    services: Home,
    owner: Owner,
    tool_group_id: str | None = None,
    endpoint: Annotated[str | None, Query(alias="mcp_endpoint[uri]")] = None,
) -> Any:
    caller = caller_of(request, owner)
    if endpoint:
        tools = await toolgroups.list_server_tools(services, caller, endpoint)
    else:
        tools = [offer.tool for offer in await toolgroups.list_tools(services, caller, tool_group_id)]
    return {"data": [tool_def_json(tool) for tool in tools]}


async def invoke_tool(request: Request, body: InvokeTool, services: Home, owner: Owner) -> Any:
    result = await toolgroups.invoke_tool(services, caller_of(request, owner), body.tool_name, body.kwargs or {})
    return {
        "content": content_items(result.content),
        "error_message": result.error.message if result.error else None,
        "error_code": result.error.code if result.error else None,
        "metadata": dict(result.metadata),
    }


ROUTES = (
    Route("tool_runtime", "GET", "/v1/tool-runtime/list-tools", list_runtime_tools),
    Route("tool_runtime", "POST", "/v1/tool-runtime/invoke", invoke_tool),
)
