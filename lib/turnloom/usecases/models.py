"""Models: the upstream's, and those that an owner registered beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from turnloom.domain.errors import InvalidRequest, NotFound, UpstreamBroken, UpstreamError, UpstreamRejected
from turnloom.domain.message import JSON
from turnloom.usecases.services import Services

UPSTREAM = "upstream"
HEALTH_SECONDS = 5.0


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


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a provider answers; `fault` says in one sentence why it does not."""

    fault: str | None = None


async def upstream_health(services: Services) -> Health:
    """Ask the upstream for its models within `HEALTH_SECONDS`; one that answers, but lists none, is well."""
    try:
        async with asyncio.timeout(HEALTH_SECONDS):
            await services.engine.world.model.models()
    except TimeoutError:
        return Health(f"The model endpoint did not answer within {HEALTH_SECONDS:g} seconds.")
    except UpstreamRejected as refusal:
        return Health(refusal.message if refusal.code == "upstream_authentication_error" else None)
    except UpstreamError as failure:
        return Health(failure.message)
    return Health()


async def list_models(services: Services, owner: str) -> list[Model]:
    """Every model that the owner may name; a registered one stands in for the upstream's of the same id.

    Raises UpstreamError when the upstream does not say what it has.
    """
    upstream, registered = await asyncio.gather(_upstream(services), _registered(services, owner))
    return list({**upstream, **registered}.values())


async def get_model(services: Services, owner: str, identifier: str) -> Model:
    """The model of this id; the upstream is asked only for what is known nowhere else. Raises NotFound."""
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
    await services.registry.put_model(owner, model.identifier, asdict(model))
    return model


async def delete_model(services: Services, owner: str, identifier: str) -> None:
    """Forget a registered model; raises NotFound, or InvalidRequest when it is the upstream's."""
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
