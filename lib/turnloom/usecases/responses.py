"""Responses: created, found, listed, cancelled, deleted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from turnloom.domain import ids
from turnloom.domain.errors import InvalidRequest, NotFound, Problem, TurnGoesOn
from turnloom.domain.event import TurnStarted
from turnloom.domain.message import JSON
from turnloom.domain.responses_input import RESPONSES, check_calls
from turnloom.domain.turn import Resumption, Turn
from turnloom.engine.cancel import cancel
from turnloom.engine.engine import Brief
from turnloom.engine.follow import Followed
from turnloom.engine.inline import Run
from turnloom.ports import ConditionFailed, ToolScope
from turnloom.store.claims import Claim
from turnloom.store.turns import Place, Record, Unstored
from turnloom.usecases.approvals import with_calls
from turnloom.usecases.callers import Caller, sealed, unsealed
from turnloom.usecases.chains import (
    Chain,
    ancestors,
    chain_of,
    check_unlocked,
    conversation_before,
    conversation_chain,
    find_response,
    forked,
    get_response,
    in_conversation,
)
from turnloom.usecases.conversations import blanked, get_conversation, take_back
from turnloom.usecases.disposal import DAY
from turnloom.usecases.idempotency import Hold, give_up, stake
from turnloom.usecases.response_rules import rules, unavailable_tools
from turnloom.usecases.server_addresses import ServerAddresses
from turnloom.usecases.services import Services
from turnloom.usecases.trail import note

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """A response as asked for: its new input items, and the parameters as given, without secrets.

    `key` is the client's idempotency key, `fingerprint` what tells the request from others.
    """

    input: Sequence[JSON]
    settings: Mapping[str, Any]
    store: bool = True
    key: str | None = None
    fingerprint: str = ""
    stream: bool = False

    @property
    def background(self) -> bool:
        return bool(self.settings.get("background"))

    def kept(self, record: Record) -> bool:
        """Whether the response has a row: for who asks for it, or only for the conversation that it belongs to."""
        return self.store or in_conversation(record)

    def claim(self, record: Record) -> Claim | None:
        """What the key of the request stands for, if it has one."""
        if self.key is None:
            return None
        return Claim(self.key, record.turn.id, self.fingerprint, stored=self.kept(record))


async def create_response(services: Services, caller: Caller, asked: ResponseRequest) -> Run | Followed:
    """Start a response, or join the one that this very request has just started elsewhere.

    Raises InvalidRequest, NotFound, Busy before anything is stored or paid for.
    """
    _check_servers(services, asked)
    asked, addresses = hide_addresses(services, caller.owner, asked)
    caller = replace(caller, addresses=addresses)
    chain = await _chain(services, caller.owner, asked.settings)
    while True:
        asked = replace(asked, input=with_calls(chain.turns, asked.input))
        spec = rules(services, asked.settings, chain.turns, asked.input, addresses)
        check_calls(chain.turns, asked.input)
        record = _opening(services, caller, chain, asked)
        earlier = await stake(services, caller.owner, asked.claim(record))
        if earlier is not None:
            return earlier
        try:
            brief = Brief(spec, chain.turns, RESPONSES, _scope(caller, record))
            begun = await _begun(services, record, brief, asked)
            _log_unavailable(record.turn.id, unavailable_tools(asked.settings, chain.turns, asked.input, addresses))
            return begun
        except ConditionFailed:
            await give_up(services, caller.owner, asked.key, record.turn.id)
            chain = await _elsewhere(services, caller.owner, chain, asked)
        except TurnGoesOn:
            raise
        except Problem:
            await give_up(services, caller.owner, asked.key, record.turn.id)
            raise


def hide_addresses(services: Services, owner: str, asked: ResponseRequest) -> tuple[ResponseRequest, Mapping[str, str]]:
    """The request as it may be stored, and the secret addresses of its MCP servers by fingerprint."""
    addresses = ServerAddresses(services, owner)
    asked = replace(asked, input=addresses.hide_in_items(asked.input))
    if tools := asked.settings.get("tools"):
        asked = replace(asked, settings={**asked.settings, "tools": addresses.hide_in_tools(tools)})
    return asked, addresses.secrets


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
    """The response and all that it stands on, oldest first; ancestors that were deleted are left out."""
    record = await get_response(services, owner, response_id)
    line, _ = await ancestors(services, owner, response_id)
    return [*line[:-1], record]


async def cancel_response(services: Services, owner: str, response_id: str) -> Record:
    """Stop the response; one that ended by itself comes back as it is, if it ran in the background.

    Raises InvalidRequest when it ended and did not.
    """
    record = await get_response(services, owner, response_id)
    if record.running:
        record = await cancel(services.engine, record)
    if record.turn.status == "cancelled" or (record.turn.settings or {}).get("background"):
        return record
    message = f"Response '{response_id}' has ended; only one that runs in the background can be cancelled then."
    raise InvalidRequest(message, param="response_id")


async def delete_response(services: Services, owner: str, response_id: str) -> None:
    """Remove the response with its items and log; one that is running stops. Its conversation keeps what it said."""
    while True:
        record = await find_response(services, owner, response_id)
        try:
            if record.turn.status == "completed" and await _is_in_live_conversation(services, record):
                await take_back(services, await services.responses.rewrite(blanked(replace(record, hidden=True))))
            else:
                await services.responses.delete(record)
            return
        except ConditionFailed:
            continue


async def _is_in_live_conversation(services: Services, record: Record) -> bool:
    """Whether a conversation still has the response. One that is gone has had its last look, and keeps nothing."""
    conversation_id = record.origin.get("conversation")
    if conversation_id is None:
        return False
    return await services.conversations.get(record.place.owner, conversation_id) is not None


async def response_brief(services: Services, record: Record) -> Brief:
    """What a driver in another process must know to go on with a response."""
    settings = record.turn.settings or {}
    history = (await _below(services, record)).turns
    caller = unsealed(services, record)
    spec = rules(services, settings, history, record.turn.input, caller.addresses, resumed=_resumed(record.turn))
    return Brief(spec, history, RESPONSES, _scope(caller, record))


# --- beginning


async def _chain(services: Services, owner: str, settings: Mapping[str, Any]) -> Chain:
    """What a new response stands on, and the place for it. Raises Busy when the conversation is locked."""
    chain = await standing(services, owner, settings)
    if chain.conversation is not None:
        await check_unlocked(services, chain)
    return chain


def _log_unavailable(response_id: str, tools: Sequence[str]) -> None:
    """Warn of tools that the request brought and its model is not offered, if there are any."""
    if tools:
        named = ", ".join(tools)
        extra = {"turn_id": response_id}
        logger.warning("response %s is not offered these tools: %s", response_id, named, extra=extra)


def _check_servers(services: Services, asked: ResponseRequest) -> None:
    for path, tool in _tools_of(asked):
        if tool["type"] != "mcp":
            continue
        try:
            services.engine.world.tools.check(tool["server_url"])
        except InvalidRequest as refusal:
            param = f"{path}.server_url"
            raise InvalidRequest(refusal.message, code=refusal.code, param=param) from None


def _tools_of(asked: ResponseRequest) -> Iterator[tuple[str, JSON]]:
    """All tools of the request, those that came as items too, each with its path."""
    for place, tool in enumerate(asked.settings.get("tools", ())):
        yield f"tools[{place}]", tool
    for number, item in enumerate(asked.input):
        for place, tool in enumerate(item["tools"] if item["type"] == "additional_tools" else ()):
            yield f"input[{number}].tools[{place}]", tool


async def _elsewhere(services: Services, owner: str, chain: Chain, asked: ResponseRequest) -> Chain:
    """The chain with another place, as someone else has taken the one that it had."""
    return forked(chain) if chain.conversation is None else await _chain(services, owner, asked.settings)


async def standing(services: Services, owner: str, settings: Mapping[str, Any]) -> Chain:
    """What a response with these parameters stands on. Raises InvalidRequest, NotFound, Busy."""
    if parent := settings.get("previous_response_id"):
        return await chain_of(services, owner, parent)
    if named := settings.get("conversation"):
        await get_conversation(services, owner, named["id"], param="conversation")
        return await conversation_chain(services, owner, named["id"])
    return Chain()


def _resumed(turn: Turn) -> bool:
    """Whether the calls that the client allowed, if any, have been noted in the turn."""
    return turn.gathered or any(isinstance(step, Resumption) for step in turn.steps)


async def _below(services: Services, record: Record) -> Chain:
    """What a stored response stands on."""
    owner = record.place.owner
    if in_conversation(record):
        return await conversation_before(services, record)
    parent = record.origin.get("parent")
    return await chain_of(services, owner, str(parent)) if parent else Chain()


async def _begun(services: Services, record: Record, brief: Brief, asked: ResponseRequest) -> Run | Followed:
    """The response, stored and under way. Raises ConditionFailed when its place is taken."""
    note(turn_id=record.turn.id)
    hold = Hold(services, record.place.owner, asked.claim(record))
    store = services.responses if asked.kept(record) else Unstored(hold.renew)
    if asked.background:
        await store.open(record)
        await services.engine.hand_over(record, brief.spec)
        return Followed(services.engine, record)
    run = Run(services.engine, store, record, brief, waits=not asked.stream)
    if not asked.store:
        run.afterwards(hold.release)
    await run.start(store.open(record))
    return run


def _opening(services: Services, caller: Caller, chain: Chain, asked: ResponseRequest) -> Record:
    now = services.clock.now()
    thread = chain.thread or ids.new_thread(services.entropy)
    origin: dict[str, JSON] = {}
    if chain.parent is not None:
        origin["parent"] = chain.parent
    if chain.lineage:
        origin["lineage"] = [list(segment) for segment in chain.lineage]
    if chain.conversation is not None:
        origin["conversation"] = chain.conversation
    days = services.limits.retention_days if chain.conversation is None else None
    record = Record(
        place=Place("responses", caller.owner, thread, chain.ordinal),
        turn=Turn(ids.response_id(now, chain.ordinal, thread)),
        lease=services.engine.lease(),
        origin=origin,
        secrets=sealed(services, caller),
        hidden=not asked.store,
        expires=None if days is None else (now + days * DAY) // 1_000_000,
    )
    return record.with_events([TurnStarted(now, tuple(asked.input), asked.settings)])


async def _known_cursor(services: Services, owner: str, after: str) -> None:
    try:
        await find_response(services, owner, after)
    except NotFound:
        raise InvalidRequest(f"No response '{after}' to list after", code="invalid_value", param="after") from None


def _scope(caller: Caller, record: Record) -> ToolScope:
    return ToolScope(caller.owner, None, record.turn.id, caller.headers, caller.provider_data)
