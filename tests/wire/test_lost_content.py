"""Blobs that are missing or corrupt: lists mark what they held, reads say so, and everything can be deleted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response
from starlette.applications import Starlette
from starlette.routing import Route

from tests.conftest import House, build_house
from tests.server import LoopbackServer
from tests.wire.apps import both_apis
from tests.wire.conftest import CONFIG
from turnloom.wire.responses_api.conversations import ROUTES, conversations_app

LARGE = "x" * 1_000_000


@dataclass
class Api:
    house: House
    client: OpenAI
    http: httpx.Client
    blobs: Path

    def respond(self, **body: Any) -> Response:
        self.house.model.says("ok")
        response: Response = self.client.responses.create(**{"model": "m", "input": "Go.", **body})
        return response

    def lose(self) -> None:
        for blob in self.blobs.iterdir():
            blob.unlink()

    def deletes(self, path: str) -> bool:
        return self.http.delete(path).is_success and self.http.get(path).status_code == 404


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    house = build_house(tmp_path)
    app = conversations_app("conversations", lambda: house.services)
    routes = [Route(route.path, app, methods=[route.method]) for route in ROUTES]
    with (
        LoopbackServer(Starlette(routes=[*both_apis(house.services).routes, *routes])) as server,
        httpx.Client(base_url=server.url, timeout=20) as http,
    ):
        client = OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0, timeout=20)
        yield Api(house, client, http, tmp_path / "blobs")


def check_lost(answer: httpx.Response, identifier: str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (500, "content_lost")
    assert identifier in error["message"] and answer.headers["x-should-retry"] == "false"


def test_a_lost_response_is_marked_in_lists_named_by_reads_and_deletable(api: Api) -> None:
    lost, whole = api.respond(input=LARGE), api.respond()
    api.lose()
    listed = api.http.get("/v1/responses").json()["data"]
    assert [(item["id"], item["status"]) for item in listed] == [(whole.id, "completed"), (lost.id, "failed")]
    assert "lost" in Response.model_validate(listed[1], strict=False).error.message  # type: ignore[union-attr]
    path = f"/v1/responses/{lost.id}"
    for answer in (
        api.http.get(path),
        api.http.get(path, params={"stream": "true"}),
        api.http.get(f"{path}/input_items"),
        api.http.post(f"{path}/cancel"),
    ):
        check_lost(answer, lost.id)
    assert api.http.get("/v1/responses", params={"after": lost.id, "order": "asc"}).json()["data"][0]["id"] == whole.id
    assert api.deletes(path)
    assert [item["id"] for item in api.http.get("/v1/responses").json()["data"]] == [whole.id]


def test_a_chain_does_not_go_on_over_a_lost_response(api: Api) -> None:
    first = api.respond()
    lost = api.respond(input=LARGE, previous_response_id=first.id)
    tip = api.respond(previous_response_id=lost.id)
    api.lose()
    calls = len(api.house.model.requests)
    body = {"model": "m", "input": "Go.", "previous_response_id": tip.id}
    check_lost(api.http.post("/v1/responses", json=body), lost.id)
    check_lost(api.http.get(f"/v1/responses/{tip.id}/input_items"), lost.id)
    assert len(api.house.model.requests) == calls and api.http.get(f"/v1/responses/{tip.id}").is_success
    assert api.respond(previous_response_id=first.id).status == "completed"
    assert all(api.deletes(f"/v1/responses/{identifier}") for identifier in (lost.id, tip.id, first.id))


def test_a_conversation_goes_on_once_its_lost_response_is_deleted(api: Api) -> None:
    conversation = api.client.conversations.create().id
    lost = api.respond(input=LARGE, conversation=conversation)
    api.respond(input="after", conversation=conversation)
    api.lose()
    items = api.http.get(f"/v1/conversations/{conversation}/items?order=asc").json()["data"]
    assert len(items) == 3 and "lost" in items[0]["content"][0]["text"]
    check_lost(api.http.get(f"/v1/conversations/{conversation}/items/{items[0]['id']}"), lost.id)
    with pytest.raises(openai.InternalServerError, match=lost.id):
        api.respond(conversation=conversation)
    assert api.deletes(f"/v1/responses/{lost.id}")
    assert api.respond(conversation=conversation).status == "completed"


def test_a_conversation_goes_on_once_its_lost_item_is_deleted(api: Api) -> None:
    conversation = api.client.conversations.create(items=[{"role": "user", "content": LARGE}]).id
    api.lose()
    [item] = api.http.get(f"/v1/conversations/{conversation}/items").json()["data"]
    with pytest.raises(openai.InternalServerError, match=item["id"]):
        api.respond(conversation=conversation)
    assert api.deletes(f"/v1/conversations/{conversation}/items/{item['id']}")
    assert api.respond(conversation=conversation).status == "completed"
    api.client.conversations.items.create(conversation, items=[{"role": "user", "content": LARGE}])
    api.lose()
    assert api.deletes(f"/v1/conversations/{conversation}")


def agent_of(api: Api, **config: Any) -> str:
    return f"/v1/agents/{api.http.post('/v1/agents', json={'agent_config': {**CONFIG, **config}}).json()['agent_id']}"


def session_of(api: Api, agent: str) -> str:
    session = api.http.post(f"{agent}/session", json={"session_name": "s"}).json()["session_id"]
    return f"{agent}/session/{session}"


def turn_of(api: Api, session: str, text: str) -> httpx.Response:
    api.house.model.says("ok")
    return api.http.post(f"{session}/turn", json={"messages": [{"role": "user", "content": text}]})


def test_a_session_shows_its_lost_turn_and_does_not_go_on_over_it(api: Api) -> None:
    agent = agent_of(api)
    session = session_of(api, agent)
    lost, whole = turn_of(api, session, LARGE).json(), turn_of(api, session, "Hi").json()
    api.lose()
    turns = api.http.get(session).json()["turns"]
    assert [turn["turn_id"] for turn in turns] == [lost["turn_id"], whole["turn_id"]]
    assert (turns[0]["status"], turns[0]["status_reason"]) == ("failed", "content_lost")
    check_lost(api.http.get(f"{session}/turn/{lost['turn_id']}"), lost["turn_id"])
    check_lost(turn_of(api, session, "More"), lost["turn_id"])
    assert api.deletes(session)


def test_a_lost_agent_is_listed_and_deletable_with_its_sessions(api: Api) -> None:
    lost, whole = agent_of(api, instructions=LARGE), agent_of(api)
    session = session_of(api, lost)
    api.lose()
    listed = api.http.get("/v1/agents").json()["data"]
    assert [f"/v1/agents/{agent['agent_id']}" for agent in listed] == [lost, whole]
    assert "lost" in listed[0]["agent_config"]["instructions"]
    check_lost(api.http.get(lost), listed[0]["agent_id"])
    check_lost(api.http.post(f"{lost}/session", json={"session_name": "s"}), listed[0]["agent_id"])
    check_lost(turn_of(api, session, "Hi"), listed[0]["agent_id"])
    assert api.http.get(session).is_success and api.http.get(f"{lost}/sessions").is_success
    assert api.deletes(session) and api.deletes(lost)
