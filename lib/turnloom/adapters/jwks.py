"""The public keys of a token issuer (RFC 7517), found by OpenID Connect Discovery unless their address is known."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

from turnloom.adapters.guard import MIB, Guard
from turnloom.domain.errors import InvalidRequest, UpstreamBroken
from turnloom.ports import Clock

if TYPE_CHECKING:
    from jwt import PyJWK

logger = logging.getLogger(__name__)

GOOD_FOR = 3600 * 1_000_000
"""For how long keys are taken without asking again, in microseconds: so long a withdrawn key may still be good."""
PAUSE = 30 * 1_000_000
"""The least time between two questions: who makes up key ids must not make us ask for each."""
_SECONDS = 5.0


class Jwks:
    """The keys of an issuer. They are asked for when first needed, when they have grown old, and for an unknown key id.

    An issuer that cannot be reached is no reason to forget the keys that it had.
    """

    def __init__(self, guard: Guard, clock: Clock, issuer: str, url: str = "") -> None:
        self._guard = guard
        self._clock = clock
        self._issuer = issuer
        self._url = url
        self._lock = asyncio.Lock()
        self._keys: list[PyJWK] = []
        self._fresh_until = 0
        self._next_question = 0

    async def key(self, key_id: str | None, algorithm: str) -> PyJWK | None:
        """The key of this id for this algorithm, None if the issuer has no such key; without an id, its only one.

        Raises UpstreamBroken when no keys are known and none can be had.
        """
        async with self._lock:
            now = self._clock.now()
            found = self._find(key_id, algorithm)
            if (found is None or now >= self._fresh_until) and now >= self._next_question:
                await self._ask(now)
                found = self._find(key_id, algorithm)
        if not self._keys:
            raise UpstreamBroken(f"The keys of the issuer {self._issuer} cannot be had.")
        return found

    def _find(self, key_id: str | None, algorithm: str) -> PyJWK | None:
        fitting = [key for key in self._keys if key.algorithm_name == algorithm and key_id in (None, key.key_id)]
        return fitting[0] if len(fitting) == 1 else None

    async def _ask(self, now: int) -> None:
        self._next_question = now + PAUSE
        try:
            self._keys = _signing_keys(await self._document(self._url or await self._discovered()))
        except (InvalidRequest, ValueError) as failure:
            logger.warning("the keys of the issuer %s cannot be read: %s", self._issuer, failure)
            return
        self._fresh_until = now + GOOD_FOR

    async def _discovered(self) -> str:
        document = await self._document(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
        # Section 4.3 of the specification: else one issuer could speak for another.
        if document.get("issuer") != self._issuer or not isinstance(document.get("jwks_uri"), str):
            raise ValueError("its configuration is not its own, or names no keys")
        return str(document["jwks_uri"])

    async def _document(self, url: str) -> dict[str, Any]:
        fetched = await self._guard.fetch(url, max_bytes=MIB, timeout=_SECONDS)
        document = json.loads(fetched.content)
        if not isinstance(document, dict):
            raise ValueError("a document of its is no JSON object")
        return document


def _signing_keys(document: dict[str, Any]) -> list[PyJWK]:
    """The keys of a set that may have signed a token; raises ValueError when there are none."""
    given = document.get("keys")
    readable = [_key(each) for each in given] if isinstance(given, list) else []
    keys = [key for key in readable if key is not None and key.public_key_use in (None, "sig")]
    if not keys:
        raise ValueError("it shows no keys that can be used")
    return keys


def _key(given: Any) -> PyJWK | None:
    """The key, if it can be read: one that cannot is no reason to do without the others."""
    from jwt import PyJWK
    from jwt.exceptions import PyJWTError

    try:
        return PyJWK(given)
    except (PyJWTError, LookupError, TypeError, ValueError, AttributeError):
        return None
