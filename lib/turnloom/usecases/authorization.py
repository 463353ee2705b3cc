"""Whose request it is: by an API key, or by a token of the issuer that the deployment trusts.

The owner of a key is the one it was made for. The owner of a token is its issuer and its claim, `<issuer>|<claim>`:
only both together name somebody. So no token's owner is a key's, unless an operator makes a key for such an owner.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from turnloom.domain.api_key import ApiKey, digest_of, key_parts, key_text, new_key_id, new_secret
from turnloom.domain.errors import InvalidRequest, Unauthenticated
from turnloom.domain.ids import Entropy
from turnloom.ports import Clock, Tokens
from turnloom.store.api_keys import ApiKeys

DAY = 24 * 3600
LEEWAY = 60
"""By how many seconds the clock of a token's issuer may differ from ours."""
ANYONE = "default"
"""The owner where no credential is asked for."""
_MOST_DAYS = 36_500
_OWNER_BYTES = 1024  # of the 2048 in a key of DynamoDB, where owners stand quoted


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, and until when that holds, in seconds since the epoch (None: it does not end)."""

    owner: str
    expires: int | None = None


@dataclass(frozen=True, slots=True)
class Trust:
    """Tokens of an issuer whose `claim` names the owner."""

    tokens: Tokens
    issuer: str
    claim: str = "sub"


@dataclass(frozen=True, slots=True)
class Authorization:
    """What a deployment takes for a credential: keys, tokens, either; or with `open`, anything and nothing."""

    keys: ApiKeys | None = None
    trust: Trust | None = None
    open: bool = False

    async def identify(self, header: str | None) -> Identity:
        """Whose request brings this Authorization header; raises Unauthenticated."""
        if self.open:
            return Identity(ANYONE)
        scheme, _, credential = (header or "").partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("There is no bearer credential")
        if parts := key_parts(credential.strip()):
            return await self._by_key(*parts)
        return await self._by_token(credential.strip())

    async def _by_key(self, key_id: str, secret: str) -> Identity:
        key = await self.keys.get(key_id) if self.keys else None
        if key is None or key.revoked is not None or not key.fits(secret):
            raise Unauthenticated(f"The key {key_id} opens nothing here")
        return Identity(key.owner, key.expires)

    async def _by_token(self, token: str) -> Identity:
        if self.trust is None:
            raise Unauthenticated("The credential is no key, and tokens are not taken")
        claims = await self.trust.tokens.claims(token)
        claim, expires = claims.get(self.trust.claim), claims.get("exp")
        owner = f"{self.trust.issuer}|{claim}"
        if not isinstance(claim, str) or not claim or not is_owner(owner) or not isinstance(expires, int | float):
            raise Unauthenticated(f"The token names no owner by '{self.trust.claim}'")
        return Identity(owner, int(expires) + LEEWAY)


def is_owner(text: str) -> bool:
    """Whether the text can name an owner: printable, and short enough for the keys of tables."""
    return text.isprintable() and 0 < len(quote(text, safe="")) <= _OWNER_BYTES


async def create_key(
    keys: ApiKeys, clock: Clock, entropy: Entropy, owner: str, *, label: str = "", days: int | None = None
) -> str:
    """Make a key for the owner and give its text, which is kept nowhere. Raises InvalidRequest."""
    if not is_owner(owner):
        raise InvalidRequest("An owner is named by printable characters, some hundred at most", param="owner")
    if days is not None and not 1 <= days <= _MOST_DAYS:
        raise InvalidRequest(f"A key is good for 1 to {_MOST_DAYS} days", param="days")
    now = clock.now()
    created = now // 1_000_000
    key_id, secret = new_key_id(now, entropy), new_secret(entropy)
    expires = None if days is None else created + days * DAY
    await keys.add(ApiKey(key_id, digest_of(secret), owner, label, created, expires))
    return key_text(key_id, secret)
