"""Models: the upstream's, those that an owner registered beside them, and the one for embeddings that is built in."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from turnloom.domain.errors import InvalidRequest, NotFound, UpstreamBroken, UpstreamRejected
from turnloom.domain.message import JSON
from turnloom.usecases.services import Services

UPSTREAM = "upstream"
EMBEDDINGS = "embeddings"


@dataclass(frozen=True, slots=True)
class Model:
    """A model that may be named. `provider_resource_id` is its name at the provider, `created` in seconds."""

    identifier: str
    provider_id: str
    provider_resource_id: str
    model_type: Literal["llm", "embedding"] = "llm"
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    created: int = 0
    owned_by: str = ""


BUILTIN = Model(
    identifier="all-MiniLM-L6-v2",
    provider_id=EMBEDDINGS,
    provider_resource_id="all-MiniLM-L6-v2",
    model_type="embedding",
    metadata={"embedding_dimension": 384},
    owned_by="turnloom",
)


async def list_models(services: Services, owner: str) -> list[Model]:
    """Every model that the owner may name; a registered one stands in for the upstream's of the same id.

    Raises UpstreamError when the upstream does not say what it has.
    """
    upstream, registered = await asyncio.gather(_upstream(services), _registered(services, owner))
    return list({**upstream, BUILTIN.identifier: BUILTIN, **registered}.values())


async def get_model(services: Services, owner: str, identifier: str) -> Model:
    """The model of this id; the upstream is asked only for what is known nowhere else. Raises NotFound."""
    if identifier == BUILTIN.identifier:
        return BUILTIN
    found = (await _registered(services, owner)).get(identifier)
    found = found or (await _upstream(services)).get(identifier)
    if found is None:
        raise NotFound("model", identifier)
    return found


async def register_model(services: Services, owner: str, model: Model) -> Model:
    """Keep the model, in place of any that was registered under its id. Raises InvalidRequest."""
    dimension = model.metadata.get("embedding_dimension")
    if model.model_type == "embedding" and (type(dimension) is not int or dimension < 1):
        raise InvalidRequest("An embedding model needs metadata.embedding_dimension, a positive integer")
    if model.identifier == BUILTIN.identifier:
        if (model.model_type, dimension) != (BUILTIN.model_type, BUILTIN.metadata["embedding_dimension"]):
            raise InvalidRequest(f"Model '{model.identifier}' is built in and cannot be replaced")
        return BUILTIN
    await services.registry.put_model(owner, model.identifier, asdict(model))
    return model


async def delete_model(services: Services, owner: str, identifier: str) -> None:
    """Forget a registered model; raises NotFound, or InvalidRequest when it is built in or the upstream's."""
    if identifier in await _registered(services, owner):
        await services.registry.delete_model(owner, identifier)
        return
    await get_model(services, owner, identifier)
    raise InvalidRequest(f"Model '{identifier}' was not registered here and cannot be deleted")


async def _registered(services: Services, owner: str) -> dict[str, Model]:
    return {stored["identifier"]: Model(**stored) for stored in await services.registry.models(owner)}


async def _upstream(services: Services) -> dict[str, Model]:
    try:
        found = await services.engine.world.model.models()
    except UpstreamRejected as refusal:
        # The caller asked for nothing wrong: an endpoint that will not list its models is broken to them.
        raise UpstreamBroken(f"The model endpoint does not list its models: {refusal.message}") from refusal
    return {
        each.model_id: Model(each.model_id, UPSTREAM, each.model_id, created=each.created, owned_by=each.owned_by)
        for each in found
    }
