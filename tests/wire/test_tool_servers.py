"""Tool servers as both APIs show them: images in results, forgotten sessions, servers that want a credential."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tests.conftest import House, build_house
from tests.mcp_servers import FINE, GOOD, ScriptedMcpServer
from tests.wire.apps import both_apis
from tests.wire.test_neighbours import neighbours
from turnloom.adapters.guard import Guard
from turnloom.adapters.tools import ToolRunners
from turnloom.domain.message import ImagePart, TextPart, ToolMessage, UserMessage

LISTED = [{"tools": [GOOD]}]
IMAGE = {"type": "image", "data": "aGk=", "mimeType": "image/jpeg"}
SEEN = [{"content": [{"type": "text", "text": "see"}, IMAGE]}]
URL = "data:image/jpeg;base64,aGk="
TOKEN = "k3y-abcdefgh-12345"


@pytest.fixture
def house(tmp_path: Path) -> House:
    house = build_house(tmp_path)
    runners = ToolRunners(Guard(allow_loopback=True), house.clock, seconds=10.0)
    engine = house.services.engine
    engine = replace(engine, world=replace(engine.world, tools=runners))
    house.orchestrator.engine = engine
    return replace(house, services=replace(house.services, engine=engine))


@pytest.fixture
def http(house: House) -> Iterator[TestClient]:
    with TestClient(Starlette(routes=[*both_apis(house.services).routes, *neighbours(house.services).routes])) as http:
        yield http


def token_for(url: str) -> dict[str, str]:
    return {"x-llamastack-provider-data": json.dumps({"mcp_headers": {url: {"Authorization": f"Bearer {TOKEN}"}}})}


def register(http: TestClient, url: str) -> None:
    body = {"toolgroup_id": "mine", "provider_id": "model-context-protocol", "mcp_endpoint": {"uri": url}}
    answer = http.post("/v1/toolgroups", json=body)
    assert answer.status_code == 200, answer.text


def mcp_tool(url: str) -> dict[str, Any]:
    return {"type": "mcp", "server_label": "s", "server_url": url, "require_approval": "never"}


def session(http: TestClient) -> str:
    config = {"model": "m", "instructions": "x", "toolgroups": ["mine"]}
    agent = http.post("/v1/agents", json={"agent_config": config}).json()["agent_id"]
    path = f"/v1/agents/{agent}/session"
    return f"{path}/{http.post(path, json={'session_name': 's'}).json()['session_id']}"


def turn(http: TestClient, path: str, text: str = "hi", **request: Any) -> Any:
    body = {"messages": [{"role": "user", "content": text}], "stream": False}
    return http.post(f"{path}/turn", json=body, **request)


def sees_image(house: House) -> bool:
    """Whether the newest model call shows `see` as the result, and the image in a user's message right behind it."""
    messages = house.model.requests[-1].messages
    place = next(n for n, message in enumerate(messages) if isinstance(message, ToolMessage))
    result, behind = messages[place], messages[place + 1]
    assert isinstance(result, ToolMessage) and isinstance(behind, UserMessage)
    assert isinstance(behind.content[0], TextPart)
    return result.content == "see" and behind.content[1:] == (ImagePart(URL),)


# --- images


def test_the_model_of_a_response_sees_the_image_of_a_result_also_later(http: TestClient, house: House) -> None:
    with ScriptedMcpServer(tools_list=LISTED, tools_call=SEEN) as server:
        house.model.calls(("good", {}))
        house.model.says("Done.")
        body = {"model": "m", "input": "hi", "tools": [mcp_tool(server.url)]}
        response = http.post("/v1/responses", json=body).json()
        assert sees_image(house)
        call = next(item for item in response["output"] if item["type"] == "mcp_call")
        text, block = call["output"].split("\n")
        assert (text, json.loads(block), call["error"]) == ("see", IMAGE, None)
        house.model.says("Again.")
        http.post("/v1/responses", json={"model": "m", "input": "and?", "previous_response_id": response["id"]})
        assert sees_image(house)
        house.model.says("Once more.")
        echoed = [{"role": "user", "content": "hi"}, call, {"role": "user", "content": "and?"}]
        http.post("/v1/responses", json={"model": "m", "input": echoed})
        assert sees_image(house)


def test_the_model_of_a_turn_sees_the_image_of_a_result_also_later(http: TestClient, house: House) -> None:
    items = [{"type": "text", "text": "see"}, {"type": "image", "image": {"url": {"uri": URL}}}]
    with ScriptedMcpServer(tools_list=LISTED, tools_call=SEEN) as server:
        register(http, server.url)
        invoked = http.post("/v1/tool-runtime/invoke", json={"tool_name": "good", "kwargs": {}}).json()
        assert (invoked["content"], invoked["error_message"]) == (items, None)
        path = session(http)
        house.model.calls(("good", {}))
        house.model.says("Done.")
        steps = turn(http, path).json()["steps"]
        assert steps[1]["tool_responses"][0]["content"] == items
        assert sees_image(house)
        house.model.says("Again.")
        turn(http, path, "and?")
        assert sees_image(house)


def test_a_failure_of_a_tool_is_shown_with_its_image(http: TestClient, house: House) -> None:
    with ScriptedMcpServer(tools_list=LISTED, tools_call=[{**SEEN[0], "isError": True}]) as server:
        house.model.calls(("good", {}))
        house.model.says("Done.")
        body = {"model": "m", "input": "hi", "tools": [mcp_tool(server.url)]}
        output = http.post("/v1/responses", json=body).json()["output"]
        assert sees_image(house)
        call = next(item for item in output if item["type"] == "mcp_call")
        assert (call["status"], call["error"]["content"]) == ("failed", SEEN[0]["content"])


def test_an_image_that_a_client_tool_gives_is_seen(http: TestClient, house: House) -> None:
    tool = {"name": "look", "description": "d", "parameters": []}
    config = {"model": "m", "instructions": "x", "client_tools": [tool]}
    agent = http.post("/v1/agents", json={"agent_config": config}).json()["agent_id"]
    path = f"/v1/agents/{agent}/session"
    path = f"{path}/{http.post(path, json={'session_name': 's'}).json()['session_id']}"
    house.model.calls(("look", {}))
    waiting = turn(http, path).json()
    call = waiting["output_message"]["tool_calls"][0]
    content = [{"type": "text", "text": "see"}, {"type": "image", "image": {"url": {"uri": URL}}}]
    answer = {"call_id": call["call_id"], "tool_name": "look", "content": content}
    house.model.says("Done.")
    resumed = http.post(f"{path}/turn/{waiting['turn_id']}/resume", json={"tool_responses": [answer], "stream": False})
    assert resumed.status_code == 200, resumed.text
    assert sees_image(house)


# --- sessions and odd tools


def test_a_call_in_a_forgotten_session_succeeds_in_both_apis(http: TestClient, house: House) -> None:
    lost = (404, {"jsonrpc": "2.0", "id": None, "error": {"code": -32001, "message": "Session not found"}})
    listed = [{"tools": [GOOD, {"name": "bad"}], "nextCursor": "x"}]
    with ScriptedMcpServer(tools_list=listed, tools_call=[lost, FINE]) as server:
        house.model.calls(("good", {}))
        house.model.says("Done.")
        body = {"model": "m", "input": "hi", "tools": [mcp_tool(server.url)]}
        listing, call, _ = http.post("/v1/responses", json=body).json()["output"]
        assert [tool["name"] for tool in listing["tools"]] == ["good", "bad"]
        assert "error" not in listing
        assert (call["status"], call["output"]) == ("completed", "fine")
    with ScriptedMcpServer(tools_list=listed, tools_call=[lost, FINE]) as server:
        register(http, server.url)
        house.model.calls(("good", {}))
        house.model.says("Done.")
        steps = turn(http, session(http)).json()["steps"]
        assert steps[1]["tool_responses"][0]["content"] == FINE["content"]


# --- credentials


def test_a_server_that_wants_a_token_is_used_with_that_of_each_request(http: TestClient, house: House) -> None:
    with ScriptedMcpServer(TOKEN, tools_list=LISTED, tools_call=[FINE]) as server:
        register(http, server.url)
        call, with_token = {"tool_name": "good", "kwargs": {}}, token_for(server.url)
        assert http.get("/v1/tools", params={"toolgroup_id": "mine"}, headers=with_token).json()["data"] != []
        assert http.post("/v1/tool-runtime/invoke", json=call, headers=with_token).json()["content"] == FINE["content"]
        path = session(http)
        house.model.calls(("good", {}))
        house.model.says("Done.")
        ran = turn(http, path, headers=with_token).json()
        assert ran["steps"][1]["tool_responses"][0]["content"] == FINE["content"]
        assert TOKEN not in json.dumps(ran)


def test_without_the_token_nothing_is_listed_run_or_told(http: TestClient, house: House) -> None:
    with ScriptedMcpServer(TOKEN, tools_list=LISTED, tools_call=[FINE]) as server:
        register(http, server.url)
        assert http.get("/v1/tools", headers=token_for(server.url)).text.count('"good"') > 0
        assert '"good"' not in http.get("/v1/tools").text
        for refused in (
            http.get("/v1/tools", params={"toolgroup_id": "mine"}),
            http.get("/v1/tools/good"),
            http.post("/v1/tool-runtime/invoke", json={"tool_name": "good", "kwargs": {}}),
            turn(http, session(http)),
        ):
            assert refused.status_code == 401, refused.text
            assert refused.json()["error"]["code"] == "mcp_unauthenticated"
            assert "Unauthorized" in refused.json()["error"]["message"]
        assert house.model.requests == []


def test_a_turn_without_the_token_is_stored_as_failed_with_the_reason(http: TestClient) -> None:
    with ScriptedMcpServer(TOKEN, tools_list=LISTED) as server:
        register(http, server.url)
        path = session(http)
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        last = http.post(f"{path}/turn", json=body).text.strip().rpartition("data: ")[2]
        error = json.loads(last)["error"]
        assert (error["code"], error["message"].startswith("401: ")) == ("mcp_unauthenticated", True)
        stored = http.get(f"{path}/turn/{error['turn_id']}").json()
        assert (stored["status"], stored["status_reason"]) == ("failed", "mcp_unauthenticated")


def test_a_tool_whose_server_wants_a_token_only_for_calls_is_401_without_it(http: TestClient) -> None:
    with ScriptedMcpServer(tools_list=LISTED, tools_call=[(401, "")]) as server:
        register(http, server.url)
        refused = http.post("/v1/tool-runtime/invoke", json={"tool_name": "good", "kwargs": {}})
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "mcp_unauthenticated")
