"""An agent's turns: created, resumed, read again.

The session's thread is the lock: a new turn is a conditional write at the next free ordinal, so of two that come at
once one finds its place taken. What rests awaiting input does not hold the session; a newer turn abandons it.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from turnloom.domain import ids
from turnloom.domain.agents_input import AGENTS
from turnloom.domain.errors import Busy, InvalidRequest, NotAwaiting, NotFound
from turnloom.domain.event import InputProvided, TurnAbandoned, TurnStarted
from turnloom.domain.message import JSON
from turnloom.domain.turn import ClientRun, Turn
from turnloom.engine.cancel import cancel
from turnloom.engine.engine import Brief
from turnloom.engine.follow import Followed
from turnloom.engine.gather import check_size
from turnloom.engine.inline import Run
from turnloom.engine.takeover import take_over
from turnloom.ports import ConditionFailed, ToolScope
from turnloom.store.turns import Place, Record, check_content, content_lost
from turnloom.usecases.agent_spec import agent_spec, groups_by_id
from turnloom.usecases.agents import check_config, get_session
from turnloom.usecases.callers import Caller, sealed, unsealed
from turnloom.usecases.services import Services
from turnloom.usecases.trail import note

ATTACH_SECONDS = 600


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """A turn as asked for. `fingerprint` identifies the body; `retried` says that the client sends it again."""

    messages: Sequence[JSON]
    settings: Mapping[str, JSON]
    fingerprint: str
    key: str | None = None
    retried: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """A turn to be told: what happens from its event number `start` on, up to the end of a leg."""

    run: Run | Followed
    start: int = 0


async def create_turn(
    services: Services, caller: Caller, agent_id: str, session_id: str, asked: TurnRequest
) -> Reading:
    """Start a turn, or attach to the one that this request started before.

    Raises Busy, NotFound, InvalidRequest, ContentLost.
    """
    (agent, _), records, groups = await asyncio.gather(
        get_session(services, caller.owner, agent_id, session_id),
        services.turns.thread(caller.owner, session_id),
        services.registry.groups(caller.owner),
    )
    earlier = _earlier(records, asked, services.clock.now())
    if earlier is not None:
        check_content(earlier)
        return Reading(Followed(services.engine, await _loaded(services, earlier)))
    check_config(agent)
    known = groups_by_id(services.builtin_groups, groups)
    spec = agent_spec(agent.config, asked.settings, known, services.limits.inferences)
    _check_shields(spec.input_shields + spec.output_shields)
    for document in spec.documents:
        services.engine.world.retriever.check(document["content"], document["mime_type"])
    check_size(document["content"] for document in spec.documents if isinstance(document["content"], str))
    await _free(services, records)
    _check_history(records)
    record = _opening(services, caller, agent_id, session_id, records, asked)
    note(turn_id=record.turn.id)
    history = tuple(r.turn for r in records if not r.reopens)
    run = Run(services.engine, services.turns, record, Brief(spec, history, AGENTS, _scope(caller, record)))
    try:
        await run.start(services.turns.open(record))
    except ConditionFailed:
        raise await _busy(services, record.place) from None
    return Reading(run)


async def resume_turn(
    services: Services, caller: Caller, agent_id: str, session_id: str, turn_id: str, responses: Sequence[JSON]
) -> Reading:
    """Go on with a turn that awaits input; or, without responses, or with ones it has had, read it again.

    Raises NotFound, InvalidRequest (`tool_call_mismatch`), NotAwaiting, Busy.
    """
    record = await get_turn(services, caller.owner, agent_id, session_id, turn_id)
    if not responses:
        return Reading(Followed(services.engine, record))
    leg = _accepted_leg(record, responses)
    if leg is not None:
        return Reading(Followed(services.engine, record), leg)
    if record.turn.status == "awaiting_input":
        return await _resumed(services, caller, record, _matched(record.turn, responses))
    if record.turn.status == "completed":
        await _reopen(services, record, responses)
        return await _resumed(services, caller, record, responses)
    raise _not_awaiting(record)


async def get_turn(services: Services, owner: str, agent_id: str, session_id: str, turn_id: str) -> Record:
    """The turn in whatever state it is. Raises NotFound, and ContentLost when a part of it is missing."""
    ordinal = ids.turn_ordinal(turn_id)
    if ordinal is None:
        await get_session(services, owner, agent_id, session_id)
        raise NotFound("turn", turn_id)
    place = Place("agents", owner, session_id, ordinal)
    _, record = await asyncio.gather(get_session(services, owner, agent_id, session_id), services.turns.load(place))
    if record is None or record.turn.id != turn_id or record.reopens:
        raise NotFound("turn", turn_id)
    check_content(record)
    return record


async def cancel_turn(services: Services, owner: str, agent_id: str, session_id: str, turn_id: str) -> Record:
    """Stop a turn that runs or awaits input; one that has ended comes back as it is. Raises NotFound."""
    return await cancel(services.engine, await get_turn(services, owner, agent_id, session_id, turn_id))


async def session_turns(services: Services, owner: str, session_id: str) -> list[Record]:
    """The turns of a session in order of creation, a running one with what has been logged of it."""
    records = [record for record in await services.turns.thread(owner, session_id) if not record.reopens]
    return [await _loaded(services, record) if record.running else record for record in records]


async def agent_brief(services: Services, record: Record) -> Brief:
    """What a driver in another process must know to go on with an agent's turn."""
    place = record.place
    agent, records, groups = await asyncio.gather(
        services.agents.get(place.owner, str(record.origin["agent"])),
        services.turns.thread(place.owner, place.thread, upto=place.ordinal - 1),
        services.registry.groups(place.owner),
    )
    if agent is None:
        raise NotFound("agent", str(record.origin["agent"]))
    check_config(agent)
    _check_history(records)
    known = groups_by_id(services.builtin_groups, groups)
    spec = agent_spec(agent.config, record.turn.settings or {}, known, services.limits.inferences)
    caller = unsealed(services, record)
    history = tuple(r.turn for r in records if not r.reopens)
    return Brief(spec, history, AGENTS, _scope(caller, record))


# --- opening


def _opening(
    services: Services, caller: Caller, agent_id: str, session_id: str, records: Sequence[Record], asked: TurnRequest
) -> Record:
    now = services.clock.now()
    last = records[-1] if records else None
    ordinal = last.place.ordinal + 1 if last else 0
    at = max(now, last.turn.last_at + 1) if last else now
    origin: dict[str, JSON] = {"agent": agent_id, "fingerprint": asked.fingerprint}
    if asked.key is not None:
        origin["key"] = asked.key
    record = Record(
        place=Place("agents", caller.owner, session_id, ordinal),
        turn=Turn(ids.turn_id(at, ordinal, services.entropy)),
        lease=services.engine.lease(),
        origin=origin,
        secrets=sealed(services, caller),
    )
    return record.with_events([TurnStarted(at, tuple(asked.messages), asked.settings)])


def _earlier(records: Sequence[Record], asked: TurnRequest, now: int) -> Record | None:
    """The turn that this very request has started before, if it has."""
    if asked.key is not None:
        return next((record for record in reversed(records) if record.origin.get("key") == asked.key), None)
    turns = [record for record in records if not record.reopens]
    if not asked.retried or not turns:
        return None
    newest = turns[-1]
    recent = now - newest.turn.started_at < ATTACH_SECONDS * 1_000_000
    return newest if recent and newest.origin.get("fingerprint") == asked.fingerprint else None


async def _free(services: Services, records: Sequence[Record]) -> None:
    """Make sure that no turn of the session is running; abandon the one that awaits input."""
    for record in records:
        if record.running:
            raise await _busy(services, record.place)
        if record.turn.status == "awaiting_input":
            await _abandon(services, record)


async def _abandon(services: Services, record: Record) -> None:
    awaiting = await _loaded(services, record)
    if awaiting.version != record.version:
        raise await _busy(services, record.place)
    abandoned = TurnAbandoned(max(services.clock.now(), awaiting.turn.last_at + 1))
    await _settled(services, awaiting.with_events([abandoned]))
    services.engine.saw(record.place.api, abandoned)


async def _busy(services: Services, place: Place) -> Busy:
    """The refusal that names the running turn; a turn whose driver is lost is woken on the way."""
    holder = await services.turns.load(place)
    if holder is None:
        return Busy("The session is busy with another turn.", extra={"retry_after": 2})
    if holder.running and holder.lease < services.clock.now():
        await take_over(services.engine, holder.place)
    turn_id = holder.turn.id
    message = f"The session is busy: turn '{turn_id}' is in progress."
    return Busy(message, extra={"turn_id": turn_id, "retry_after": 2})


async def _settled(services: Services, record: Record) -> Record:
    try:
        return await services.turns.settle(record)
    except ConditionFailed:
        raise await _busy(services, record.place) from None


def _check_history(records: Sequence[Record]) -> None:
    """Raises ContentLost for the first turn that a model could not be shown: nothing goes on with a gap in its past."""
    for record in records:
        if record.content_lost:
            raise content_lost(record, "The session can be read but not continued; go on in another one.")


def _check_shields(shields: Sequence[str]) -> None:
    if shields:
        raise InvalidRequest(f"Shield '{shields[0]}' is not registered; there are none", code="unknown_shield")


# --- resuming


async def _resumed(services: Services, caller: Caller, record: Record, responses: Sequence[JSON]) -> Reading:
    now = services.clock.now()
    provided = InputProvided(max(now, record.turn.last_at + 1), tuple(responses))
    lease = services.engine.lease()
    going_on = replace(record.with_events([provided]), lease=lease, secrets=sealed(services, caller))
    settled = await _settled(services, going_on)
    brief = await agent_brief(services, settled)
    run = Run(services.engine, services.turns, settled, replace(brief, scope=_scope(caller, record)))
    await run.start()
    return Reading(run, len(record.events))


def _matched(turn: Turn, responses: Sequence[JSON]) -> list[JSON]:
    """The responses, each with the tool name of its call, if they answer exactly the pending calls."""
    pending = {call.call_id: call.name for call in turn.open_calls}
    given = [response["call_id"] for response in responses]
    wrong = {
        "missing": sorted(set(pending) - set(given)),
        "unknown": sorted(set(given) - set(pending)),
        "given twice": sorted(call_id for call_id, count in Counter(given).items() if count > 1),
    }
    faults = [f"{what}: {', '.join(call_ids)}" for what, call_ids in wrong.items() if call_ids]
    if faults:
        message = f"The tool responses do not match the calls that the turn awaits ({'; '.join(faults)})"
        raise InvalidRequest(message, code="tool_call_mismatch")
    return [{**response, "tool_name": pending[response["call_id"]]} for response in responses]


def _accepted_leg(record: Record, responses: Sequence[JSON]) -> int | None:
    """The number of the event with which these same responses were accepted before."""
    given = _answers(responses)
    for number, event in enumerate(record.events):
        if isinstance(event, InputProvided) and _answers(event.responses) == given:
            return number
    return None


def _answers(responses: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted(json.dumps([r["call_id"], r["content"]], sort_keys=True) for r in responses)


async def _reopen(services: Services, record: Record, responses: Sequence[JSON]) -> None:
    """Take the next place in the thread for a completed turn whose text held tool calls that the client ran.

    The place keeps out a new turn that comes at the same time. Raises NotAwaiting when the turn cannot be reopened.
    """
    turn, place = record.turn, record.place
    seen = turn.answered_calls | {call.call_id for inference in turn.inferences for call in inference.calls}
    reopened = {r["call_id"] for step in turn.steps if isinstance(step, ClientRun) for r in step.responses}
    given = {response["call_id"] for response in responses}
    if turn.open_calls or len(given) < len(responses) or (seen | reopened) & given:
        raise _not_awaiting(record)
    newest = (await services.turns.thread(place.owner, place.thread, newest_first=True, limit=1))[0]
    if newest.turn.id != turn.id:
        raise _not_awaiting(record)
    mark = Record(replace(place, ordinal=newest.place.ordinal + 1), Turn(turn.id), reopens=True)
    try:
        await services.turns.open(mark)
    except ConditionFailed:
        raise await _busy(services, mark.place) from None


def _not_awaiting(record: Record) -> NotAwaiting:
    message = f"Turn '{record.turn.id}' is {record.turn.status} and does not await these tool responses"
    return NotAwaiting(message, extra={"turn_id": record.turn.id})


async def _loaded(services: Services, record: Record) -> Record:
    found = await services.turns.load(record.place)
    if found is None:
        raise NotFound("turn", record.turn.id)
    return found


def _scope(caller: Caller, record: Record) -> ToolScope:
    place = record.place
    return ToolScope(place.owner, place.thread, record.turn.id, caller.headers, caller.provider_data)
