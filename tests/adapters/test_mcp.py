"""Tools of MCP servers, against real ones on loopback: streamable HTTP of both eras, and SSE."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from tests.mcp_servers import NESTED_SCHEMA, PICTURE, TOOL_NAMES, McpServer, Refusal
from tests.server import LoopbackServer

from turnloom.adapters.guard import Guard
from turnloom.adapters.tools import ToolRunners
from turnloom.adapters.tools.mcp import headers_for
from turnloom.domain.errors import InvalidRequest, Unauthenticated, UpstreamBroken
from turnloom.domain.message import ToolSource
from turnloom.domain.tool_result import text_of
from turnloom.ports import ToolResult, ToolScope
from turnloom.testing import FrozenClock

SCOPE = ToolScope("owner")
SECRET = "abcd-very-secret-1234"
KINDS: dict[str, dict[str, Any]] = {
    "modern": {},
    "legacy": {"legacy": True},
    "sse": {"transport": "sse"},
    "sse elsewhere": {"transport": "sse", "path": "/events"},
    "misleading": {"path": "/v1/sse/"},
}


@pytest.fixture(scope="module", params=KINDS)
def of_each_kind(request: pytest.FixtureRequest) -> Iterator[McpServer]:
    with McpServer(**KINDS[request.param]) as server:
        yield server


@pytest.fixture
def server(of_each_kind: McpServer) -> McpServer:
    of_each_kind.forget()
    return of_each_kind


@pytest.fixture(scope="module")
def of_today() -> Iterator[McpServer]:
    with McpServer() as server:
        yield server


@pytest.fixture
def modern(of_today: McpServer) -> McpServer:
    of_today.forget()
    return of_today


@pytest.fixture
def tools() -> ToolRunners:
    return ToolRunners(Guard(allow_loopback=True), FrozenClock(), seconds=10.0)


def source(server: McpServer, name: str = "", **rest: Any) -> ToolSource:
    return ToolSource("mcp", "group", name, server.url, **rest)


def failure(result: ToolResult) -> tuple[str, int]:
    assert result.error is not None
    assert text_of(result.content) == result.error.message
    return result.error.kind, result.error.code


# --- listing


async def test_every_tool_is_offered_as_the_server_describes_it(server: McpServer, tools: ToolRunners) -> None:
    offered = {tool.name: tool for tool in await tools.offered(source(server), SCOPE)}
    assert list(offered) == TOOL_NAMES
    assert offered["echo"].description == "Says it again."
    assert offered["echo"].source == source(server, "echo")
    weather = offered["weather"]
    assert weather.description == ""
    assert weather.parameters == NESTED_SCHEMA
    hints = {"title": "Weather", "readOnlyHint": True}
    assert weather.source == source(server, "weather", settings={"annotations": hints}, repeatable=True)


async def test_only_tools_that_say_so_are_repeatable(modern: McpServer, tools: ToolRunners) -> None:
    offered = await tools.offered(source(modern), SCOPE)
    assert [tool.name for tool in offered if tool.source and tool.source.repeatable] == ["weather", "picture"]


async def test_a_list_of_several_pages_is_read_to_its_end(tools: ToolRunners) -> None:
    with McpServer(page=3) as server:
        assert [tool.name for tool in await tools.offered(source(server), SCOPE)] == TOOL_NAMES
        assert server.methods.count("tools/list") == 3


async def test_what_is_registered_with_the_group_stays_with_its_tools(modern: McpServer, tools: ToolRunners) -> None:
    group = source(modern, args={"unit": "C"}, settings={"authorization": SECRET})
    weather = next(tool for tool in await tools.offered(group, SCOPE) if tool.name == "weather")
    assert weather.source is not None
    assert weather.source.args == {"unit": "C"}
    assert weather.source.settings["authorization"] == SECRET


async def test_refused_credentials_are_told_apart(server: McpServer, tools: ToolRunners) -> None:
    server.refusals = {method: Refusal(401) for method in ("server/discover", "initialize", "tools/list", "GET")}
    with pytest.raises(Unauthenticated) as refusal:
        await tools.offered(source(server), SCOPE)
    assert refusal.value.code == "mcp_unauthenticated"


@pytest.mark.parametrize("status", [403, 429, 500, 503])
async def test_a_server_that_cannot_list_is_unreachable(server: McpServer, tools: ToolRunners, status: int) -> None:
    server.refusals = {method: Refusal(status) for method in ("server/discover", "initialize", "GET")}
    with pytest.raises(UpstreamBroken, match=str(status)) as refusal:
        await tools.offered(source(server), SCOPE)
    assert refusal.value.code == "toolgroup_unreachable"


async def test_a_server_that_is_not_there_is_unreachable(tools: ToolRunners) -> None:
    for path in ("/mcp", "/sse"):
        with pytest.raises(UpstreamBroken, match="could not be reached") as refusal:
            await tools.offered(ToolSource("mcp", "g", "", f"http://127.0.0.1:1{path}?key={SECRET}"), SCOPE)
        assert refusal.value.code == "toolgroup_unreachable"
        assert SECRET not in refusal.value.message


async def test_a_server_whose_name_is_not_known_is_unreachable() -> None:
    async def nobody(host: str, port: int) -> list[str]:
        raise OSError("no such name")

    lost = ToolRunners(Guard(resolve=nobody), FrozenClock())
    with pytest.raises(UpstreamBroken, match="cannot be found") as refusal:
        await lost.offered(ToolSource("mcp", "g", "", "https://gone.example/mcp"), SCOPE)
    assert refusal.value.code == "toolgroup_unreachable"


async def test_a_server_that_speaks_something_else_is_unreachable(tools: ToolRunners) -> None:
    async def page(_: Request) -> Response:
        return PlainTextResponse("<html>Welcome</html>", media_type="text/html")

    site = Starlette(routes=[Route("/mcp", page, methods=["GET", "POST"])])
    with LoopbackServer(site) as server, pytest.raises(UpstreamBroken) as refusal:
        await tools.offered(ToolSource("mcp", "g", "", f"{server.url}/mcp"), SCOPE)
    assert refusal.value.code == "toolgroup_unreachable"


async def test_a_server_that_keeps_silent_is_unreachable() -> None:
    silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with silent:
        port = silent.sockets[0].getsockname()[1]
        hasty = ToolRunners(Guard(allow_loopback=True), FrozenClock(), seconds=0.2)
        with pytest.raises(UpstreamBroken) as refusal:
            await hasty.offered(ToolSource("mcp", "g", "", f"http://127.0.0.1:{port}/mcp"), SCOPE)
    assert refusal.value.code == "toolgroup_unreachable"


async def test_the_guard_is_asked_before_a_listing(modern: McpServer) -> None:
    for endpoint in (modern.url, "http://10.0.0.1/mcp", "file:///etc/passwd", ""):
        with pytest.raises(InvalidRequest):
            await ToolRunners(Guard(), FrozenClock()).offered(ToolSource("mcp", "g", "", endpoint), SCOPE)
    assert modern.seen == []


# --- calls


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("echo", '{"x": [1, {"y": null}]}'),
        ("lines", "one\ntwo"),
        ("weather", '{"wind": 3, "city": "Ålesund"}'),
    ],
)
async def test_text_is_the_answer(server: McpServer, tools: ToolRunners, name: str, content: str) -> None:
    result = await tools.call(source(server, name), {"x": [1, {"y": None}]}, SCOPE)
    assert (text_of(result.content), result.error) == (content, None)


async def test_other_blocks_are_kept_as_the_server_sent_them(modern: McpServer, tools: ToolRunners) -> None:
    result = await tools.call(source(modern, "picture"), {}, SCOPE)
    assert isinstance(result.content, list)
    text, image, link = result.content
    assert text == {"type": "text", "text": "look"}
    assert image == {"type": "image", "data": PICTURE, "mimeType": "image/png"}
    assert link == {"type": "resource_link", "name": "map", "uri": "https://example.com/map"}


async def test_args_of_the_source_are_laid_over_the_models(modern: McpServer, tools: ToolRunners) -> None:
    result = await tools.call(source(modern, "echo", args={"unit": "C"}), {"unit": "F", "day": 1}, SCOPE)
    assert json.loads(text_of(result.content)) == {"unit": "C", "day": 1}


async def test_a_tool_error_a_protocol_error_and_an_http_error_are_told_apart(
    server: McpServer, tools: ToolRunners
) -> None:
    failed = await tools.call(source(server, "fail"), {"why": "rain"}, SCOPE)
    assert (failure(failed), text_of(failed.content)) == (("tool", 1), "no good: rain")
    assert failure(await tools.call(source(server, "fail_silently"), {}, SCOPE)) == ("tool", 1)
    unknown = await tools.call(source(server, "unknown"), {}, SCOPE)
    assert failure(unknown) == ("protocol", -32602)
    assert "Unknown tool: unknown" in unknown.content
    for status in (401, 404, 503):
        server.refusals["tools/call"] = Refusal(status)
        refused = await tools.call(source(server, "echo"), {}, SCOPE)
        assert failure(refused) == ("http", status)
        assert str(status) in refused.content


async def test_a_json_rpc_error_with_an_error_status_is_one_of_the_protocol(
    modern: McpServer, tools: ToolRunners
) -> None:
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32042, "message": "too many rabbits"}}
    modern.refusals["tools/call"] = Refusal(400, error)
    result = await tools.call(source(modern, "echo"), {}, SCOPE)
    assert failure(result) == ("protocol", -32042)
    assert "too many rabbits" in result.content
    modern.refusals["tools/call"] = Refusal(401, error)
    assert failure(await tools.call(source(modern, "echo"), {}, SCOPE)) == ("http", 401)


async def test_an_empty_result_is_an_error(modern: McpServer, tools: ToolRunners) -> None:
    result = await tools.call(source(modern, "nothing"), {}, ToolScope("owner", session="s"))
    assert failure(result) == ("tool", 1)
    assert "empty" in result.content


async def test_an_empty_result_is_what_a_response_shows(tools: ToolRunners, modern: McpServer) -> None:
    result = await tools.call(source(modern, "nothing"), {}, SCOPE)
    assert (result.content, result.error) == ([], None)


async def test_a_tool_that_does_not_answer_in_time_is_an_error(server: McpServer) -> None:
    hasty = ToolRunners(Guard(allow_loopback=True), FrozenClock(), seconds=0.5)
    await hasty.offered(source(server), SCOPE)
    result = await hasty.call(source(server, "wait"), {}, SCOPE)
    assert failure(result) == ("timeout", 1)


async def test_a_call_can_be_cancelled(server: McpServer, tools: ToolRunners) -> None:
    calling = asyncio.create_task(tools.call(source(server, "wait"), {}, SCOPE))
    await server.reached.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling


async def test_calls_run_at_the_same_time(server: McpServer, tools: ToolRunners) -> None:
    waiting = asyncio.create_task(tools.call(source(server, "wait"), {}, SCOPE))
    await server.reached.wait()
    assert text_of((await tools.call(source(server, "lines"), {}, SCOPE)).content) == "one\ntwo"
    server.opened.set()
    assert text_of((await waiting).content) == "at last"


@pytest.mark.parametrize("kind", ["modern", "legacy", "sse"])
async def test_a_server_that_vanishes_in_a_call_is_an_error(tools: ToolRunners, kind: str) -> None:
    with McpServer(**KINDS[kind]) as server:
        calling = asyncio.create_task(tools.call(source(server, "wait"), {}, SCOPE))
        await server.reached.wait()
        server.break_off()
        result = await calling
    assert result.error is not None
    assert result.error.kind in ("http", "protocol")


async def test_the_guard_is_asked_at_each_call(modern: McpServer) -> None:
    private = ["http://10.0.0.1/mcp", "http://10.0.0.1/sse", f"http://user:{SECRET}@example.com/mcp"]
    for endpoint in (modern.url, *private, "file:///etc/passwd", "http://[::1", ""):
        result = await ToolRunners(Guard(), FrozenClock()).call(ToolSource("mcp", "g", "x", endpoint), {}, SCOPE)
        assert failure(result) == ("http", 1)
        assert "may not be reached" in result.content
        assert SECRET not in result.content
    assert modern.seen == []


async def test_a_connection_is_pinned_to_the_address_that_was_checked(modern: McpServer) -> None:
    answers = [["127.0.0.1"], ["127.0.0.1"], ["10.0.0.1"]]

    async def rebinding(host: str, port: int) -> list[str]:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    rebound = ToolRunners(Guard(allow_loopback=True, resolve=rebinding), FrozenClock())
    echo = ToolSource("mcp", "g", "echo", modern.url.replace("127.0.0.1", "tools.example"))
    assert await rebound.call(echo, {"a": 1}, SCOPE) == ToolResult([{"type": "text", "text": '{"a": 1}'}])
    assert modern.headers_of("tools/call")["host"].startswith("tools.example:")
    assert failure(await rebound.call(echo, {"a": 1}, SCOPE)) == ("http", 1)


async def test_an_argument_that_a_server_wants_in_a_header_gets_there(server: McpServer, tools: ToolRunners) -> None:
    result = await tools.call(source(server, "regional"), {"region": "north"}, SCOPE)
    assert text_of(result.content) == '{"region": "north"}'
    if server.transport == "streamable" and not server.legacy:
        assert server.seen[-1].headers["mcp-param-region"] == "north"


async def test_an_answer_does_not_wait_for_a_server_that_is_slow_to_say_goodbye() -> None:
    with McpServer(legacy=True) as server:
        server.held = "DELETE"
        tools = ToolRunners(Guard(allow_loopback=True), FrozenClock())
        assert text_of((await tools.call(source(server, "lines"), {}, SCOPE)).content) == "one\ntwo"
        assert server.reached.is_set
        assert not server.opened.is_set


# --- dialects


async def test_what_a_server_speaks_is_found_out_once(server: McpServer, tools: ToolRunners) -> None:
    await tools.offered(source(server), SCOPE)
    server.seen.clear()
    await tools.call(source(server, "lines"), {}, SCOPE)
    era = ["server/discover"] if "server/discover" in server.methods else ["initialize", "notifications/initialized"]
    assert server.methods == [*era, "tools/call"]
    assert (era == ["server/discover"]) == (server.transport == "streamable" and not server.legacy)


async def test_a_server_that_changed_its_transport_is_found_again(tools: ToolRunners) -> None:
    with McpServer("sse", path="/x") as server:
        assert (await tools.call(source(server, "lines"), {}, SCOPE)).error is None
        server.transport = "streamable"
        assert (await tools.call(source(server, "lines"), {}, SCOPE)).error is None


async def test_a_call_that_reached_the_server_is_not_made_a_second_time(tools: ToolRunners) -> None:
    with McpServer(both=True) as server:
        for expected in (1, 2):
            server.refusals["tools/call"] = Refusal(404)
            assert failure(await tools.call(source(server, "lines"), {}, SCOPE)) == ("http", 404)
            assert server.methods.count("tools/call") == expected


# --- secrets


async def test_headers_come_from_the_request_the_provider_data_and_the_registration(
    server: McpServer, tools: ToolRunners
) -> None:
    scope = ToolScope(
        "owner",
        headers={server.url + "/": {"X-Request": "r", "x-shared": "request"}, "https://other.example": {"x-not": "n"}},
        provider_data={"mcp_headers": {server.url: {"x-provider": "p", "X-Shared": "provider"}}},
    )
    settings = {"headers": {"x-registered": "g", "x-shared": "registered"}, "authorization": SECRET}
    await tools.call(source(server, "lines", settings=settings), {}, scope)
    sent = server.headers_of("tools/call")
    assert {name: sent.get(name) for name in ("x-request", "x-provider", "x-registered", "x-shared", "x-not")} == {
        "x-request": "r",
        "x-provider": "p",
        "x-registered": "g",
        "x-shared": "request",
        "x-not": None,
    }
    assert sent["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize("data", [None, "text", {"https://a.example/mcp": ["x"]}, {"https://a.example/mcp": {"x": 1}}])
def test_provider_data_of_another_shape_gives_no_headers(data: Any) -> None:
    scope = ToolScope("owner", provider_data={"mcp_headers": data})
    assert headers_for(ToolSource("mcp", "g", "t", "https://a.example/mcp"), scope) == {}


def test_a_trailing_slash_makes_no_other_server() -> None:
    for known, asked in (
        ("https://a.example/mcp/", "https://a.example/mcp"),
        ("https://a.example", "https://a.example/"),
    ):
        scope = ToolScope("owner", headers={known: {"x": "1"}})
        assert headers_for(ToolSource("mcp", "g", "t", asked), scope) == {"x": "1"}


def with_secret(server: McpServer) -> Mapping[str, Any]:
    return {"headers": {server.url: {"authorization": f"Bearer {SECRET}"}}}


async def test_a_header_is_in_no_message_and_no_log(
    server: McpServer, tools: ToolRunners, caplog: pytest.LogCaptureFixture
) -> None:
    scope = ToolScope("owner", **with_secret(server))
    told = []
    with caplog.at_level(logging.DEBUG):
        for name in ("fail", "unknown"):
            # The server repeats its arguments; here they are what it could have read in the header.
            result = await tools.call(source(server, name), {"why": f"token {SECRET} expired"}, scope)
            assert result.error is not None
            assert "expired" in text_of(result.content)
            told.append(f"{result.content}{result.error.message}")
        caplog.clear()  # The SDK logs arguments, if asked for as much as that.
        for status in (401, 500):
            server.refusals = {method: Refusal(status) for method in ("server/discover", "initialize", "GET")}
            with pytest.raises((Unauthenticated, UpstreamBroken)) as refusal:
                await tools.offered(source(server), scope)
            told.append(refusal.value.message)
            server.refusals = {"tools/call": Refusal(status)}
            told.append(str((await tools.call(source(server, "echo"), {}, scope)).content))
    assert SECRET not in "".join(told)
    assert SECRET not in caplog.text


async def test_a_refused_call_is_not_logged_with_its_address(
    server: McpServer, tools: ToolRunners, caplog: pytest.LogCaptureFixture
) -> None:
    server.refusals["tools/call"] = Refusal(500)
    await tools.call(source(server, "echo"), {}, SCOPE)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("mcp")] == []


@pytest.mark.parametrize("value", [f"{SECRET}\r\nx: y", f"{SECRET}\u2026"])
async def test_a_header_that_cannot_be_sent_is_named_and_not_quoted(
    modern: McpServer, tools: ToolRunners, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    scope = ToolScope("owner", headers={modern.url: {"x-token": value}})
    with caplog.at_level(logging.DEBUG):
        result = await tools.call(source(modern, "echo"), {}, scope)
        with pytest.raises(InvalidRequest) as refusal:
            await tools.offered(source(modern), scope)
    assert failure(result) == ("http", 1)
    for told in (str(result.content), refusal.value.message):
        assert "x-token" in told
        assert SECRET not in told
    assert SECRET not in caplog.text
    assert modern.seen == []
