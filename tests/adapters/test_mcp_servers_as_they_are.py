"""What real tool servers send beside the protocol: broken tools, cursors that stand still, forgotten sessions."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from tests.mcp_servers import FINE, GOOD, ScriptedMcpServer

from turnloom.adapters.guard import Guard
from turnloom.adapters.tools import ToolRunners
from turnloom.domain.message import Tool, ToolSource
from turnloom.ports import ToolResult, ToolScope
from turnloom.testing import FrozenClock

SCOPE = ToolScope("owner")
LOST = (404, {"jsonrpc": "2.0", "id": None, "error": {"code": -32001, "message": "Session not found"}})


@pytest.fixture
def tools() -> ToolRunners:
    return ToolRunners(Guard(allow_loopback=True), FrozenClock(), seconds=10.0)


async def listed(tools: ToolRunners, server: ScriptedMcpServer) -> list[Tool]:
    return await tools.offered(ToolSource("mcp", "group", "", server.url), SCOPE)


async def called(tools: ToolRunners, server: ScriptedMcpServer, name: str = "good") -> ToolResult:
    return await tools.call(ToolSource("mcp", "group", name, server.url), {}, SCOPE)


# --- listings


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "bad", "inputSchema": {}},
        {"name": "bad"},
        {"name": "bad", "inputSchema": {"type": "string"}},
        {"name": "bad", "inputSchema": {"type": "object", "required": "city"}},
        {"name": "bad", "inputSchema": [], "outputSchema": 5, "annotations": "x", "icons": 7, "_meta": 1, "title": {}},
    ],
)
async def test_a_fault_in_one_tool_costs_at_most_its_parameters(tools: ToolRunners, bad: dict[str, Any]) -> None:
    with ScriptedMcpServer(tools_list=[{"tools": [GOOD, bad]}], tools_call=[FINE]) as server:
        assert [tool.name for tool in await listed(tools, server)] == ["good", "bad"]
        assert (await called(tools, server)).error is None


async def test_a_tool_without_a_name_is_left_out_with_a_warning(
    tools: ToolRunners, caplog: pytest.LogCaptureFixture
) -> None:
    nameless: list[Any] = [{"inputSchema": {"type": "object"}}, {"name": None}, "tool"]
    with ScriptedMcpServer(tools_list=[{"tools": [*nameless, GOOD]}]) as server, caplog.at_level(logging.WARNING):
        assert [tool.name for tool in await listed(tools, server)] == ["good"]
    assert "lists 3 tools without a name" in caplog.text


@pytest.mark.parametrize(("cursor", "requests"), [("x", 2), ("", 1), (5, 1), (None, 1)])
async def test_a_cursor_that_leads_nowhere_ends_the_listing(tools: ToolRunners, cursor: Any, requests: int) -> None:
    with ScriptedMcpServer(tools_list=[{"tools": [GOOD], "nextCursor": cursor}]) as server:
        assert [tool.name for tool in await listed(tools, server)] == ["good"]
        assert server.count("tools/list") == requests


async def test_cursors_that_go_round_in_a_ring_end_the_listing(tools: ToolRunners) -> None:
    ring = [{"tools": [{**GOOD, "name": name}], "nextCursor": cursor} for name, cursor in (("a", "x"), ("b", "y"))]
    with ScriptedMcpServer(tools_list=[*ring, *ring, *ring]) as server:
        assert [tool.name for tool in await listed(tools, server)] == ["a", "b"]


async def test_a_listing_that_never_ends_is_kept_up_to_the_limit(tools: ToolRunners) -> None:
    endless = [{"tools": [{**GOOD, "name": f"t{n}"}], "nextCursor": f"c{n}"} for n in range(150)]
    with ScriptedMcpServer(tools_list=endless) as server:
        assert len(await listed(tools, server)) == 100


async def test_of_two_tools_of_one_name_the_first_is_listed(tools: ToolRunners) -> None:
    twice = [{**GOOD, "description": "first"}, {**GOOD, "description": "second"}]
    with ScriptedMcpServer(tools_list=[{"tools": twice}]) as server:
        assert [(tool.name, tool.description) for tool in await listed(tools, server)] == [("good", "first")]


# --- sessions


@pytest.mark.parametrize("refusal", [LOST, (404, "Session not found"), (404, "")])
async def test_a_call_in_a_forgotten_session_is_made_once_more_in_a_new_one(tools: ToolRunners, refusal: Any) -> None:
    with ScriptedMcpServer(tools_call=[refusal, FINE]) as server:
        result = await called(tools, server)
        assert result.error is None
        assert server.count("tools/call") == 2
        begun = [number for number, message in enumerate(server.asked) if message["method"] == "initialize"]
        assert [server.sessions[number] for number in begun] == [None, None]


async def test_a_server_that_forgets_every_session_is_asked_twice(tools: ToolRunners) -> None:
    with ScriptedMcpServer(tools_call=[LOST]) as server:
        result = await called(tools, server)
        assert result.error is not None
        assert (result.error.kind, result.error.code) == ("http", 404)
        assert server.count("tools/call") == 2


async def test_a_listing_in_a_forgotten_session_is_asked_for_once_more(tools: ToolRunners) -> None:
    with ScriptedMcpServer(tools_list=[LOST, {"tools": [GOOD]}]) as server:
        assert [tool.name for tool in await listed(tools, server)] == ["good"]


async def test_other_statuses_are_not_taken_for_a_forgotten_session(tools: ToolRunners) -> None:
    with ScriptedMcpServer(tools_call=[(500, ""), FINE]) as server:
        assert (await called(tools, server)).error is not None
        assert server.count("tools/call") == 1


# --- results


@pytest.mark.parametrize(
    "odd",
    [
        {"type": "video", "data": "aGk="},
        {"type": "image", "data": "aGk="},
        {"type": "text"},
        {"text": "no type"},
        "plain",
        {"type": "resource", "resource": {"uri": "file:///x"}},
    ],
)
async def test_a_block_of_an_unknown_form_is_kept_as_the_text_of_its_json(tools: ToolRunners, odd: Any) -> None:
    with ScriptedMcpServer(tools_call=[{"content": [*FINE["content"], odd]}]) as server:
        result = await called(tools, server)
        assert result.content == [*FINE["content"], {"type": "text", "text": json.dumps(odd)}]


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": [], "isError": None, "_meta": None}])
async def test_structured_content_alone_is_the_result(tools: ToolRunners, content: dict[str, Any]) -> None:
    with ScriptedMcpServer(tools_call=[{**content, "structuredContent": {"wind": 3}}]) as server:
        assert (await called(tools, server)).content == [{"type": "text", "text": '{"wind": 3}'}]


async def test_images_are_kept_as_the_server_sent_them(tools: ToolRunners) -> None:
    blocks = [
        {"type": "text", "text": "see"},
        {"type": "image", "data": "aGk=", "mimeType": "image/jpeg"},
        {"type": "resource", "resource": {"uri": "file:///x.png", "mimeType": "image/png", "blob": "aGk="}},
        {"type": "audio", "data": "aGk=", "mimeType": "audio/wav"},
    ]
    with ScriptedMcpServer(tools_call=[{"content": blocks}]) as server:
        assert (await called(tools, server)).content == blocks


async def test_a_failure_that_shows_nothing_but_an_image_keeps_it(tools: ToolRunners) -> None:
    image = {"type": "image", "data": "aGk=", "mimeType": "image/jpeg"}
    with ScriptedMcpServer(tools_call=[{"content": [image], "isError": True}]) as server:
        result = await called(tools, server)
    assert result.error is not None
    assert result.content == [{"type": "text", "text": "The tool failed and did not say why."}, image]


# --- texts


async def test_half_a_surrogate_pair_is_repaired_in_results_and_descriptions(tools: ToolRunners) -> None:
    text = '{"jsonrpc":"2.0","id":ID,"result":{"content":[{"type":"text","text":"a\\ud83db"}]}}'
    described = (
        '{"jsonrpc":"2.0","id":ID,"result":{"tools":[{"name":"good","description":"a\\ud83db",'
        '"inputSchema":{"type":"object","properties":{"p\\udc00":{"type":"string"}}}}]}}'
    )
    with ScriptedMcpServer(tools_list=[described], tools_call=[text]) as server:
        (tool,) = await listed(tools, server)
        assert tool.description == "a\ufffdb"
        assert list(tool.parameters["properties"]) == ["p\ufffd"]
        assert "a\ufffdb" in str((await called(tools, server)).content)
