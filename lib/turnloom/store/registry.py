"""What an owner has registered: tool groups and models."""

from __future__ import annotations

from collections.abc import Mapping

from turnloom.domain.agent import ToolGroup
from turnloom.domain.message import JSON
from turnloom.ports import Row, Table
from turnloom.store.agents import every
from turnloom.store.keys import partition


class Registry:
    def __init__(self, table: Table) -> None:
        self._table = table

    async def put_group(self, owner: str, group: ToolGroup) -> None:
        value = {
            "provider_id": group.provider_id,
            "endpoint": group.endpoint,
            "args": dict(group.args),
            "tools": [dict(tool) for tool in group.tools],
        }
        await self._table.put(Row(partition(owner, "toolgroups"), group.identifier, value))

    async def groups(self, owner: str) -> list[ToolGroup]:
        """The owner's tool groups by identifier."""
        return [_group(row) for row in await every(self._table, partition(owner, "toolgroups"))]

    async def delete_group(self, owner: str, identifier: str) -> None:
        await self._table.delete(partition(owner, "toolgroups"), identifier)

    async def put_model(self, owner: str, identifier: str, model: Mapping[str, JSON]) -> None:
        await self._table.put(Row(partition(owner, "models"), identifier, dict(model)))

    async def models(self, owner: str) -> list[dict[str, JSON]]:
        """The owner's models as registered, by identifier."""
        return [dict(row.value) for row in await every(self._table, partition(owner, "models"))]

    async def delete_model(self, owner: str, identifier: str) -> None:
        await self._table.delete(partition(owner, "models"), identifier)


def _group(row: Row) -> ToolGroup:
    value = row.value
    return ToolGroup(row.sort, value["provider_id"], value["endpoint"], value["args"], tuple(value["tools"]))
