"""Who does what behind the APIs, as far as clients of llama-stack ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from turnloom.domain.errors import NotFound
from turnloom.domain.message import JSON
from turnloom.usecases import models, toolgroups
from turnloom.wire.app import Route


@dataclass(frozen=True, slots=True)
class Provider:
    """Something that serves an API; ids are unique over all APIs, as they are looked up without one."""

    api: str
    provider_id: str
    provider_type: str


PROVIDERS = (
    Provider("inference", models.UPSTREAM, "remote::openai"),
    Provider("inference", models.EMBEDDINGS, "inline::embeddings"),
    Provider("vector_io", "vectors", "inline::vectors"),
    Provider("safety", "guard", "remote::guard"),
    Provider("tool_runtime", toolgroups.BUILTIN, "inline::builtin"),
    Provider("tool_runtime", toolgroups.MCP, "remote::model-context-protocol"),
    Provider("tool_runtime", toolgroups.HTTP, "remote::http"),
    Provider("agents", "turnloom", "inline::turnloom"),
    Provider("files", "blobs", "inline::blobs"),
)


async def list_providers() -> Any:
    return {"data": [_provider_json(provider) for provider in PROVIDERS]}


async def get_provider(provider_id: str) -> Any:
    for provider in PROVIDERS:
        if provider.provider_id == provider_id:
            return _provider_json(provider)
    raise NotFound("provider", provider_id)


ROUTES = (
    Route("providers", "GET", "/v1/providers", list_providers),
    Route("providers", "GET", "/v1/providers/{provider_id}", get_provider),
)


def _provider_json(provider: Provider) -> dict[str, JSON]:
    # A provider's settings may hold secrets, so none are shown.
    return {
        "api": provider.api,
        "provider_id": provider.provider_id,
        "provider_type": provider.provider_type,
        "config": {},
        "health": {"status": "OK"},
    }
