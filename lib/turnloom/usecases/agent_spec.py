"""The rules of an agent's turn: its config, what the turn adds to it, and the tool groups that both name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from turnloom.domain.agent import ToolGroup
from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import JSON, Spec, Tool, ToolFilter, ToolServer, ToolSource
from turnloom.domain.tool_schema import parameters_schema

Groups = Mapping[str, tuple[Tool, ...] | ToolServer | None]
"""The tools of each group by its id, or the server of a guarded one; None for one that cannot be read any more."""


def agent_spec(config: Mapping[str, Any], settings: Mapping[str, Any], groups: Groups, most_inferences: int) -> Spec:
    """Resolve an AgentConfig (all defaults filled in) and the settings of one of its turns.

    Raises InvalidRequest: unknown_toolgroup, unknown_tool, duplicate_tool, unknown_shield.
    """
    tool_config = settings["tool_config"] if "tool_config" in settings else config["tool_config"]
    named = [*config["toolgroups"], *(settings.get("toolgroups") or [])]
    tools = _client_tools(config["client_tools"]) + group_tools(named, groups)
    servers = guarded_servers(named, groups)
    _check_names(tools)
    wanted = config["max_infer_iters"]
    return Spec(
        model=config["model"],
        instructions=_instructions(config["instructions"], tool_config, tools),
        tools=tuple(tools),
        choice=_choice(tool_config["tool_choice"], tools, servers),
        sampling=_sampling(config["sampling_params"]),
        optional_sampling=_optional_sampling(config["sampling_params"]),
        response_format=_response_format(config["response_format"]),
        max_inferences=min(wanted or most_inferences, most_inferences),
        input_shields=tuple(config["input_shields"]),
        output_shields=tuple(config["output_shields"]),
        documents=tuple(settings.get("documents") or ()),
        servers=servers,
        fails_on_refused_credentials=True,
    )


def groups_by_id(builtin: Groups, registered: Iterable[ToolGroup]) -> Groups:
    """Every tool group that an owner may name, with its tools."""
    return {**builtin, **{group.identifier: _offered_by(group) for group in registered}}


def _offered_by(group: ToolGroup) -> tuple[Tool, ...] | ToolServer | None:
    if group.guarded and group.endpoint:
        return ToolServer(group.identifier, group.endpoint, args={"": group.args})
    return tuple(map(stored_tool, group.tools)) if group.readable else None


def stored_tool(stored: Mapping[str, Any]) -> Tool:
    """The tool that `storable` wrote down."""
    source = stored.get("source")
    return Tool(stored["name"], stored["description"], stored["parameters"], ToolSource(**source) if source else None)


def storable(tool: Tool) -> dict[str, JSON]:
    """A server tool as JSON, without what its registration says for the whole group."""
    source = tool.source
    assert source is not None
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
        "source": {name: getattr(source, name) for name in ToolSource.__slots__},
    }


def group_tools(named: Sequence[JSON], groups: Groups) -> list[Tool]:
    """The tools that `group`, `group/tool` or `{name, args}` entries name; the later entry's args win."""
    tools: dict[tuple[str, str], Tool] = {}
    for entry in named:
        name, args = (entry, {}) if isinstance(entry, str) else (entry["name"], entry.get("args") or {})
        for tool in _named_tools(name, groups):
            assert tool.source is not None
            merged = {**tool.source.args, **args}
            tools[tool.source.group, tool.name] = replace(tool, source=replace(tool.source, args=merged))
    return list(tools.values())


def guarded_servers(named: Sequence[JSON], groups: Groups) -> tuple[ToolServer, ...]:
    """The servers of the guarded groups among those that entries name, which are asked for their tools in the turn."""
    servers: dict[str, ToolServer] = {}
    for entry in named:
        name, args = (entry, {}) if isinstance(entry, str) else (entry["name"], entry.get("args") or {})
        group, tool = (name, "") if name in groups else name.rpartition("/")[::2]
        server = groups.get(group)
        if isinstance(server, ToolServer):
            known = servers.get(group)
            servers[group] = _naming(tool, args, server if known is None else known, first=known is None)
    return tuple(servers.values())


def _naming(tool: str, args: Mapping[str, JSON], server: ToolServer, *, first: bool) -> ToolServer:
    """The server with one more tool named, or all of its tools for "", and args for it."""
    names = frozenset[str]() if first else server.allowed.names
    names = None if names is None or not tool else names | {tool}
    return replace(server, allowed=ToolFilter(names), args={**server.args, tool: {**server.args.get(tool, {}), **args}})


def _client_tools(definitions: Iterable[Mapping[str, Any]]) -> list[Tool]:
    return [Tool(d["name"], d.get("description") or "", parameters_schema(d.get("parameters"))) for d in definitions]


def _named_tools(name: str, groups: Groups) -> Iterable[Tool]:
    if name in groups:
        return _readable(name, groups)
    group, _, tool_name = name.rpartition("/")
    if group not in groups:
        known = ", ".join(sorted(groups))
        raise InvalidRequest(f"Toolgroup '{name}' is not registered; there are: {known}", code="unknown_toolgroup")
    tools = _readable(group, groups)
    if isinstance(groups[group], ToolServer):
        return ()
    found = [tool for tool in tools if tool.name == tool_name]
    if not found:
        known = ", ".join(tool.name for tool in tools)
        message = f"Toolgroup '{group}' has no tool '{tool_name}'; it has: {known}"
        raise InvalidRequest(message, code="unknown_tool")
    return found


def _readable(name: str, groups: Groups) -> tuple[Tool, ...]:
    tools = groups[name]
    if isinstance(tools, ToolServer):
        return ()
    if tools is None:
        raise InvalidRequest(
            f"Toolgroup '{name}' cannot be read any more: the key of this deployment that it was sealed with was "
            "changed. Register it again.",
            code="unknown_toolgroup",
        )
    return tools


def _check_names(tools: Sequence[Tool]) -> None:
    names = Counter(tool.name for tool in tools)
    doubled = sorted(name for name, count in names.items() if count > 1)
    if doubled:
        raise InvalidRequest(f"Two tools are named '{doubled[0]}'", code="duplicate_tool")


def _choice(choice: str, tools: Sequence[Tool], servers: Sequence[ToolServer]) -> str:
    # What a guarded group has is known only when its server is asked.
    if choice in ("auto", "none", "required") or servers or any(tool.name == choice for tool in tools):
        return choice
    known = ", ".join(tool.name for tool in tools) or "none"
    raise InvalidRequest(f"tool_choice names '{choice}', which is not offered; tools: {known}", code="unknown_tool")


def _instructions(instructions: str, tool_config: Mapping[str, Any], tools: Sequence[Tool]) -> str:
    if tool_config.get("system_message_behavior") != "replace":
        return instructions
    definitions = [
        {"name": tool.name, "description": tool.description, "parameters": tool.parameters} for tool in tools
    ]
    return instructions.replace("{{function_definitions}}", json.dumps(definitions))


def _sampling(params: Mapping[str, Any] | None) -> dict[str, JSON]:
    """Sampling parameters as chat completions take them; nothing is sent that was not asked for."""
    if params is None:
        return {}
    strategy = params["strategy"]
    sampling: dict[str, JSON] = {}
    match strategy["type"]:
        case "greedy":
            pass
        case "top_p":
            sampling["top_p"] = strategy["top_p"]
            if strategy["temperature"] is not None:
                sampling["temperature"] = strategy["temperature"]
        case "top_k":
            sampling["top_k"] = strategy["top_k"]
    optional = {"max_tokens": params["max_tokens"] or None, "stop": params["stop"] or None}
    sampling |= {name: value for name, value in optional.items() if value is not None}
    if params["repetition_penalty"] not in (None, 1.0):
        sampling["repetition_penalty"] = params["repetition_penalty"]
    return sampling


def _optional_sampling(params: Mapping[str, Any] | None) -> dict[str, JSON]:
    """Greedy sampling, which is also the default, as a temperature; some models take none, and are as good without."""
    return {"temperature": 0.0} if params is not None and params["strategy"]["type"] == "greedy" else {}


def _response_format(given: Mapping[str, Any] | None) -> dict[str, JSON] | None:
    if given is None:
        return None
    schema = given["json_schema"]
    wrapped = isinstance(schema.get("schema"), dict) and "name" in schema
    return {"type": "json_schema", "json_schema": schema if wrapped else {"name": "response", "schema": schema}}
