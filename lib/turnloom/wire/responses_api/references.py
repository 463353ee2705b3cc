"""Input items that only say where their content is: other items, sealed text. What they mean is put into them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from turnloom.domain import ids
from turnloom.domain.errors import InvalidRequest, NotFound
from turnloom.domain.layout import input_ids
from turnloom.domain.message import JSON
from turnloom.store.turns import Record, check_content
from turnloom.usecases.chains import get_response
from turnloom.usecases.conversations import conversation_records
from turnloom.usecases.responses import response_context
from turnloom.usecases.services import Services
from turnloom.wire.responses_api.items import Item
from turnloom.wire.responses_api.pages import record_items
from turnloom.wire.responses_api.sealing import Seal, opened, sealer

_BY_THEMSELVES = frozenset({"message", "function_call", "function_call_output"})

_OF_CLIENTS = (
    "An id that a client chose is found only in the conversation, or the chain of previous_response_id, that has it."
)


async def resolved(
    services: Services,
    owner: str,
    items: Sequence[Mapping[str, Any]],
    *,
    conversation: str | None = None,
    previous: str | None = None,
) -> list[JSON]:
    """The items, each with what it stands for.

    An id that a client chose is looked for in the `conversation` or the chain that ends with the `previous` response;
    our own tell where to look. Raises NotFound naming the id, and InvalidRequest for a summary that cannot be opened.
    """
    if all(item["type"] in _BY_THEMSELVES for item in items):
        return list(items)
    references = References(services, owner, conversation, previous)
    return [await references.resolve(item, f"input[{place}]") for place, item in enumerate(items)]


class References:
    """Looks items up, each response or conversation once."""

    def __init__(self, services: Services, owner: str, conversation: str | None, previous: str | None) -> None:
        self._services = services
        self._owner = owner
        self._conversation = conversation
        self._previous = previous
        self._found: dict[str, dict[str, Item]] = {}

    async def resolve(self, item: Mapping[str, Any], path: str) -> JSON:
        match item["type"]:
            case "item_reference":
                found = await self._item(item["id"])
                if found is None:
                    hint = _OF_CLIENTS if ids.item_place(item["id"]) is None else ""
                    raise NotFound("item", item["id"], param="input", hint=hint)
                return await self.resolve(found, path)
            case "reasoning" if not item.get("content") and not item.get("summary"):
                return await self._reasoning(item)
            case "compaction":
                return self._compaction(item, path)
            case "mcp_list_tools":
                return await self._listing(item)
            case _:
                return item

    async def _reasoning(self, item: Mapping[str, Any]) -> JSON:
        """The thoughts, opened or looked up; what cannot be found is passed over."""
        if sealed := item.get("encrypted_content"):
            text = opened(self._services, self._owner, sealed)
            return item if text is None else {**item, "opened": text}
        found = await self._item(item["id"]) if item.get("id") else None
        return item if found is None or found["type"] != "reasoning" else found

    async def _listing(self, item: Mapping[str, Any]) -> JSON:
        """The list with the server that gave it, if it is one of ours: then that need not be asked again."""
        place = ids.item_place(item.get("id") or "")
        source = place[0] if place is not None else ""
        told = (await self._items_of(source)).get(item["id"]) if source else None
        if told is None or told["type"] != "mcp_list_tools":
            return item
        tools = ((record.turn.settings or {}).get("tools", ()) for record in await self._records(source))
        asked = (tool for listed in tools for tool in listed if tool["type"] == "mcp")
        server = next((tool for tool in asked if tool["server_label"] == told["server_label"]), None)
        return item if server is None else {**told, "server": server}

    def _compaction(self, item: Mapping[str, Any], path: str) -> JSON:
        summary = opened(self._services, self._owner, item["encrypted_content"])
        if summary is None:
            message = "The encrypted content of the compaction item cannot be read."
            raise InvalidRequest(message, code="invalid_encrypted_content", param=f"{path}.encrypted_content")
        return {**item, "summary": summary}

    async def _item(self, item_id: str) -> Item | None:
        """The item that has this id: of the conversation, of the response that the id names, of the chain."""
        place = ids.item_place(item_id)
        for source in (self._conversation, place[0] if place is not None else None, self._previous):
            known = await self._items_of(source) if source is not None else {}
            if item_id in known:
                return known[item_id]
        return None

    async def _items_of(self, source: str) -> dict[str, Item]:
        if source not in self._found:
            taken: set[str] = set()
            seal = sealer(self._services, self._owner)
            records = await self._records(source)
            for record in records:
                check_content(record)
            items = [item for record in records for item in _kept(record, taken, seal)]
            self._found[source] = {item["id"]: item for item in items}
        return self._found[source]

    async def _records(self, source: str) -> list[Record]:
        try:
            if source == self._conversation:
                return await conversation_records(self._services, self._owner, source)
            if source == self._previous:
                return await response_context(self._services, self._owner, source)
            return [await get_response(self._services, self._owner, source)]
        except NotFound:
            return []


def _kept(record: Record, taken: set[str], seal: Seal) -> Iterator[Item]:
    """The items of a turn with what readers are not shown: addresses of tool servers, what was read from files."""
    given = dict(zip(input_ids(record.turn, taken), record.turn.input, strict=True))
    for item in record_items(record, taken, seal=seal):
        yield {**item, **given.get(item["id"], {}), "id": item["id"]}
