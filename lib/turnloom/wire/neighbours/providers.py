"""Who does what behind the APIs, as far as clients of llama-stack ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from turnloom.domain.errors import NotFound
from turnloom.domain.message import JSON
from turnloom.usecases import models, toolgroups
from turnloom.usecases.models import Health
from turnloom.wire.app import Home, Route


@dataclass(frozen=True, slots=True)
class Provider:
    """Something that serves an API; ids are unique over all APIs, as they are looked up without one."""

    api: str
    provider_id: str
    provider_type: str


PROVIDERS = (
    Provider("inference", models.UPSTREAM, "remote::openai"),
    Provider("tool_runtime", toolgroups.BUILTIN, "inline::builtin"),
    Provider("tool_runtime", toolgroups.MCP, "remote::model-context-protocol"),
    Provider("tool_runtime", toolgroups.HTTP, "remote::http"),
    Provider("agents", "turnloom", "inline::turnloom"),
)
"""Each API that is served here, and nothing else: clients choose by this list what they may ask for."""


async def list_providers(services: Home) -> Any:
    upstream = await models.upstream_health(services)
    return {"data": [_provider_json(provider, upstream) for provider in PROVIDERS]}


async def get_provider(provider_id: str, services: Home) -> Any:
    for provider in PROVIDERS:
        if provider.provider_id == provider_id:
            return _provider_json(provider, await models.upstream_health(services))
    raise NotFound("provider", provider_id)


ROUTES = (
    Route("providers", "GET", "/v1/providers", list_providers),
    Route("providers", "GET", "/v1/providers/{provider_id}", get_provider),
)


def _provider_json(provider: Provider, upstream: Health) -> dict[str, JSON]:
    """The provider with its health: the upstream's own, and OK for the APIs that this process serves by itself."""
    fault = upstream.fault if provider.provider_id == models.UPSTREAM else None
    # A provider's settings may hold secrets, so none are shown.
    return {
        "api": provider.api,
        "provider_id": provider.provider_id,
        "provider_type": provider.provider_type,
        "config": {},
        "health": {"status": "OK"} if fault is None else {"status": "Error", "message": fault},
    }
