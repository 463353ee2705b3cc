"""What the log lines of one request, or of one task, have in common, so that they are found together.

None of it says what anybody wrote, or who they are: of an owner there is a mark, of a turn its id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextvars import ContextVar

_fields: ContextVar[dict[str, str]] = ContextVar("trail")


def begin(**fields: str) -> None:
    """Lines from here on, also of what is started from here, have these fields and no earlier ones."""
    _fields.set(fields)


def note(**fields: str) -> None:
    """All lines of the request or task have these fields too from now on; where none was begun, nothing has."""
    _fields.get({}).update(fields)


def trail() -> Mapping[str, str]:
    """The fields of the request or task that runs here."""
    return _fields.get({})


def mark_of(owner: str) -> str:
    """16 hex characters that stand for an owner in logs: the beginning of their name's SHA-256."""
    return hashlib.sha256(owner.encode()).hexdigest()[:16]
