"""The parameter `tools`: checked, kept in one form, and parted from the secrets in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import ConfigDict, field_validator

from turnloom.domain.message import JSON
from turnloom.domain.redaction import public_address
from turnloom.usecases.server_addresses import FINGERPRINT
from turnloom.wire.responses_api.checks import (
    Name,
    Shape,
    check,
    is_web_address,
    only,
    unsupported,
    without_nulls,
    wrong_type,
    wrong_value,
)

Secrets = dict[str, dict[str, str]]

MOST_TOOLS = 1000
MOST_SERVERS = 100
"""How many tools, and MCP servers among them, a list may have: each takes time before the first token."""

_ECHOED_KEYS = ("async", "defer_loading", "allowed_callers", "output_schema")
"""Keys of a client's tool that mean nothing here and are shown to its readers again."""
_FUNCTION_KEYS = ("type", "name", "description", "parameters", "strict", *_ECHOED_KEYS)
_CUSTOM_KEYS = ("type", "name", "description", "format", *_ECHOED_KEYS)
_GRAMMAR_KEYS = ("type", "syntax", "definition")
_NAMESPACE_KEYS = ("type", "name", "description")
_MCP_KEYS = ("type", "server_label", "server_url", "server_description", "allowed_tools")
_LABEL_KEYS = ("type", "server_label", "server_description")

# What no two tools may have in common; functions and custom tools share their names.
_DISTINCT = {"function": "name", "custom": "name", "mcp": "server_label"}


def read_tools(given: Sequence[Mapping[str, Any]], param: str, alias: bool) -> tuple[list[JSON], Secrets]:
    """The tools in `param` as they are kept, and HTTP headers by MCP server address; unknown types are kept as given.

    A kept MCP tool always has `require_approval`: "always", "never" or `{"always"?, "never"?}`, each a filter with
    `tool_names` or `read_only` or both. Raises InvalidRequest with the path of what is wrong.
    """
    _check_count(given, param, MOST_TOOLS, "tools")
    tools: list[JSON] = []
    secrets: Secrets = {}
    for place, tool in enumerate(given):
        path = f"{param}[{place}]"
        check(TypedTool, tool, path)
        if tool["type"] == "mcp":
            tools.append(_mcp_tool(tool, path, alias))
            _keep_secret(tool, path, secrets)
        else:
            tools.append(_client_tool(tool, path))
    _check_count([tool for tool in tools if tool["type"] == "mcp"], param, MOST_SERVERS, "MCP servers")
    check_distinct({param: tools})
    return tools, secrets


def _check_count(items: Sequence[JSON], param: str, limit: int, noun: str) -> None:
    if len(items) > limit:
        wrong_value(param, f"Invalid value for '{param}': it has more than {limit} {noun}.")


def check_distinct(kept: Mapping[str, Sequence[JSON]]) -> None:
    """Raise InvalidRequest for the first of these tools, listed by their params, that shares its name or label."""
    seen: set[tuple[str, str]] = set()
    for param, tools in kept.items():
        for place, tool in enumerate(tools):
            _see(tool, f"{param}[{place}]", seen)


class TypedTool(Shape):
    type: str


class FunctionTool(Shape):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class CustomTool(Shape):
    name: Name
    description: str | None = None
    format: dict[str, Any] | None = None


class CustomFormat(Shape):
    type: Literal["text", "grammar"]


class Grammar(Shape):
    syntax: Literal["lark", "regex"]
    definition: str


class NamespaceTool(Shape):
    name: Name
    description: str | None = None
    tools: list[dict[str, Any]] | None = None


class NamesOrReadOnly(Shape):
    tool_names: list[str] | None = None
    read_only: bool | None = None


class ApprovalFilter(NamesOrReadOnly):
    """Strict, as a misspelled key would let everything pass."""

    model_config = ConfigDict(extra="forbid")


class ApprovalPolicy(Shape):
    model_config = ConfigDict(extra="forbid")

    always: ApprovalFilter | None = None
    never: ApprovalFilter | None = None


class McpTool(Shape):
    server_label: Name
    server_url: str
    server_description: str | None = None
    headers: dict[str, str] | None = None
    authorization: str | None = None
    allowed_tools: NamesOrReadOnly | None = None

    @field_validator("server_url")
    @classmethod
    def _is_an_address(cls, given: str) -> str:
        if not is_web_address(given):
            raise ValueError("not an http or https address")
        return given

    @field_validator("allowed_tools", mode="before")
    @classmethod
    def _as_filter(cls, given: Any) -> Any:
        return _named_filter(given)


# --- tools that the client runs


def _client_tool(tool: Mapping[str, Any], path: str) -> dict[str, JSON]:
    match tool["type"]:
        case "function":
            check(FunctionTool, tool, path)
            return only(_FUNCTION_KEYS, tool)
        case "custom":
            check(CustomTool, tool, path)
            kept = only(_CUSTOM_KEYS, tool)
            return kept | {"format": _format(kept["format"], f"{path}.format")} if "format" in kept else kept
        case "namespace":
            check(NamespaceTool, tool, path)
            _check_count(tool.get("tools") or [], f"{path}.tools", MOST_TOOLS, "tools")
            inner = [_inner_tool(each, f"{path}.tools[{place}]") for place, each in enumerate(tool.get("tools") or [])]
            return only(_NAMESPACE_KEYS, tool) | {"tools": inner}
        case _:
            return dict(tool)


def _format(given: Mapping[str, Any], path: str) -> JSON:
    check(CustomFormat, given, path)
    if given["type"] == "text":
        return {"type": "text"}
    check(Grammar, given, path)
    return only(_GRAMMAR_KEYS, given)


def _inner_tool(tool: Mapping[str, Any], path: str) -> JSON:
    """A tool of a namespace; of an MCP server, which is not asked from there, what can hold no secret."""
    check(TypedTool, tool, path)
    if tool["type"] == "mcp":
        return only(_LABEL_KEYS, _mcp_tool(tool, path, alias=False))
    return _client_tool(tool, path)


def _see(tool: Mapping[str, Any], path: str, seen: set[tuple[str, str]]) -> None:
    key = _DISTINCT.get(tool["type"])
    if key is None:
        return
    if (key, tool[key]) in seen:
        wrong_value(f"{path}.{key}", f"Two tools have the {key} '{tool[key]}'.")
    seen.add((key, tool[key]))


# --- MCP servers


def _mcp_tool(tool: Mapping[str, Any], path: str, alias: bool) -> dict[str, JSON]:
    for key in ("connector_id", "tunnel_id"):
        if tool.get(key) is not None:
            unsupported(f"{path}.{key}", "Connectors are not supported: name the server by 'server_url'.")
    check(McpTool, tool, path)
    asked = tool.get("require_approval")
    if asked is None:
        asked = "never" if alias else "always"
    return only(_MCP_KEYS, tool) | {"require_approval": _approval(asked, f"{path}.require_approval")}


def _approval(given: JSON, path: str) -> JSON:
    if given in ("always", "never"):
        return given
    if isinstance(given, str):
        wrong_value(path, f"Invalid value: '{given}'. '{path}' is 'always', 'never' or an object of filters.")
    if not isinstance(given, dict):
        wrong_type(path, "'always', 'never' or an object of filters")
    filters = {when: _named_filter(chosen) for when, chosen in without_nulls(given).items()}
    check(ApprovalPolicy, filters, path)
    return {when: without_nulls(chosen) for when, chosen in filters.items()}


def _named_filter(given: Any) -> Any:
    """A list of names is a filter, too."""
    return {"tool_names": given} if isinstance(given, list) else given


def _keep_secret(tool: Mapping[str, Any], path: str, secrets: Secrets) -> None:
    headers = dict(tool.get("headers") or {})
    if tool.get("authorization") is not None:
        headers["Authorization"] = f"Bearer {tool['authorization']}"
    if headers and secrets.setdefault(tool["server_url"], headers) != headers:
        wrong_value(path, f"Two MCP tools give different credentials for the same server, '{tool['server_label']}'.")


# --- telling a tool


def tool_json(tool: Mapping[str, Any]) -> JSON:
    """A kept tool as readers see it: keys that they look for are there, and no address tells a secret."""
    match tool.get("type"):
        case "function":
            return {"type": "function", "name": "", "description": None, "parameters": None, "strict": None, **tool}
        case "mcp" if "server_url" in tool:
            shown = {key: value for key, value in tool.items() if key != FINGERPRINT}
            return {**shown, "server_url": public_address(tool["server_url"])}
        case "namespace":
            return {**tool, "tools": [tool_json(inner) for inner in tool["tools"]]}
        case _:
            return dict(tool)
