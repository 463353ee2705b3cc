"""The public test kit: a model that says what it is told, tools and time under control, the state machine in a loop.

model = ScriptedModel()
model.says("Hello", " world")
model.calls(("calculator", {"expression": "1+1"}))
model.breaks_after("Hel")          # fails in the middle of a stream
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from turnloom.domain.errors import InvalidRequest, UpstreamBroken
from turnloom.domain.message import JSON, Message, Tool, ToolSource, Usage
from turnloom.engine import stepped
from turnloom.engine.engine import Engine
from turnloom.ports import (
    CallChunk,
    Chunk,
    Condition,
    ExecutionStatus,
    FetchedFile,
    Finished,
    ModelInfo,
    ModelRequest,
    NotStarted,
    Page,
    Row,
    Table,
    TextChunk,
    ToolError,
    ToolResult,
    ToolScope,
    Unreadable,
    Version,
    Violation,
)

Answer = Sequence[Chunk | Exception | asyncio.Event]
USAGE = Usage(10, 5)


class ScriptedModel:
    """Gives the scripted answers in order, or what `rule` makes of a request; keeps the requests it got.

    In a scripted answer an exception is raised where it stands, and an event is waited for. Requests are counted by
    `tokens`, which at first has no way to tell.
    """

    def __init__(self, rule: Callable[[ModelRequest], Answer] | None = None) -> None:
        self.requests: list[ModelRequest] = []
        self.takes_files = False
        self.closed = 0
        self.tokens: Callable[[ModelRequest], int | None] = lambda request: None
        self._rule = rule
        self._answers: list[Answer] = []

    def answers(self, *chunks: Chunk | Exception | asyncio.Event) -> None:
        self._answers.append(chunks)

    def says(self, *texts: str, finish: Any = "stop") -> None:
        self.answers(*map(TextChunk, texts), Finished(finish, USAGE))

    def calls(self, *calls: tuple[str, JSON], text: str = "") -> None:
        """Ask for tools; arguments that are no dict are sent as the raw text they are."""
        spoken = (TextChunk(text),) if text else ()
        self.answers(*spoken, *call_chunks(*calls), Finished("tool_calls", USAGE))

    def breaks_after(self, *texts: str) -> None:
        self.answers(*map(TextChunk, texts), UpstreamBroken("The model endpoint broke off."))

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Chunk]:
        self.requests.append(request)
        script = self._rule(request) if self._rule else self._answers.pop(0)
        try:
            for part in script:
                match part:
                    case Exception():
                        raise part
                    case asyncio.Event():
                        await part.wait()
                    case _:
                        yield part
        finally:
            self.closed += 1

    async def count(self, request: ModelRequest) -> int | None:
        return self.tokens(request)

    async def models(self) -> list[ModelInfo]:
        return [ModelInfo("scripted")]


def call_chunks(*calls: tuple[str, JSON]) -> list[CallChunk]:
    """Whole tool calls as a model streams them, without ids of its own."""
    return [
        CallChunk(index, "", name, arguments if isinstance(arguments, str) else json.dumps(arguments))
        for index, (name, arguments) in enumerate(calls)
    ]


class FaultyTable:
    """A table before another one, which fails on demand.

    While `fault` is set every write raises it; with `done` the write takes place all the same, and only its answer is
    lost. While `unreadable` is set every read raises that. `writes` counts the writes that took place.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self.fault: Exception | None = None
        self.done = False
        self.unreadable: Exception | None = None
        self.writes = 0

    async def put(self, row: Row, when: Condition | None = None) -> None:
        await self._write(self._table.put(row, when))

    async def delete(self, partition: str, sort: str, when: Version | None = None) -> None:
        await self._write(self._table.delete(partition, sort, when))

    async def get(self, partition: str, sort: str) -> Row | None:
        self._check_readable()
        return await self._table.get(partition, sort)

    async def get_many(self, keys: Sequence[tuple[str, str]]) -> list[Row]:
        self._check_readable()
        return await self._table.get_many(keys)

    async def query(self, partition: str, **bounds: Any) -> Page:
        self._check_readable()
        return await self._table.query(partition, **bounds)

    async def _write(self, write: Coroutine[Any, Any, None]) -> None:
        if self.fault is None or self.done:
            await write
            self.writes += 1
        if self.fault is not None:
            write.close()
            raise self.fault

    def _check_readable(self) -> None:
        if self.unreadable is not None:
            raise self.unreadable


class FrozenClock:
    """Time that moves only when told, but for the instant that every reading of it takes (one microsecond)."""

    def __init__(self, now: int = 1_750_000_000_000_000) -> None:
        self.time = now

    def now(self) -> int:
        self.time += 1
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += int(seconds * 1_000_000)

    async def sleep(self, seconds: float) -> None:
        """Let everybody else get on; a moment of real time, for what waits on other processes."""
        await asyncio.sleep(min(seconds, 0.005))


class CountingEntropy:
    """Randomness that is none: every draw is one more than the last."""

    def __init__(self) -> None:
        self._drawn = 0

    def __call__(self, bits: int) -> int:
        self._drawn += 1
        return self._drawn & (1 << bits) - 1


Behaviour = Callable[..., Any]


@dataclass
class FakeTools:
    """Tools as plain functions of keyword arguments; one that raises has failed, one may be a coroutine function.

    `forbidden` is an address that will not do.
    """

    functions: Mapping[str, Behaviour] = field(default_factory=dict)
    ran: list[tuple[str, Mapping[str, JSON], ToolScope]] = field(default_factory=list)
    forbidden: str = ""

    def check(self, endpoint: str) -> None:
        if endpoint == self.forbidden:
            raise InvalidRequest("No tools are read from there.", code="invalid_value")

    async def call(self, source: ToolSource, arguments: Mapping[str, JSON], scope: ToolScope) -> ToolResult:
        given = {**arguments, **source.args}
        self.ran.append((source.name, given, scope))
        try:
            result = self.functions[source.name](**given)
            return ToolResult(str(await result if asyncio.iscoroutine(result) else result))
        except Exception as failure:
            return ToolResult(f"{source.name} failed: {failure}", error=ToolError("tool", str(failure)))

    async def offered(self, source: ToolSource, scope: ToolScope) -> list[Tool]:
        return [fake_tool(name, source.group, kind="mcp", endpoint=source.endpoint) for name in self.functions]

    def group(self, group: str) -> tuple[Tool, ...]:
        """The functions as a built-in group."""
        return tuple(fake_tool(name, group) for name in self.functions)


def fake_tool(name: str, group: str, *, kind: Any = "builtin", endpoint: str | None = None) -> Tool:
    """A server tool without parameters of note; it may be run twice."""
    return Tool(name, f"The tool {name}.", source=ToolSource(kind, group, name, endpoint, repeatable=True))


@dataclass
class FakeShields:
    """Blocks a message that contains one of the words."""

    forbidden: Sequence[str] = ()

    async def check(self, shield: str, messages: Sequence[Message], scope: ToolScope) -> Violation | None:
        text = str(messages[-1])
        return Violation("error", "I can't talk about that.") if any(word in text for word in self.forbidden) else None


@dataclass
class InlineDocuments:
    """Takes documents whose content is their text, and PDFs that are nothing but a header and text behind it.

    `files` is what lies at which address; `fetched` are the addresses that were asked for.
    """

    files: dict[str, FetchedFile] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)

    def check(self, content: JSON, mime_type: str) -> None:
        if not isinstance(content, str):
            raise InvalidRequest("only text", code="document_rejected")

    async def document(self, content: JSON, mime_type: str) -> str:
        return str(content)

    async def file(self, url: str) -> FetchedFile:
        self.fetched.append(url)
        if url not in self.files:
            raise InvalidRequest("nothing lies there", code="invalid_value")
        return self.files[url]

    async def pdf_text(self, content: bytes, owner: str) -> str:
        text = content.removeprefix(b"%PDF-").decode()
        if not text:
            raise InvalidRequest("no text", code="unsupported_file")
        return text


class PlainVault:
    """Seals nothing, anyone can read or make its texts; but it holds callers to the context, as a real one does."""

    def seal(self, secret: bytes, context: str) -> str:
        return base64.urlsafe_b64encode(json.dumps([context, secret.decode("latin-1")]).encode()).decode()

    def unseal(self, sealed: str, context: str) -> bytes:
        try:
            sealed_for, secret = json.loads(base64.urlsafe_b64decode(sealed))
        except (TypeError, ValueError) as error:
            raise Unreadable("nothing that was sealed here") from error
        if sealed_for != context:
            raise Unreadable("sealed for another context")
        return str(secret).encode("latin-1")


class SteppedOrchestrator:
    """Runs executions as the state machine does, in this process: a loop over the tasks of `engine.stepped`.

    `errors` keeps what a task raised; as many starts as `refusals` says fail, and set `refused`. An execution waits for
    what `before` gives, as one does whose function is throttled.
    """

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.names: list[str] = []
        self.errors: list[BaseException] = []
        self.refusals = 0
        self.refused = asyncio.Event()
        self.before: Callable[[], Awaitable[object]] | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._aborted: set[str] = set()

    async def start(self, name: str, given: Mapping[str, Any]) -> None:
        if self.refusals:
            self.refusals -= 1
            self.refused.set()
            raise NotStarted("refused, as the test wants")
        if name in self.names:
            return
        self.names.append(name)
        self._running[name] = task = asyncio.create_task(self._execute(given))
        task.add_done_callback(lambda _: self._running.pop(name))

    async def status(self, name: str) -> ExecutionStatus:
        if name in self._running and name not in self._aborted:
            return "running"
        return "ended" if name in self.names else "absent"

    def abort(self) -> None:
        """End all executions, as an operator may; what their tasks are at goes on."""
        self._aborted |= set(self._running)

    async def finished(self) -> None:
        """Wait for all executions to end."""
        while self._running:
            await asyncio.gather(*self._running.values())
            # They are taken off in the loop's next round, which does not come where nothing had to be waited for.
            await asyncio.sleep(0)

    async def _execute(self, state: Mapping[str, Any]) -> None:
        assert self.engine is not None
        if self.before is not None:
            await self.before()
        try:
            while state["next"] != "done":
                state = await self._next(self.engine, state)
        except stepped.TurnMoved:
            return
        except Exception as failure:
            self.errors.append(failure)
            with suppress(stepped.TurnMoved):
                await stepped.fail(self.engine, state, "The turn failed because of an internal error.")

    async def _next(self, engine: Engine, state: Mapping[str, Any]) -> Mapping[str, Any]:
        if state["next"] != "call_tools":
            return await stepped.step(engine, state, state["next"])
        await asyncio.gather(*(stepped.call_tool(engine, state, call_id) for call_id in state["calls"]))
        return await stepped.step(engine, state, "call_model")
