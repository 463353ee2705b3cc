"""API keys: `tl_<id>_<secret>`, of which a deployment keeps the id and a digest of the secret.

The digest is plain SHA-256. A slow hash is for what people think up; of 256 random bits nobody guesses any.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass

from turnloom.domain.ids import Entropy

_KEY = re.compile(r"tl_([0-9a-v]{16})_([0-9a-v]{52})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is kept: whose requests it makes, and from when till when, in seconds since the epoch."""

    key_id: str
    digest: str
    owner: str
    label: str
    created: int
    expires: int | None = None
    revoked: int | None = None

    def fits(self, secret: str) -> bool:
        """Whether the secret is this key's."""
        return hmac.compare_digest(self.digest, digest_of(secret))


def new_key_id(now: int, entropy: Entropy) -> str:
    """Name a key: 16 characters that sort by time; `now` in microseconds since the epoch."""
    return _encode((now // 1000 & (1 << 48) - 1) << 32 | entropy(32), 10)


def new_secret(entropy: Entropy) -> str:
    """256 random bits in 52 characters."""
    return _encode(entropy(256), 32)


def key_text(key_id: str, secret: str) -> str:
    """What a client sends; secret scanners know it by its beginning."""
    return f"tl_{key_id}_{secret}"


def key_parts(text: str) -> tuple[str, str] | None:
    """The id and the secret that `key_text` joined, or None for text that is no key."""
    match = _KEY.fullmatch(text)
    return (match[1], match[2]) if match else None


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _encode(value: int, size: int) -> str:
    return base64.b32hexencode(value.to_bytes(size, "big")).decode().rstrip("=").lower()
