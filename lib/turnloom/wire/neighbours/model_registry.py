"""Models, in the shapes of both APIs."""

from __future__ import annotations

from typing import Any

from fastapi.responses import Response

from turnloom.domain.message import JSON
from turnloom.usecases import models
from turnloom.usecases.models import UPSTREAM, Model
from turnloom.wire.app import Home, Owner, Route
from turnloom.wire.neighbours.models import RegisterModel


async def list_models(services: Home, owner: Owner) -> Any:
    found = await models.list_models(services, owner)
    return {"object": "list", "data": [_model_json(model) for model in found]}


async def get_model(model_id: str, services: Home, owner: Owner) -> Any:
    return _model_json(await models.get_model(services, owner, model_id))


async def register_model(body: RegisterModel, services: Home, owner: Owner) -> Any:
    model = Model(
        identifier=body.model_id,
        provider_id=body.provider_id or UPSTREAM,
        provider_resource_id=body.provider_model_id or body.model_id,
        model_type=body.model_type or "llm",
        metadata=body.metadata or {},
        created=services.clock.now() // 1_000_000,
        owned_by=owner,
    )
    return _model_json(await models.register_model(services, owner, model))


async def delete_model(model_id: str, services: Home, owner: Owner) -> Response:
    await models.delete_model(services, owner, model_id)
    return Response(status_code=204)


async def list_openai_models(services: Home, owner: Owner) -> Any:
    found = await models.list_models(services, owner)
    return {"object": "list", "data": [_openai_json(model) for model in found]}


async def get_openai_model(model_id: str, services: Home, owner: Owner) -> Any:
    return _openai_json(await models.get_model(services, owner, model_id))


ROUTES = (
    Route("models", "GET", "/v1/models", list_models),
    Route("models", "POST", "/v1/models", register_model),
    Route("models", "GET", "/v1/models/{model_id:path}", get_model),
    Route("models", "DELETE", "/v1/models/{model_id:path}", delete_model),
    Route("models", "GET", "/v1/openai/v1/models", list_openai_models),
    Route("models", "GET", "/v1/openai/v1/models/{model_id:path}", get_openai_model),
)


def _model_json(model: Model) -> dict[str, JSON]:
    """The model for both kinds of clients, as nobody can see which one asks on this path."""
    return {
        **_openai_json(model),
        "identifier": model.identifier,
        "provider_resource_id": model.provider_resource_id,
        "provider_id": model.provider_id,
        "type": "model",
        "metadata": dict(model.metadata),
        "model_type": model.model_type,
    }


def _openai_json(model: Model) -> dict[str, JSON]:
    return {"id": model.identifier, "object": "model", "created": model.created, "owned_by": model.owned_by}
