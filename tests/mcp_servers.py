"""Real MCP servers on loopback, made with the SDK's server side, over streamable HTTP or SSE.

with McpServer() as server:                      # or McpServer("sse"), McpServer(legacy=True)
    source = ToolSource("mcp", "test", "echo", server.url)
    server.refusals[("tools/call",)] = 503       # what is asked next time is refused so
    server.seen                                  # the messages that came, with their headers
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import mcp_types as types
from mcp import MCPError
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tests.server import LoopbackServer
from tests.upstream import Signal

PICTURE = "iVBORw0KGgo="
NESTED_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "where": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo"]}}, "required": ["city"]},
        "days": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
    },
    "required": ["where"],
    "additionalProperties": False,
}
_PLAIN: dict[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Seen:
    """A request that came: its HTTP method, the JSON-RPC method if it had one, and its headers."""

    http: str
    method: str
    headers: Mapping[str, str]


@dataclass
class Refusal:
    """An answer with an error status in place of the server's own; `body` is sent as JSON if it is no text."""

    status: int
    body: Any = "refused"


@dataclass
class McpServer:
    """Serves the tools of `_TOOLS` for as long as the context lasts, over the `transport` of the moment.

    A `legacy` server knows nothing of `server/discover`; one of `both` answers GET with SSE, POST with streamable HTTP.
    `refusals` are by JSON-RPC method, or `GET` for the stream.
    The tool `wait`, and requests of the HTTP method `held`, set `reached` and are answered when `opened` is set.
    """

    transport: Literal["streamable", "sse"] = "streamable"
    legacy: bool = False
    path: str = ""
    page: int = 100
    both: bool = False

    def __post_init__(self) -> None:
        self.reached, self.opened = Signal(), Signal()
        self.forget()
        self.path = self.path or ("/sse" if self.transport == "sse" else "/mcp")
        self._apps = self._made()
        self._server = LoopbackServer(self)
        self._serving: set[asyncio.Task[None]] = set()

    def __enter__(self) -> McpServer:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.set()
        self._server.__exit__()

    def forget(self) -> None:
        """Drop what was asked and what is refused, so that one server can serve many tests; lets `wait` answer."""
        self.opened.set()
        self.seen: list[Seen] = []
        self.refusals: dict[str, Refusal] = {}
        self.held = ""
        self.reached, self.opened = Signal(), Signal()

    @property
    def url(self) -> str:
        return self._server.url + self.path

    @property
    def methods(self) -> list[str]:
        """The JSON-RPC methods asked, in order."""
        return [request.method for request in self.seen if request.method]

    def headers_of(self, method: str) -> Mapping[str, str]:
        return next(request.headers for request in self.seen if request.method == method)

    def break_off(self) -> None:
        """Close every connection in the middle of what it was about."""
        assert self._server.loop is not None
        for task in list(self._serving):
            self._server.loop.call_soon_threadsafe(task.cancel)

    def _made(self) -> dict[str, Any]:
        schemas = {tool.name: tool.input_schema for tool in _TOOLS}
        server = Server("test", get_tool_input_schema=schemas.get, on_list_tools=self._list, on_call_tool=self._call)
        shell = MCPServer("test")
        shell._lowlevel_server = server
        lax = TransportSecuritySettings(enable_dns_rebinding_protection=False)
        return {
            "streamable": shell.streamable_http_app(streamable_http_path=self.path, transport_security=lax),
            "sse": shell.sse_app(sse_path=self.path, transport_security=lax),
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._apps["streamable"](scope, receive, send)
            return
        first = await receive() if scope["method"] == "POST" else None
        refusal = self._noted(scope, first)
        if scope["method"] == self.held:
            await self._wait()
        if refusal is not None:
            answer = PlainTextResponse if isinstance(refusal.body, str) else JSONResponse
            await answer(refusal.body, refusal.status)(scope, receive, send)
            return
        pending = [first] if first else []

        async def again() -> Any:
            return pending.pop() if pending else await receive()

        sse = scope["path"].startswith("/messages") or (self.both and scope["method"] == "GET")
        app = self._apps["sse" if sse else self.transport]
        serving = asyncio.create_task(app(scope, again, send))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        with suppress(asyncio.CancelledError):
            await serving

    def _noted(self, scope: Any, first: Any) -> Refusal | None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        message = json.loads(first["body"]) if first and first.get("body") else {}
        method = message.get("method", "")
        self.seen.append(Seen(scope["method"], method, headers))
        if self.legacy and method == "server/discover":
            return Refusal(400, "Bad Request: Missing session ID")
        return self.refusals.get(method or scope["method"])

    async def _wait(self) -> None:
        opened = self.opened
        self.reached.set()
        await opened.wait(None)

    async def _list(self, _: Any, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        start = int(params.cursor) if params and params.cursor else 0
        end = start + self.page
        return types.ListToolsResult(tools=_TOOLS[start:end], next_cursor=str(end) if end < len(_TOOLS) else None)

    async def _call(self, _: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        given = params.arguments or {}
        match params.name:
            case "echo" | "regional":
                return _said(json.dumps(given))
            case "lines":
                return _said("one", "two")
            case "weather":
                return types.CallToolResult(content=[], structured_content={"wind": 3, "city": "Ålesund"})
            case "picture":
                image = types.ImageContent(type="image", data=PICTURE, mime_type="image/png")
                link = types.ResourceLink(type="resource_link", name="map", uri="https://example.com/map")
                return types.CallToolResult(content=[*_said("look").content, image, link])
            case "fail":
                return types.CallToolResult(content=_said(f"no good: {given.get('why')}").content, is_error=True)
            case "fail_silently":
                return types.CallToolResult(content=[], is_error=True)
            case "nothing":
                return types.CallToolResult(content=[])
            case "wait":
                await self._wait()
                return _said("at last")
            case _:
                raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name} {given.get('why', '')}")


class ScriptedMcpServer:
    """A server of the 2025 era that answers as it is told, for what the SDK's own would never send.

    `answers` are by JSON-RPC method: each is a result, the text of a whole message with `ID` for its id, or a status
    with a body; the last answer is repeated. `asked` are the messages that came, `sessions` the ids they came with.
    Without its `token` as a bearer's, if it has one, everything is refused with 401.
    """

    def __init__(self, token: str = "", **answers: Sequence[Any]) -> None:
        self._token = token
        self.answers = {method.replace("_", "/"): list(given) for method, given in answers.items()}
        self.asked: list[dict[str, Any]] = []
        self.sessions: list[str | None] = []
        route = Route("/mcp", self._answer, methods=["GET", "POST", "DELETE"])
        self._server = LoopbackServer(Starlette(routes=[route]))

    def __enter__(self) -> ScriptedMcpServer:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    @property
    def url(self) -> str:
        return f"{self._server.url}/mcp"

    def count(self, method: str) -> int:
        return sum(message.get("method") == method for message in self.asked)

    async def _answer(self, request: Request) -> Response:
        if request.method != "POST":
            return Response(status_code=405)
        if self._token and request.headers.get("authorization") != f"Bearer {self._token}":
            return Response(status_code=401)
        message = await request.json()
        self.asked.append(message)
        self.sessions.append(request.headers.get("mcp-session-id"))
        scripted = self.answers.get(message["method"])
        if scripted is not None:
            return _scripted(message, scripted.pop(0) if len(scripted) > 1 else scripted[0])
        match message["method"]:
            case "initialize":
                return JSONResponse(_result(message, _HANDSHAKE), headers={"mcp-session-id": "s1"})
            case "server/discover":
                return PlainTextResponse("Bad Request: Missing session ID", 400)
            case _:
                return Response(status_code=202)


def _scripted(message: dict[str, Any], answer: Any) -> Response:
    match answer:
        case (int(status), body):
            return Response(body if isinstance(body, str) else json.dumps(body), status, media_type="application/json")
        case str(text):
            return Response(text.replace("ID", json.dumps(message["id"])), media_type="application/json")
        case result:
            return JSONResponse(_result(message, result))


def _result(message: dict[str, Any], result: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": message["id"], "result": result}


_HANDSHAKE = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "scripted", "version": "1"},
}
GOOD = {"name": "good", "inputSchema": {"type": "object", "properties": {}}}
FINE = {"content": [{"type": "text", "text": "fine"}]}


def _said(*texts: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=text) for text in texts])


def _tool(name: str, schema: dict[str, Any] | None = None, **rest: Any) -> types.Tool:
    return types.Tool(name=name, input_schema=schema or _PLAIN, **rest)


_TOOLS = [
    _tool("echo", description="Says it again."),
    _tool("lines"),
    _tool("weather", NESTED_SCHEMA, annotations=types.ToolAnnotations(title="Weather", read_only_hint=True)),
    _tool("picture", annotations=types.ToolAnnotations(idempotent_hint=True)),
    _tool("fail", annotations=types.ToolAnnotations(destructive_hint=True, read_only_hint=False)),
    _tool("fail_silently"),
    _tool("nothing"),
    _tool("wait"),
    _tool("regional", {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}),
]
TOOL_NAMES = [tool.name for tool in _TOOLS]
