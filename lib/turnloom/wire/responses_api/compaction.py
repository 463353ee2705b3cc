"""The answer to a request for compaction."""

from __future__ import annotations

from collections.abc import Sequence

from turnloom.domain.layout import item_id
from turnloom.domain.message import JSON
from turnloom.usecases.contexts import SummedUp
from turnloom.wire.responses_api.items import Item, input_items
from turnloom.wire.responses_api.response import usage_json
from turnloom.wire.responses_api.sealing import Seal


def compaction_json(compacted: SummedUp, now: int, seal: Seal) -> JSON:
    """All that users said, then one item that holds the summary of everything; valid input for a new response."""
    newest = compacted.turns[-1]
    summary = {
        "id": item_id("compaction", newest.id, 0),
        "type": "compaction",
        "status": "completed",
        "encrypted_content": seal(compacted.summary),
    }
    return {
        "id": newest.id.replace("resp_", "cmpr_"),
        "object": "response.compaction",
        "created_at": now // 1_000_000,
        "output": [*_users_messages(compacted), summary],
        "usage": usage_json(compacted.usage),
    }


def _users_messages(compacted: SummedUp) -> Sequence[Item]:
    taken: set[str] = set()
    found: list[Item] = []
    for turn in compacted.turns:
        items = input_items(turn, taken)
        taken |= {item["id"] for item in items}
        found += [item for item in items if item["type"] == "message" and item["role"] == "user"]
    return found
