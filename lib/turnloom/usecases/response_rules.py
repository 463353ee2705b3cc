"""The rules of a response in its context: what the turns before it, and the items it was given, bring to them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from turnloom.domain.message import JSON, Spec, ToolServer
from turnloom.domain.turn import Listing, Turn
from turnloom.usecases.approvals import allowed_calls
from turnloom.usecases.response_spec import servers_of, spec_of, unavailable_types
from turnloom.usecases.server_addresses import FINGERPRINT
from turnloom.usecases.services import Services

LOST_SERVER = "mcp (its address was a secret of an earlier request)"
MOST_NAMED = 20
_PLAIN = re.compile(r"[a-z0-9_]{1,64}")


def rules(
    services: Services,
    settings: Mapping[str, Any],
    history: Sequence[Turn],
    items: Sequence[JSON],
    addresses: Mapping[str, str],
    *,
    resumed: bool = False,
) -> Spec:
    """The rules of the request, with what the turns before it have brought: listed tools, calls to be allowed.

    `addresses` are the secret ones of its MCP servers, by fingerprint. A server that came as an item of an earlier
    request is left out if its address was a secret of that request. A turn that has `resumed` knows its allowed calls
    itself; their requests may have been deleted since.
    """
    more_tools = [tool for tool in tools_among(settings, history, items) if _has_address(tool, addresses)]
    spec = spec_of(settings, services.limits.inferences, more_tools)
    servers = tuple(_known(_with_address(server, addresses), history, items) for server in spec.servers)
    return replace(spec, servers=servers, allowed_calls=() if resumed else allowed_calls(history, items, spec))


def tools_among(settings: Mapping[str, Any], history: Sequence[Turn], items: Sequence[JSON]) -> list[JSON]:
    """The tools that came as items, as Codex sends them to some models; the newest list counts.

    A server of the same label among the tools of the request stands for one that came as an item.
    """
    lists = (
        item["tools"]
        for given in (items, *(turn.input for turn in reversed(history)))
        for item in given[::-1]
        if item["type"] == "additional_tools"
    )
    labels = {tool["server_label"] for tool in settings.get("tools", ()) if tool["type"] == "mcp"}
    return [tool for tool in next(lists, []) if tool.get("server_label") not in labels]


def unavailable_tools(
    settings: Mapping[str, Any], history: Sequence[Turn], items: Sequence[JSON], addresses: Mapping[str, str]
) -> list[str]:
    """What `rules` leaves out, for a log: types of tools that are not run here, and servers whose address is lost.

    Types are words of the client: of a long list only the first are named, and none that is no plain word.
    """
    more_tools = tools_among(settings, history, items)
    types = unavailable_types((*settings.get("tools", ()), *more_tools))
    names = {kind if _PLAIN.fullmatch(kind) else "(another type)" for kind in types}
    lost = [] if all(_has_address(tool, addresses) for tool in more_tools) else [LOST_SERVER]
    return lost + sorted(names)[:MOST_NAMED]


def _has_address(tool: JSON, addresses: Mapping[str, str]) -> bool:
    return FINGERPRINT not in tool or tool[FINGERPRINT] in addresses


def _with_address(server: ToolServer, addresses: Mapping[str, str]) -> ToolServer:
    return replace(server, endpoint=addresses[server.fingerprint]) if server.fingerprint else server


def _known(server: ToolServer, history: Sequence[Turn], items: Sequence[JSON]) -> ToolServer:
    """The server, with what an earlier response was told by the same one under the same filter."""
    for asked, tools in (*_echoed(items), *(found for turn in reversed(history) for found in _listings(turn))):
        if (asked.label, asked.allowed) == (server.label, server.allowed) and _same_address(asked, server):
            return replace(server, listed=tools)
    return server


def _same_address(listed: ToolServer, server: ToolServer) -> bool:
    """Whether a stored server is this one; what an earlier version stored has the address itself."""
    if listed.fingerprint:
        return listed.fingerprint == server.fingerprint
    return listed.endpoint == server.endpoint


def _listings(turn: Turn) -> Iterator[tuple[ToolServer, tuple[JSON, ...]]]:
    listed = {step.server: step.tools for step in turn.steps if isinstance(step, Listing) and step.error is None}
    for server in servers_of(turn.settings or {}) if listed else ():
        if server.label in listed:
            yield server, listed[server.label]
    yield from _echoed(turn.input)


def _echoed(items: Sequence[JSON]) -> Iterator[tuple[ToolServer, tuple[JSON, ...]]]:
    """Lists that a client has sent back to us, and that we know to be our own."""
    for item in items:
        if item["type"] == "mcp_list_tools" and "server" in item and not item.get("error"):
            [server] = servers_of({"tools": [item["server"]]})
            yield server, tuple(item["tools"])
