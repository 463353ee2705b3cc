"""What JSON must be like to be stored, sent on and read by every other program."""

from __future__ import annotations

import math

from turnloom.domain.message import JSON

MOST_LEVELS = 100
"""How deep values may be nested: what writes one again has less of the stack left than what read it."""


def levels(value: JSON) -> int:
    """Return how many lists and objects stand in each other in a value; 0 for a value that is neither."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(levels, inner), default=0)


def finite(text: str) -> float:
    """Return the number, for `json.loads` to read numbers with. Raises ValueError for NaN and infinity."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no JSON number")
    return value
