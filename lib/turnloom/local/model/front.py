"""What the embedded model's process serves: an OpenAI-compatible endpoint, and its own health.

GET /health says 503 until the model is ready, with a phase and progress; /v1/chat/completions does, too.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from turnloom.domain.message import JSON, Tool, ToolCall
from turnloom.local.model import messages, tool_front
from turnloom.local.model.answers import Called, Refused, frame, new_call_id, problem

PATIENCE_SECONDS = 10.0
"""After this long without a word from a busy engine, a stream begins with comments, lest the client gives up."""

_T = TypeVar("_T")
_TOOL_FIELDS = ("tools", "tool_choice", "parallel_tool_calls")


@dataclass
class Status:
    """How far the model is; `fetched` of `total` bytes while it is fetched. `engine` is llama.cpp's address.

    `reason` says why it failed, and what can be done.
    """

    model: str
    demo: bool
    phase: Literal["starting", "fetching", "loading", "ready", "failed"] = "starting"
    fetched: int = 0
    total: int = 0
    reason: str = ""
    engine: str = ""

    def document(self) -> JSON:
        return {
            "status": "OK" if self.phase == "ready" else self.phase,
            "phase": self.phase,
            "model": self.model,
            "note": tool_front.NOTE if self.demo else "",
            "progress": {"fetched_bytes": self.fetched, "total_bytes": self.total},
            "reason": self.reason,
        }


class Front:
    """Answers chat completions with the engine that `status` names, to callers whose key is the `secret`.

    The engine has the same key.
    """

    def __init__(self, status: Status, secret: str, patience: float = PATIENCE_SECONDS) -> None:
        self._bearer = f"Bearer {secret}"
        self._status, self._patience = status, patience
        self._started = int(time.time())
        # No bound on reading: with many sessions the last one waits long for its turn.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=32)
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(None, connect=5),
            limits=limits,
            trust_env=False,
            headers={"authorization": self._bearer},
        )

    def app(self) -> Starlette:
        routes = [
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        app = Starlette(routes=routes)
        app.add_exception_handler(Refused, _refused)
        app.add_exception_handler(404, _no_route)
        return app

    async def health(self, _request: Request) -> Response:
        return JSONResponse(self._status.document(), 200 if self._status.phase == "ready" else 503)

    def _check_key(self, request: Request) -> None:
        """Refuse whoever does not know the secret: web pages and other programs of this machine reach this port too."""
        shown = request.headers.get("authorization", "")
        if not hmac.compare_digest(shown.encode(), self._bearer.encode()):
            raise Refused(401, problem("The embedded model is for Turnloom alone.", "invalid_request_error", "no_key"))

    def _check_model(self, body: JSON) -> None:
        """Refuse a request for a model that is not here, as endpoints do that have several."""
        match body.get("model"):
            case self._status.model:
                return
            case str(name):
                message = f"The model '{name}' does not exist. The embedded model is '{self._status.model}'."
                raise Refused(404, problem(message, code="model_not_found", param="model"))
            case _:
                raise Refused(400, problem("'model' must be the name of a model", param="model"))

    async def models(self, request: Request) -> Response:
        self._check_key(request)
        model = {"id": self._status.model, "object": "model", "created": self._started, "owned_by": "turnloom"}
        return JSONResponse({"object": "list", "data": [model]})

    async def chat(self, request: Request) -> Response:
        self._check_key(request)
        body = await _body(request)
        self._check_model(body)
        if self._status.phase != "ready":
            message = f"The embedded model is not ready: {self._status.phase}."
            raise Refused(503, problem(message, "server_error", "model_loading"))
        if not body.get("stream"):
            return JSONResponse(await self._whole(body))
        beginning = asyncio.create_task(self._begin(body))
        await asyncio.wait({beginning}, timeout=self._patience)
        if beginning.done():
            # Raises what went wrong while the status can still say so.
            beginning.result()
        return StreamingResponse(self._stream(beginning), media_type="text/event-stream")

    # --- an answer as one document, or as a stream

    async def _whole(self, body: JSON) -> JSON:
        answer = await self._decide(body)
        if isinstance(answer, Called):
            return answer.whole()
        return await self._fitting(self._ask, answer)

    async def _begin(self, body: JSON) -> AsyncGenerator[bytes]:
        """The frames of the answer; by then it is sure that the engine takes the request."""
        answer = await self._decide(body)
        if isinstance(answer, Called):
            return _each(answer, bool((body.get("stream_options") or {}).get("include_usage")))
        return _pieces(await self._fitting(self._send, answer))

    async def _stream(self, beginning: asyncio.Task[AsyncGenerator[bytes]]) -> AsyncIterator[bytes]:
        try:
            while not beginning.done():
                yield b": the model is busy\n\n"
                await asyncio.wait({beginning}, timeout=self._patience)
            async with aclosing(beginning.result()) as pieces:
                async for piece in pieces:
                    yield piece
        except Refused as refusal:
            yield frame(refusal.document)
        finally:
            beginning.cancel()

    # --- what to answer with

    async def _decide(self, body: JSON) -> Called | JSON:
        """A tool call, or the request for the engine to answer."""
        if not self._status.demo:
            return {**body, "messages": messages.plain(body["messages"])}
        tool = _choose(body)
        call = await self._call(tool, messages.question(body["messages"])) if tool else None
        if call:
            return call
        talk = {name: value for name, value in body.items() if name not in _TOOL_FIELDS}
        if messages.newest_results(body["messages"]):
            return tool_front.answer_request(talk)
        return {**talk, "messages": messages.without_tools(body["messages"])}

    async def _call(self, tool: Tool, text: str) -> Called | None:
        """The call with arguments that the model wrote; None if they never satisfy the tool's schema."""
        for request in tool_front.arguments_requests(tool, text):
            try:
                answer = await self._ask(request)
            except Refused as refusal:
                # llama.cpp does not know every keyword of JSON schema; too long a text it cannot read either.
                if refusal.status >= 500:
                    raise
                continue
            arguments = tool_front.checked(tool, answer["choices"][0]["message"]["content"] or "")
            if arguments is not None:
                call = ToolCall(new_call_id(), tool.name, arguments)
                return Called(self._status.model, call, int(time.time()), answer["usage"])
        return None

    # --- the engine

    async def _fitting(self, send: Callable[[JSON], Awaitable[_T]], body: JSON) -> _T:
        """Send the request; for the demo model without older messages, as far as its small context demands it."""
        while True:
            try:
                return await send(body)
            except Refused as refusal:
                shorter = messages.shortened(body["messages"]) if self._status.demo else None
                if refusal.kind != "exceed_context_size_error" or shorter is None:
                    raise
                body = {**body, "messages": shorter}

    async def _ask(self, body: JSON) -> JSON:
        response = await self._send({**body, "stream": False})
        with _unbroken():
            await response.aread()
        return response.json()

    async def _send(self, body: JSON) -> httpx2.Response:
        """The engine's answer, not yet read. Raises Refused for any status but 200, and if the engine is gone."""
        request = self._client.build_request("POST", f"{self._status.engine}/v1/chat/completions", json=body)
        with _unbroken():
            response = await self._client.send(request, stream=True)
            if response.status_code == 200:
                return response
            await response.aread()
        raise Refused(response.status_code, _document(response))


@contextmanager
def _unbroken() -> Iterator[None]:
    """What the engine leaves unfinished is refused."""
    try:
        yield
    except httpx2.TransportError as failure:
        raise Refused(502, problem(f"The embedded model broke off: {failure}", "server_error")) from failure


async def _pieces(response: httpx2.Response) -> AsyncGenerator[bytes]:
    """The engine's stream as it comes. Raises Refused if the engine ends before its time."""
    try:
        with _unbroken():
            async for piece in response.aiter_raw():
                yield piece
    finally:
        await response.aclose()


async def _each(called: Called, with_usage: bool) -> AsyncGenerator[bytes]:
    for piece in called.frames(with_usage):
        yield piece


def _choose(body: Mapping[str, JSON]) -> Tool | None:
    try:
        tools = tool_front.offered(body)
        return tool_front.choose(tools, tool_front.choice(body, tools), body["messages"])
    except tool_front.BadRequest as failure:
        raise Refused(400, problem(str(failure))) from failure


async def _body(request: Request) -> JSON:
    """The request's JSON object. Raises Refused if it is none, or its messages are no list of objects with a role."""
    try:
        body = await request.json()
    except ValueError as failure:
        raise Refused(400, problem(f"The request is no JSON: {failure}")) from failure
    match body:
        case {"messages": [_, *_] as given} if all(isinstance(each, dict) and "role" in each for each in given):
            return body
        case _:
            raise Refused(400, problem("'messages' must be a non-empty array of objects, each with a 'role'"))


def _document(response: httpx2.Response) -> JSON:
    try:
        return response.json()
    except ValueError:
        return problem(response.text or "The embedded model failed.", "server_error")


async def _refused(_request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refused)
    headers = {"retry-after": "2"} if refusal.status == 503 else None
    return JSONResponse(refusal.document, refusal.status, headers)


async def _no_route(request: Request, _failure: Exception) -> Response:
    message = f"The embedded model has no route {request.method} {request.url.path}"
    return JSONResponse(problem(message, code="route_not_found"), 404)
