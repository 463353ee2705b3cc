"""How a driver in another process gets a stored turn's rules and history back, whichever API it came in by."""

from __future__ import annotations

from turnloom.engine.engine import Brief
from turnloom.store.turns import Record, check_content
from turnloom.usecases.responses import response_brief
from turnloom.usecases.services import Services
from turnloom.usecases.turns import agent_brief


async def brief_of(services: Services, record: Record) -> Brief:
    """The brief of a turn; raises NotFound when what it needs was deleted, ContentLost when it is missing."""
    check_content(record)
    if record.place.api == "agents":
        return await agent_brief(services, record)
    return await response_brief(services, record)
