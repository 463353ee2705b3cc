"""What a new response stands on: the chain of responses below it, or a conversation.

A chain of responses lives in a *branch*, a thread whose ordinals count the depth from the root. The child of a
branch's tip takes the next ordinal; the child of any other response finds that place taken and opens a branch of its
own, which remembers where it grew (`lineage`: the branches before it, each with the ordinal it was left at). So a
chain is read with one query per branch, a fork copies nothing, and each response stores only what is new in it.

A conversation is a thread too: its responses, and items that were put between them, take one place after the other.
What is put on top of one of its responses by `previous_response_id` is a branch that grows out of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from turnloom.domain import ids
from turnloom.domain.errors import Busy, ContentLost, InvalidRequest, NotFound
from turnloom.domain.layout import lost_item_id, without
from turnloom.domain.turn import Turn
from turnloom.engine.takeover import take_over
from turnloom.store.conversations import thread_of
from turnloom.store.turns import Place, Record, check_content, content_lost
from turnloom.usecases.services import Services


@dataclass(frozen=True, slots=True)
class Chain:
    """The turns before a new response, oldest first, and the place that it may take.

    `thread` None means a branch of its own. `conversation` is the id of the one that it belongs to, `holder` the
    response that is running in it.
    """

    records: tuple[Record, ...] = ()
    turns: tuple[Turn, ...] = ()
    thread: str | None = None
    ordinal: int = 0
    lineage: tuple[tuple[str, int], ...] = field(default=())
    conversation: str | None = None
    holder: Record | None = None

    @property
    def parent(self) -> str | None:
        in_conversation = self.conversation is not None
        return None if in_conversation or not self.records else self.records[-1].turn.id


async def chain_of(services: Services, owner: str, parent_id: str) -> Chain:
    """The whole chain that ends with this response. Raises InvalidRequest or Busy when nothing can be put on top."""
    line, tip = await ancestors(services, owner, parent_id)
    if not line or line[-1].hidden:
        raise _missing(parent_id)
    if (gone := line[0].origin.get("parent")) is not None:
        raise _missing(str(gone))
    parent = line[-1]
    if parent.running:
        message = f"Response '{parent_id}' is still in progress."
        code, param = "previous_response_in_progress", "previous_response_id"
        raise Busy(message, code=code, param=param, extra={"retry_after": 2})
    lineage = tuple((thread, ordinal) for thread, ordinal in parent.origin.get("lineage", ()))
    chain = Chain(tuple(line), shown_turns(line), parent.place.thread, parent.place.ordinal + 1, lineage)
    return chain if tip and not in_conversation(parent) else forked(chain)


def forked(chain: Chain) -> Chain:
    """The same chain, going on in a new branch because something else has the place behind the parent."""
    if chain.thread is None:
        return chain
    return replace(chain, thread=None, lineage=(*chain.lineage, (chain.thread, chain.ordinal - 1)))


async def ancestors(services: Services, owner: str, response_id: str) -> tuple[list[Record], bool]:
    """The response and what it stands on, as far as it is still there, oldest first; and whether it is a branch's tip.

    One query for each branch; the place behind the response is read along with them. Raises ContentLost.
    """
    place = place_of(owner, response_id)
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
    line = _walked_back(found, response_id)
    _check_history(line)
    return line, branch[-1].turn.id == response_id


async def get_response(services: Services, owner: str, response_id: str) -> Record:
    """The stored response in whatever state it is. Raises NotFound, and ContentLost when a part of it is missing."""
    record = await find_response(services, owner, response_id)
    check_content(record)
    return record


async def find_response(services: Services, owner: str, response_id: str) -> Record:
    """The stored response, also one whose content is lost. Raises NotFound."""
    place = place_of(owner, response_id)
    record = await services.responses.load(place) if place else None
    if record is None or record.turn.id != response_id or record.hidden:
        raise NotFound("response", response_id)
    return record


def shown_turns(records: Sequence[Record]) -> tuple[Turn, ...]:
    """The turns without the items that were deleted from their conversation."""
    if not any("removed" in record.origin for record in records):
        return tuple(record.turn for record in records)
    removed = [frozenset(record.origin.get("removed", ())) for record in records]
    return tuple(without([record.turn for record in records], removed))


def place_of(owner: str, response_id: str) -> Place | None:
    """Where the response of this id must be, if it is one."""
    place = ids.response_place(response_id)
    return Place("responses", owner, *place) if place else None


def in_conversation(record: Record) -> bool:
    return "conversation" in record.origin


# --- conversations


async def conversation_chain(services: Services, owner: str, conversation_id: str) -> Chain:
    """The conversation, and the next place in it; see `check_unlocked`.

    Raises ContentLost, and NotFound for what is no such id.
    """
    thread = thread_of(conversation_id)
    records = await services.responses.thread(owner, thread)
    told = tuple(filter(may_count, records))
    _check_history(told)
    ordinal = records[-1].place.ordinal + 1 if records else 0
    running = next((record for record in records if record.running), None)
    return Chain(told, shown_turns(told), thread, ordinal, conversation=conversation_id, holder=running)


async def conversation_before(services: Services, record: Record) -> Chain:
    """The conversation as it was when this response was put into it."""
    place = record.place
    records = await services.responses.thread(place.owner, place.thread, upto=place.ordinal - 1)
    told = tuple(filter(may_count, records))
    _check_history(told)
    return Chain(told, shown_turns(told), place.thread, place.ordinal, conversation=record.origin["conversation"])


def counts(record: Record) -> bool:
    """Whether a turn has added to its conversation: one that failed, or was cancelled, has not."""
    return record.turn.status == "completed"


def may_count(record: Record) -> bool:
    """Whether a turn has added to its conversation, or may have: of one whose content is lost nobody can say."""
    return counts(record) or (record.content_lost and not record.running)


async def check_unlocked(services: Services, chain: Chain) -> None:
    """Raise Busy while a response of the conversation is running; one whose driver is lost is woken on the way."""
    if chain.holder is None:
        return
    holder = await services.responses.load(chain.holder.place)
    if holder is not None and holder.running and holder.lease < services.clock.now():
        await take_over(services.engine, holder.place)
    message = "Another response of the conversation is in progress."
    raise Busy(message, code="conversation_locked", param="conversation", extra={"retry_after": 2})


def _walked_back(found: Mapping[str, Record], response_id: str) -> list[Record]:
    """From the response back along its parents: what else lives in the same branches is not its past."""
    line: list[Record] = []
    current: str | None = response_id
    while current is not None and current in found:
        record = found[current]
        if record.hidden and line:
            break
        line.append(record)
        if in_conversation(record):
            return [*_before(record, found.values()), *line[::-1]]
        current = record.origin.get("parent")
    return line[::-1]


def _before(record: Record, found: Iterable[Record]) -> list[Record]:
    """What the conversation held when this response was put into it."""
    place = record.place
    earlier = (other for other in found if other.place.thread == place.thread and other.place.ordinal < place.ordinal)
    return sorted(filter(may_count, earlier), key=lambda other: other.place.ordinal)


def _check_history(records: Iterable[Record]) -> None:
    """Raises ContentLost for the first that a model could not be shown: nothing goes on with a gap in its past."""
    for record in records:
        if not record.content_lost:
            continue
        if record.hidden:
            raise ContentLost("item", lost_item_id(record.turn.id), hint="Delete it to go on without it.")
        raise content_lost(record, "Delete it, or go on from a response before it.")


def _missing(response_id: str) -> InvalidRequest:
    message = f"Previous response with id '{response_id}' not found."
    return InvalidRequest(message, code="previous_response_not_found", param="previous_response_id")
