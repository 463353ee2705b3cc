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
KEPT_FOR = 24 * GOOD_FOR
"""For how long keys are taken while their issuer gives no others."""
PAUSE = 30 * 1_000_000
"""The least time between two questions: who makes up key ids must not make us ask for each."""
SHORT_PAUSE = 5 * 1_000_000
"""The same while there are no keys at all."""
_MOMENT = 0.25
"""For how many seconds the one token that has old keys asked for again waits. An issuer mostly answers within it, and a
process that is frozen between requests has no other time for a question."""
_SECONDS = 5.0
_MOST_WAITING = 32  # a laptop has a thread for each
_MOST_BYTES = MIB // 4
_MOST_KEYS = 100
_PUBLIC_PARTS = ("kty", "alg", "use", "kid", "crv", "x", "y", "n", "e")


class Jwks:
    """The keys of an issuer. They are asked for when first needed, when they have grown old, and for an unknown key id.

    A key that is known waits for no answer: keys that have grown old are taken while they are asked for again. An
    issuer that cannot be reached is no reason to forget the keys that it had, for a day.
    """

    def __init__(self, guard: Guard, clock: Clock, issuer: str, url: str = "") -> None:
        self._guard = guard
        self._clock = clock
        self._issuer = issuer
        self._url = url
        self._keys: list[PyJWK] = []
        self._fresh_until = 0
        self._kept_until = 0
        self._next_question = 0
        self._question: asyncio.Task[None] | None = None
        self._failed = False
        self._waiting = 0

    async def key(self, key_id: str | None, algorithm: str) -> PyJWK | None:
        """The key of this id for this algorithm, None if the issuer has no such key; without an id, its only one.

        Raises UpstreamBroken (`authorizer_unavailable`) when that cannot be found out.
        """
        now = self._clock.now()
        if self._find(key_id, algorithm, now) is None:
            await self._refresh(now, None)
        elif now >= self._fresh_until:
            await self._refresh(now, _MOMENT)
        found = self._find(key_id, algorithm, now)
        if found is None and (self._failed or self._is_asking()):
            raise UpstreamBroken(
                f"The keys of the issuer {self._issuer} cannot be had now.", code="authorizer_unavailable"
            )
        return found

    def _find(self, key_id: str | None, algorithm: str, now: int) -> PyJWK | None:
        keys = self._keys if now < self._kept_until else []
        fitting = [key for key in keys if key.algorithm_name == algorithm and key_id in (None, key.key_id)]
        return fitting[0] if len(fitting) == 1 else None

    def _is_asking(self) -> bool:
        return self._question is not None and not self._question.done()

    async def _refresh(self, now: int, seconds: float | None) -> None:
        """Ask the issuer, unless it was asked just now, and wait for the answer; all who wait share one question.

        With `seconds`, only who asks waits, and no longer than that.
        """
        if self._question is None or self._question.done():
            if now < self._next_question:
                return
            self._question = asyncio.create_task(self._ask(now))
        elif seconds is not None or self._waiting >= _MOST_WAITING:
            return
        self._waiting += 1
        try:
            await asyncio.wait({self._question}, timeout=seconds)
        finally:
            self._waiting -= 1

    async def _ask(self, now: int) -> None:
        self._next_question = now + PAUSE
        try:
            async with asyncio.timeout(_SECONDS):
                self._keys = _signing_keys(await self._document(self._url or await self._discovered()))
        except (InvalidRequest, ValueError, RecursionError, TimeoutError) as failure:
            self._failed = True
            if now >= self._kept_until:
                self._next_question = now + SHORT_PAUSE
            logger.warning(
                "the keys of the issuer %s cannot be read: %s", self._issuer, str(failure) or "it is too slow"
            )
            return
        self._failed = False
        self._fresh_until, self._kept_until = now + GOOD_FOR, now + KEPT_FOR

    async def _discovered(self) -> str:
        document = await self._document(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
        # Section 4.3 of the specification: else one issuer could speak for another.
        if document.get("issuer") != self._issuer or not isinstance(document.get("jwks_uri"), str):
            raise ValueError("its configuration is not its own, or names no keys")
        return str(document["jwks_uri"])

    async def _document(self, url: str) -> dict[str, Any]:
        fetched = await self._guard.fetch(url, max_bytes=_MOST_BYTES, timeout=_SECONDS)
        document = json.loads(fetched.content)
        if not isinstance(document, dict):
            raise ValueError("a document of its is no JSON object")
        return document


def _signing_keys(document: dict[str, Any]) -> list[PyJWK]:
    """The keys of a set that may have signed a token, of its first hundred; raises ValueError when there are none."""
    entries = document.get("keys")
    readable = map(_key, entries[:_MOST_KEYS]) if isinstance(entries, list) else ()
    keys = [key for key in readable if key is not None and key.public_key_use in (None, "sig")]
    if not keys:
        raise ValueError("it shows no keys that can be used")
    return keys


def _key(entry: Any) -> PyJWK | None:
    """The key, if it can be read: one that cannot is no reason to do without the others."""
    from jwt import PyJWK
    from jwt.exceptions import PyJWTError

    try:
        # A private key, which nobody should show, would be checked for primes, and that takes its time.
        return PyJWK({name: entry[name] for name in _PUBLIC_PARTS if name in entry})
    except (PyJWTError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return None
