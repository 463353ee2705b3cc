"""Conversations as such; what is said in them are turns in the thread that their id names.

Beside them are notes of the ids that clients gave to items, so that nobody has to read a whole conversation to know
whether an id is new in it. They are made now and then and say nothing that the turns do not: `noted` is the ordinal up
to which they are complete.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from turnloom.domain import ids
from turnloom.domain.errors import NotFound
from turnloom.ports import Absent, Row, Table, Version
from turnloom.store.agents import every
from turnloom.store.keys import partition


@dataclass(frozen=True, slots=True)
class Conversation:
    """`created_at` in microseconds since the epoch; no turn is `noted` at -1."""

    conversation_id: str
    created_at: int
    metadata: Mapping[str, str]
    noted: int = -1
    version: int = 1


def thread_of(conversation_id: str) -> str:
    """The thread in which the turns of this conversation live. Raises NotFound for text that is no such id."""
    thread = ids.conversation_thread(conversation_id)
    if thread is None:
        raise NotFound("conversation", conversation_id)
    return thread


class Conversations:
    def __init__(self, table: Table) -> None:
        self._table = table

    async def put(self, owner: str, conversation: Conversation) -> None:
        """Store a new conversation. Raises ConditionFailed when there is one of this id."""
        await self._table.put(_row(owner, conversation), Absent())

    async def change(self, owner: str, conversation: Conversation) -> Conversation:
        """Store the conversation as the successor of the version it came from.

        Raises ConditionFailed when someone else changed it in the meantime, or deleted it.
        """
        changed = replace(conversation, version=conversation.version + 1)
        await self._table.put(_row(owner, changed), Version(conversation.version))
        return changed

    async def get(self, owner: str, conversation_id: str) -> Conversation | None:
        row = await self._table.get(partition(owner, "conversations"), conversation_id)
        return None if row is None else _conversation(row)

    async def delete(self, owner: str, conversation_id: str) -> None:
        await self._table.delete(partition(owner, "conversations"), conversation_id)

    # --- the ids of items

    async def note(self, owner: str, conversation_id: str, names: Collection[str]) -> None:
        """Remember that these ids are taken in the conversation."""
        key = _notes(owner, conversation_id)
        await asyncio.gather(*(self._table.put(Row(key, _sort(name), {})) for name in names))

    async def known(self, owner: str, conversation_id: str, names: Collection[str]) -> set[str]:
        """Those of the ids that were noted."""
        key, asked = _notes(owner, conversation_id), list(names)
        rows = await asyncio.gather(*(self._table.get(key, _sort(name)) for name in asked))
        return {name for name, row in zip(asked, rows, strict=True) if row is not None}

    async def forget(self, owner: str, conversation_id: str) -> None:
        """Remove all that was noted."""
        for row in await every(self._table, _notes(owner, conversation_id)):
            await self._table.delete(row.partition, row.sort)


def _row(owner: str, conversation: Conversation) -> Row:
    value = {
        "created_at": conversation.created_at,
        "metadata": dict(conversation.metadata),
        "noted": conversation.noted,
    }
    return Row(partition(owner, "conversations"), conversation.conversation_id, value, conversation.version)


def _conversation(row: Row) -> Conversation:
    value = row.value
    return Conversation(row.sort, value["created_at"], value["metadata"], value.get("noted", -1), row.version)


def _notes(owner: str, conversation_id: str) -> str:
    return partition(owner, "conversations", conversation_id)


def _sort(name: str) -> str:
    """Clients give any text as an id, and what they gave is not to outlive its item here."""
    return hashlib.sha256(name.encode()).hexdigest()
