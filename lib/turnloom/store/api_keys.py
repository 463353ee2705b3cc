"""API keys, in a table of their own: what serves the API cannot write who may use it."""

from __future__ import annotations

from dataclasses import asdict, replace

from turnloom.domain.api_key import ApiKey
from turnloom.ports import Absent, Row, Table
from turnloom.store.agents import every

_PARTITION = "keys"


class ApiKeys:
    """The keys by their id. They do not stand under their owner: who that is, a request does not know before."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def add(self, key: ApiKey) -> None:
        await self._table.put(_row(key), Absent())

    async def get(self, key_id: str) -> ApiKey | None:
        """The key, unless it is unknown or has expired; it may be revoked."""
        row = await self._table.get(_PARTITION, key_id)
        return None if row is None else _key(row)

    async def all(self) -> list[ApiKey]:
        """Every key that has not expired, oldest first."""
        return [_key(row) for row in await every(self._table, _PARTITION)]

    async def revoke(self, key_id: str, now: int) -> bool:
        """Let the key open nothing from now on, in seconds; whether there is such a key."""
        found = await self.get(key_id)
        if found is not None and found.revoked is None:
            await self._table.put(_row(replace(found, revoked=now)))
        return found is not None


def _row(key: ApiKey) -> Row:
    value = asdict(key)
    del value["key_id"]
    return Row(_PARTITION, key.key_id, value, expires=key.expires)


def _key(row: Row) -> ApiKey:
    return ApiKey(key_id=row.sort, **row.value)
