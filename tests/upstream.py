"""A scripted model endpoint: a real OpenAI-compatible server on loopback that says what a test told it to.

    with ScriptedUpstream() as upstream:
        upstream.say("Hello", " world")
        upstream.call(("calculator", '{"expression": "1+1"}'))
        upstream.fail(429, headers={"retry-after": "1"})
        model = OpenAIModel(upstream.url, "key")

Answers are given in the order in which they were scripted; with `upstream.answer` set, that function finds the answer
to each request instead, which is what concurrent requests need. `upstream.beside` has functions for other paths.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, assert_never

from tests.server import LoopbackServer

Json = Any
_PATIENCE = 10.0


class Signal:
    """Something that happens once; any thread can wait for it, and so can any event loop."""

    def __init__(self) -> None:
        self._happened: Future[None] = Future()

    def set(self) -> None:
        if not self._happened.done():
            self._happened.set_result(None)

    @property
    def is_set(self) -> bool:
        return self._happened.done()

    def join(self, seconds: float = _PATIENCE) -> None:
        """Wait in a thread; raises TimeoutError."""
        self._happened.result(seconds)

    async def wait(self, seconds: float | None = _PATIENCE) -> None:
        """Wait in an event loop; raises TimeoutError."""
        await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._happened)), seconds)


@dataclass
class Gate:
    """A place in an answer where it stops until the test opens the gate; `reached` says that it stands there."""

    reached: Signal = field(default_factory=Signal)
    opened: Signal = field(default_factory=Signal)

    def open(self) -> None:
        self.opened.set()


@dataclass(frozen=True)
class BreakOff:
    """The connection is closed here, in the middle of the body."""


@dataclass(frozen=True)
class Pause:
    """The answer takes its time here: for load that has to last a while, not for anything that waits on an event."""

    seconds: float


Part = dict[str, Json] | str | Gate | Pause | BreakOff
"""A piece of an answer: a chunk as JSON, a piece of text that is sent as it stands, or something that happens."""


@dataclass(frozen=True)
class Answer:
    """One answer to one request; `usage` goes out as a chunk of its own before `[DONE]`, to those who asked for it."""

    parts: Sequence[Part]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    usage: Json = None
    done: bool = False


@dataclass
class Received:
    """A request that came in. `client` tells connections apart; `disconnected` is set when the client goes early."""

    path: str
    headers: dict[str, str]
    body: Json
    client: tuple[str, int]
    disconnected: Signal = field(default_factory=Signal)
    answered: Signal = field(default_factory=Signal)


def say(
    *pieces: str | Part,
    reasoning: Sequence[str] = (),
    refusal: Sequence[str] = (),
    reason: str | None = "stop",
    usage: Json = None,
) -> Answer:
    """Text, each piece a chunk of its own; None for `reason` leaves the answer without an ending."""
    deltas: list[Part] = [delta(role="assistant", content="")]
    deltas += [delta(reasoning_content=text) for text in reasoning]
    deltas += [delta(content=piece) if isinstance(piece, str) else piece for piece in pieces]
    deltas += [delta(refusal=text) for text in refusal]
    return Answer([*deltas, *_ending(reason)], usage=usage or _usage(len(pieces)), done=reason is not None)


def call(*calls: tuple[str, str | Json], text: str = "", reason: str | None = "tool_calls", size: int = 0) -> Answer:
    """Tool calls, each a name and its arguments (JSON, or text to be sent verbatim), in fragments of `size`."""
    deltas: list[Part] = [delta(content=text)] if text else []
    for index, (name, given) in enumerate(calls):
        arguments = given if isinstance(given, str) else json.dumps(given)
        function = {"name": name, "arguments": ""}
        deltas.append(delta(tool_calls=[{"index": index, "id": f"call_{index}", "function": function}]))
        step = size or max(1, len(arguments))
        for start in range(0, len(arguments), step):
            fragment = {"arguments": arguments[start : start + step]}
            deltas.append(delta(tool_calls=[{"index": index, "function": fragment}]))
    return Answer([*deltas, *_ending(reason)], usage=_usage(len(deltas)), done=reason is not None)


def fail(status: int, error: Json = None, *, headers: Mapping[str, str] | None = None) -> Answer:
    """An error status. `error` is a message for the usual envelope, a whole JSON body, or a text if it is no JSON."""
    given = {"error": {"message": error or "scripted failure", "code": None}}
    body = given if error is None or isinstance(error, str) else error
    return Answer([json.dumps(body)], status, {"content-type": "application/json", **(headers or {})})


def send(*parts: Part, content_type: str = "text/event-stream", status: int = 200) -> Answer:
    """Exactly these parts, and nothing after them."""
    return Answer(parts, status, {"content-type": content_type})


def delta(finish_reason: str | None = None, logprobs: Json = None, **content: Json) -> dict[str, Json]:
    """A chunk with one choice that has this delta."""
    choice = {"index": 0, "delta": content, "finish_reason": finish_reason}
    return {"choices": [choice if logprobs is None else {**choice, "logprobs": logprobs}]}


def _ending(reason: str | None) -> list[Part]:
    return [] if reason is None else [delta(reason)]


def _usage(tokens: int) -> Json:
    return {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}


class ScriptedUpstream:
    """The endpoint, for as long as the context lasts: `url` is its address, `requests` what was asked of it."""

    def __init__(self, *models: str) -> None:
        self._names = list(models or ["test-model"])
        self._gates: list[Gate] = []
        self._server = LoopbackServer(self)
        self.forget()

    def __enter__(self) -> ScriptedUpstream:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()
        self._server.__exit__()

    def forget(self) -> None:
        """Drop what was scripted and what was asked, so that one server can serve many tests; opens every gate."""
        for gate in self._gates:
            gate.open()
        self._gates.clear()
        self._script: deque[Answer] = deque()
        self.models: Answer | list[str] = self._names
        self.answer: Callable[[Received], Answer] | None = None
        self.beside: dict[str, Callable[[Received], Answer]] = {}
        self.requests: list[Received] = []

    @property
    def url(self) -> str:
        return f"{self._server.url}/v1"

    @property
    def bodies(self) -> list[Json]:
        """The bodies of the completions asked for."""
        return [request.body for request in self.requests if request.body is not None]

    def add(self, *answers: Answer) -> None:
        self._script.extend(answers)

    def say(self, *pieces: str | Part, **rest: Any) -> None:
        self.add(say(*pieces, **rest))

    def call(self, *calls: tuple[str, str | Json], **rest: Any) -> None:
        self.add(call(*calls, **rest))

    def fail(self, status: int, error: Json = None, **rest: Any) -> None:
        self.add(fail(status, error, **rest))

    def send(self, *parts: Part, **rest: Any) -> None:
        self.add(send(*parts, **rest))

    # --- the server

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        request = await _received(scope, receive)
        self.requests.append(request)
        answer = self._answer_to(request)
        watching = asyncio.create_task(self._watch(request, receive))
        sending = asyncio.create_task(self._send(answer, request, send))
        await asyncio.wait({watching, sending}, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        sending.cancel()
        _, sent = await asyncio.gather(watching, sending, return_exceptions=True)
        if isinstance(sent, Exception):
            raise sent

    async def _watch(self, request: Received, receive: Any) -> None:
        await receive()
        if not request.answered.is_set:
            request.disconnected.set()

    def _answer_to(self, request: Received) -> Answer:
        if request.path.endswith("/models"):
            return self.models if isinstance(self.models, Answer) else _listing(self.models)
        if request.path in self.beside:
            return self.beside[request.path](request)
        if not request.path.endswith("/chat/completions"):
            return fail(404, f"no such path: {request.path}")
        if self.answer is not None:
            return self.answer(request)
        return self._script.popleft() if self._script else fail(400, "nothing is scripted for this request")

    async def _send(self, answer: Answer, request: Received, send: Any) -> None:
        headers = {"content-type": "text/event-stream", **answer.headers}
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": encoded})
        for part in (*answer.parts, *_closing(answer, request)):
            if isinstance(part, BreakOff):
                # uvicorn closes the connection of an application that returns in mid-answer.
                return
            await send({"type": "http.response.body", "body": await self._bytes(part, request), "more_body": True})
        request.answered.set()
        await send({"type": "http.response.body"})

    async def _bytes(self, part: dict[str, Json] | str | Gate | Pause, request: Received) -> bytes:
        match part:
            case Pause():
                await asyncio.sleep(part.seconds)
                return b""
            case Gate():
                self._gates.append(part)
                part.reached.set()
                await part.opened.wait(None)
                return b""
            case str():
                return part.encode()
            case dict():
                return _frame(part, request)
            case _:
                assert_never(part)


def _closing(answer: Answer, request: Received) -> list[Part]:
    asked = (request.body or {}).get("stream_options", {}).get("include_usage")
    counted: list[Part] = [{"choices": [], "usage": answer.usage}] if asked and answer.usage else []
    return [*counted, "data: [DONE]\n\n"] if answer.done else counted


def _frame(chunk: dict[str, Json], request: Received) -> bytes:
    model = (request.body or {}).get("model")
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
    return f"data: {json.dumps({**head, **chunk})}\n\n".encode()


def _listing(models: list[str]) -> Answer:
    data = [{"id": name, "object": "model", "created": 1, "owned_by": "tests"} for name in models]
    return Answer([json.dumps({"object": "list", "data": data})], headers={"content-type": "application/json"})


async def _received(scope: Any, receive: Any) -> Received:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    return Received(scope["path"], headers, json.loads(body) if body else None, tuple(scope["client"]))
