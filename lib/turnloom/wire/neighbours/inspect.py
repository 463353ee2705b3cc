"""What this server is: that it is up, which API level it speaks, which routes it has."""

from __future__ import annotations

from typing import Any

from turnloom import __version__
from turnloom.domain.message import JSON
from turnloom.wire.app import Route
from turnloom.wire.neighbours.providers import PROVIDERS

API_VERSION = "0.2.20"
"""The level of the llama-stack API that is spoken; its clients decide by it what they may ask for."""

_API = {
    "models": "inference",
    "toolgroups": "tool_runtime",
    "tools": "tool_runtime",
    "tool_runtime": "tool_runtime",
    "providers": "providers",
    "shields": "safety",
    "inspect": "inspect",
}
"""The API that a function belongs to; what is not here is a method of agents, responses or conversations."""


async def health() -> Any:
    return {"status": "OK"}


async def version() -> Any:
    return {"version": API_VERSION, "server": f"turnloom {__version__}"}


async def list_routes() -> Any:
    # Imported here: the other functions of this package have no use for the other APIs.
    from turnloom.wire.agents_api import routes as agents_api
    from turnloom.wire.neighbours import ROUTES as NEIGHBOURS
    from turnloom.wire.responses_api import conversations
    from turnloom.wire.responses_api import routes as responses_api

    found = (*agents_api.ROUTES, *responses_api.ROUTES, *conversations.ROUTES, *NEIGHBOURS)
    return {"data": [_route_json(route) for route in found]}


ROUTES = (
    Route("inspect", "GET", "/v1/health", health),
    Route("inspect", "GET", "/v1/version", version),
    Route("inspect", "GET", "/v1/inspect/routes", list_routes),
)


def _route_json(route: Route) -> dict[str, JSON]:
    api = _API.get(route.function, "agents")
    return {
        "route": route.path.replace(":path}", "}"),
        "method": route.method,
        "provider_types": [provider.provider_type for provider in PROVIDERS if provider.api == api],
    }
