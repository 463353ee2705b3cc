"""Agents and sessions: rows under their owner, and tombstones that hide what is being deleted."""

from __future__ import annotations

from turnloom.domain.agent import Agent, Session
from turnloom.ports import Row, Table
from turnloom.store.keys import partition

TOMBSTONE_SECONDS = 3600
"""How long a deletion is remembered, so that repeating it is no error."""


class Agents:
    def __init__(self, table: Table) -> None:
        self._table = table

    async def put(self, owner: str, agent: Agent) -> None:
        value = {"config": dict(agent.config), "created_at": agent.created_at}
        await self._table.put(Row(partition(owner), agent.agent_id, value))

    async def get(self, owner: str, agent_id: str) -> Agent | None:
        row = await self._table.get(partition(owner), agent_id)
        return None if row is None or is_tombstone(row) else _agent(row)

    async def all(self, owner: str) -> list[Agent]:
        """The owner's agents, oldest first."""
        return [_agent(row) for row in await every(self._table, partition(owner)) if not is_tombstone(row)]

    async def bury(self, owner: str, agent_id: str, now: int) -> bool:
        """Hide the agent from now on; whether there is, or lately was, such an agent."""
        return await bury(self._table, partition(owner), agent_id, now)


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

    async def bury(self, owner: str, agent_id: str, session_id: str, now: int) -> bool:
        """Hide the session from now on; whether there is, or lately was, such a session."""
        return await bury(self._table, partition(owner, agent_id), session_id, now)


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


async def bury(table: Table, key: str, sort: str, now: int) -> bool:
    """Put a tombstone in the row's place; whether there was a row or a tombstone."""
    row = await table.get(key, sort)
    if row is not None and not is_tombstone(row):
        await table.put(Row(key, sort, {"deleted_at": now}, expires=now // 1_000_000 + TOMBSTONE_SECONDS))
    return row is not None


def is_tombstone(row: Row) -> bool:
    return "deleted_at" in row.value


def _agent(row: Row) -> Agent:
    return Agent(row.sort, row.value["config"], row.value["created_at"])


def _session(row: Row, agent_id: str) -> Session:
    return Session(row.sort, row.value["name"], agent_id, row.value["started_at"])
