"""JSON for the wire, whatever a model or a client has put into the data: always valid, always UTF-8."""

from __future__ import annotations

import json
import math
from typing import Any

from fastapi.responses import JSONResponse

from turnloom.domain.message import JSON


def json_bytes(data: JSON) -> bytes:
    """The data as compact JSON. Numbers that JSON has no word for become null, halves of surrogate pairs `?`."""
    try:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(data), ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="replace")


class JSONAnswer(JSONResponse):
    """A response with a JSON body."""

    def render(self, content: Any) -> bytes:
        return json_bytes(content)


def _finite(data: JSON) -> JSON:
    match data:
        case float():
            return data if math.isfinite(data) else None
        case dict():
            return {key: _finite(value) for key, value in data.items()}
        case list() | tuple():
            return [_finite(value) for value in data]
        case _:
            return data
