"""Requests that may be sent twice: the same key and body stand for one response."""

from __future__ import annotations

from turnloom.domain.errors import Busy, InvalidRequest, NotFound
from turnloom.engine.follow import Followed
from turnloom.store.claims import Claim
from turnloom.usecases.chains import get_response
from turnloom.usecases.services import Services

JOIN_SECONDS = 3.0
"""How long to wait for a response that another request with the same key is about to store."""


async def join(services: Services, owner: str, key: str | None, fingerprint: str) -> Followed | None:
    """The response that this request began before, if it has a key and did. Raises InvalidRequest or Busy."""
    earlier = await services.claims.get(owner, key) if key is not None else None
    return None if earlier is None else await _joined(services, owner, earlier, fingerprint)


async def stake(services: Services, owner: str, claim: Claim | None) -> Followed | None:
    """Let the key stand for this response, or join the one that another request has just begun with it."""
    if claim is None:
        return None
    while (earlier := await services.claims.stake(owner, claim, services.clock.now())) is not None:
        joined = await _joined(services, owner, earlier, claim.fingerprint)
        if joined is not None:
            return joined
    return None


async def give_up(services: Services, owner: str, key: str | None, response_id: str) -> None:
    """Free the key if it stands for this response, which did not come to be, or is gone."""
    if key is not None:
        await services.claims.drop(owner, key, response_id)


async def _joined(services: Services, owner: str, earlier: Claim, fingerprint: str) -> Followed | None:
    """The response of an earlier request with the key; None, and the key is free, when it did not come to be."""
    if earlier.fingerprint != fingerprint:
        message = "This idempotency key was used with another request."
        raise InvalidRequest(message, code="idempotency_key_reused")
    if not earlier.stored:
        message = "A request with this idempotency key is being answered."
        raise Busy(message, code="idempotency_key_in_use", extra={"retry_after": 2})
    deadline = services.clock.now() + int(JOIN_SECONDS * 1e6)
    while services.clock.now() < deadline:
        try:
            return Followed(services.engine, await get_response(services, owner, earlier.response_id))
        except NotFound:
            await services.clock.sleep(0.1)
    await services.claims.drop(owner, earlier.key, earlier.response_id)
    return None
