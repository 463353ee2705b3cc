"""Requests that may be sent twice: the same key and body stand for one response."""

from __future__ import annotations

import logging

from turnloom.domain.errors import Busy, InvalidRequest
from turnloom.engine.follow import Followed
from turnloom.store.claims import UNSTORED_SECONDS, Claim
from turnloom.store.turns import Record, check_content
from turnloom.usecases.chains import place_of
from turnloom.usecases.services import Services

logger = logging.getLogger(__name__)

JOIN_SECONDS = 3.0
"""How long to wait for a response that another request with the same key is about to store."""


class Hold:
    """The key, if there is one, of a response that is not stored: held while it is being made."""

    def __init__(self, services: Services, owner: str, claim: Claim | None) -> None:
        self._services = services
        self._owner = owner
        self._claim = claim
        self._renewed = services.clock.now()

    async def renew(self) -> None:
        """Hold the key for longer, if it is time to; a response does not fail for want of that."""
        now = self._services.clock.now()
        if self._claim is None or now - self._renewed < UNSTORED_SECONDS / 3 * 1e6:
            return
        self._renewed = now
        try:
            await self._services.claims.renew(self._owner, self._claim, now)
        except Exception:
            logger.exception("an idempotency key could not be held", extra={"turn_id": self._claim.response_id})

    async def release(self) -> None:
        """Free the key."""
        if self._claim is not None:
            await give_up(self._services, self._owner, self._claim.key, self._claim.response_id)


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
    while (record := await _loaded(services, owner, earlier)) is None and services.clock.now() < deadline:
        await services.clock.sleep(0.1)
    # One that its caller asked not to be stored is there for its conversation alone, once it has ended.
    if record is not None and (record.running or not record.hidden):
        check_content(record)
        return Followed(services.engine, record)
    await services.claims.drop(owner, earlier.key, earlier.response_id)
    return None


async def _loaded(services: Services, owner: str, claim: Claim) -> Record | None:
    place = place_of(owner, claim.response_id)
    record = await services.responses.load(place) if place is not None else None
    return record if record is not None and record.turn.id == claim.response_id else None
