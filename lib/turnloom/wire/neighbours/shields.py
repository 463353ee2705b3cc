"""Shields: none can be registered yet, so the list is empty. Clients ask for it before they create an agent."""

from __future__ import annotations

from typing import Any

from turnloom.domain.errors import NotFound
from turnloom.wire.app import Route


async def list_shields() -> Any:
    return {"data": []}


async def get_shield(shield_id: str) -> Any:
    raise NotFound("shield", shield_id)


ROUTES = (
    Route("shields", "GET", "/v1/shields", list_shields),
    Route("shields", "GET", "/v1/shields/{shield_id:path}", get_shield),
)
