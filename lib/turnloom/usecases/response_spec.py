"""The rules of a response, resolved from the parameters of its request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import (
    JSON,
    Approval,
    Spec,
    Tool,
    ToolFilter,
    ToolServer,
    distinct_name,
    flat_name,
)
from turnloom.usecases.server_addresses import FINGERPRINT

ALIAS_INFERENCES = 10

COMPACT_THRESHOLD = 100_000
"""From how many tokens on a context is compacted whose request does not say: what leaves room in one of 128k."""

_SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
LOGPROBS = "message.output_text.logprobs"


def spec_of(settings: Mapping[str, Any], max_inferences_cap: int, more_tools: Sequence[Mapping[str, Any]] = ()) -> Spec:
    """The spec for settings as `models.parse_create` writes them; at most `max_inferences_cap` model calls.

    `more_tools` are those that came among the items of the input. Tools of types that Turnloom does not run are not
    offered. Raises InvalidRequest (`param` `tool_choice`) when the choice needs a tool that is not there.
    """
    offer = _chosen(settings.get("tool_choice", "auto"), _offer((*settings.get("tools", ()), *more_tools)))
    alias = bool(settings.get("alias"))
    wanted = settings.get("max_infer_iters", ALIAS_INFERENCES if alias else max_inferences_cap)
    return Spec(
        model=settings["model"],
        instructions=settings.get("instructions", ""),
        tools=offer.tools,
        servers=offer.servers,
        choice=offer.choice,
        choice_group=offer.choice_group,
        sampling=_sampling(settings),
        response_format=_response_format(settings.get("text", {}).get("format", {"type": "text"})),
        parallel_calls=settings.get("parallel_tool_calls", True),
        max_inferences=min(wanted, max_inferences_cap),
        max_tokens=settings.get("max_output_tokens"),
        max_hosted_calls=settings.get("max_tool_calls"),
        truncates=settings.get("truncation") == "auto",
        compact_above=_threshold(settings.get("context_management", ())),
        suspends_for_client=False,
        runs_last_calls=True,
        checks_client_arguments=False,
        fails_on_refused_credentials=alias,
    )


def servers_of(settings: Mapping[str, Any]) -> tuple[ToolServer, ...]:
    """The MCP servers among the tools, as the request described them."""
    return tuple(_server(tool) for tool in settings.get("tools", ()) if tool["type"] == "mcp")


def unavailable_types(tools: Iterable[Mapping[str, Any]], *, nested: bool = False) -> Iterator[str]:
    """The types of the tools that no model is offered: Turnloom does not run them, or not in a namespace."""
    for tool in tools:
        match tool["type"]:
            case "function" | "custom":
                continue
            case "mcp" if not nested:
                continue
            case "namespace" if not nested:
                yield from unavailable_types(tool["tools"], nested=True)
            case kind:
                yield kind


def _threshold(strategies: Iterable[Mapping[str, Any]]) -> int | None:
    return min((strategy.get("compact_threshold", COMPACT_THRESHOLD) for strategy in strategies), default=None)


# --- tools


@dataclass(frozen=True, slots=True)
class _Offer:
    """The tools for the model, and which of them it must use."""

    tools: tuple[Tool, ...]
    servers: tuple[ToolServer, ...]
    choice: str = "auto"
    choice_group: str | None = None

    @property
    def empty(self) -> bool:
        return not self.tools and not self.servers

    def tool(self, kind: str, chosen: Mapping[str, Any]) -> Tool:
        name, namespace = chosen["name"], chosen.get("namespace")
        wanted = (kind, name, namespace)
        found = next((tool for tool in self.tools if (tool.kind, tool.called, tool.namespace) == wanted), None)
        return found or _refuse(f"Tool choice '{name}' is not among the {kind} tools of the request.")

    def server(self, label: str) -> ToolServer:
        found = next((server for server in self.servers if server.label == label), None)
        return found or _refuse(f"Tool choice '{label}' is not among the MCP servers of the request.")


def _offer(tools: Sequence[Mapping[str, Any]]) -> _Offer:
    return _Offer(tuple(_distinct(_client_tools(tools, None))), servers_of({"tools": tools}))


def _client_tools(tools: Iterable[Mapping[str, Any]], namespace: str | None) -> Iterator[Tool]:
    for tool in tools:
        match tool["type"]:
            case "function":
                yield _function(tool, namespace)
            case "custom":
                yield _custom(tool, namespace)
            case "namespace" if namespace is None:
                yield from _client_tools(tool["tools"], tool["name"])
            case _:
                continue


def _function(tool: Mapping[str, Any], namespace: str | None) -> Tool:
    name = tool["name"]
    offered = Tool(
        flat_name(namespace, name),
        tool.get("description", ""),
        strict=tool.get("strict"),
        namespace=namespace,
        called=name,
    )
    return replace(offered, parameters=tool["parameters"]) if "parameters" in tool else offered


def _custom(tool: Mapping[str, Any], namespace: str | None) -> Tool:
    """A tool that takes a text, as a function with that text for its one parameter."""
    described = tool.get("description", "")
    form = tool.get("format", {})
    if form.get("type") == "grammar":
        rule = f"The input must match this {form['syntax']} grammar:\n{form['definition']}"
        described = f"{described}\n\n{rule}".strip()
    return Tool(
        flat_name(namespace, tool["name"]),
        described,
        {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]},
        kind="custom",
        namespace=namespace,
        called=tool["name"],
    )


def _distinct(tools: Iterable[Tool]) -> Iterator[Tool]:
    """The tools under names of their own, whatever their namespaces look like when they are flat."""
    taken: set[str] = set()
    for tool in tools:
        name = distinct_name(tool.name, taken)
        taken.add(name)
        yield tool if name == tool.name else replace(tool, name=name)


def _server(tool: Mapping[str, Any]) -> ToolServer:
    allowed = tool.get("allowed_tools", {})
    return ToolServer(
        label=tool["server_label"],
        endpoint=tool["server_url"],
        allowed=_filter({"tool_names": allowed} if isinstance(allowed, list) else allowed),
        approval=_approval(tool.get("require_approval", "never")),
        fingerprint=tool.get(FINGERPRINT, ""),
    )


def _approval(policy: JSON) -> Approval:
    match policy:
        case "always":
            return Approval(always=ToolFilter())
        case dict():
            return Approval(**{when: _filter(chosen) for when, chosen in policy.items()})
        case _:
            return Approval(never=ToolFilter())


def _filter(given: Mapping[str, Any]) -> ToolFilter:
    names = given.get("tool_names")
    return ToolFilter(None if names is None else frozenset(names), given.get("read_only"))


# --- tool choice


def _chosen(choice: JSON, offer: _Offer) -> _Offer:
    match choice:
        case "auto" | "none":
            return replace(offer, choice=choice)
        case "required":
            return _required(offer)
        case {"type": "function" | "custom" as kind, "name": str()}:
            return replace(offer, choice=offer.tool(kind, choice).name)
        case {"type": "mcp", "server_label": str(label)}:
            return _of_server(choice, offer.server(label), offer)
        case {"type": "allowed_tools", "mode": "auto", "tools": list(tools)}:
            return _subset(tools, offer)
        case {"type": "allowed_tools", "mode": "required", "tools": list(tools)}:
            return _required(_subset(tools, offer))
        case {"type": "function" | "custom" | "mcp" | "allowed_tools"}:
            return _refuse(f"A tool choice of type '{choice['type']}' must say which tools it means, and how.")
        case {"type": str(kind)}:
            return _refuse(f"The tool choice needs a tool of type '{kind}', which is not available here.")
        case str():
            return _refuse(f"Invalid tool choice: '{choice}' is not one of 'none', 'auto' and 'required'.")
        case _:
            return _refuse("A tool choice is a string or an object with a type.", "invalid_type")


def _required(offer: _Offer) -> _Offer:
    if offer.empty:
        _refuse("The tool choice is 'required', but there is no tool to be called.")
    servers = offer.servers if offer.tools else tuple(replace(server, needed=True) for server in offer.servers)
    return replace(offer, choice="required", servers=servers)


def _of_server(choice: Mapping[str, Any], server: ToolServer, offer: _Offer) -> _Offer:
    """One tool of a server, or any of them."""
    name = choice.get("name")
    if name is not None:
        _check_allowed(server, name)
    needed = tuple(replace(other, needed=other.label == server.label) for other in offer.servers)
    return replace(offer, servers=needed, choice=name or "required", choice_group=server.label)


def _check_allowed(server: ToolServer, name: JSON) -> None:
    if not isinstance(name, str):
        _refuse("The name of a tool is a string.", "invalid_type")
    if server.allowed.names is not None and name not in server.allowed.names:
        _refuse(f"Tool choice '{name}' is not among the allowed tools of '{server.label}'.")


def _subset(allowed: Sequence[JSON], offer: _Offer) -> _Offer:
    """The offer without what is not allowed; tools that are not offered anyway may be named too."""
    kept: set[str] = set()
    servers: dict[str, ToolServer] = {}
    for tool in allowed:
        match tool:
            case {"type": "function" | "custom" as kind, "name": str()}:
                kept.add(offer.tool(kind, tool).name)
            case {"type": "namespace", "name": str(name)}:
                kept |= {offered.name for offered in offer.tools if offered.namespace == name}
            case {"type": "mcp", "server_label": str(label)}:
                servers[label] = _narrowed(offer.server(label), tool.get("name"), servers.get(label))
            case {"type": str()}:
                pass
            case _:
                _refuse("Each allowed tool is an object with a type and what names it.")
    return _Offer(tuple(tool for tool in offer.tools if tool.name in kept), tuple(servers.values()))


def _narrowed(server: ToolServer, name: JSON, before: ToolServer | None) -> ToolServer:
    """The server with only this tool (None: all of its tools), beside those that were let through before."""
    if name is None or (before is not None and before.chosen.names is None):
        return server
    _check_allowed(server, name)
    earlier = before.chosen.names or frozenset() if before is not None else frozenset()
    return replace(server, chosen=ToolFilter(earlier | {str(name)}))


def _refuse(message: str, code: str = "invalid_value") -> NoReturn:
    raise InvalidRequest(message, code=code, param="tool_choice")


# --- what goes upstream


def _sampling(settings: Mapping[str, Any]) -> dict[str, JSON]:
    sampling = {name: settings[name] for name in _SAMPLING if name in settings}
    most = settings.get("top_logprobs", 0)
    if most or LOGPROBS in settings.get("include", ()):
        sampling["logprobs"] = True
    if most:
        sampling["top_logprobs"] = most
    if "effort" in settings.get("reasoning", {}):
        sampling["reasoning_effort"] = settings["reasoning"]["effort"]
    return sampling


def _response_format(given: Mapping[str, Any]) -> dict[str, JSON] | None:
    match given["type"]:
        case "json_object":
            return {"type": "json_object"}
        case "json_schema":
            return {"type": "json_schema", "json_schema": {key: given[key] for key in given if key != "type"}}
        case _:
            return None
