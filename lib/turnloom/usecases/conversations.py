"""Conversations: made, changed, deleted, and the items in them.

A conversation is a thread of turns. Each response that is made in it takes the next place, and is the lock while it is
running; items that are put in from outside take a place of their own, as a hidden turn that says nothing, and wait for
nobody. So nothing is copied, and no two writers can take the same place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from turnloom.domain import ids
from turnloom.domain.errors import NotFound
from turnloom.domain.event import (
    CallsAllowed,
    CallStarted,
    Compacted,
    Delta,
    Event,
    InferenceCompleted,
    ToolCompleted,
    ToolsListed,
    TurnCompleted,
    TurnStarted,
)
from turnloom.domain.layout import (
    BLANK_ITEM,
    INPUT_POSITION,
    input_ids,
    is_item_id,
    item_positions,
    lost_item_id,
    placed,
)
from turnloom.domain.message import JSON
from turnloom.domain.turn import Call, Inference, Turn, evolve, fold
from turnloom.ports import ConditionFailed
from turnloom.store.conversations import Conversation, thread_of
from turnloom.store.disposal import Disposable
from turnloom.store.turns import Place, Record
from turnloom.usecases.chains import counts, may_count
from turnloom.usecases.disposal import DAY, remove
from turnloom.usecases.server_addresses import ServerAddresses
from turnloom.usecases.services import Services

TAIL = 20
"""How many of the newest turns are read for the ids in them; when they grow older, these are noted."""


async def create_conversation(
    services: Services, owner: str, items: Sequence[JSON], metadata: Mapping[str, str]
) -> Conversation:
    """Open a conversation, with these items in it."""
    now = services.clock.now()
    conversation = Conversation(ids.conversation_id(now, ids.new_thread(services.entropy)), now, metadata)
    if (days := services.limits.retention_days) is not None:
        thing = Disposable(owner, conversation_id=conversation.conversation_id, expiring=True)
        await services.disposal.put(thing, now + days * DAY)
    await services.conversations.put(owner, conversation)
    if items:
        await services.responses.open(_hidden(services, owner, conversation.conversation_id, items, 0))
    return conversation


async def get_conversation(
    services: Services, owner: str, conversation_id: str, *, param: str | None = None
) -> Conversation:
    """Raises NotFound, as the fault of the parameter `param` if one is named."""
    found = await services.conversations.get(owner, conversation_id)
    if found is None:
        raise NotFound("conversation", conversation_id, param=param)
    return found


async def update_conversation(
    services: Services, owner: str, conversation_id: str, metadata: Mapping[str, str]
) -> Conversation:
    """Replace the metadata. Raises NotFound, also when the conversation is deleted meanwhile."""
    while True:
        found = await get_conversation(services, owner, conversation_id)
        try:
            return await services.conversations.change(owner, replace(found, metadata=metadata))
        except ConditionFailed:
            continue


async def delete_conversation(services: Services, owner: str, conversation_id: str) -> None:
    """Remove the conversation and what was put into it; the responses that were made in it stay."""
    await remove(services, Disposable(owner, conversation_id=conversation_id))


async def conversation_records(services: Services, owner: str, conversation_id: str) -> list[Record]:
    """What the conversation holds, oldest first: the turns that count, and those whose content is lost."""
    thread = thread_of(conversation_id)
    _, records = await asyncio.gather(
        get_conversation(services, owner, conversation_id), services.responses.thread(owner, thread)
    )
    return [record for record in records if may_count(record)]


async def append_items(services: Services, owner: str, conversation_id: str, items: Sequence[JSON]) -> Record:
    """Put items at the end, whatever else is going on; the hidden turn that holds them.

    An id that is taken in the conversation is left out of its item. What this reads does not grow with the
    conversation, but for turns that nobody had to look through yet. Raises NotFound, also when the conversation is
    deleted meanwhile.
    """
    while True:
        conversation, tail = await asyncio.gather(
            get_conversation(services, owner, conversation_id), _newest(services, owner, conversation_id, items)
        )
        taken = await _taken(services, owner, conversation, tail, _given_ids(items))
        new = [_unnamed(item) if item.get("id") in taken else item for item in items]
        ordinal = tail[0].place.ordinal + 1 if tail else 0
        record = _hidden(services, owner, conversation_id, new, ordinal)
        try:
            await services.responses.open(record)
        except ConditionFailed:
            continue
        if await take_back(services, record):
            raise NotFound("conversation", conversation_id)
        return record


async def take_back(services: Services, record: Record) -> bool:
    """Remove a hidden turn that has just been written if its conversation is gone; whether it is.

    Who deletes a conversation takes it away first, and then removes what is in its thread. So who looks for it after
    writing either finds it there, and then what was written is seen when it is deleted, or must remove it. Should
    nobody be left to look, what was written is removed with the second look that disposal takes.
    """
    owner, conversation_id = record.place.owner, record.origin["conversation"]
    if await services.conversations.get(owner, conversation_id) is not None:
        return False
    await services.responses.wipe(record)
    await services.conversations.forget(owner, conversation_id)
    return True


async def delete_item(services: Services, owner: str, conversation_id: str, item_id: str) -> Conversation:
    """Take an item out of the conversation; a response that it came from keeps it. Raises NotFound.

    The item that stands for lost content takes all of that turn with it.
    """
    conversation = await get_conversation(services, owner, conversation_id)
    while True:
        record, position = _found(await conversation_records(services, owner, conversation_id), item_id)
        whole = await services.responses.load(record.place)
        if whole is None or whole.version != record.version:
            continue
        if whole.content_lost:
            await services.responses.wipe(whole)
            return conversation
        removed = sorted({*record.origin.get("removed", ()), position})
        changed = replace(whole, origin={**whole.origin, "removed": removed})
        try:
            if whole.hidden:
                await services.responses.rewrite(blanked(changed))
            else:
                await services.responses.settle(changed)
        except ConditionFailed:
            continue
        return conversation


def _found(records: Sequence[Record], item_id: str) -> tuple[Record, int]:
    taken: set[str] = set()
    for record in records:
        if record.content_lost and item_id == lost_item_id(record.turn.id):
            return record, INPUT_POSITION
        positions = item_positions(record.turn, taken)
        position = positions.get(item_id)
        if position is not None and position not in record.origin.get("removed", ()):
            return record, position
        taken |= set(positions)
    raise NotFound("item", item_id)


def _hidden(services: Services, owner: str, conversation_id: str, items: Sequence[JSON], ordinal: int) -> Record:
    """The hidden turn that holds these items at this place of the conversation."""
    thread, now = thread_of(conversation_id), services.clock.now()
    turn = Turn(ids.response_id(now, ordinal, thread))
    record = Record(
        Place("responses", owner, thread, ordinal), turn, origin={"conversation": conversation_id}, hidden=True
    )
    public = ServerAddresses(services, owner).hide_in_items(items)
    return record.with_events([TurnStarted(now, tuple(public)), TurnCompleted(now + 1)])


# --- ids that are taken


async def _newest(services: Services, owner: str, conversation_id: str, items: Sequence[JSON]) -> list[Record]:
    """The newest turns, the last one first: as many as tell the next place, and which ids are taken."""
    limit = TAIL if _given_ids(items) else 1
    return await services.responses.thread(owner, thread_of(conversation_id), newest_first=True, limit=limit)


async def _taken(
    services: Services, owner: str, conversation: Conversation, tail: Sequence[Record], names: Collection[str]
) -> set[str]:
    """Those of the ids that are taken in the conversation of which these are the newest turns.

    The ids that we make are taken in the conversation to which they belong.
    """
    if not names:
        return set()
    if len(tail) == TAIL and tail[-1].place.ordinal > conversation.noted:
        tail = await _note(services, owner, conversation, tail)
    thread = thread_of(conversation.conversation_id)
    taken = {name for name in names if _home(name) == thread} | _ids_in(tail)
    if conversation.noted >= 0:
        taken |= await services.conversations.known(owner, conversation.conversation_id, set(names) - taken)
    return taken


async def _note(services: Services, owner: str, conversation: Conversation, tail: Sequence[Record]) -> Sequence[Record]:
    """Note the ids of the turns that have not been looked at yet; these turns, the tail among them.

    Complete up to a turn that counts: the place of any other one may be given to a new turn.
    """
    oldest, thread = tail[-1].place.ordinal, thread_of(conversation.conversation_id)
    missing = oldest - 1 - conversation.noted
    if missing > 0:
        older = await services.responses.thread(owner, thread, upto=oldest - 1, newest_first=True, limit=missing)
        tail = [*tail, *older]
    settled = next((place for place, record in enumerate(tail) if counts(record)), None)
    if settled is not None:
        await services.conversations.note(owner, conversation.conversation_id, _ids_in(tail[settled:]))
        with suppress(ConditionFailed):
            await services.conversations.change(owner, replace(conversation, noted=tail[settled].place.ordinal))
    return tail


def _ids_in(records: Iterable[Record]) -> set[str]:
    """The ids that clients gave to the items of these turns; those of a running one may come to be there."""
    found = (_given_ids(record.turn.input) for record in records if counts(record) or record.running)
    return {name for names in found for name in names}


def _given_ids(items: Iterable[JSON]) -> set[str]:
    given = (item.get("id") or "" for item in items)
    return {name for name in given if is_item_id(name)}


def _home(name: str) -> str | None:
    """The thread of the response that an item id made by us leads to."""
    made = ids.item_place(name)
    place = ids.response_place(made[0]) if made is not None else None
    return None if place is None else place[0]


def _unnamed(item: Mapping[str, JSON]) -> JSON:
    return {key: value for key, value in item.items() if key != "id"}


# --- content that is to be gone


def blanked(record: Record) -> Record:
    """The hidden turn without the content of its removed items, which nobody else keeps, so that it is gone.

    Every event keeps its place, and every output its kind. The ids stay: no other item may get the one of an item, and
    the other half of a call is known by that of the call.
    """
    removed = frozenset(record.origin.get("removed", ()))
    items = [item for item in placed(record.turn) if item.position in removed]
    calls = {block.call_id for item in items for block in item.blocks if isinstance(block, Call)}
    turn = Turn(record.turn.id)
    left: list[Event] = []
    for event in record.events:
        turn = evolve(turn, event)
        left.append(_blanked(event, turn, removed, calls))
    return replace(record, events=tuple(left), turn=fold(Turn(record.turn.id), left))


def _blanked(event: Event, turn: Turn, removed: Collection[int], calls: Collection[str]) -> Event:
    """The event by which the turn became this one, without what it tells of the removed positions and their calls."""
    match event:
        case TurnStarted():
            return replace(event, input=_blanked_input(turn, removed))
        case CallsAllowed():
            return replace(
                event, calls=tuple(_bare(call) if call["call_id"] in calls else call for call in event.calls)
            )
        case ToolCompleted() if event.call_id in calls:
            return ToolCompleted(event.at, event.call_id, "")
        case CallStarted() if _newest_position(turn) in removed:
            return replace(event, name="", group=None)
        case Delta() if _newest_position(turn) in removed:
            return Delta(event.block, "")
        case InferenceCompleted() if removed:
            # What belongs to the message as a whole may repeat any part of it.
            extras = {key: value for key, value in event.extras.items() if key and key not in calls}
            return replace(event, extras=extras)
        case ToolsListed() if _newest_position(turn) in removed:
            return ToolsListed(event.at, "")
        case Compacted() if _newest_position(turn) in removed:
            return replace(event, summary="")
        case _:
            return event


def _newest_position(turn: Turn) -> int | None:
    """The position of the item that the newest step ends with; None while it ends with what is no item."""
    last = turn.steps[-1]
    end = last.blocks[-1:] if isinstance(last, Inference) else ()
    ends = (item.position for item in placed(turn) if item.blocks[-1:] == end)
    return max(ends, default=None)


def _blanked_input(turn: Turn, removed: Collection[int]) -> tuple[JSON, ...]:
    named = enumerate(zip(turn.input, input_ids(turn), strict=True), INPUT_POSITION)
    return tuple(_blank(item, name) if position in removed else item for position, (item, name) in named)


def _blank(item: Mapping[str, JSON], name: str) -> JSON:
    call = {"call_id": item["call_id"]} if item.get("call_id") else {}
    return {**BLANK_ITEM, "id": name, **call}


def _bare(call: Mapping[str, JSON]) -> Mapping[str, JSON]:
    """An allowed call of which only those two ids are left by which it is known to have been made."""
    return {**call, "name": "", "group": "", "arguments": ""}
