"""How much of a list goes into one answer: Lambda hands over 6 MB at most, the body being a text inside of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable

from turnloom.domain.message import JSON
from turnloom.wire.json_text import json_bytes

MOST_BYTES = 5 * 1024 * 1024


def fitting(data: Iterable[dict[str, JSON]]) -> tuple[list[dict[str, JSON]], bool]:
    """The first of the data that fit into one answer, one at least, and whether others were left out.

    Of those left out only the first is asked for, so the data may be made on the way.
    """
    taken: list[dict[str, JSON]] = []
    size = 0
    for each in data:
        size += _size(each)
        if taken and size > MOST_BYTES:
            return taken, True
        taken.append(each)
    return taken, False


def _size(data: JSON) -> int:
    """What the data take up in Lambda's answer, where they are quoted, and by some runtimes written in ASCII."""
    return len(json.dumps(json_bytes(data).decode()))
