"""Which tools the model may call, and which of them it must."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import JSON, Spec, Tool, ToolServer, ToolSource, distinct_name, flat_name
from turnloom.domain.transcript import Names
from turnloom.domain.turn import Listing, Turn


@dataclass(frozen=True, slots=True)
class Offer:
    """What one model call is offered; `choice` as in `ModelRequest.tool_choice`."""

    tools: tuple[Tool, ...] = ()
    choice: str | None = None


def offer(spec: Spec, turn: Turn, *, forced: bool) -> Offer:
    """The offer for the next model call; with `forced`, the tool choice binds it.

    Raises InvalidRequest when the choice names a tool that its server does not have.
    """
    if spec.choice == "none":
        return Offer()
    tools = known_tools(spec, turn)
    if hosted_calls_left(spec, turn) == 0:
        tools = tuple(tool for tool in tools if tool.source is None)
    if not forced or not tools or spec.choice == "auto":
        return Offer(tools)
    if spec.choice_group is None:
        return Offer(tools, _name_upstream(spec.choice, tools))
    return _of_server(spec.choice_group, spec.choice, tools)


def known_tools(spec: Spec, turn: Turn) -> tuple[Tool, ...]:
    """The tools of the turn: those of the spec, and what the servers of the request have listed."""
    listings = {step.server: step.tools for step in turn.steps if isinstance(step, Listing)}
    served = (tool for server in spec.servers for tool in _served(server, listings))
    return tuple(_distinct((*_newest(spec.tools), *served)))


def names(spec: Spec, turn: Turn) -> Names:
    """What each of these tools is called upstream, whether or not it is offered."""
    return {tool.key: tool.name for tool in known_tools(spec, turn)}


def hosted_calls_left(spec: Spec, turn: Turn) -> int | None:
    """How many more calls may be run here in this turn; None when there is no limit."""
    return None if spec.max_hosted_calls is None else max(0, spec.max_hosted_calls - turn.hosted_calls)


def read_only(hints: object) -> bool:
    """Whether a tool changes nothing, by its own declaration (MCP tool annotations)."""
    return isinstance(hints, dict) and bool(hints.get("readOnlyHint"))


def _name_upstream(choice: str, tools: Iterable[Tool]) -> str:
    """What the chosen tool is called upstream; a choice that names none stays as it is."""
    named = (tool for tool in tools if choice in (tool.name, tool.called, tool.source.name if tool.source else ""))
    return next((tool.name for tool in named), choice)


def _of_server(group: str, name: str, tools: Iterable[Tool]) -> Offer:
    """One tool of a server, or any of them: the latter can be told to a model only by offering it nothing else."""
    served = tuple(tool for tool in tools if tool.source is not None and tool.source.group == group)
    if name == "required" and served:
        return Offer(served, "required")
    for tool in served:
        if tool.source is not None and tool.source.name == name:
            return Offer(served, tool.name)
    message = f"The tool choice needs a tool that the MCP server '{group}' does not offer."
    raise InvalidRequest(message, code="invalid_value", param="tool_choice")


def _newest(tools: Iterable[Tool]) -> Iterable[Tool]:
    """The tools with one definition of each of the client's: its newest come first, then those of earlier turns."""
    known: set[tuple[str | None, str]] = set()
    for tool in tools:
        if tool.source is None:
            if (tool.namespace, tool.called or tool.name) in known:
                continue
            known.add((tool.namespace, tool.called or tool.name))
        yield tool


def _distinct(tools: Iterable[Tool]) -> Iterable[Tool]:
    """The tools under names of their own: of two that share one, the later is known by its server's as well."""
    taken: set[str] = set()
    for tool in tools:
        group = tool.source.group if tool.source is not None and tool.name in taken else None
        name = distinct_name(flat_name(group, tool.name), taken)
        taken.add(name)
        yield tool if name == tool.name else _renamed(tool, name)


def _renamed(tool: Tool, name: str) -> Tool:
    """The tool by another name upstream; whoever runs it goes on calling it by its own."""
    return replace(tool, name=name, called=tool.called or tool.name if tool.source is None else "")


def _served(server: ToolServer, listings: dict[str, tuple[dict[str, object], ...]]) -> Iterable[Tool]:
    for tool in server.listed if server.listed is not None else listings.get(server.label, ()):
        name, hints = str(tool["name"]), tool.get("annotations")
        if not server.chosen.passes(name, read_only(hints)):
            continue
        schema = tool.get("input_schema")
        yield Tool(
            name,
            str(tool.get("description") or ""),
            schema if isinstance(schema, dict) else {},
            ToolSource("mcp", server.label, name, server.endpoint, _args(server, name), repeatable=_repeatable(hints)),
            approval=server.approval.needed(name, read_only(hints)),
        )


def _args(server: ToolServer, name: str) -> dict[str, JSON]:
    return {**server.args.get("", {}), **server.args.get(name, {})}


def _repeatable(hints: object) -> bool:
    """Whether a call may be made twice, by the tool's own declaration (MCP tool annotations)."""
    return isinstance(hints, dict) and bool(hints.get("readOnlyHint") or hints.get("idempotentHint"))
