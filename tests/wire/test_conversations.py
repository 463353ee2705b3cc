"""Conversations: alone, under responses that run in them, and through the official client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from starlette.applications import Starlette
from starlette.routing import Route

from tests.conftest import House, build_house
from tests.server import LoopbackServer
from tests.wire.apps import both_apis
from turnloom.domain.errors import UpstreamBroken
from turnloom.domain.message import AssistantMessage, Message, ToolMessage, UserMessage
from turnloom.ports import Finished, TextChunk
from turnloom.testing import USAGE
from turnloom.usecases.services import Services
from turnloom.wire.responses_api.conversations import ROUTES, conversations_app

WEATHER: Any = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
CALL = {"type": "function_call", "id": "fc_mine", "call_id": "call_1", "name": "weather", "arguments": "{}"}
CALL_OUTPUT = {"type": "function_call_output", "id": "fco_mine", "call_id": "call_1", "output": "sunny"}


class Authorizer:
    """Says, as API Gateway's would, whose credential came; here it is the name of its owner."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            owner = dict(scope["headers"]).get(b"authorization", b"").decode().removeprefix("Bearer ")
            scope = {**scope, "aws.event": {"requestContext": {"authorizer": {"owner": owner}}}}
        await self._app(scope, receive, send)


@dataclass
class Talk:
    """The API as one owner sees it: by the official client, and as plain HTTP."""

    house: House
    server: LoopbackServer
    client: OpenAI
    http: httpx.Client

    def conversation(self, *texts: str) -> str:
        """The id of a new conversation with these messages of a user in it."""
        return self.client.conversations.create(items=[said(text) for text in texts]).id

    def items(self, conversation: str, **query: Any) -> list[Any]:
        """All items, oldest first."""
        listed = self.client.conversations.items.list(conversation, order="asc", **query)
        return [item.to_dict() for item in listed]

    def texts(self, conversation: str) -> list[str]:
        return [item["content"][0]["text"] for item in self.items(conversation)]

    def answer(self, text: str, **body: Any) -> Any:
        """A response of the model, which says `text`."""
        self.house.model.says(text)
        return self.client.responses.create(**{"model": "m", "input": "Go.", **body})

    @property
    def seen(self) -> tuple[Message, ...]:
        """What the model was last asked."""
        return self.house.model.requests[-1].messages

    def open(self, gate: asyncio.Event) -> None:
        assert self.server.loop is not None
        self.server.loop.call_soon_threadsafe(gate.set)


def said(text: str, **more: Any) -> Any:
    return {"type": "message", "role": "user", "content": text, **more}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and answer.headers["x-request-id"]
    return error


def app_of(services: Services) -> Starlette:
    app = conversations_app("conversations", lambda: services)
    routes = [Route(route.path, app, methods=[route.method]) for route in ROUTES]
    return Starlette(routes=[*both_apis(services).routes, *routes])


def client_of(server: LoopbackServer, owner: str) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=owner, max_retries=0, timeout=20)


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    house = build_house(tmp_path)
    headers = {"authorization": "Bearer anna"}
    with (
        LoopbackServer(Authorizer(app_of(house.services))) as server,
        httpx.Client(base_url=server.url, headers=headers, timeout=20) as http,
    ):
        yield Talk(house, server, client_of(server, "anna"), http)


# --- the conversation itself


def test_a_conversation_is_the_same_created_and_retrieved(talk: Talk) -> None:
    made = talk.http.post("/v1/conversations", json={"metadata": {"topic": "tea"}}).json()
    assert made == {
        "id": made["id"],
        "object": "conversation",
        "created_at": talk.house.clock.time // 1_000_000,
        "metadata": {"topic": "tea"},
    }
    assert made["id"].startswith("conv_") and made["id"].isascii() and len(made["id"]) <= 64
    assert talk.http.get(f"/v1/conversations/{made['id']}").json() == made


def test_a_conversation_may_be_created_without_a_body(talk: Talk) -> None:
    made = talk.http.post("/v1/conversations")
    assert (made.status_code, made.json()["metadata"]) == (200, {})
    assert talk.items(made.json()["id"]) == []


def test_null_changes_no_metadata(talk: Talk) -> None:
    made = talk.client.conversations.create(metadata={"a": "1"})
    assert talk.client.conversations.update(made.id, metadata=None) == made
    assert talk.client.conversations.retrieve(made.id).metadata == {"a": "1"}
    assert talk.client.conversations.update(made.id, metadata={}).metadata == {}
    with pytest.raises(openai.NotFoundError):
        talk.client.conversations.update("conv_unknown", metadata=None)


def test_metadata_is_replaced_whole(talk: Talk) -> None:
    made = talk.client.conversations.create(metadata={"a": "1", "b": "2"})
    changed = talk.client.conversations.update(made.id, metadata={"c": "3"})
    assert changed.metadata == {"c": "3"} and changed.created_at == made.created_at
    assert talk.client.conversations.retrieve(made.id) == changed


def test_a_deleted_conversation_is_gone_with_its_items(talk: Talk) -> None:
    conversation = talk.conversation("Hello")
    deleted = talk.http.delete(f"/v1/conversations/{conversation}").json()
    assert deleted == {"id": conversation, "object": "conversation.deleted", "deleted": True}
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/items")):
        answer = talk.http.request(method, f"/v1/conversations/{conversation}{path}")
        assert (answer.status_code, error_of(answer)["code"]) == (404, None), (method, path)
    assert _rows_of(talk.house, conversation) == []


def _rows_of(house: House, conversation: str) -> list[Any]:
    async def thread() -> list[Any]:
        return list(await house.services.responses.thread("anna", conversation[-16:]))

    return asyncio.run(thread())


@pytest.mark.parametrize("owner", ["anna", "ben"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("POST", "", {"metadata": {}}),
        ("DELETE", "", None),
        ("GET", "/items", None),
        ("POST", "/items", {"items": [said("x")]}),
        ("GET", "/items/msg_mine", None),
        ("DELETE", "/items/msg_mine", None),
    ],
)
def test_another_owners_conversation_is_as_unknown_as_one_that_never_was(
    talk: Talk, owner: str, method: str, path: str, body: Any
) -> None:
    known = talk.client.conversations.create(items=[said("Hello", id="msg_mine")]).id
    asked = known if owner == "ben" else f"{known[:-1]}z"
    headers = {"authorization": f"Bearer {owner}"}
    answer = talk.http.request(method, f"/v1/conversations/{asked}{path}", json=body, headers=headers)
    error = error_of(answer)
    assert (answer.status_code, error["type"], error["code"]) == (404, "invalid_request_error", None)
    assert asked in error["message"]
    assert talk.texts(known) == ["Hello"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"items": [said("x")] * 21}, "items"),
        ({"items": "x"}, "items"),
        ({"items": [{"type": "message", "role": "user"}]}, "items[0].content"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    ],
)
def test_a_bad_body_is_told_which_parameter_is_at_fault(talk: Talk, body: Any, param: str) -> None:
    answer = talk.http.post("/v1/conversations", json=body)
    assert (answer.status_code, error_of(answer)["param"]) == (400, param), answer.text


# --- its items


def test_items_are_listed_with_all_that_clients_demand(talk: Talk) -> None:
    given = [said("Hello"), {"type": "message", "role": "assistant", "content": "Hi."}, CALL, CALL_OUTPUT]
    conversation = talk.client.conversations.create(items=given).id
    items = talk.items(conversation)
    assert [item["type"] for item in items] == ["message", "message", "function_call", "function_call_output"]
    assert all(item["id"] and item["status"] == "completed" for item in items)
    assert items[0]["content"] == [{"type": "input_text", "text": "Hello"}]
    assert items[1]["content"] == [{"type": "output_text", "text": "Hi.", "annotations": [], "logprobs": []}]
    assert [
        talk.client.conversations.items.retrieve(i["id"], conversation_id=conversation).to_dict() for i in items
    ] == items


def test_creating_items_answers_a_list_of_just_these(talk: Talk) -> None:
    conversation = talk.conversation("one")
    path = f"/v1/conversations/{conversation}/items"
    made = talk.http.post(path, json={"items": [said("two"), said("three")]}, params={"include[]": "x"}).json()
    assert (made["object"], made["has_more"]) == ("list", False)
    assert [made["first_id"], made["last_id"]] == [item["id"] for item in made["data"]]
    assert made["data"] == talk.items(conversation)[1:]
    assert talk.texts(conversation) == ["one", "two", "three"]


def test_twenty_items_fit_in_a_call_and_no_more(talk: Talk) -> None:
    conversation = talk.conversation()
    path = f"/v1/conversations/{conversation}/items"
    assert talk.http.post(path, json={"items": [said(str(n)) for n in range(20)]}).status_code == 200
    for items in ([said("x")] * 21, []):
        answer = talk.http.post(path, json={"items": items})
        assert (answer.status_code, error_of(answer)["param"]) == (400, "items")
    assert talk.texts(conversation) == [str(n) for n in range(20)]


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_have_neither_gaps_nor_repeats(talk: Talk, order: str) -> None:
    conversation = talk.conversation(*"abcdefg")
    talk.client.conversations.items.create(conversation, items=[said("h"), said("i")])
    found = ""
    after: dict[str, str] = {}
    while True:
        query = {"order": order, "limit": "2", **after}
        page = talk.http.get(f"/v1/conversations/{conversation}/items", params=query).json()
        found += "".join(item["content"][0]["text"] for item in page["data"])
        assert [page["first_id"], page["last_id"]] == [page["data"][0]["id"], page["data"][-1]["id"]]
        after = {"after": page["last_id"]}
        if not page["has_more"]:
            break
    assert found == ("abcdefghi" if order == "asc" else "ihgfedcba")


def test_the_newest_twenty_come_first_when_nothing_is_asked_for(talk: Talk) -> None:
    conversation = talk.conversation(*(str(n) for n in range(20)))
    talk.client.conversations.items.create(conversation, items=[said("20")])
    page = talk.http.get(f"/v1/conversations/{conversation}/items").json()
    texts = [item["content"][0]["text"] for item in page["data"]]
    assert (texts, page["has_more"]) == ([str(n) for n in range(20, 0, -1)], True)
    items = talk.client.conversations.items.list(conversation, limit=8, include=["reasoning.encrypted_content"])
    assert len({item.id for item in items}) == 21


def test_a_page_of_items_ends_where_it_would_be_too_large(talk: Talk) -> None:
    big = "x" * 2 * 1024 * 1024
    conversation = talk.conversation(f"a{big}", f"b{big}")
    talk.client.conversations.items.create(conversation, items=[said(f"c{big}"), said("d")])
    page = talk.http.get(f"/v1/conversations/{conversation}/items", params={"order": "asc"}).json()
    assert ([item["content"][0]["text"][0] for item in page["data"]], page["has_more"]) == (["a", "b"], True)
    assert [text.rstrip("x") for text in talk.texts(conversation)] == ["a", "b", "c", "d"]


def test_an_empty_page_has_empty_ids(talk: Talk) -> None:
    page = talk.http.get(f"/v1/conversations/{talk.conversation()}/items").json()
    assert page == {"object": "list", "data": [], "first_id": "", "last_id": "", "has_more": False}


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up", "after=msg_unknown", "after="])
def test_a_page_that_cannot_be_is_refused(talk: Talk, query: str) -> None:
    answer = talk.http.get(f"/v1/conversations/{talk.conversation('Hello')}/items?{query}")
    assert (answer.status_code, error_of(answer)["param"]) == (400, query.split("=")[0])


def test_an_id_of_the_clients_is_kept_when_it_is_new_and_else_replaced(talk: Talk) -> None:
    conversation = talk.client.conversations.create(items=[said("one", id="msg_mine")]).id
    made = talk.client.conversations.items.create(
        conversation, items=[said("two", id="msg_mine"), said("three", id="msg_other"), said("four", id="x" * 65)]
    )
    ids = [item.id for item in made.data]
    assert ids[1] == "msg_other" and len({"msg_mine", *ids, "x" * 65}) == 5
    assert [item["id"] for item in talk.items(conversation)] == ["msg_mine", *ids]
    kept: Any = talk.client.conversations.items.retrieve("msg_mine", conversation_id=conversation)
    assert kept.content[0].text == "one"


def test_an_item_can_be_asked_for_whatever_id_the_client_gave_it(talk: Talk) -> None:
    conversation, given = talk.conversation(), ("a b?c#d%2F", "x/y", "..")
    items = talk.client.conversations.items
    made = items.create(conversation, items=[said(name, id=name) for name in given]).data
    assert made[0].id == given[0] and not {item.id for item in made[1:]} & set(given)
    assert [items.retrieve(item.id, conversation_id=conversation).id for item in made] == [item.id for item in made]


def test_the_id_of_a_deleted_item_is_not_given_to_another_one(talk: Talk) -> None:
    conversation = talk.client.conversations.create(items=[said("one", id="msg_mine")]).id
    [second] = talk.client.conversations.items.create(conversation, items=[said("two", id="msg_mine")]).data
    talk.client.conversations.items.delete("msg_mine", conversation_id=conversation)
    assert [item["id"] for item in talk.items(conversation)] == [second.id]


def test_an_item_is_deleted_once_and_leaves_the_context(talk: Talk) -> None:
    conversation = talk.conversation("one", "two", "three")
    _, second, _ = talk.items(conversation)
    path = f"/v1/conversations/{conversation}/items/{second['id']}"
    assert talk.http.delete(path).json() == talk.http.get(f"/v1/conversations/{conversation}").json()
    for method in ("GET", "DELETE"):
        answer = talk.http.request(method, path)
        assert answer.status_code == 404 and second["id"] in error_of(answer)["message"]
    assert talk.texts(conversation) == ["one", "three"]
    talk.answer("Hi.", conversation=conversation)
    assert talk.seen == (UserMessage("one"), UserMessage("three"), UserMessage("Go."))


def test_a_deleted_items_text_is_kept_nowhere(talk: Talk) -> None:
    conversation = talk.conversation("keep", "a secret")
    _, second = talk.items(conversation)
    talk.client.conversations.items.delete(second["id"], conversation_id=conversation)
    assert "a secret" not in str(_rows_of(talk.house, conversation))


@pytest.mark.parametrize(("gone", "left"), [("fc_mine", "fco_mine"), ("fco_mine", "fc_mine")])
def test_what_is_left_of_a_call_whose_other_half_was_deleted_is_not_in_the_context(
    talk: Talk, gone: str, left: str
) -> None:
    items: Any = [said("Weather?"), CALL, CALL_OUTPUT]
    conversation = talk.client.conversations.create(items=items).id
    talk.client.conversations.items.delete(gone, conversation_id=conversation)
    assert left in [item["id"] for item in talk.items(conversation)]
    talk.answer("I cannot say.", conversation=conversation)
    assert talk.seen == (UserMessage("Weather?"), UserMessage("Go."))


def test_an_output_of_a_response_is_deleted_from_the_conversation_alone(talk: Talk) -> None:
    conversation = talk.conversation()
    made = talk.answer("Hello.", conversation=conversation)
    talk.client.conversations.items.delete(made.output[0].id, conversation_id=conversation)
    assert talk.texts(conversation) == ["Go."]
    assert talk.client.responses.retrieve(made.id).output_text == "Hello."
    talk.answer("Again.", conversation=conversation)
    assert talk.seen == (UserMessage("Go."), UserMessage("Go."))


def test_an_item_reference_is_stored_as_the_item_itself(talk: Talk) -> None:
    made = talk.answer("Hello.")
    conversation = talk.client.conversations.create(items=[said("one", id="msg_mine")]).id
    references: Any = [
        {"type": "item_reference", "id": made.output[0].id},
        {"type": "item_reference", "id": "msg_mine"},
    ]
    talk.client.conversations.items.create(conversation, items=references)
    assert talk.texts(conversation) == ["one", "Hello.", "one"]
    assert len({item["id"] for item in talk.items(conversation)}) == 3
    unknown: Any = [{"type": "item_reference", "id": "msg_unknown"}]
    with pytest.raises(openai.NotFoundError, match="msg_unknown"):
        talk.client.conversations.items.create(conversation, items=unknown)


# --- responses in it


def test_a_response_sees_the_conversation_and_adds_its_input_and_output(talk: Talk) -> None:
    conversation = talk.conversation("My name is Anna.")
    made = talk.answer("Hello Anna.", conversation=conversation, instructions="Be kind.")
    assert made.to_dict()["conversation"] == {"id": conversation}
    talk.client.conversations.items.create(conversation, items=[said("I like tea.")])
    again = talk.answer("Tea it is.", conversation={"id": conversation}, input=[said("Which?", id="msg_mine")])
    assert talk.seen == (
        UserMessage("My name is Anna."),
        UserMessage("Go."),
        AssistantMessage("Hello Anna."),
        UserMessage("I like tea."),
        UserMessage("Which?"),
    )
    expected = ["My name is Anna.", "Go.", "Hello Anna.", "I like tea.", "Which?", "Tea it is."]
    assert talk.texts(conversation) == expected
    ids = [item["id"] for item in talk.items(conversation)]
    assert [ids[2], ids[4], ids[5]] == [made.output[0].id, "msg_mine", again.output[0].id]
    inputs = talk.client.responses.input_items.list(again.id, order="asc")
    assert [item.id for item in inputs] == ids[:5]


def test_the_block_is_there_before_the_response_is_told_to_be_complete(talk: Talk) -> None:
    conversation = talk.conversation()
    talk.house.model.says("Hello.")
    for event in talk.client.responses.create(model="m", input="Go.", conversation=conversation, stream=True):
        expected = ["Go.", "Hello."] if event.type == "response.completed" else None
        assert expected is None or talk.texts(conversation) == expected
    assert event.type == "response.completed"


def test_an_incomplete_response_adds_what_it_has(talk: Talk) -> None:
    conversation = talk.conversation()
    talk.house.model.says("And so", finish="length")
    made = talk.client.responses.create(model="m", input="Go.", conversation=conversation, max_output_tokens=5)
    assert made.status == "incomplete"
    assert talk.texts(conversation) == ["Go.", "And so"]


def test_a_response_that_fails_adds_nothing(talk: Talk) -> None:
    conversation = talk.conversation("one")
    talk.house.model.answers(TextChunk("Hel"), UpstreamBroken("gone"))
    made = talk.client.responses.create(model="m", input="Go.", conversation=conversation)
    assert (made.status, made.output_text) == ("failed", "Hel")
    assert talk.texts(conversation) == ["one"]
    talk.answer("Hello.", conversation=conversation)
    assert talk.seen == (UserMessage("one"), UserMessage("Go."))
    assert talk.texts(conversation) == ["one", "Go.", "Hello."]


def test_a_response_that_is_not_stored_adds_its_block_and_cannot_be_read(talk: Talk) -> None:
    conversation = talk.conversation("one")
    made = talk.answer("Hello.", conversation=conversation, store=False)
    assert talk.texts(conversation) == ["one", "Go.", "Hello."]
    for call in (talk.client.responses.retrieve, talk.client.responses.delete, talk.client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    with pytest.raises(openai.BadRequestError, match="not found"):
        talk.client.responses.create(model="m", input="Go.", previous_response_id=made.id)
    assert talk.http.get("/v1/responses").json()["data"] == []


def test_a_function_call_goes_round_through_a_conversation(talk: Talk) -> None:
    conversation = talk.conversation()
    talk.house.model.calls(("weather", {}))
    asked = talk.client.responses.create(model="m", input="Weather?", tools=[WEATHER], conversation=conversation)
    call: Any = asked.output[0]
    with pytest.raises(openai.BadRequestError, match="No tool output found"):
        talk.client.responses.create(model="m", input="Well?", conversation=conversation)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    assert talk.answer("Sunny.", input=[output], conversation=conversation).output_text == "Sunny."
    assert talk.seen[-1] == ToolMessage(call.call_id, "sun", "weather")
    types = [item["type"] for item in talk.items(conversation)]
    assert types == ["message", "function_call", "function_call_output", "message"]


def test_items_as_listed_are_taken_as_input_again(talk: Talk) -> None:
    items: Any = [said("Weather?"), CALL, CALL_OUTPUT]
    conversation = talk.client.conversations.create(items=items).id
    talk.answer("Sunny.", conversation=conversation)
    listed: Any = [item.model_dump() for item in talk.client.conversations.items.list(conversation, order="asc")]
    talk.answer("Still sunny.", input=[*listed, said("And now?")])
    assert talk.seen[2] == ToolMessage("call_1", "sunny", "weather")
    assert [m for m in talk.seen if isinstance(m, UserMessage)] == [
        UserMessage("Weather?"),
        UserMessage("Go."),
        UserMessage("And now?"),
    ]
    copy = talk.client.conversations.create(items=listed).id
    assert talk.items(copy) == talk.items(conversation)


def test_a_response_of_a_conversation_can_be_continued_outside_of_it(talk: Talk) -> None:
    conversation = talk.conversation("one")
    made = talk.answer("Hello.", conversation=conversation)
    talk.client.conversations.items.create(conversation, items=[said("later")])
    aside = talk.answer("Aside.", previous_response_id=made.id, input="By the way.")
    before: tuple[Message, ...] = (UserMessage("one"), UserMessage("Go."), AssistantMessage("Hello."))
    before = (*before, UserMessage("By the way."))
    assert talk.seen == before
    assert aside.to_dict()["conversation"] is None
    talk.answer("Further.", previous_response_id=aside.id)
    assert talk.seen == (*before, AssistantMessage("Aside."), UserMessage("Go."))
    assert talk.texts(conversation) == ["one", "Go.", "Hello.", "later"]


def test_a_response_names_a_conversation_that_is_there_and_no_parent_beside_it(talk: Talk) -> None:
    conversation = talk.conversation()
    made = talk.answer("Hello.")
    both = {"model": "m", "input": "Go.", "conversation": conversation, "previous_response_id": made.id}
    answer = talk.http.post("/v1/responses", json=both)
    assert (answer.status_code, error_of(answer)["type"]) == (400, "invalid_request_error")
    with pytest.raises(openai.NotFoundError, match="conv_unknown") as caught:
        talk.client.responses.create(model="m", input="Go.", conversation="conv_unknown")
    assert (caught.value.code, caught.value.param) == (None, "conversation")
    with pytest.raises(openai.NotFoundError, match=conversation):
        client_of(talk.server, "ben").responses.create(model="m", input="Go.", conversation=conversation)
    assert len(talk.house.model.requests) == 1


def test_a_response_refers_to_items_of_its_conversation(talk: Talk) -> None:
    conversation = talk.client.conversations.create(items=[said("one", id="msg_mine")]).id
    reference: Any = [{"type": "item_reference", "id": "msg_mine"}]
    talk.answer("Hello.", conversation=conversation, input=reference)
    assert talk.seen == (UserMessage("one"), UserMessage("one"))
    with pytest.raises(openai.NotFoundError, match="msg_mine"):
        talk.client.responses.create(model="m", input=reference)


def test_a_deleted_conversation_leaves_the_responses_that_were_made_in_it(talk: Talk) -> None:
    conversation = talk.conversation("one")
    made = talk.answer("Hello.", conversation=conversation)
    talk.client.conversations.delete(conversation)
    assert talk.client.responses.retrieve(made.id).output_text == "Hello."
    assert [r["id"] for r in talk.http.get("/v1/responses").json()["data"]] == [made.id]
    with pytest.raises(openai.NotFoundError, match=conversation):
        talk.client.responses.create(model="m", input="Go.", conversation=conversation)


def test_a_deleted_response_leaves_its_items_in_the_conversation(talk: Talk) -> None:
    conversation = talk.conversation()
    made = talk.answer("Hello.", conversation=conversation)
    talk.client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        talk.client.responses.retrieve(made.id)
    assert talk.texts(conversation) == ["Go.", "Hello."]
    talk.answer("Again.", conversation=conversation)
    assert talk.seen == (UserMessage("Go."), AssistantMessage("Hello."), UserMessage("Go."))


# --- while one is running


@pytest.fixture
def running(talk: Talk) -> Iterator[tuple[str, str, asyncio.Event, Any]]:
    """A response that runs in a conversation: both ids, the gate that it waits at, and its events."""
    conversation = talk.conversation("one")
    gate = asyncio.Event()
    talk.house.model.answers(TextChunk("Hel"), gate, TextChunk("lo"), Finished("stop", USAGE))
    with talk.client.responses.create(model="m", input="Go.", conversation=conversation, stream=True) as stream:
        first: Any = next(iter(stream))
        yield conversation, first.response.id, gate, stream
        talk.open(gate)


Running = tuple[str, str, asyncio.Event, Any]


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"store": False}, {"background": True}])
def test_a_second_response_is_told_to_come_back_later(talk: Talk, running: Running, more: Any) -> None:
    conversation, _, gate, stream = running
    answer = talk.http.post(
        "/v1/responses", json={"model": "m", "input": "Me too.", "conversation": conversation, **more}
    )
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (409, "conversation_locked", "conversation")
    assert int(answer.headers["retry-after"]) > 0
    talk.open(gate)
    assert [event.type for event in stream][-1] == "response.completed"
    talk.answer("Now.", conversation=conversation, input="Me too.")
    assert talk.texts(conversation) == ["one", "Go.", "Hello", "Me too.", "Now."]


def test_items_are_put_in_without_waiting_and_the_running_response_does_not_see_them(
    talk: Talk, running: Running
) -> None:
    conversation, response, gate, stream = running
    made = talk.client.conversations.items.create(conversation, items=[said("two")])
    assert talk.texts(conversation) == ["one", "two"]
    talk.open(gate)
    assert [event.type for event in stream][-1] == "response.completed"
    assert talk.seen == (UserMessage("one"), UserMessage("Go."))
    assert talk.texts(conversation) == ["one", "Go.", "Hello", "two"]
    assert talk.items(conversation)[-1]["id"] == made.data[0].id
    inputs = talk.client.responses.input_items.list(response, order="asc").data
    assert [item.content[0].text for item in inputs] == ["one", "Go."]  # type: ignore[union-attr, index]


def test_items_are_deleted_without_waiting_and_the_running_response_keeps_what_it_saw(
    talk: Talk, running: Running
) -> None:
    conversation, _, gate, stream = running
    [item] = talk.items(conversation)
    talk.client.conversations.items.delete(item["id"], conversation_id=conversation)
    assert talk.items(conversation) == []
    talk.open(gate)
    assert [event.type for event in stream][-1] == "response.completed"
    assert talk.seen == (UserMessage("one"), UserMessage("Go."))
    assert talk.texts(conversation) == ["Go.", "Hello"]


def test_a_cancelled_response_adds_nothing_and_frees_the_conversation(talk: Talk, running: Running) -> None:
    conversation, response, _, stream = running
    assert talk.client.responses.cancel(response).status == "cancelled"
    assert talk.texts(conversation) == ["one"]
    talk.answer("Hello.", conversation=conversation)
    assert talk.seen == (UserMessage("one"), UserMessage("Go."))
    assert "response.completed" not in [event.type for event in stream]
    assert talk.texts(conversation) == ["one", "Go.", "Hello."]


def test_a_conversation_can_be_deleted_under_a_response_that_is_running(talk: Talk, running: Running) -> None:
    conversation, response, gate, stream = running
    talk.client.conversations.delete(conversation)
    talk.open(gate)
    assert [event.type for event in stream][-1] == "response.completed"
    assert talk.client.responses.retrieve(response).output_text == "Hello"
    assert talk.http.get(f"/v1/conversations/{conversation}/items").status_code == 404
