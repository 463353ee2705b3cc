"""Tool groups: registered, found, deleted."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import Response

from turnloom.domain.agent import ToolGroup
from turnloom.domain.message import JSON
from turnloom.domain.redaction import redacted_args, redacted_url
from turnloom.usecases import toolgroups
from turnloom.usecases.toolgroups import Registration
from turnloom.wire.app import Home, Owner, Route, caller_of
from turnloom.wire.neighbours.models import RegisterToolGroup


async def list_toolgroups(services: Home, owner: Owner) -> Any:
    return {"data": [_group_json(group) for group in await toolgroups.list_groups(services, owner)]}


async def get_toolgroup(toolgroup_id: str, services: Home, owner: Owner) -> Any:
    return _group_json(await toolgroups.get_group(services, owner, toolgroup_id))


async def register_toolgroup(request: Request, body: RegisterToolGroup, services: Home, owner: Owner) -> None:
    endpoint = body.mcp_endpoint.uri if body.mcp_endpoint else None
    asked = Registration(body.toolgroup_id, body.provider_id, endpoint, body.args or {})
    await toolgroups.register_group(services, caller_of(request, owner), asked)


async def delete_toolgroup(toolgroup_id: str, services: Home, owner: Owner) -> Response:
    await toolgroups.delete_group(services, owner, toolgroup_id)
    return Response(status_code=204)


ROUTES = (
    Route("toolgroups", "GET", "/v1/toolgroups", list_toolgroups),
    Route("toolgroups", "POST", "/v1/toolgroups", register_toolgroup),
    Route("toolgroups", "GET", "/v1/toolgroups/{toolgroup_id:path}", get_toolgroup),
    Route("toolgroups", "DELETE", "/v1/toolgroups/{toolgroup_id:path}", delete_toolgroup),
)


def _group_json(group: ToolGroup) -> dict[str, JSON]:
    return {
        "identifier": group.identifier,
        "provider_id": group.provider_id,
        "provider_resource_id": group.identifier,
        "type": "tool_group",
        "mcp_endpoint": {"uri": redacted_url(group.endpoint)} if group.endpoint else None,
        "args": redacted_args(group.args),
    }
