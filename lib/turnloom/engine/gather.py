"""What happens before the first model call: documents are read, tool servers asked, a long context summed up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import asdict

from turnloom.domain.errors import InvalidRequest, Problem, Unauthenticated, UpstreamRejected
from turnloom.domain.event import CallsAllowed, Compacted, ContextInserted, Event, Gathered, ToolsListed
from turnloom.domain.message import Spec, Tool, ToolServer, ToolSource
from turnloom.domain.turn import Compaction, Listing, Resumption, Step
from turnloom.engine.compact import summed_up, tokens
from turnloom.engine.offer import read_only
from turnloom.engine.scene import Scene, Stamp, World
from turnloom.ports import ModelRequest

MOST_DOCUMENT_BYTES = 1024 * 1024

Listed = tuple[dict[str, object], ...] | Problem


async def gather(scene: Scene, world: World, stamp: Stamp) -> AsyncGenerator[Event]:
    """Collect what the first model call needs. Raises a Problem when the turn cannot do without what is missing."""
    started = stamp()
    if (above := scene.spec.compact_above) is not None and not _has(scene, Compaction):
        async for event in _compact(above, scene, world, stamp):
            yield event
    documents = [world.retriever.document(d["content"], d["mime_type"]) for d in scene.spec.documents]
    asked = {step.server for step in scene.turn.steps if isinstance(step, Listing)}
    unlisted = [server for server in scene.spec.servers if server.listed is None and server.label not in asked]
    listings = [_list(server, scene, world) for server in unlisted]
    texts, listed = await asyncio.gather(asyncio.gather(*documents), asyncio.gather(*listings))
    if texts:
        check_size(texts)
        yield ContextInserted(stamp(), started, "\n\n".join(texts))
    for event in _told(unlisted, listed, scene.spec, stamp):
        yield event
    if scene.spec.allowed_calls and not _has(scene, Resumption):
        yield CallsAllowed(stamp(), tuple(asdict(call) for call in scene.spec.allowed_calls))
    yield Gathered(stamp())


def _has(scene: Scene, kind: type[Step]) -> bool:
    """Whether a driver that was lost got as far as this."""
    return any(isinstance(step, kind) for step in scene.turn.steps)


def check_size(texts: Iterable[str]) -> None:
    """Refuse more text than the documents of one turn may have together."""
    size = sum(len(text.encode()) for text in texts)
    if size > MOST_DOCUMENT_BYTES:
        message = f"The documents of a turn may have {MOST_DOCUMENT_BYTES} bytes of text; these have {size}"
        raise InvalidRequest(message, code="document_rejected")


# --- a long context


async def _compact(above: int, scene: Scene, world: World, stamp: Stamp) -> AsyncGenerator[Event]:
    request = ModelRequest(scene.spec.model, scene.messages, patience=scene.patience)
    if await tokens(world.model, request) > above:
        summary, usage = await summed_up(world.model, request, truncates=scene.spec.truncates)
        yield Compacted(stamp(), summary, usage)


# --- tool servers


def _told(servers: Sequence[ToolServer], listed: Sequence[Listed], spec: Spec, stamp: Stamp) -> list[Event]:
    events: list[Event] = []
    for server, found in zip(servers, listed, strict=True):
        if isinstance(found, Problem):
            _check_dispensable(server, found, spec)
            events.append(ToolsListed(stamp(), server.label, (), found.message))
        else:
            events.append(ToolsListed(stamp(), server.label, found))
    return events


def _check_dispensable(server: ToolServer, problem: Problem, spec: Spec) -> None:
    if spec.fails_on_refused_credentials and isinstance(problem, Unauthenticated):
        raise problem
    if server.needed:
        raise UpstreamRejected(problem.message, code="mcp_server_unavailable", param="tool_choice")


async def _list(server: ToolServer, scene: Scene, world: World) -> Listed:
    try:
        tools = await world.tools.offered(ToolSource("mcp", server.label, "", server.endpoint), scene.scope)
    except Problem as problem:
        return problem
    return tuple(_described(tool) for tool in tools if server.allowed.passes(tool.name, read_only(_hints(tool))))


def _described(tool: Tool) -> dict[str, object]:
    """A tool in the shape of `mcp_list_tools`; what the server left out is left out."""
    described: dict[str, object] = {"name": tool.name, "input_schema": dict(tool.parameters)}
    if tool.description:
        described["description"] = tool.description
    if hints := _hints(tool):
        described["annotations"] = hints
    return described


def _hints(tool: Tool) -> object:
    return tool.source.settings.get("annotations") if tool.source else None
