"""Agents and sessions: rows under their owner, and tombstones that hide what is being deleted."""

from __future__ import annotations

from typing import Literal

from turnloom.domain.agent import Agent, Session
from turnloom.domain.message import JSON
from turnloom.ports import Blobs, Row, Table
from turnloom.store.keys import partition
from turnloom.store.large import INLINE_BYTES, pack, unpack

TOMBSTONE_SECONDS = 3600
"""How long a deletion is remembered, so that repeating it is no error."""

State = Literal["live", "deleted"]


class Agents:
    """Agents, which never change. What a row cannot hold of a configuration is a blob under the agent's id."""

    def __init__(self, table: Table, blobs: Blobs) -> None:
        self._table = table
        self._blobs = blobs

    async def put(self, owner: str, agent: Agent) -> None:
        value: dict[str, JSON] = {"created_at": agent.created_at}
        config = pack(dict(agent.config))
        large = len(config) > INLINE_BYTES
        value |= {"blob": f"agent/{partition(owner, agent.agent_id)}"} if large else {"config": dict(agent.config)}
        await self._table.put(Row(partition(owner), agent.agent_id, value))
        # After the row, so that no crash leaves a blob that no row names; without it there is no agent.
        if large:
            await self._blobs.put(value["blob"], config)

    async def get(self, owner: str, agent_id: str) -> Agent | None:
        row = await self._table.get(partition(owner), agent_id)
        return None if row is None else await self._agent(row)

    async def all(self, owner: str) -> list[Agent]:
        """The owner's agents, oldest first."""
        found = [await self._agent(row) for row in await every(self._table, partition(owner))]
        return [agent for agent in found if agent is not None]

    async def state(self, owner: str, agent_id: str) -> State | None:
        """Whether the agent is there, or was deleted lately; None when there is no trace of it."""
        return _state(await self._table.get(partition(owner), agent_id))

    async def bury(self, owner: str, agent_id: str, now: int) -> None:
        """Hide the agent from now on."""
        row = await self._table.get(partition(owner), agent_id)
        # First, so that who comes again after a crash finds the row that names it: without it there is no agent.
        if row is not None and "blob" in row.value:
            await self._blobs.delete(row.value["blob"])
        await _hide(self._table, row, now)

    async def _agent(self, row: Row) -> Agent | None:
        """The agent of the row, None for one that is being deleted."""
        if is_tombstone(row):
            return None
        config = row.value.get("config")
        if config is None:
            config = unpack(await self._blobs.get(row.value["blob"]))
        return Agent(row.sort, config or {}, row.value["created_at"], content_lost=config is None)


class Sessions:
    def __init__(self, table: Table) -> None:
        self._table = table

    async def put(self, owner: str, session: Session) -> None:
        value = {"name": session.session_name, "started_at": session.started_at}
        await self._table.put(Row(partition(owner, session.agent_id), session.session_id, value))

    async def get(self, owner: str, agent_id: str, session_id: str) -> Session | None:
        row = await self._table.get(partition(owner, agent_id), session_id)
        return None if row is None or is_tombstone(row) else _session(row, agent_id)

    async def all(self, owner: str, agent_id: str) -> list[Session]:
        """The agent's sessions, oldest first."""
        rows = await every(self._table, partition(owner, agent_id))
        return [_session(row, agent_id) for row in rows if not is_tombstone(row)]

    async def state(self, owner: str, agent_id: str, session_id: str) -> State | None:
        """Whether the session is there, or was deleted lately; None when there is no trace of it."""
        return _state(await self._table.get(partition(owner, agent_id), session_id))

    async def bury(self, owner: str, agent_id: str, session_id: str, now: int) -> None:
        """Hide the session from now on."""
        row = await self._table.get(partition(owner, agent_id), session_id)
        await _hide(self._table, row, now)


async def every(table: Table, key: str) -> list[Row]:
    """All rows of a partition, page after page."""
    rows: list[Row] = []
    after: str | None = None
    while True:
        page = await table.query(key, after=after)
        rows += page.rows
        if not page.more:
            return rows
        after = page.rows[-1].sort


async def _hide(table: Table, row: Row | None, now: int) -> None:
    """Put a tombstone in the row's place, if there is a row."""
    if _state(row) == "live":
        assert row is not None
        expires = now // 1_000_000 + TOMBSTONE_SECONDS
        await table.put(Row(row.partition, row.sort, {"deleted_at": now}, expires=expires))


def _state(row: Row | None) -> State | None:
    if row is None:
        return None
    return "deleted" if is_tombstone(row) else "live"


def is_tombstone(row: Row) -> bool:
    return "deleted_at" in row.value


def _session(row: Row, agent_id: str) -> Session:
    return Session(row.sort, row.value["name"], agent_id, row.value["started_at"])
