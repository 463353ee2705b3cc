"""What is to be removed, and when: a list that survives the process which began the removal.

Deleting an agent, a session or a conversation writes its name here first, then hides it, then removes it piece by
piece. The name is due when everybody who was at work in it must have ended: the sweeper then removes what they have
left, and what the one who deleted it has left if that one died. A removal that takes long is put here a second time,
due at once. What is to expire is on the list from its start, due when it may be over.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from turnloom.ports import Row, Table

_LIST = "disposal"


@dataclass(frozen=True, slots=True)
class Disposable:
    """An agent (no session), one session of it, or a conversation.

    `expiring` ones are only removed if nothing happened since.
    """

    owner: str
    agent_id: str = ""
    session_id: str | None = None
    conversation_id: str | None = None
    expiring: bool = False


class Disposal:
    def __init__(self, table: Table) -> None:
        self._table = table

    async def put(self, thing: Disposable, due: int) -> str:
        """Put on the list, due at that time in microseconds; the entry's name for `take_off`."""
        entry = f"{due:017d}#{thing.conversation_id or thing.session_id or thing.agent_id}"
        await self._table.put(Row(_LIST, entry, asdict(thing)))
        return entry

    async def take_off(self, entry: str) -> None:
        await self._table.delete(_LIST, entry)

    async def due(self, now: int, limit: int = 100) -> list[tuple[str, Disposable]]:
        """The entries whose time has come, oldest first, each with its name."""
        page = await self._table.query(_LIST, before=f"{now:017d}", limit=limit)
        return [(row.sort, Disposable(**row.value)) for row in page.rows]
