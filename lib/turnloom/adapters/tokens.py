"""Signed tokens (JWT, RFC 7519) of one issuer, checked as RFC 8725 asks: our algorithms, its keys, our audience."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from turnloom.adapters.jwks import Jwks
from turnloom.domain.errors import Unauthenticated
from turnloom.domain.message import JSON

ALGORITHMS = ("RS256", "ES256", "EdDSA")
"""Signatures by a private key alone: with a shared secret among them, the public key could be used as one."""
MOST_CHARACTERS = 10_240
"""Longer ones are refused unread; API Gateway takes no more for all headers together."""
_COMPACT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
_MOST_SECONDS = 253_402_300_800
"""The year 10000."""


class IssuedTokens:
    """Tokens that the issuer gave for one of these audiences; `leeway` is in seconds."""

    def __init__(self, jwks: Jwks, issuer: str, audiences: Sequence[str], leeway: float) -> None:
        self._jwks = jwks
        self._issuer = issuer
        self._audiences = list(audiences)
        self._leeway = leeway

    async def claims(self, token: str) -> Mapping[str, JSON]:
        """What the token says; raises Unauthenticated, or UpstreamBroken when its issuer's keys cannot be had."""
        if len(token) > MOST_CHARACTERS or not _COMPACT.fullmatch(token):
            raise Unauthenticated("The credential is no token")
        # A tenth of a second to import, which keys do without.
        import jwt

        try:
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if algorithm not in ALGORITHMS:
                raise Unauthenticated("The token is not signed as it must be")
            key = await self._jwks.key(header.get("kid"), algorithm)
            if key is None:
                raise Unauthenticated("The token is signed by an unknown key")
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audiences,
                issuer=self._issuer,
                leeway=self._leeway,
                options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True},
            )
        except (jwt.PyJWTError, ValueError, RecursionError) as refusal:
            raise Unauthenticated(f"The token is not valid: {type(refusal).__name__}") from None
        expires = claims["exp"]
        if not isinstance(expires, int | float) or expires > _MOST_SECONDS:
            raise Unauthenticated("The token is not valid: its exp is no time")
        return claims
