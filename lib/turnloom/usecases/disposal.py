"""Removing agents, sessions and conversations with all that hangs on them; it can be begun again at any point.

Whoever saw a thing before it was hidden may still write something that belongs to it, and die before noticing. So
hiding puts it on the list of disposal first, and it is looked through a second time when all these requests are over.
The second look needs no row of what was hidden: turns are found by their thread, sessions by their agent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable
from dataclasses import replace

from turnloom.domain.errors import NotFound
from turnloom.store.agents import State
from turnloom.store.conversations import thread_of
from turnloom.store.disposal import Disposable
from turnloom.store.turns import Turns
from turnloom.usecases.services import Services

logger = logging.getLogger(__name__)

DAY = 86_400 * 1_000_000
"""In microseconds."""

RETRY = 3600 * 1_000_000
"""In microseconds; for removals that fail."""

LONGEST_REQUEST = 20 * 60 * 1_000_000
"""In microseconds; no request lives longer, the longest timeout of a function being 15 minutes."""

PAGE = 20
"""How many turns or sessions are read, and removed at the same time."""

SLICE_SECONDS = 5.0
"""How long one entry of the list is worked at before the others have their turn."""


async def remove(services: Services, thing: Disposable) -> None:
    """Hide it at once, and remove what belongs to it; the sweeper goes on with what takes longer, or fails.

    Raises NotFound when there is no such thing. Of an agent and a session, a repeat within the hour is no error.
    """
    if await _state(services, thing) is None:
        raise _unknown(thing)
    await _hide(services, thing)
    try:
        async with asyncio.timeout(services.limits.removal_seconds) as budget:
            await _empty(services, thing)
    except Exception:
        if not budget.expired():
            logger.exception("a removal goes on later: %s", _name(thing))
        await services.disposal.put(thing, services.clock.now())


async def dispose_due(services: Services, seconds: float = 40.0) -> int:
    """Go on with removals, and remove what has expired, for at most so many seconds; the number of entries seen."""
    looks = 0
    try:
        async with asyncio.timeout(seconds) as budget:
            await asyncio.gather(services.turns.remove_unnamed_blobs(), services.responses.remove_unnamed_blobs())
            while entries := await services.disposal.due(services.clock.now()):
                for entry, thing in entries:
                    await _look(services, entry, thing)
                    looks += 1
    except TimeoutError:
        if not budget.expired():
            raise
        logger.warning("there is more to remove than one sweep has time for")
    return looks


async def _look(services: Services, entry: str, thing: Disposable) -> None:
    """Dispose of it, or put it down for later: it may still be in use, too large, or not to be removed by anybody."""
    try:
        async with asyncio.timeout(SLICE_SECONDS) as budget:
            later = await _still_used_until(services, thing)
            if later is None:
                await _dispose(services, thing)
    except Exception:  # one thing must not keep the others from being removed
        later = services.clock.now()
        if not budget.expired():
            logger.exception("something could not be removed: %s", _name(thing))
            later += RETRY
    if later is not None:
        await services.disposal.put(thing, later)
    await services.disposal.take_off(entry)


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


async def _dispose(services: Services, thing: Disposable) -> None:
    await _hide(services, thing)
    await _empty(services, thing)


# --- hiding


async def _hide(services: Services, thing: Disposable) -> None:
    """Let nobody find it from now on, if that is not so already; a second look is put down before."""
    if await _state(services, thing) != "live":
        return
    now = services.clock.now()
    # A session is over once it is hidden. The responses of a conversation that expired have their own time.
    expiring = thing.expiring and thing.conversation_id is not None
    await services.disposal.put(replace(thing, expiring=expiring), now + LONGEST_REQUEST)
    if thing.conversation_id is not None:
        await services.conversations.delete(thing.owner, thing.conversation_id)
    elif thing.session_id is not None:
        await services.sessions.bury(thing.owner, thing.agent_id, thing.session_id, now)
    else:
        await services.agents.bury(thing.owner, thing.agent_id, now)


async def _state(services: Services, thing: Disposable) -> State | None:
    if thing.conversation_id is not None:
        there = await services.conversations.get(thing.owner, thing.conversation_id)
        return None if there is None else "live"
    if thing.session_id is not None:
        return await services.sessions.state(thing.owner, thing.agent_id, thing.session_id)
    return await services.agents.state(thing.owner, thing.agent_id)


def _unknown(thing: Disposable) -> NotFound:
    if thing.conversation_id is not None:
        return NotFound("conversation", thing.conversation_id)
    return NotFound("agent", thing.agent_id) if thing.session_id is None else NotFound("session", thing.session_id)


def _name(thing: Disposable) -> str:
    return thing.conversation_id or thing.session_id or thing.agent_id


# --- what belongs to it


async def _empty(services: Services, thing: Disposable) -> None:
    """Remove what belongs to it, whether or not there is a trace of the thing itself."""
    owner = thing.owner
    if thing.conversation_id is not None:
        # Responses outlive a conversation that was deleted, but not one that has expired.
        thread = thread_of(thing.conversation_id)
        await _remove_turns(services.responses, owner, thread, hidden_only=not thing.expiring)
        await services.conversations.forget(owner, thing.conversation_id)
    elif thing.session_id is not None:
        await _remove_turns(services.turns, owner, thing.session_id)
    else:
        sessions = await services.sessions.all(owner, thing.agent_id)
        doomed = [replace(thing, session_id=session.session_id) for session in sessions]
        failures: list[BaseException] = []
        for start in range(0, len(doomed), PAGE):
            failures += await _failures(_dispose(services, session) for session in doomed[start : start + PAGE])
        _raise_first(failures)


async def _remove_turns(store: Turns, owner: str, thread: str, *, hidden_only: bool = False) -> None:
    """Remove the turns of a thread, the newest first, a page at a time."""
    failures: list[BaseException] = []
    upto: int | None = None
    while records := await store.thread(owner, thread, upto=upto, newest_first=True, limit=PAGE):
        failures += await _failures(store.wipe(record) for record in records if record.hidden or not hidden_only)
        upto = records[-1].place.ordinal - 1
    _raise_first(failures)


async def _failures(removals: Iterable[Awaitable[None]]) -> list[BaseException]:
    """Do all of them at the same time; the errors of those that failed, which keep no other from being done."""
    outcomes = await asyncio.gather(*removals, return_exceptions=True)
    return [outcome for outcome in outcomes if outcome is not None]


def _raise_first(failures: list[BaseException]) -> None:
    if failures:
        raise failures[0]
