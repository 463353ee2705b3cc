"""Shields: none can be registered yet, so none is ever asked."""

from __future__ import annotations

from collections.abc import Sequence

from turnloom.domain.errors import UpstreamBroken
from turnloom.domain.message import Message
from turnloom.ports import ToolScope, Violation


class NoShields:
    """Closes the door: a shield that does not exist cannot have passed anything."""

    async def check(self, shield: str, messages: Sequence[Message], scope: ToolScope) -> Violation | None:
        raise UpstreamBroken(f"Shield '{shield}' is not available", code="shield_unavailable")
