"""What an owner has registered: tool groups and models."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Mapping

from turnloom.domain.agent import ToolGroup
from turnloom.domain.message import JSON
from turnloom.domain.tool_schema import schema_fault
from turnloom.ports import Row, Table, Unreadable, Vault
from turnloom.store.agents import every
from turnloom.store.keys import partition

_log = logging.getLogger(__name__)


class Registry:
    """Tool groups, sealed as wholes since any part of one may hold a secret, and models."""

    def __init__(self, table: Table, vault: Vault) -> None:
        self._table = table
        self._vault = vault

    async def put_group(self, owner: str, group: ToolGroup) -> None:
        content = json.dumps(
            {
                "endpoint": group.endpoint,
                "args": dict(group.args),
                "tools": [dict(tool) for tool in group.tools],
                "guarded": group.guarded,
            }
        )
        # Compressed, as a row has room for little more than a group's own bytes, and sealing adds a third.
        sealed = self._vault.seal(zlib.compress(content.encode()), _context(owner, group.identifier))
        value = {"provider_id": group.provider_id, "sealed": sealed}
        await self._table.put(Row(partition(owner, "toolgroups"), group.identifier, value))

    async def groups(self, owner: str) -> list[ToolGroup]:
        """The owner's tool groups by identifier; one that cannot be unsealed any more is not `readable`."""
        return [self._group(owner, row) for row in await every(self._table, partition(owner, "toolgroups"))]

    async def delete_group(self, owner: str, identifier: str) -> None:
        await self._table.delete(partition(owner, "toolgroups"), identifier)

    def _group(self, owner: str, row: Row) -> ToolGroup:
        value = row.value
        if "sealed" not in value:
            # Stored before groups were sealed, and before the schemas of their tools were checked.
            return ToolGroup(row.sort, value["provider_id"], value["endpoint"], value["args"], _sound_tools(row))
        try:
            content = json.loads(zlib.decompress(self._vault.unseal(value["sealed"], _context(owner, row.sort))))
        except Unreadable:
            _log.warning("The tool group %s cannot be read: it was sealed with another key", row.sort)
            return ToolGroup(row.sort, value["provider_id"], None, {}, (), readable=False)
        return ToolGroup(
            row.sort,
            value["provider_id"],
            content["endpoint"],
            content["args"],
            tuple(content["tools"]),
            guarded=content.get("guarded", False),
        )

    async def put_model(self, owner: str, identifier: str, model: Mapping[str, JSON]) -> None:
        await self._table.put(Row(partition(owner, "models"), identifier, dict(model)))

    async def models(self, owner: str) -> list[dict[str, JSON]]:
        """The owner's models as registered, by identifier."""
        return [dict(row.value) for row in await every(self._table, partition(owner, "models"))]

    async def delete_model(self, owner: str, identifier: str) -> None:
        await self._table.delete(partition(owner, "models"), identifier)


def _context(owner: str, identifier: str) -> str:
    return f"toolgroup {json.dumps([owner, identifier])}"


def _sound_tools(row: Row) -> tuple[Mapping[str, JSON], ...]:
    tools = row.value["tools"]
    sound = tuple(tool for tool in tools if schema_fault(tool["parameters"]) is None)
    if len(sound) < len(tools):
        _log.warning("The tool group %s has tools with malformed schemas, which are left out", row.sort)
    return sound
