"""Running the calls that the server answers: whatever keeps one from running becomes its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Literal

from turnloom.domain.event import Event, ToolCompleted, ToolStarted
from turnloom.domain.message import Tool
from turnloom.domain.schema_check import faults_of, shortened
from turnloom.domain.turn import Call
from turnloom.engine.offer import known_tools
from turnloom.engine.scene import Scene, Stamp, World
from turnloom.ports import ToolError, ToolResult, Tools

REFUSAL_CHARACTERS = 4000
"""A refusal quotes what the model wrote, which may be of any length."""


async def call_tools(call_ids: Sequence[str], scene: Scene, world: World, stamp: Stamp) -> AsyncGenerator[Event]:
    """Run these open calls side by side; the events come as the tools begin and end."""
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


async def run_call(call: Call, scene: Scene, tools: Tools) -> ToolResult:
    """The answer to one server-side call."""
    tool = next((tool for tool in known_tools(scene.spec, scene.turn) if _is_called(tool, call)), None)
    arguments = call.parsed()
    if call.runner == "unknown" and tool is not None and tool.source is not None:
        return _refused("unknown", f"'{call.name}' was not run: no more tool calls are allowed. Answer without it.")
    if call.runner == "unknown" or tool is None:
        return _refused("unknown", f"There is no tool named '{call.name}'.")
    if arguments is None:
        return _refused("arguments", f"The arguments of '{call.name}' are not a JSON object: {call.arguments}")
    began = call.call_id in (scene.turn.started_calls or {})
    if tool.source is None or (began and not tool.source.repeatable):
        return _refused("interrupted", f"The call of '{call.name}' was cut off; whether it had its effect is unknown.")
    # Arguments that are laid over the model's need not be in what it wrote.
    if faults := faults_of({**arguments, **tool.source.args}, tool.parameters):
        return _refused("arguments", f"The arguments of '{call.name}' do not match its parameters: {'; '.join(faults)}")
    return await tools.call(tool.source, arguments, scene.scope)


async def _run_call(call: Call, scene: Scene, world: World) -> tuple[Call, ToolResult]:
    return call, await run_call(call, scene, world.tools)


def _is_called(tool: Tool, call: Call) -> bool:
    source = tool.source
    if source is None or call.group is None:
        return tool.name == call.name
    return (source.group, source.name) == (call.group, call.name)


def _refused(kind: Literal["unknown", "arguments", "interrupted"], message: str) -> ToolResult:
    message = shortened(message, REFUSAL_CHARACTERS)
    return ToolResult(message, error=ToolError(kind, message))


def _metadata(result: ToolResult) -> dict[str, object]:
    if result.error is None:
        return dict(result.metadata)
    return {**result.metadata, "error_code": result.error.code, "error_message": result.error.message}


def _error(result: ToolResult) -> dict[str, object] | None:
    error = result.error
    return None if error is None else {"kind": error.kind, "code": error.code, "message": error.message}
