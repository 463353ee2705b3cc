"""How deep JSON values may be nested, which is written again at other depths of the stack than it was read."""

from __future__ import annotations

from turnloom.domain.message import JSON

MOST_LEVELS = 100


def levels(value: JSON) -> int:
    """Return how many lists and objects stand in each other in a value; 0 for a value that is neither."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(levels, inner), default=0)
