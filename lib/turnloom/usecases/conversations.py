"""Conversations: made, changed, deleted, and the items in them.

A conversation is a thread of turns. Each response that is made in it takes the next place, and is the lock while it is
running; items that are put in from outside take a place of their own, as a hidden turn that says nothing, and wait for
nobody. So nothing is copied, and no two writers can take the same place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from turnloom.domain import ids
from turnloom.domain.errors import NotFound
from turnloom.domain.event import TurnCompleted, TurnStarted
from turnloom.domain.layout import BLANK_ITEM, INPUT_POSITION, item_positions
from turnloom.domain.message import JSON
from turnloom.domain.turn import Turn, fold
from turnloom.ports import ConditionFailed
from turnloom.store.conversations import Conversation
from turnloom.store.disposal import Disposable
from turnloom.store.turns import Place, Record
from turnloom.usecases.chains import counts
from turnloom.usecases.disposal import DAY, dispose
from turnloom.usecases.services import Services


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
        await _append(services, owner, conversation.conversation_id, items, 0)
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
    """Replace the metadata."""
    changed = replace(await get_conversation(services, owner, conversation_id), metadata=metadata)
    await services.conversations.put(owner, changed)
    return changed


async def delete_conversation(services: Services, owner: str, conversation_id: str) -> None:
    """Remove the conversation and what was put into it; the responses that were made in it stay."""
    await get_conversation(services, owner, conversation_id)
    thing = Disposable(owner, conversation_id=conversation_id)
    entry = await services.disposal.put(thing, services.clock.now())
    await dispose(services, thing)
    await services.disposal.take_off(entry)


async def conversation_records(services: Services, owner: str, conversation_id: str) -> list[Record]:
    """What the conversation holds, oldest first: the turns that count."""
    _, records = await asyncio.gather(
        get_conversation(services, owner, conversation_id), _thread(services, owner, conversation_id)
    )
    return [record for record in records if counts(record)]


async def append_items(
    services: Services, owner: str, conversation_id: str, items: Sequence[JSON]
) -> tuple[Record, list[Record]]:
    """Put items at the end, whatever else is going on; the hidden turn that holds them, and what was there before."""
    _, records = await asyncio.gather(
        get_conversation(services, owner, conversation_id), _thread(services, owner, conversation_id)
    )
    ordinal = records[-1].place.ordinal + 1 if records else 0
    record = await _append(services, owner, conversation_id, items, ordinal)
    return record, [record for record in records if counts(record)]


async def delete_item(services: Services, owner: str, conversation_id: str, item_id: str) -> Conversation:
    """Take an item out of the conversation; a response that it came from keeps it. Raises NotFound."""
    conversation = await get_conversation(services, owner, conversation_id)
    while True:
        record, position = _found(await conversation_records(services, owner, conversation_id), item_id)
        whole = await services.responses.load(record.place)
        if whole is None or whole.version != record.version:
            continue
        removed = sorted({*record.origin.get("removed", ()), position})
        kept = _blanked(whole, position, item_id) if whole.hidden else whole
        try:
            await services.responses.settle(replace(kept, origin={**whole.origin, "removed": removed}))
        except ConditionFailed:
            continue
        return conversation


def _found(records: Sequence[Record], item_id: str) -> tuple[Record, int]:
    taken: set[str] = set()
    for record in records:
        positions = item_positions(record.turn, taken)
        position = positions.get(item_id)
        if position is not None and position not in record.origin.get("removed", ()):
            return record, position
        taken |= set(positions)
    raise NotFound("item", item_id)


def _blanked(record: Record, position: int, item_id: str) -> Record:
    """The hidden turn without the item's content, which nobody else keeps, so that it is gone.

    The ids stay: no other item may get the one, and the other half of a call is known by the other.
    """
    place = position - INPUT_POSITION
    if not 0 <= place < len(record.turn.input):
        return record
    start, *rest = record.events
    assert isinstance(start, TurnStarted)
    call = {"call_id": start.input[place]["call_id"]} if start.input[place].get("call_id") else {}
    blank = {**BLANK_ITEM, "id": item_id, **call}
    left = replace(start, input=(*start.input[:place], blank, *start.input[place + 1 :]))
    return replace(record, events=(left, *rest), turn=fold(Turn(record.turn.id), (left, *rest)))


async def _append(services: Services, owner: str, conversation_id: str, items: Sequence[JSON], ordinal: int) -> Record:
    thread = ids.conversation_thread(conversation_id)
    assert thread is not None
    while True:
        now = services.clock.now()
        turn = Turn(ids.response_id(now, ordinal, thread))
        origin: dict[str, JSON] = {"conversation": conversation_id}
        record = Record(Place("responses", owner, thread, ordinal), turn, origin=origin, hidden=True)
        record = record.with_events([TurnStarted(now, tuple(items)), TurnCompleted(now + 1)])
        try:
            await services.responses.open(record)
        except ConditionFailed:
            ordinal += 1
            continue
        return record


async def _thread(services: Services, owner: str, conversation_id: str) -> list[Record]:
    thread = ids.conversation_thread(conversation_id)
    return await services.responses.thread(owner, thread) if thread is not None else []
