"""What no row can hold, as the bytes of a blob."""

from __future__ import annotations

import json

from turnloom.domain.message import JSON

INLINE_BYTES = 300_000
"""What a row may hold of what can be large; DynamoDB ends at 400 KB, and the rest of the row needs room."""


def unpack(packed: bytes | None) -> JSON:
    """The value that `pack` was given; None for a blob that is missing, cut off or otherwise unreadable."""
    try:
        return None if packed is None else json.loads(packed)
    except (ValueError, RecursionError):
        return None


def pack(value: JSON) -> bytes:
    """JSON for a blob, as many bytes as a table would take for it: UTF-8, or escapes where UTF-8 cannot carry it."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair: models do write such.
        return json.dumps(value, separators=(",", ":")).encode()
