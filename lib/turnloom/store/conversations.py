"""Conversations as such; what is said in them are turns in the thread that their id names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from turnloom.ports import Row, Table
from turnloom.store.keys import partition


@dataclass(frozen=True, slots=True)
class Conversation:
    """`created_at` in microseconds since the epoch."""

    conversation_id: str
    created_at: int
    metadata: Mapping[str, str]


class Conversations:
    def __init__(self, table: Table) -> None:
        self._table = table

    async def put(self, owner: str, conversation: Conversation) -> None:
        value = {"created_at": conversation.created_at, "metadata": dict(conversation.metadata)}
        await self._table.put(Row(partition(owner, "conversations"), conversation.conversation_id, value))

    async def get(self, owner: str, conversation_id: str) -> Conversation | None:
        row = await self._table.get(partition(owner, "conversations"), conversation_id)
        return None if row is None else Conversation(row.sort, row.value["created_at"], row.value["metadata"])

    async def delete(self, owner: str, conversation_id: str) -> None:
        await self._table.delete(partition(owner, "conversations"), conversation_id)
