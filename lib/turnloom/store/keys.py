"""Every key starts with the owner: what belongs to someone else cannot even be named."""

from __future__ import annotations

from urllib.parse import quote, unquote


def partition(owner: str, *parts: str) -> str:
    """The partition of an owner's objects; the owner is quoted, so that no owner's name can reach into another's."""
    return "#".join((quote(owner, safe=""), *parts))


def split(key: str) -> tuple[str, ...]:
    """The owner and the parts that `partition` joined."""
    owner, *parts = key.split("#")
    return unquote(owner), *parts


def place_in_thread(ordinal: int) -> str:
    """The sort key of an ordinal: text that sorts as the numbers do."""
    return f"{ordinal:010d}"
