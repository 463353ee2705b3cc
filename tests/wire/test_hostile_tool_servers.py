"""Hostile MCP servers behind every route that meets one: an answer in bounds, no error of our own, no credential."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from tests.conftest import House, build_house
from tests.heartbeat import Heartbeat
from tests.hostile_mcp import HOSTILE, HostileServer
from tests.wire.apps import both_apis
from tests.wire.test_neighbours import neighbours
from turnloom.adapters.guard import MIB, Guard
from turnloom.adapters.tools import ToolRunners

TOKEN = "k3y-abcdefgh-12345-ijklmnop-67890"
LONGEST_BLOCK = 0.5
MOST_GROWTH = 100 * MIB


@pytest.fixture(scope="module")
def hostile() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


@pytest.fixture
def house(tmp_path: Path) -> House:
    house = build_house(tmp_path)
    runners = ToolRunners(Guard(allow_loopback=True), house.clock, seconds=0.3)
    engine = house.services.engine
    engine = replace(engine, world=replace(engine.world, tools=runners))
    house.orchestrator.engine = engine
    return replace(house, services=replace(house.services, engine=engine))


@pytest.fixture(scope="module", autouse=True)
def sdk() -> None:
    """The MCP SDK, imported before a tool has only moments for it."""
    import_module("turnloom.adapters.tools.mcp")


@pytest.fixture
async def http(house: House) -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(routes=[*both_apis(house.services).routes, *neighbours(house.services).routes])
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=20) as client:
        yield client


def group(url: str) -> dict[str, Any]:
    return {"toolgroup_id": "mine", "provider_id": "model-context-protocol", "mcp_endpoint": {"uri": url}}


def secret(url: str) -> dict[str, Any]:
    data = {"mcp_headers": {url: {"authorization": f"Bearer {TOKEN}"}}}
    return {"x-llamastack-provider-data": json.dumps(data)}


def reveals(text: str) -> bool:
    return any(TOKEN[at : at + 8] in text for at in range(len(TOKEN) - 7))


async def register_and_list(http: httpx.AsyncClient, url: str) -> list[httpx.Response]:
    return [
        await http.post("/v1/toolgroups", json=group(url), headers=secret(url)),
        await http.get("/v1/tool-runtime/list-tools", params={"mcp_endpoint[uri]": url}, headers=secret(url)),
        await http.get("/v1/tools"),
    ]


async def invoke_and_turn(http: httpx.AsyncClient, house: House, url: str) -> list[httpx.Response]:
    """Calls of a group whose server behaved while it was registered."""
    registered = await http.post("/v1/toolgroups", json=group(url))
    assert registered.status_code == 200, registered.text
    invoked = await http.post("/v1/tool-runtime/invoke", json={"tool_name": "echo", "kwargs": {}}, headers=secret(url))
    config = {"model": "m", "instructions": "", "toolgroups": ["mine"]}
    agent = (await http.post("/v1/agents", json={"agent_config": config})).json()["agent_id"]
    path = f"/v1/agents/{agent}/session"
    session = (await http.post(path, json={"session_name": "s"})).json()["session_id"]
    house.model.calls(("echo", {}))
    house.model.says("Done.")
    body = {"messages": [{"role": "user", "content": "Go."}], "stream": False}
    return [invoked, await http.post(f"{path}/{session}/turn", json=body, headers=secret(url))]


async def respond(http: httpx.AsyncClient, house: House, url: str) -> httpx.Response:
    tool = {"type": "mcp", "server_label": "s", "server_url": url, "authorization": TOKEN, "require_approval": "never"}
    house.model.calls(("echo", {}))
    house.model.says("Done.")
    return await http.post("/v1/responses", json={"model": "m", "input": "Go.", "tools": [tool]})


def check(answers: list[httpx.Response], heart: Heartbeat) -> None:
    for answer in answers:
        assert answer.status_code in (200, 400, 401, 424, 502), f"{answer.status_code} {answer.text[:300]}"
        assert not reveals(answer.text)
        answer.content.decode()
    assert heart.longest < LONGEST_BLOCK
    assert heart.growth < MOST_GROWTH


@pytest.mark.parametrize("behaviour", HOSTILE)
async def test_no_route_suffers_from_a_hostile_server(
    hostile: HostileServer, http: httpx.AsyncClient, house: House, behaviour: str
) -> None:
    listing, calling = hostile.url(behaviour, "list"), hostile.url(behaviour, "call")
    async with asyncio.timeout(20), Heartbeat() as heart:
        listed = await register_and_list(http, listing)
        ran = await invoke_and_turn(http, house, calling)
        responses = [await respond(http, house, url) for url in (listing, calling)]
    assert [answer.status_code for answer in ran] == [200, 200]
    check([*listed, *ran, *responses], heart)
