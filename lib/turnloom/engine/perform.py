"""Doing one action: the only place where a turn touches the world. Yields the events that the action brought about.

Times are stamped here and never run backwards within one action; `Stamp` makes each later than the one before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from turnloom.domain.action import Action, AwaitClient, CallModel, CallTools, Finish, Gather, RunShields
from turnloom.domain.errors import InvalidRequest, Problem
from turnloom.domain.event import (
    ContextInserted,
    Event,
    Gathered,
    InferenceCompleted,
    InferenceStarted,
    InputAwaited,
    ShieldsRun,
    ToolCompleted,
    ToolsListed,
    ToolStarted,
    TurnCompleted,
)
from turnloom.domain.message import AssistantMessage, Message, Spec, Tool, ToolServer, ToolSource, Usage
from turnloom.domain.turn import Call, Inference, Listing, Turn
from turnloom.engine.answer import AnswerReader
from turnloom.ports import (
    CallChunk,
    Clock,
    Finished,
    Model,
    ModelRequest,
    Retriever,
    Shields,
    TextChunk,
    ToolError,
    ToolResult,
    Tools,
    ToolScope,
    Violation,
)

MOST_DOCUMENT_BYTES = 1024 * 1024
MOST_NAME_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class World:
    """The ports that actions need."""

    model: Model
    tools: Tools
    shields: Shields
    retriever: Retriever
    clock: Clock


@dataclass(frozen=True, slots=True)
class Scene:
    """A turn at the moment of an action: its rules, what the model gets to see, and for whom tools run."""

    turn: Turn
    spec: Spec
    messages: tuple[Message, ...]
    scope: ToolScope


@dataclass(slots=True)
class Stamp:
    """Times that only ever rise, starting after `last` (microseconds)."""

    clock: Clock
    last: int

    def __call__(self) -> int:
        self.last = max(self.clock.now(), self.last + 1)
        return self.last


async def perform(action: Action, scene: Scene, world: World) -> AsyncGenerator[Event]:
    """Do the action. Raises a Problem when the turn cannot go on; a failing tool is an event, not an error."""
    stamp = Stamp(world.clock, scene.turn.last_at)
    match action:
        case Gather():
            events = _gather(scene, world, stamp)
        case CallModel():
            events = _call_model(action, scene, world, stamp)
        case CallTools():
            events = _call_tools(action.call_ids, scene, world, stamp)
        case RunShields():
            events = _run_shields(action, scene, world, stamp)
        case AwaitClient():
            events = _just(InputAwaited(stamp()))
        case Finish():
            events = _just(TurnCompleted(stamp(), action.reason))
        case _:
            assert_never(action)
    async with aclosing(events):
        async for event in events:
            yield event


async def _just(event: Event) -> AsyncGenerator[Event]:
    yield event


# --- the model


async def _call_model(action: CallModel, scene: Scene, world: World, stamp: Stamp) -> AsyncGenerator[Event]:
    yield InferenceStarted(stamp())
    known = {call.call_id for m in scene.messages if isinstance(m, AssistantMessage) for call in m.calls}
    known |= {call.call_id for step in scene.turn.steps if isinstance(step, Inference) for call in step.calls}
    reader = AnswerReader(scene.turn, offered(scene.spec, scene.turn), known, scene.spec.parallel_calls)
    async with aclosing(world.model.stream(_request(action, scene))) as chunks:
        async for chunk in chunks:
            match chunk:
                case TextChunk():
                    yield reader.text(chunk)
                case CallChunk():
                    for event in reader.call(chunk):
                        yield event
                case Finished():
                    reader.close()
                    usage = chunk.usage or Usage(_tokens(*map(str, scene.messages)), reader.characters // 4)
                    yield InferenceCompleted(stamp(), chunk.reason, usage)
                case _:
                    assert_never(chunk)


def _tokens(*texts: str) -> int:
    """An estimate for upstreams that do not count: a token is about four characters."""
    return sum(map(len, texts)) // 4


def _request(action: CallModel, scene: Scene) -> ModelRequest:
    spec = scene.spec
    tools = () if spec.choice == "none" else offered(spec, scene.turn)
    forcing = action.forced and tools and spec.choice not in ("auto", "none")
    spent = scene.turn.usage.output_tokens
    return ModelRequest(
        model=spec.model,
        messages=scene.messages,
        tools=tools,
        tool_choice=spec.choice if forcing else None,
        sampling=spec.sampling,
        response_format=spec.response_format,
        parallel_calls=spec.parallel_calls,
        max_tokens=None if spec.max_tokens is None else max(1, spec.max_tokens - spent),
    )


def offered(spec: Spec, turn: Turn) -> tuple[Tool, ...]:
    """The tools that the model may call: those of the spec, and what the servers of the request have listed."""
    listings = {step.server: step.tools for step in turn.steps if isinstance(step, Listing)}
    served = (tool for server in spec.servers for tool in _served(server, listings))
    return tuple(_distinct((*spec.tools, *served)))


def _distinct(tools: Iterable[Tool]) -> Iterable[Tool]:
    """The tools under names of their own: of two that share one, the later is known by its server's as well."""
    taken: set[str] = set()
    for tool in tools:
        name = tool.name
        if name in taken and tool.source is not None:
            name = f"{tool.source.group}__{name}"[:MOST_NAME_CHARACTERS]
        taken.add(name)
        yield tool if name == tool.name else replace(tool, name=name)


def _served(server: ToolServer, listings: dict[str, tuple[dict[str, object], ...]]) -> Iterable[Tool]:
    for tool in server.listed if server.listed is not None else listings.get(server.label, ()):
        name, hints = str(tool["name"]), tool.get("annotations")
        source = ToolSource("mcp", server.label, name, server.endpoint, repeatable=_repeatable(hints))
        schema = tool.get("input_schema")
        yield Tool(name, str(tool.get("description") or ""), schema if isinstance(schema, dict) else {}, source)


def _repeatable(hints: object) -> bool:
    """Whether a call may be made twice, by the tool's own declaration (MCP tool annotations)."""
    return isinstance(hints, dict) and bool(hints.get("readOnlyHint") or hints.get("idempotentHint"))


# --- tools


async def _call_tools(call_ids: Sequence[str], scene: Scene, world: World, stamp: Stamp) -> AsyncGenerator[Event]:
    calls = [call for call in scene.turn.open_calls if call.call_id in call_ids]
    for call in calls:
        if call.call_id not in (scene.turn.started_calls or {}):
            yield ToolStarted(stamp(), call.call_id)
    runs = [asyncio.ensure_future(_run_call(call, scene, world)) for call in calls]
    try:
        for finished in asyncio.as_completed(runs):
            call, result = await finished
            yield ToolCompleted(stamp(), call.call_id, result.content, _metadata(result), _error(result))
    finally:
        for run in runs:
            run.cancel()


async def _run_call(call: Call, scene: Scene, world: World) -> tuple[Call, ToolResult]:
    return call, await run_call(call, scene, world.tools)


async def run_call(call: Call, scene: Scene, tools: Tools) -> ToolResult:
    """The answer to one server-side call; what keeps it from running becomes the answer."""
    tool = next((tool for tool in offered(scene.spec, scene.turn) if _is_called(tool, call)), None)
    arguments = call.parsed()
    if call.runner == "unknown" or tool is None:
        return _refused("unknown", f"There is no tool named '{call.name}'.")
    if arguments is None:
        return _refused("arguments", f"The arguments of '{call.name}' are not a JSON object: {call.arguments}")
    began = call.call_id in (scene.turn.started_calls or {})
    if tool.source is None or (began and not tool.source.repeatable):
        return _refused("interrupted", f"The call of '{call.name}' was cut off; whether it had its effect is unknown.")
    return await tools.call(tool.source, arguments, scene.scope)


def _is_called(tool: Tool, call: Call) -> bool:
    source = tool.source
    if source is None or call.group is None:
        return tool.name == call.name
    return (source.group, source.name) == (call.group, call.name)


def _refused(kind: Literal["unknown", "arguments", "interrupted"], message: str) -> ToolResult:
    return ToolResult(message, error=ToolError(kind, message))


def _metadata(result: ToolResult) -> dict[str, object]:
    if result.error is None:
        return dict(result.metadata)
    return {**result.metadata, "error_code": result.error.code, "error_message": result.error.message}


def _error(result: ToolResult) -> dict[str, object] | None:
    error = result.error
    return None if error is None else {"kind": error.kind, "code": error.code, "message": error.message}


# --- before and after the model


async def _gather(scene: Scene, world: World, stamp: Stamp) -> AsyncGenerator[Event]:
    started = stamp()
    documents = [world.retriever.document(d["content"], d["mime_type"]) for d in scene.spec.documents]
    asked = {step.server for step in scene.turn.steps if isinstance(step, Listing)}
    unlisted = [server for server in scene.spec.servers if server.listed is None and server.label not in asked]
    listings = [_list(server, scene, world) for server in unlisted]
    texts, listed = await asyncio.gather(asyncio.gather(*documents), asyncio.gather(*listings))
    if texts:
        check_size(texts)
        yield ContextInserted(stamp(), started, "\n\n".join(texts))
    for server, found in zip(unlisted, listed, strict=True):
        if isinstance(found, Problem):
            yield ToolsListed(stamp(), server.label, (), found.message)
        else:
            yield ToolsListed(stamp(), server.label, found)
    yield Gathered(stamp())


def check_size(texts: Iterable[str]) -> None:
    """Refuse more text than the documents of one turn may have together."""
    size = sum(len(text.encode()) for text in texts)
    if size > MOST_DOCUMENT_BYTES:
        message = f"The documents of a turn may have {MOST_DOCUMENT_BYTES} bytes of text; these have {size}"
        raise InvalidRequest(message, code="document_rejected")


async def _list(server: ToolServer, scene: Scene, world: World) -> tuple[dict[str, object], ...] | Problem:
    try:
        tools = await world.tools.offered(ToolSource("mcp", server.label, "", server.endpoint), scene.scope)
    except Problem as problem:
        return problem
    return tuple(_described(tool) for tool in tools if _allowed(tool, server))


def _allowed(tool: Tool, server: ToolServer) -> bool:
    annotations = tool.source.settings.get("annotations") if tool.source else None
    read_only = bool((annotations or {}).get("readOnlyHint"))
    named = server.allowed is None or tool.name in server.allowed
    return named and server.read_only in (None, read_only)


def _described(tool: Tool) -> dict[str, object]:
    """A tool in the shape of `mcp_list_tools`; what the server left out is left out."""
    annotations = tool.source.settings.get("annotations") if tool.source else None
    described: dict[str, object] = {"name": tool.name, "input_schema": dict(tool.parameters)}
    if tool.description:
        described["description"] = tool.description
    if annotations:
        described["annotations"] = annotations
    return described


async def _run_shields(action: RunShields, scene: Scene, world: World, stamp: Stamp) -> AsyncGenerator[Event]:
    started = stamp()
    checks = (world.shields.check(shield, scene.messages, scene.scope) for shield in action.shields)
    verdicts = await asyncio.gather(*checks)
    blocking = next((verdict for verdict in verdicts if verdict is not None and verdict.level == "error"), None)
    yield ShieldsRun(stamp(), started, action.touchpoint, _violation(blocking) if blocking else None)


def _violation(verdict: Violation) -> dict[str, object]:
    return {
        "violation_level": verdict.level,
        "user_message": verdict.user_message,
        "metadata": dict(verdict.metadata),
    }
