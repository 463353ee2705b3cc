"""Conversations and their items: HTTP in, use case, JSON out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request

from turnloom.domain.errors import CallerError, NotFound
from turnloom.domain.message import JSON
from turnloom.store.conversations import Conversation
from turnloom.store.turns import Record, check_content
from turnloom.usecases import conversations
from turnloom.usecases.attachments import prepared
from turnloom.usecases.services import Services
from turnloom.wire.app import Home, Owner, Route, application
from turnloom.wire.json_text import JSONAnswer
from turnloom.wire.responses_api.items import Item
from turnloom.wire.responses_api.models import parse_conversation, parse_items, parse_metadata
from turnloom.wire.responses_api.pages import items_page, page, record_items
from turnloom.wire.responses_api.references import resolved
from turnloom.wire.responses_api.routes import envelope
from turnloom.wire.responses_api.sealing import sealer


def conversations_app(function: str, services: Callable[[], Services]) -> FastAPI:
    """The app of the function that serves all methods of conversations."""
    return application(function, ROUTES, services, envelope)


async def create_conversation(request: Request, services: Home, owner: Owner) -> JSONAnswer:
    asked = parse_conversation(await request.body())
    items = await _whole(services, owner, asked.items)
    return _answer(await conversations.create_conversation(services, owner, items, asked.metadata))


async def get_conversation(conversation_id: str, services: Home, owner: Owner) -> JSONAnswer:
    return _answer(await conversations.get_conversation(services, owner, conversation_id))


async def update_conversation(request: Request, conversation_id: str, services: Home, owner: Owner) -> JSONAnswer:
    metadata = parse_metadata(await request.body())
    if metadata is None:
        return _answer(await conversations.get_conversation(services, owner, conversation_id))
    return _answer(await conversations.update_conversation(services, owner, conversation_id, metadata))


async def delete_conversation(conversation_id: str, services: Home, owner: Owner) -> JSONAnswer:
    await conversations.delete_conversation(services, owner, conversation_id)
    return JSONAnswer({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


async def create_conversation_items(request: Request, conversation_id: str, services: Home, owner: Owner) -> JSONAnswer:
    items = await _whole(services, owner, parse_items(await request.body()), conversation_id)
    record = await conversations.append_items(services, owner, conversation_id, items)
    return JSONAnswer(page(record_items(record, set(), seal=sealer(services, owner)), more=False))


async def list_conversation_items(request: Request, conversation_id: str, services: Home, owner: Owner) -> JSONAnswer:
    return items_page(request, [item for item, _ in await _items(services, owner, conversation_id)])


async def get_conversation_item(conversation_id: str, item_id: str, services: Home, owner: Owner) -> JSONAnswer:
    for item, record in await _items(services, owner, conversation_id):
        if item["id"] == item_id:
            check_content(record)
            return JSONAnswer(item)
    raise NotFound("item", item_id)


async def delete_conversation_item(conversation_id: str, item_id: str, services: Home, owner: Owner) -> JSONAnswer:
    return _answer(await conversations.delete_item(services, owner, conversation_id, item_id))


_EVERY = "/v1/conversations"
_ONE = f"{_EVERY}/{{conversation_id}}"
_ITEMS = f"{_ONE}/items"
_ITEM = f"{_ITEMS}/{{item_id}}"

ROUTES = (
    Route("conversations", "POST", _EVERY, create_conversation),
    Route("conversations", "GET", _ONE, get_conversation),
    Route("conversations", "POST", _ONE, update_conversation),
    Route("conversations", "DELETE", _ONE, delete_conversation),
    Route("conversations", "POST", _ITEMS, create_conversation_items),
    Route("conversations", "GET", _ITEMS, list_conversation_items),
    Route("conversations", "GET", _ITEM, get_conversation_item),
    Route("conversations", "DELETE", _ITEM, delete_conversation_item),
)


def _answer(conversation: Conversation) -> JSONAnswer:
    return JSONAnswer(
        {
            "id": conversation.conversation_id,
            "object": "conversation",
            "created_at": conversation.created_at // 1_000_000,
            "metadata": dict(conversation.metadata),
        }
    )


async def _whole(
    services: Services, owner: str, items: Sequence[Any], conversation_id: str | None = None
) -> Sequence[JSON]:
    """The items with everything that they refer to, as they are stored."""
    try:
        return await prepared(services, owner, await resolved(services, owner, items, conversation=conversation_id))
    except CallerError as problem:
        # By the name that the items have in this body.
        problem.param = problem.param.replace("input", "items", 1) if problem.param else None
        raise


async def _items(services: Services, owner: str, conversation_id: str) -> list[tuple[Item, Record]]:
    """All items of the conversation, oldest first, each with the turn that holds it."""
    records = await conversations.conversation_records(services, owner, conversation_id)
    taken: set[str] = set()
    seal = sealer(services, owner)
    return [(item, record) for record in records for item in record_items(record, taken, seal=seal)]
