"""What all request bodies have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

JSONObject = dict[str, Any]


class Body(BaseModel):
    """A JSON object whose unknown fields are ignored: newer clients may send more."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
