"""Responses: created alone or on top of another, found, listed, deleted.

A chain of responses lives in a *branch*, a thread whose ordinals count the depth from the root. The child of a
branch's tip takes the next ordinal; the child of any other response finds that place taken and opens a branch of its
own, which remembers where it grew (`lineage`: the branches before it, each with the ordinal it was left at). So a
chain is read with one query per branch, a fork copies nothing, and each response stores only what is new in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from turnloom.domain import ids
from turnloom.domain.errors import Busy, InvalidRequest, NotFound
from turnloom.domain.event import TurnStarted
from turnloom.domain.message import JSON, Spec, ToolServer
from turnloom.domain.responses_input import RESPONSES, check_calls
from turnloom.domain.turn import Listing, Turn
from turnloom.engine.engine import Brief
from turnloom.engine.inline import Run
from turnloom.ports import ConditionFailed, ToolScope
from turnloom.store.turns import Place, Record, Unstored
from turnloom.usecases.callers import Caller, sealed, unsealed
from turnloom.usecases.response_spec import spec_of
from turnloom.usecases.services import Services


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """A response as asked for: its new input items, and the parameters as given, without secrets."""

    input: Sequence[JSON]
    settings: Mapping[str, Any]
    store: bool = True


@dataclass(frozen=True, slots=True)
class Chain:
    """The ancestors of a new response, oldest first, and the place that it may take."""

    records: tuple[Record, ...] = ()
    thread: str | None = None
    ordinal: int = 0
    lineage: tuple[tuple[str, int], ...] = field(default=())

    @property
    def turns(self) -> tuple[Turn, ...]:
        return tuple(record.turn for record in self.records)


async def create_response(services: Services, caller: Caller, asked: ResponseRequest) -> Run:
    """Start a response. Raises InvalidRequest, NotFound, Busy before anything is stored or paid for."""
    parent = asked.settings.get("previous_response_id")
    chain = await _chain(services, caller.owner, parent) if parent else Chain()
    spec = _with_known_listings(spec_of(asked.settings, services.limits.inferences), chain)
    check_calls(chain.turns, asked.input)
    while True:
        record = _opening(services, caller, chain, asked)
        brief = Brief(spec, chain.turns, RESPONSES, _scope(caller, record))
        store = services.responses if asked.store else Unstored()
        run = Run(services.engine, store, record, brief)
        try:
            await run.start(store.open(record))
        except ConditionFailed:
            chain = _forked(chain)
            continue
        return run


async def get_response(services: Services, owner: str, response_id: str) -> Record:
    """The stored response in whatever state it is."""
    place = _place(owner, response_id)
    record = await services.responses.load(place) if place else None
    if record is None or record.turn.id != response_id:
        raise NotFound("response", response_id)
    return record


async def list_responses(
    services: Services, owner: str, *, after: str | None, descending: bool, limit: int, model: str | None
) -> tuple[list[Record], bool]:
    """One page of the owner's responses by id, and whether there are more; InvalidRequest when `after` is unknown."""
    if after is not None:
        await _known_cursor(services, owner, after)
    chosen: list[Record] = []
    while True:
        records, more = await services.responses.listed(owner, after=after, descending=descending, limit=limit + 1)
        chosen += [r for r in records if model is None or (r.turn.settings or {}).get("model") == model]
        if len(chosen) > limit or not more:
            return chosen[:limit], len(chosen) > limit
        after = records[-1].turn.id if records else after


async def response_context(services: Services, owner: str, response_id: str) -> list[Record]:
    """The response and all its ancestors, oldest first; ancestors that were deleted are left out."""
    record = await get_response(services, owner, response_id)
    parent = record.origin.get("parent")
    ancestors, _ = await _ancestors(services, owner, str(parent)) if parent else ([], True)
    return [*ancestors, record]


async def delete_response(services: Services, owner: str, response_id: str) -> None:
    """Remove the response with its items and log; one that is running stops."""
    await services.responses.delete(await get_response(services, owner, response_id))


async def response_brief(services: Services, record: Record) -> Brief:
    """What a driver in another process must know to go on with a response."""
    place = record.place
    parent = record.origin.get("parent")
    chain = await _chain(services, place.owner, str(parent)) if parent else Chain()
    spec = _with_known_listings(spec_of(record.turn.settings or {}, services.limits.inferences), chain)
    caller = unsealed(services, record)
    return Brief(spec, chain.turns, RESPONSES, _scope(caller, record))


# --- chains


async def _chain(services: Services, owner: str, parent_id: str) -> Chain:
    """The whole chain that ends with this response. Raises InvalidRequest or Busy when nothing can be put on top."""
    ancestors, tip = await _ancestors(services, owner, parent_id)
    if not ancestors:
        raise _missing(parent_id)
    _check_whole(ancestors)
    parent = ancestors[-1]
    if parent.running:
        message = f"Response '{parent_id}' is still in progress."
        code, param = "previous_response_in_progress", "previous_response_id"
        raise Busy(message, code=code, param=param, extra={"retry_after": 2})
    lineage = tuple((thread, ordinal) for thread, ordinal in parent.origin.get("lineage", ()))
    chain = Chain(tuple(ancestors), parent.place.thread, parent.place.ordinal + 1, lineage)
    return chain if tip else _forked(chain)


async def _ancestors(services: Services, owner: str, response_id: str) -> tuple[list[Record], bool]:
    """The response and what it stands on, as far as it is still there, oldest first; and whether it is a branch's tip.

    One query for each branch; the place behind the response is read along with them.
    """
    place = _place(owner, response_id)
    if place is None:
        return [], False
    branch = await services.responses.thread(owner, place.thread, upto=place.ordinal + 1)
    found = {record.turn.id: record for record in branch}
    if response_id not in found:
        return [], False
    lineage = found[response_id].origin.get("lineage", ())
    earlier = await asyncio.gather(
        *(services.responses.thread(owner, thread, upto=ordinal) for thread, ordinal in lineage)
    )
    found |= {record.turn.id: record for records in earlier for record in records}
    return _walked_back(found, response_id), branch[-1].turn.id == response_id


def _walked_back(found: Mapping[str, Record], response_id: str) -> list[Record]:
    """From the response back along its parents: what else lives in the same branches is not its past."""
    line: list[Record] = []
    current: str | None = response_id
    while current is not None and current in found:
        line.append(found[current])
        current = found[current].origin.get("parent")
    return line[::-1]


def _check_whole(line: Sequence[Record]) -> None:
    missing = line[0].origin.get("parent")
    if missing is not None:
        raise _missing(str(missing))


def _forked(chain: Chain) -> Chain:
    """The same chain, going on in a new branch because another child has the place behind the parent."""
    if chain.thread is None:
        return chain
    return replace(chain, thread=None, lineage=(*chain.lineage, (chain.thread, chain.ordinal - 1)))


def _missing(response_id: str) -> InvalidRequest:
    message = f"Previous response with id '{response_id}' not found."
    return InvalidRequest(message, code="previous_response_not_found", param="previous_response_id")


def _opening(services: Services, caller: Caller, chain: Chain, asked: ResponseRequest) -> Record:
    now = services.clock.now()
    thread = chain.thread or ids.new_thread(services.entropy)
    origin: dict[str, JSON] = {}
    if chain.records:
        origin["parent"] = chain.records[-1].turn.id
    if chain.lineage:
        origin["lineage"] = [list(segment) for segment in chain.lineage]
    record = Record(
        place=Place("responses", caller.owner, thread, chain.ordinal),
        turn=Turn(ids.response_id(now, chain.ordinal, thread)),
        lease=services.engine.lease(),
        origin=origin,
        secrets=sealed(services, caller),
    )
    return record.with_events([TurnStarted(now, tuple(asked.input), asked.settings)])


def _place(owner: str, response_id: str) -> Place | None:
    place = ids.response_place(response_id)
    return Place("responses", owner, *place) if place else None


async def _known_cursor(services: Services, owner: str, after: str) -> None:
    try:
        await get_response(services, owner, after)
    except NotFound:
        raise InvalidRequest(f"No response '{after}' to list after", code="invalid_value", param="after") from None


# --- tools of the chain


def _with_known_listings(spec: Spec, chain: Chain) -> Spec:
    """The spec whose servers know what an earlier response of the chain was told by the same server."""
    return replace(spec, servers=tuple(_known(server, chain) for server in spec.servers)) if spec.servers else spec


def _known(server: ToolServer, chain: Chain) -> ToolServer:
    for turn in reversed(chain.turns):
        asked = next((s for s in spec_of(turn.settings or {}, 1).servers if s.label == server.label), None)
        listing = next((s for s in turn.steps if isinstance(s, Listing) and s.server == server.label), None)
        if asked == server and listing is not None and listing.error is None:
            return replace(server, listed=listing.tools)
    return server


def _scope(caller: Caller, record: Record) -> ToolScope:
    return ToolScope(caller.owner, None, record.turn.id, caller.headers, caller.provider_data)
