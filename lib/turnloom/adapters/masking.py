"""Secrets are cut out of texts that a peer wrote: a server that repeats its credential must not publish it."""

from __future__ import annotations

import json
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

from turnloom.domain.redaction import MARK

_PIECE = 8
_LONG_TEXT = 100_000
_SCHEME = re.compile(r"\s*(?:bearer|basic|token|digest|apikey)\s+", re.IGNORECASE)
_PUBLIC_HEADERS = frozenset(
    {"accept", "accept-charset", "accept-encoding", "accept-language", "content-type", "user-agent"}
)


def mask(text: str, secrets: Iterable[str]) -> str:
    """Return the text with every run of 8 or more characters of a secret replaced by `<redacted>`.

    A secret is found whole and in pieces, also percent-encoded, JSON-escaped, in base64 and in hexadecimal. Secrets of
    fewer than 8 characters stay. In a text of over 100,000 characters only runs of 11 characters are found for
    certain: the work is linear in the text, and a whole tool result must not hold up the event loop.
    """
    pieces = {
        spelling[at : at + _PIECE]
        for secret in secrets
        for spelling in _spellings(secret)
        for at in range(len(spelling) - _PIECE + 1)
    }
    if not pieces:
        return text
    step = 1 if len(text) <= _LONG_TEXT else 4
    masked: list[str] = []
    end = 0
    for at in [at for at in range(0, len(text) - _PIECE + 1, step) if text[at : at + _PIECE] in pieces]:
        if at > end or not masked:
            masked += (text[end:at], MARK)
        end = at + _PIECE
    return "".join((*masked, text[end:]))


def secrets_in(headers: Mapping[str, str]) -> list[str]:
    """Return the values of request headers that may be secret, without the name of an authorization scheme."""
    return [
        value[scheme.end() if (scheme := _SCHEME.match(value)) else 0 :]
        for name, value in headers.items()
        if name.lower() not in _PUBLIC_HEADERS
    ]


def _spellings(secret: str) -> Iterator[str]:
    if len(secret) < _PIECE:
        return
    octets = secret.encode(errors="surrogatepass")
    yield secret
    yield quote(octets, safe="")
    yield json.dumps(secret)[1:-1]
    yield octets.hex()
    for offset in range(3):
        # Base64 of a longer text holds the secret at any of three offsets; pieces at the seams match nothing.
        shifted = bytes(offset) + octets
        yield b64encode(shifted).decode()
        yield urlsafe_b64encode(shifted).decode()
