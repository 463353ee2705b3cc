"""Removing agents, sessions and conversations with all that hangs on them; it can be begun again at any point."""

from __future__ import annotations

import logging

from turnloom.domain.errors import NotFound
from turnloom.store.conversations import thread_of
from turnloom.store.disposal import Disposable
from turnloom.usecases.services import Services

logger = logging.getLogger(__name__)

DAY = 86_400 * 1_000_000
"""In microseconds."""

RETRY = 3600 * 1_000_000
"""In microseconds; for removals that fail."""

LONGEST_REQUEST = 20 * 60 * 1_000_000
"""In microseconds; no request lives longer, the longest timeout of a function being 15 minutes."""


async def dispose(services: Services, thing: Disposable) -> None:
    """Hide it, then remove what belongs to it. Raises NotFound when there never was such a thing."""
    now = services.clock.now()
    if thing.conversation_id is not None:
        await _remove_conversation(services, thing, thing.conversation_id)
        return
    if thing.session_id is not None:
        if not await services.sessions.bury(thing.owner, thing.agent_id, thing.session_id, now):
            raise NotFound("session", thing.session_id)
        await _remove_turns(services, thing.owner, thing.session_id)
        return
    if not await services.agents.bury(thing.owner, thing.agent_id, now):
        raise NotFound("agent", thing.agent_id)
    for session in await services.sessions.all(thing.owner, thing.agent_id):
        await _remove_turns(services, thing.owner, session.session_id)
        await services.sessions.bury(thing.owner, thing.agent_id, session.session_id, now)


async def dispose_due(services: Services) -> int:
    """Go on with removals that were cut off, and remove sessions that have expired; the number of entries seen."""
    entries = await services.disposal.due(services.clock.now())
    for entry, thing in entries:
        later = await _disposed_or_later(services, thing)
        if later is not None:
            await services.disposal.put(thing, later)
        await services.disposal.take_off(entry)
    return len(entries)


async def _disposed_or_later(services: Services, thing: Disposable) -> int | None:
    """Dispose of it, or say when to look again: it may still be in use, or in a state that lets nobody remove it."""
    try:
        later = await _still_used_until(services, thing)
        if later is None:
            await dispose(services, thing)
        return later
    except NotFound:
        return None
    except Exception:  # one thing must not keep the others from being removed
        logger.exception("something could not be removed: %s", thing.conversation_id or thing.session_id)
        return services.clock.now() + RETRY


async def _still_used_until(services: Services, thing: Disposable) -> int | None:
    """When something that expires is due after all, because of a turn that came later; None when it is due now."""
    if not thing.expiring:
        return None
    days: int | None = services.limits.session_days
    store, thread = services.turns, thing.session_id or ""
    if thing.conversation_id is not None:
        store, thread, days = services.responses, thread_of(thing.conversation_id), services.limits.retention_days
    if days is None:
        # Nothing expires now, but it may again.
        return services.clock.now() + DAY
    newest = await store.thread(thing.owner, thread, newest_first=True, limit=1)
    due = newest[0].turn.last_at + days * DAY if newest else 0
    return due if due > services.clock.now() else None


async def _remove_turns(services: Services, owner: str, session_id: str) -> None:
    for record in await services.turns.thread(owner, session_id):
        await services.turns.wipe(record)


async def _remove_conversation(services: Services, thing: Disposable, conversation_id: str) -> None:
    """Responses outlive a conversation that was deleted, but not one that has expired.

    Whoever saw the conversation a moment ago may still put something into its thread, and die before finding it gone.
    So the thread is looked through a second time when all these requests are over.
    """
    owner = thing.owner
    if await services.conversations.get(owner, conversation_id) is not None:
        await services.disposal.put(thing, services.clock.now() + LONGEST_REQUEST)
        await services.conversations.delete(owner, conversation_id)
    for record in await services.responses.thread(owner, thread_of(conversation_id)):
        if record.hidden or thing.expiring:
            await services.responses.wipe(record)
    await services.conversations.forget(owner, conversation_id)
