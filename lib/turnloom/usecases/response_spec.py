"""The rules of a response, resolved from the parameters of its request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import JSON, Spec, Tool, ToolServer

ALIAS_INFERENCES = 10

_SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
LOGPROBS = "message.output_text.logprobs"


def spec_of(settings: Mapping[str, Any], max_inferences_cap: int) -> Spec:
    """The spec for settings as `models.parse_create` writes them; at most `max_inferences_cap` model calls.

    Tools of types that Turnloom does not run are not offered. Raises InvalidRequest (`param` `tool_choice`) when the
    choice needs a tool that is not there.
    """
    offer = _chosen(settings.get("tool_choice", "auto"), _offer(settings.get("tools", ())))
    wanted = settings.get("max_infer_iters", ALIAS_INFERENCES if settings.get("alias") else max_inferences_cap)
    return Spec(
        model=settings["model"],
        instructions=settings.get("instructions", ""),
        tools=offer.tools,
        servers=offer.servers,
        choice=offer.choice,
        sampling=_sampling(settings),
        response_format=_response_format(settings.get("text", {}).get("format", {"type": "text"})),
        parallel_calls=settings.get("parallel_tool_calls", True),
        max_inferences=min(wanted, max_inferences_cap),
        max_tokens=settings.get("max_output_tokens"),
        suspends_for_client=False,
        runs_last_calls=True,
        checks_client_arguments=False,
    )


@dataclass(frozen=True, slots=True)
class _Offer:
    """The tools for the model, and which of them it must use."""

    tools: tuple[Tool, ...]
    servers: tuple[ToolServer, ...]
    choice: str = "auto"

    @property
    def empty(self) -> bool:
        return not self.tools and not self.servers

    def tool(self, name: str) -> Tool:
        found = next((tool for tool in self.tools if tool.name == name), None)
        return found or _refuse(f"Tool choice '{name}' is not among the function tools of the request.")

    def server(self, label: str) -> ToolServer:
        found = next((server for server in self.servers if server.label == label), None)
        return found or _refuse(f"Tool choice '{label}' is not among the MCP servers of the request.")


def _offer(tools: Sequence[Mapping[str, Any]]) -> _Offer:
    functions = tuple(_function(tool) for tool in tools if tool["type"] == "function")
    return _Offer(functions, tuple(_server(tool) for tool in tools if tool["type"] == "mcp"))


def _function(tool: Mapping[str, Any]) -> Tool:
    offered = Tool(tool["name"], tool.get("description", ""), strict=tool.get("strict"))
    return replace(offered, parameters=tool["parameters"]) if "parameters" in tool else offered


def _server(tool: Mapping[str, Any]) -> ToolServer:
    allowed = tool.get("allowed_tools", {})
    only: Mapping[str, Any] = {"tool_names": allowed} if isinstance(allowed, list) else allowed
    names = only.get("tool_names")
    return ToolServer(
        label=tool["server_label"],
        endpoint=tool["server_url"],
        allowed=None if names is None else frozenset(names),
        read_only=only.get("read_only"),
    )


# --- tool choice


def _chosen(choice: JSON, offer: _Offer) -> _Offer:
    match choice:
        case "auto" | "none":
            return replace(offer, choice=choice)
        case "required":
            return _required(offer)
        case {"type": "function", "name": str(name)}:
            return replace(offer, choice=offer.tool(name).name)
        case {"type": "mcp", "server_label": str(label)}:
            return _of_server(choice, offer.server(label), offer)
        case {"type": "allowed_tools", "mode": "auto", "tools": list(tools)}:
            return _subset(tools, offer)
        case {"type": "allowed_tools", "mode": "required", "tools": list(tools)}:
            return _required(_subset(tools, offer))
        case {"type": "function" | "mcp" | "allowed_tools"}:
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
    return replace(offer, choice="required")


def _of_server(choice: Mapping[str, Any], server: ToolServer, offer: _Offer) -> _Offer:
    """One tool of a server, or any of them: the latter can be told to a model only when it is offered nothing else."""
    name = choice.get("name")
    if name is not None:
        _check_name(name)
        if server.allowed is not None and name not in server.allowed:
            _refuse(f"Tool choice '{name}' is not among the allowed tools of '{server.label}'.")
        return replace(offer, choice=str(name))
    if offer.tools or len(offer.servers) > 1:
        _refuse(f"Name the tool of '{server.label}' to be called, or offer no other tools.", "unsupported_parameter")
    return replace(offer, choice="required")


def _check_name(name: JSON) -> None:
    if not isinstance(name, str):
        _refuse("The name of a tool is a string.", "invalid_type")


def _subset(allowed: Sequence[JSON], offer: _Offer) -> _Offer:
    """The offer without what is not allowed; tools that are not offered anyway may be named too."""
    functions: set[str] = set()
    servers: dict[str, ToolServer] = {}
    for tool in allowed:
        match tool:
            case {"type": "function", "name": str(name)}:
                functions.add(offer.tool(name).name)
            case {"type": "mcp", "server_label": str(label)}:
                servers[label] = _narrowed(offer.server(label), tool.get("name"), servers.get(label))
            case {"type": str()}:
                pass
            case _:
                _refuse("Each allowed tool is an object with a type and what names it.")
    kept = tuple(tool for tool in offer.tools if tool.name in functions)
    return _Offer(kept, tuple(servers.values()))


def _narrowed(server: ToolServer, name: JSON, before: ToolServer | None) -> ToolServer:
    """The server with only this tool (None: all of its tools), beside those that were let through before."""
    if name is None or (before is not None and before.allowed == server.allowed):
        return server
    _check_name(name)
    if server.allowed is not None and name not in server.allowed:
        _refuse(f"Tool choice '{name}' is not among the allowed tools of '{server.label}'.")
    earlier = before.allowed or frozenset() if before is not None else frozenset()
    return replace(server, allowed=earlier | {str(name)})


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
