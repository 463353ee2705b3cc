"""The HTTP transport below the MCP SDK: it records how requests fail, and passes on sound messages within limits.

The SDK reads bodies whole, however large, and logs what it cannot read, with pieces that may be pieces of a
credential. So every message is checked here, before the SDK parses it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

import anyio
import anyio.lowlevel
import httpx2
import mcp_types as types
from pydantic import TypeAdapter, ValidationError

from turnloom.adapters.guard import MIB
from turnloom.adapters.tools.failure import ToolFailed
from turnloom.adapters.tools.pinned import BoundedStream, ByteBudget, TooLong
from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import JSON
from turnloom.domain.portable_json import MOST_LEVELS
from turnloom.domain.surrogates import repair
from turnloom.domain.tool_schema import usable_schema

MESSAGE_BYTES = 2 * MIB
"""The longest message that is read: a result of 1 MiB may be spelled with escapes, or come as text and as data."""

SESSION_BYTES = 2 * MESSAGE_BYTES

_log = logging.getLogger(__name__)

_SESSION_VALUES = 50_000
_SESSION_EVENTS = 2_000
_SESSION_REQUESTS = 200
_GOODBYE_SECONDS = 1.0
_REFUSED = (401, 403)
_UNKNOWN_SESSION = 404
_SESSION_HEADER = "mcp-session-id"
_BODY_HEADERS = ("content-type", "content-length", "content-encoding", "transfer-encoding")
_HINTS = ("readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint")

_CONTENT_BLOCK: TypeAdapter[types.ContentBlock] = TypeAdapter(types.ContentBlock)

_BRACKETS = re.compile(rb"[\[{]+|[\]}]+")
# A carriage return at the end of a chunk may be half of a line end.
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")


class SessionLost(ToolFailed):
    """The server answered 404 to a request of a session, which it therefore no longer knows; nothing was run."""


class _Unsound(Exception):
    """The server sent what is not passed on; `kind` is `http` where another transport would be no help."""

    def __init__(self, kind: Literal["http", "protocol"], fault: str) -> None:
        super().__init__(fault)
        self.kind: Literal["http", "protocol"] = kind


@dataclass(slots=True)
class _Budget:
    """How much more a session may receive: bytes, JSON values, events; and how many requests it may make."""

    received: ByteBudget = field(default_factory=lambda: ByteBudget(SESSION_BYTES))
    values: int = _SESSION_VALUES
    events: int = _SESSION_EVENTS
    requests: int = _SESSION_REQUESTS

    def take_request(self) -> None:
        self.requests -= 1
        if self.requests < 0:
            raise _Unsound("http", f"needs more than {_SESSION_REQUESTS} requests for one answer")

    def take_event(self) -> None:
        self.events -= 1
        if self.events < 0:
            raise _Unsound("http", f"sent more than {_SESSION_EVENTS} events")

    def take_message(self, body: bytes) -> None:
        """Count a JSON text before it is parsed: a parser's time and memory go by its values."""
        if len(body) > MESSAGE_BYTES:
            raise _too_long()
        bare = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
        self.values -= sum(bare.count(mark) for mark in (b",", b":", b"[", b"{"))
        if self.values < 0:
            raise _Unsound("http", f"sent more than {_SESSION_VALUES} values")
        level = 0
        for brackets in _BRACKETS.finditer(bare):
            level += len(brackets[0]) if brackets[0][:1] in b"[{" else -len(brackets[0])
            if level > MOST_LEVELS:
                raise _Unsound("http", f"sent data nested more than {MOST_LEVELS} levels deep")


class RecordingTransport(httpx2.AsyncBaseTransport):
    """Passes requests on within the limits of one session, and keeps how the last message that was posted failed.

    `cancel` ends the session: when a limit is passed and, with `cancels_on_failure`, at each failure, since the SDK's
    SSE client would let the call wait for an answer that cannot come. `error_messages` holds those of the JSON-RPC
    errors that the server sent; every other error message is the SDK's own.
    """

    def __init__(self, inner: httpx2.AsyncBaseTransport, server: str) -> None:
        self.failure: ToolFailed | None = None
        self.cancel: Callable[[], None] = lambda: None
        self.cancels_on_failure = False
        self.error_messages: set[str] = set()
        self._inner = inner
        self._server = server
        self._budget = _Budget()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "DELETE":
            return await self._say_goodbye(request)
        try:
            self._budget.take_request()
            response = await self._inner.handle_async_request(request)
            checked = await self._checked(response)
        except (_Unsound, TooLong) as fault:
            await self._end(fault)
            raise httpx2.ReadError("The session has ended.") from None
        except (httpx2.HTTPError, InvalidRequest) as trouble:
            if request.method == "POST":
                await self._note(connection_failure(self._server, trouble))
            raise
        if request.method == "POST":
            await self._note(_status_failure(self._server, request, checked))
        return checked

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _say_goodbye(self, request: httpx2.Request) -> httpx2.Response:
        # The answer is there already and must not wait for a server that takes its leave.
        with anyio.fail_after(_GOODBYE_SECONDS):
            response = await self._inner.handle_async_request(request)
            await response.aclose()
        return httpx2.Response(response.status_code)

    async def _note(self, failure: ToolFailed | None) -> None:
        self.failure = failure
        if failure is not None and self.cancels_on_failure:
            self.cancel()
            # Ends here, by cancellation: the SDK would log the failure, and with it the address.
            await anyio.lowlevel.checkpoint()

    async def _end(self, fault: _Unsound | TooLong) -> None:
        unsound = fault if isinstance(fault, _Unsound) else _too_long()
        self.failure = ToolFailed(unsound.kind, f"{self._server} {unsound}.")
        self.cancel()
        await anyio.lowlevel.checkpoint()

    async def _checked(self, response: httpx2.Response) -> httpx2.Response:
        """The response with an event stream that is checked as it comes, a message, or else without a body."""
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        headers = [pair for pair in response.headers.multi_items() if pair[0].lower() not in _BODY_HEADERS]
        stream = BoundedStream(response.stream, self._budget.received)
        if response.headers.get("content-encoding", "identity") not in ("", "identity"):
            await stream.aclose()
            raise _Unsound("http", "compresses its answer although it was asked not to")
        if kind == "text/event-stream" and response.status_code < 400:
            body: dict[str, Any] = {"stream": _Events(self._events(stream), stream, self._end)}
        else:
            try:
                content = await self._message(stream) if kind == "application/json" else b""
            finally:
                await stream.aclose()
            kind = kind if content else ""
            body = {"content": content}
        if kind:
            headers.append(("content-type", kind))
        return httpx2.Response(response.status_code, headers=headers, extensions=response.extensions, **body)

    async def _message(self, stream: BoundedStream) -> bytes:
        """The JSON-RPC message in a body; nothing where it is something else, as error pages are."""
        try:
            return self._sound(b"".join([chunk async for chunk in stream]))
        except _Unsound as fault:
            if fault.kind == "http":
                raise
            return b""

    async def _events(self, stream: BoundedStream) -> AsyncGenerator[bytes]:
        """The events of a stream, each whole and checked, without comments."""
        parts: list[bytes] = []
        event: list[bytes] = []
        async for chunk in stream:
            parts.append(chunk)
            if b"\n" not in chunk and b"\r" not in chunk:
                continue
            *lines, rest = _LINE_END.split(b"".join(parts))
            parts = [rest]
            for line in lines:
                if not line and event:
                    yield self._event(event)
                    event = []
                elif line and not line.startswith(b":"):
                    event.append(line)

    def _event(self, lines: list[bytes]) -> bytes:
        fields = [(line.partition(b":")[0], line.partition(b":")[2].removeprefix(b" ")) for line in lines]
        data = b"\n".join(value for name, value in fields if name == b"data")
        kind = next((value for name, value in reversed(fields) if name == b"event"), b"message")
        self._budget.take_event()
        if data and kind == b"message":
            lines = [line for line, (name, _) in zip(lines, fields, strict=True) if name != b"data"]
            lines.append(b"data: " + self._sound(data))
        return b"\n".join((*lines, b"", b""))

    def _sound(self, body: bytes) -> bytes:
        """The message as JSON that every parser reads. Raises _Unsound."""
        self._budget.take_message(body)
        try:
            message = json.loads(body.decode(errors="replace"), parse_constant=_finite, parse_float=_finite)
        except (ValueError, RecursionError):
            message = None
        match message:
            case {"jsonrpc": "2.0", "method": str()}:
                pass
            case {"jsonrpc": "2.0", "result": {**result}}:
                message["result"] = self._sound_result(result)
            case {"jsonrpc": "2.0", "error": {"code": int(), "message": str(text)}}:
                self.error_messages.add(repair(text))
            case _:
                raise _Unsound("protocol", "answered with something that is not MCP")
        return repair(json.dumps(message, ensure_ascii=False)).encode()

    def _sound_result(self, result: dict[Any, JSON]) -> dict[Any, JSON]:
        """The result without null, which means left out, and what is odd in a list put right or left out of it."""
        sound = {key: value for key, value in result.items() if value is not None}
        if not isinstance(sound.get("nextCursor", ""), str):
            del sound["nextCursor"]
        if isinstance(tools := sound.get("tools"), list):
            sound["tools"] = self._sound_tools(tools)
        if "structuredContent" in sound:
            sound.setdefault("content", [])
        if isinstance(blocks := sound.get("content"), list):
            sound["content"] = [_sound_block(block) for block in blocks]
        return sound

    def _sound_tools(self, tools: list[JSON]) -> list[JSON]:
        sound = [_sound_tool(tool) for tool in tools if _is_named(tool)]
        if len(sound) < len(tools):
            _log.warning("%s lists %d tools without a name; they are left out", self._server, len(tools) - len(sound))
        return sound


class _Events(httpx2.AsyncByteStream):
    """Checked events as a body; one that is not sound ends the session. Closing closes the connection's own stream."""

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        source: BoundedStream,
        end: Callable[[_Unsound | TooLong], Awaitable[None]],
    ) -> None:
        self._events = events
        self._source = source
        self._end = end

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for event in self._events:
                # One read may hold thousands of events.
                await asyncio.sleep(0)
                yield event
        except (_Unsound, TooLong) as fault:
            await self._end(fault)
            raise httpx2.ReadError("The session has ended.") from None

    async def aclose(self) -> None:
        await self._events.aclose()
        await self._source.aclose()


def connection_failure(server: str, trouble: Exception) -> ToolFailed:
    """What it means for a tool that a request to its server came to nothing."""
    match trouble:
        case InvalidRequest():
            return ToolFailed("http", f"{server} may not be reached: {trouble.message}.")
        case httpx2.TimeoutException():
            return ToolFailed("timeout", f"{server} did not answer in time.")
        case _:
            return ToolFailed("http", f"{server} could not be reached.")


def status_failure(server: str, status: int) -> ToolFailed:
    """What it means for a tool that its server answered with this status."""
    if status in _REFUSED:
        told = f"{status} ({HTTPStatus(status).phrase})"
        return ToolFailed("http", f"{server} refused the credentials, or the lack of them, with status {told}.", status)
    return ToolFailed("http", f"{server} answered with status {status}.", status)


def _status_failure(server: str, request: httpx2.Request, response: httpx2.Response) -> ToolFailed | None:
    """The failure that a response is; an error status may come with an error of JSON-RPC, which says more."""
    status = response.status_code
    if status == _UNKNOWN_SESSION and _SESSION_HEADER in request.headers:
        return SessionLost("http", f"{server} answered with status {status}.", status)
    if status < 400 or (status not in _REFUSED and "error" in (json.loads(response.content or b"{}"))):
        return None
    return status_failure(server, status)


def _too_long() -> _Unsound:
    return _Unsound("http", f"sent more than {MESSAGE_BYTES} bytes")


def _finite(text: str) -> float | None:
    """A JSON number; null for what JSON has no number for."""
    value = float(text)
    return value if math.isfinite(value) else None


def _sound_block(block: JSON) -> JSON:
    """A content block as it is, or as the text of its JSON; the SDK refuses a whole result for one block."""
    typed = {"type": None, **block} if isinstance(block, dict) else block
    try:
        _CONTENT_BLOCK.validate_python(typed)
    except ValidationError:
        return {"type": "text", "text": json.dumps(block, ensure_ascii=False)}
    return block


def _is_named(tool: JSON) -> bool:
    return isinstance(tool, dict) and isinstance(tool.get("name"), str)


def _sound_tool(tool: dict[str, Any]) -> dict[str, JSON]:
    """What is used of a listed tool; the SDK refuses a whole listing for one field of one tool."""
    annotations = tool.get("annotations")
    hints = annotations if isinstance(annotations, dict) else {}
    sound: dict[str, JSON] = {"name": tool["name"], "inputSchema": usable_schema(tool.get("inputSchema"))}
    if isinstance(description := tool.get("description"), str):
        sound["description"] = description
    kept = {name: hints[name] for name in _HINTS if isinstance(hints.get(name), bool)}
    if isinstance(title := hints.get("title"), str):
        kept["title"] = title
    return {**sound, "annotations": kept} if kept else sound
