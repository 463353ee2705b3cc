"""Tools of MCP servers, through the official SDK's client: one session per listing or call.

The SDK reports what happens on HTTP in fragments: an error status becomes a made-up JSON-RPC error, a refused
connection an exception group, and what breaks while it posts to an SSE server is only logged. So the transport below
it keeps the record that the runner goes by. No message of a library is passed on or logged: it may quote a credential.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, assert_never
from urllib.parse import urlsplit

import anyio
import httpx2
import mcp_types as types
from mcp import Client, MCPError
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from turnloom import __version__
from turnloom.adapters.guard import MIB, Guard, Unresolvable, place_of
from turnloom.adapters.masking import mask
from turnloom.adapters.tools.failure import ToolFailed, illegal_header, secrets_of
from turnloom.adapters.tools.mcp_transport import (
    MESSAGE_BYTES,
    RecordingTransport,
    SessionLost,
    connection_failure,
    status_failure,
)
from turnloom.domain.errors import InvalidRequest, Unauthenticated, UpstreamBroken
from turnloom.domain.message import JSON, Tool, ToolSource
from turnloom.ports import ToolError, ToolResult, ToolScope

_PAGES = 100
_MOST_TOOLS = 1000
_MOST_RESULT_BYTES = MIB
_KNOWN_SERVERS = 1000
_ERROR_CHARACTERS = 2000
_UNAUTHENTICATED = 401
_ANOTHER_TRANSPORT_IS_NO_HELP = (401, 403, 408, 429)

# The SDK logs messages of servers whole, and what it cannot parse in pieces; either may repeat a credential.
logging.getLogger("mcp").setLevel(logging.CRITICAL + 1)

Answer = TypeVar("Answer")
Question = Callable[[Client], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a server is spoken to; `mode` is the SDK's: `auto` asks the server for its era, `legacy` knows it."""

    transport: Literal["streamable", "sse"]
    mode: Literal["auto", "legacy"]


# SSE was given up before the protocol began to change its handshake, so its servers need no probe.
STREAMABLE, SSE = Dialect("streamable", "auto"), Dialect("sse", "legacy")


class McpRunner:
    """Asks MCP servers, every connection through the guard; remembers for each address which dialect it speaks."""

    def __init__(self, guard: Guard, seconds: float) -> None:
        self._guard = guard
        self._seconds = seconds
        self._dialects: dict[str, Dialect] = {}

    async def offered(self, source: ToolSource, scope: ToolScope) -> list[Tool]:
        """All tools of the server; raises InvalidRequest, Unauthenticated, UpstreamBroken."""
        endpoint, headers = source.endpoint or "", headers_for(source, scope)
        try:
            await self._guard.check(endpoint)
        except Unresolvable as unknown:
            message = f"{_server(endpoint)} could not be reached: {unknown.message}"
            raise UpstreamBroken(message, code="toolgroup_unreachable") from None
        if (illegal := illegal_header(headers)) is not None:
            raise InvalidRequest(_illegal(endpoint, illegal))
        try:
            listed = await self._ask(source, headers, _listed)
        except ToolFailed as failure:
            if (failure.error.kind, failure.error.code) == ("http", _UNAUTHENTICATED):
                raise Unauthenticated(failure.error.message, code="mcp_unauthenticated") from None
            raise UpstreamBroken(failure.error.message, code="toolgroup_unreachable") from None
        secrets = secrets_of(source, headers, named=True)
        return [_tool(tool, source, secrets) for tool in listed]

    async def call(self, source: ToolSource, arguments: Mapping[str, JSON], scope: ToolScope) -> ToolResult:
        """Run a tool of the server; raises ToolFailed."""
        endpoint, headers = source.endpoint or "", headers_for(source, scope)
        try:
            self._guard.check_form(endpoint)
        except InvalidRequest as refusal:
            raise connection_failure(_server(endpoint), refusal) from None
        if (illegal := illegal_header(headers)) is not None:
            raise ToolFailed("http", _illegal(endpoint, illegal))

        async def called(client: Client) -> types.CallToolResult:
            return await _called(client, source.name, dict(arguments))

        return _result(await self._ask(source, headers, called), source, headers)

    async def _ask(self, source: ToolSource, headers: Mapping[str, str], question: Question[Answer]) -> Answer:
        """What the server answers, asked in the dialect it is known for, or else in each until it understands one.

        A session that the server no longer knows is begun anew, once: the question was not answered in it.
        """
        try:
            return await self._ask_in_dialects(source, headers, question)
        except SessionLost:
            return await self._ask_in_dialects(source, headers, question)

    async def _ask_in_dialects(
        self, source: ToolSource, headers: Mapping[str, str], question: Question[Answer]
    ) -> Answer:
        first: ToolFailed | None = None
        endpoint = source.endpoint or ""
        for dialect in _dialects(endpoint, self._dialects.get(endpoint)):
            line = _Line(source, headers, self._guard, self._seconds)
            try:
                return await line.ask(dialect, question)
            except SessionLost:
                raise
            except ToolFailed as failure:
                first = first or failure
                if line.spoken is not None or not _may_speak_otherwise(failure.error):
                    break
            finally:
                if line.spoken is not None:
                    self._remember(endpoint, line.spoken)
        assert first is not None
        raise first

    def _remember(self, endpoint: str, dialect: Dialect) -> None:
        self._dialects[endpoint] = dialect
        if len(self._dialects) > _KNOWN_SERVERS:
            del self._dialects[next(iter(self._dialects))]


def headers_for(source: ToolSource, scope: ToolScope) -> dict[str, str]:
    """The headers for a server: of its registration, then of the caller's provider data, then of the request."""
    headers = _named(source.settings.get("headers"))
    if token := source.settings.get("authorization"):
        headers["authorization"] = f"Bearer {token}"
    for known in (scope.provider_data.get("mcp_headers"), scope.headers):
        headers |= _of_server(known, source.endpoint or "")
    return headers


def _of_server(known: JSON, endpoint: str) -> dict[str, str]:
    if not isinstance(known, Mapping):
        return {}
    return _named(next((given for uri, given in known.items() if uri.rstrip("/") == endpoint.rstrip("/")), None))


def _named(headers: JSON) -> dict[str, str]:
    """Headers by name in lower case, so that one laid over another replaces it."""
    if not isinstance(headers, Mapping):
        return {}
    return {name.lower(): value for name, value in headers.items() if isinstance(value, str)}


def _dialects(endpoint: str, known: Dialect | None) -> Sequence[Dialect]:
    sse_first = urlsplit(endpoint).path.rstrip("/").endswith("/sse")
    usual = (SSE, STREAMABLE) if sse_first else (STREAMABLE, SSE)
    return usual if known is None else (known, *(dialect for dialect in usual if dialect != known))


def _may_speak_otherwise(error: ToolError) -> bool:
    if error.kind == "http":
        return 400 <= error.code < 500 and error.code not in _ANOTHER_TRANSPORT_IS_NO_HELP
    return error.kind == "protocol"


def _server(endpoint: str) -> str:
    return f"The MCP server at {place_of(endpoint)}"


def _illegal(endpoint: str, header: str) -> str:
    return f"{_server(endpoint)} cannot be sent the header '{header}': HTTP does not permit it."


# --- one session


class _Line:
    """One session with a server; `spoken` is the dialect in which it came about."""

    def __init__(self, source: ToolSource, headers: Mapping[str, str], guard: Guard, seconds: float) -> None:
        self.spoken: Dialect | None = None
        self._source = source
        self._endpoint = source.endpoint or ""
        self._headers = headers
        self._server = _server(self._endpoint)
        self._timeout = httpx2.Timeout(seconds)
        self._record = RecordingTransport(guard.transport(), self._server)

    async def ask(self, dialect: Dialect, question: Question[Answer]) -> Answer:
        """The answer to the question; raises ToolFailed."""
        answers: list[Answer] = []
        try:
            with anyio.CancelScope() as scope:
                self._record.cancel = scope.cancel
                self._record.cancels_on_failure = dialect.transport == "sse"
                async with AsyncExitStack() as stack:
                    client = await self._connected(dialect, stack)
                    self.spoken = Dialect(dialect.transport, _mode(client))
                    answers.append(await question(client))
        except Exception as trouble:
            # An answer counts, even if the session then ends badly: the call has had its effects.
            if not answers:
                raise self._blamed(trouble) from None
        if not answers:
            raise self._record.failure or ToolFailed("protocol", f"{self._server} broke off the session.")
        return answers[0]

    async def _connected(self, dialect: Dialect, stack: AsyncExitStack) -> Client:
        headers = {**self._headers, "accept-encoding": "identity"}
        http = httpx2.AsyncClient(transport=self._record, headers=headers, timeout=self._timeout)
        match dialect.transport:
            case "streamable":
                await stack.enter_async_context(http)
                transport = streamable_http_client(self._endpoint, http_client=http, max_sse_event_size=MESSAGE_BYTES)
            case "sse":
                transport = sse_client(self._endpoint, httpx_client_factory=lambda *_, **__: http)
            case _:
                assert_never(dialect.transport)
        info = types.Implementation(name="turnloom", version=__version__)
        return await stack.enter_async_context(Client(transport, mode=dialect.mode, cache=None, client_info=info))

    def _blamed(self, trouble: Exception) -> ToolFailed:
        """What an exception means; its own words are told only where they are the server's."""
        if self._record.failure is not None:
            return self._record.failure
        cause = next(_causes(trouble))
        match cause:
            case ToolFailed():
                return cause
            case MCPError() if cause.message in self._record.error_messages:
                text = mask(cause.message, secrets_of(self._source, self._headers))[:_ERROR_CHARACTERS]
                return ToolFailed("protocol", f"{self._server} reported an error: {text}", cause.code)
            case httpx2.HTTPStatusError():
                return status_failure(self._server, cause.response.status_code)
            case httpx2.SSEError():
                return ToolFailed("http", f"{self._server} sent an event that is too long or of another type.")
            case httpx2.HTTPError() | InvalidRequest():
                return connection_failure(self._server, cause)
            case _:
                return ToolFailed("protocol", f"{self._server} answered with something that is not MCP.")


def _causes(trouble: BaseException) -> Iterator[BaseException]:
    """The exceptions within groups of groups of them, as the SDK's task groups raise them."""
    if isinstance(trouble, BaseExceptionGroup):
        for inner in trouble.exceptions:
            yield from _causes(inner)
    else:
        yield trouble


# --- what is asked


def _mode(client: Client) -> Literal["auto", "legacy"]:
    return "legacy" if client.session.initialize_result is not None else "auto"


async def _listed(client: Client) -> list[types.Tool]:
    """The tools that the server lists, one of each name, up to the limits.

    Some servers repeat a cursor for ever, or end with an empty one.
    """
    tools: dict[str, types.Tool] = {}
    cursor: str | None = None
    asked: set[str] = {""}
    for _ in range(_PAGES):
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            tools.setdefault(tool.name, tool)
        cursor = page.next_cursor
        if cursor is None or cursor in asked or len(tools) >= _MOST_TOOLS:
            break
        asked.add(cursor)
    return list(tools.values())[:_MOST_TOOLS]


async def _called(client: Client, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
    # Not `client.call_tool`: it lists the tools after every call, to check a result that has already had its effects.
    request = types.CallToolRequest(params=types.CallToolRequestParams(name=name, arguments=arguments))
    try:
        return await client.session.send_request(request, types.CallToolResult)
    except MCPError as error:
        if error.code != types.HEADER_MISMATCH:
            raise
    # The server wants arguments repeated in headers, which the SDK does for tools that it has seen listed.
    await _listed(client)
    return await client.session.send_request(request, types.CallToolResult)


def _tool(tool: types.Tool, source: ToolSource, secrets: Sequence[str]) -> Tool:
    hints = tool.annotations.model_dump(by_alias=True, exclude_unset=True) if tool.annotations else {}
    settings = {**source.settings, "annotations": hints} if hints else source.settings
    return Tool(
        tool.name,
        mask(tool.description or "", secrets),
        tool.input_schema,
        ToolSource(
            "mcp",
            source.group,
            tool.name,
            source.endpoint,
            source.args,
            settings,
            repeatable=bool(hints.get("readOnlyHint") or hints.get("idempotentHint")),
        ),
    )


def _result(result: types.CallToolResult, source: ToolSource, headers: Mapping[str, str]) -> ToolResult:
    """The content blocks of a result, as the server sent them but for secrets that it repeats."""
    blocks = _blocks(result)
    if len(json.dumps(blocks, ensure_ascii=False).encode()) > _MOST_RESULT_BYTES:
        raise ToolFailed("tool", f"'{source.name}' gave a result of more than {_MOST_RESULT_BYTES} bytes.")
    blocks = _masked(blocks, secrets_of(source, headers, named=not result.is_error))
    if not result.is_error:
        return ToolResult(blocks)
    told = "\n".join(block["text"] for block in blocks if block["type"] == "text")
    if not told:
        told = "The tool failed and did not say why."
        blocks = [{"type": "text", "text": told}, *blocks]
    return ToolResult(blocks, error=ToolError("tool", told))


def _blocks(result: types.CallToolResult) -> list[JSON]:
    if not result.content and result.structured_content is not None:
        return [{"type": "text", "text": json.dumps(result.structured_content, ensure_ascii=False)}]
    return [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content]


def _masked(value: Any, secrets: Sequence[str]) -> Any:
    match value:
        case str():
            return mask(value, secrets)
        case list():
            return [_masked(item, secrets) for item in value]
        case dict():
            return {key: _masked(item, secrets) for key, item in value.items()}
        case _:
            return value
