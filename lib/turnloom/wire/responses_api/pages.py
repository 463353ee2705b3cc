"""Lists of items and of responses, page by page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastapi import Request

from turnloom.domain.errors import InvalidRequest
from turnloom.domain.layout import item_positions, lost_item_id
from turnloom.domain.message import JSON
from turnloom.store.turns import Record
from turnloom.wire.fit import fitting
from turnloom.wire.json_text import JSONAnswer
from turnloom.wire.responses_api.items import Item, input_items, output_items
from turnloom.wire.responses_api.sealing import Seal
from turnloom.wire.responses_api.shapes import message, output_text


def record_items(record: Record, taken: set[str], *, alias: bool = False, seal: Seal | None = None) -> list[Item]:
    """The items of one turn, its input first, without those that were deleted; adds their ids to `taken`.

    A message stands for a turn whose content is lost.
    """
    if record.content_lost:
        notice = output_text("The content that was stored here is lost.", ())
        return [message(lost_item_id(record.turn.id), "incomplete", [notice], None)]
    positions = item_positions(record.turn, taken)
    items = [*input_items(record.turn, taken), *output_items(record.turn, alias=alias, seal=seal)]
    removed = record.origin.get("removed", ())
    taken |= set(positions)
    return [item for item in items if positions[item["id"]] not in removed]


def context_items(records: Sequence[Record], *, alias: bool = False, seal: Seal | None = None) -> list[Item]:
    """All items that the newest of these responses saw, oldest first: what it inherited, then its own input."""
    *inherited, newest = records
    taken: set[str] = set()
    items = [item for record in inherited for item in record_items(record, taken, alias=alias, seal=seal)]
    return [*items, *input_items(newest.turn, taken)]


def items_page(request: Request, items: Sequence[Item]) -> JSONAnswer:
    """The part of the items, which are given oldest first, that the request asks for. Raises InvalidRequest."""
    query = request.query_params
    limit = integer("limit", query.get("limit", "20"), least=1, most=100)
    ordered = list(items)[::-1] if descending(query.get("order")) else list(items)
    wanted = _cut(ordered, query.get("after"), query.get("before"))
    return JSONAnswer(page(wanted[:limit], len(wanted) > limit))


def page(data: Iterable[Item], more: bool) -> dict[str, JSON]:
    """A page as all lists have it, which ends early where it would be too large; the ids of an empty one are empty."""
    shown, cut = fitting(data)
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else ("", "")
    return {"object": "list", "data": shown, "first_id": first, "last_id": last, "has_more": more or cut}


def descending(order: str | None) -> bool:
    """Whether the newest comes first, which is what a request that does not say gets."""
    if order not in (None, "asc", "desc"):
        raise InvalidRequest(f"order is 'asc' or 'desc', not '{order}'", code="invalid_value", param="order")
    return order != "asc"


def integer(name: str, text: str, *, least: int, most: int | None = None) -> int:
    """The number that a query parameter gives. Raises InvalidRequest."""
    try:
        value = int(text)
    except ValueError:
        raise InvalidRequest(f"{name} is not an integer: '{text}'", code="invalid_type", param=name) from None
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise InvalidRequest(f"{name} must be {limits}, not {value}", code="invalid_value", param=name)
    return value


def _cut(items: list[Item], after: str | None, before: str | None) -> list[Item]:
    if after is not None and before is not None:
        raise InvalidRequest("Give 'after' or 'before', not both", code="invalid_value", param="before")
    if after is not None:
        return items[_index(items, after, "after") + 1 :]
    return items[: _index(items, before, "before")] if before is not None else items


def _index(items: list[Item], item_id: str, param: str) -> int:
    for place, item in enumerate(items):
        if item["id"] == item_id:
            return place
    raise InvalidRequest(f"No item '{item_id}' in this list", code="invalid_value", param=param)
