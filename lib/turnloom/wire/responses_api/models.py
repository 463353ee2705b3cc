"""Bodies of the Responses API. `null` means not given; what is unknown is ignored and not repeated to anyone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import JSON
from turnloom.wire.responses_api.reading import read_input

_INCLUDABLE = frozenset(
    {
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "message.output_text.logprobs",
        "reasoning.encrypted_content",
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)

# Parameters that are kept as they came in; `tools`, `text`, `reasoning` and `include` are cleaned first.
_KEPT = (
    "model",
    "instructions",
    "previous_response_id",
    "tool_choice",
    "parallel_tool_calls",
    "max_tool_calls",
    "max_infer_iters",
    "max_output_tokens",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "top_logprobs",
    "truncation",
    "metadata",
    "user",
    "safety_identifier",
    "prompt_cache_key",
)
_FUNCTION_KEYS = ("type", "name", "description", "parameters", "strict")
_MCP_KEYS = ("type", "server_label", "server_url", "server_description", "allowed_tools", "require_approval")
_FORMAT_KEYS = ("type", "name", "description", "schema", "strict")

Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """A response as asked for.

    `input` holds the new items, `settings` the parameters that the client gave, as far as they are echoed or needed
    while the response runs. `secrets` are HTTP headers by MCP server address; they are in nothing else.
    """

    input: tuple[JSON, ...]
    settings: dict[str, JSON]
    secrets: dict[str, dict[str, str]]
    stream: bool
    store: bool
    include_obfuscation: bool


def parse_create(body: bytes | dict[str, Any], alias: bool = False) -> CreateRequest:
    """Read the body of a create request; `alias` says that it came to the llama-stack path.

    Raises InvalidRequest: `missing_required_parameter`, `invalid_type`, `invalid_value` or `unsupported_parameter`,
    with the culprit's path as `param`; `invalid_request` when the body is no JSON object.
    """
    given = _without_nulls(body if isinstance(body, dict) else _json_object(body))
    _check(CreateBody, given, "")
    _refuse_unbuilt(given)
    tools, secrets = _tools(given.get("tools", []), alias)
    items = read_input(given["input"]) if "input" in given else ()
    if "previous_response_id" not in given and not given.get("input"):
        _missing("input")
    store = given.get("store", True)
    return CreateRequest(
        input=items,
        settings=_settings(given, tools, store=store, alias=alias),
        secrets=secrets,
        stream=given.get("stream", False),
        store=store,
        include_obfuscation=given.get("stream_options", {}).get("include_obfuscation") is not False,
    )


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class TextConfig(Body):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class PlainFormat(Body):
    type: Literal["text", "json_object", "json_schema"]


class JsonSchemaFormat(Body):
    name: Annotated[str, Field(min_length=1)]
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class Reasoning(Body):
    effort: str | None = None
    summary: str | None = None


class StreamOptions(Body):
    include_obfuscation: bool | None = None


class Tool(Body):
    type: str


class FunctionTool(Body):
    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolFilter(Body):
    tool_names: list[str] | None = None
    read_only: bool | None = None


class McpTool(Body):
    server_label: Annotated[str, Field(min_length=1)]
    server_url: Annotated[str, Field(pattern=r"^https?://[^/]")]
    server_description: str | None = None
    headers: dict[str, str] | None = None
    authorization: str | None = None
    allowed_tools: ToolFilter | None = None

    @field_validator("server_url")
    @classmethod
    def _is_an_address(cls, given: str) -> str:
        urlsplit(given)
        return given

    @field_validator("allowed_tools", mode="before")
    @classmethod
    def _names_alone_are_a_filter(cls, given: Any) -> Any:
        return {"tool_names": given} if isinstance(given, list) else given


class CreateBody(Body):
    """The parameters whose type or range matters; items of `input` and `tools` are looked at one by one."""

    model: Annotated[str, Field(min_length=1)]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Count | None = None
    max_infer_iters: Count | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[str] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


# --- reading the body


def _json_object(body: bytes) -> dict[str, Any]:
    """Raises InvalidRequest for what other programs could not read either: NaN, and halves of surrogate pairs."""
    try:
        value = json.loads(body.decode(), parse_constant=_no_json, parse_float=_finite)
        if b"\\ud" in body.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise InvalidRequest("The body of the request is not valid JSON.") from None
    if not isinstance(value, dict):
        raise InvalidRequest("The body of the request must be a JSON object.")
    return value


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_json(text)


def _no_json(constant: str) -> NoReturn:
    raise ValueError(constant)


def _without_nulls(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None}


def _refuse_unbuilt(given: Mapping[str, Any]) -> None:
    """Refuse what Turnloom does not do yet and may not pass over in silence."""
    asked = {
        "background": given.get("background", False),
        "conversation": "conversation" in given,
        "prompt": "prompt" in given,
        "guardrails": bool(given.get("guardrails")),
        "moderation": _blocks(given.get("moderation")),
    }
    for name, wanted in asked.items():
        if wanted:
            _unsupported(name, f"The parameter '{name}' is not supported yet.")


def _blocks(moderation: JSON) -> bool:
    policy = moderation.get("policy") if isinstance(moderation, dict) else None
    sides = policy.values() if isinstance(policy, dict) else ()
    return any(isinstance(side, dict) and side.get("mode") == "block" for side in sides)


# --- settings


def _settings(given: Mapping[str, Any], tools: list[JSON], *, store: bool, alias: bool) -> dict[str, JSON]:
    settings = {key: given[key] for key in _KEPT if key in given}
    if tools:
        settings["tools"] = tools
    if text := _text(given.get("text", {})):
        settings["text"] = text
    if reasoning := _without_nulls(given.get("reasoning", {})):
        settings["reasoning"] = reasoning
    if include := sorted(_INCLUDABLE.intersection(given.get("include", ()))):
        settings["include"] = include
    if not store:
        settings["store"] = False
    if alias:
        settings["alias"] = True
    return settings


def _text(given: Mapping[str, Any]) -> dict[str, JSON]:
    text = {key: given[key] for key in ("format", "verbosity") if given.get(key) is not None}
    if "format" in text:
        chosen = text["format"]
        _check(PlainFormat, chosen, "text.format")
        if chosen["type"] == "json_schema":
            _check(JsonSchemaFormat, chosen, "text.format")
        text["format"] = {key: chosen[key] for key in _FORMAT_KEYS if chosen.get(key) is not None}
    return text


# --- tools


def _tools(given: list[dict[str, Any]], alias: bool) -> tuple[list[JSON], dict[str, dict[str, str]]]:
    """The tools as they are kept, and the headers for each MCP server; unknown types are kept as given."""
    tools: list[JSON] = []
    secrets: dict[str, dict[str, str]] = {}
    labels: set[str] = set()
    for place, tool in enumerate(given):
        path = f"tools[{place}]"
        _check(Tool, tool, path)
        match tool["type"]:
            case "function":
                _check(FunctionTool, tool, path)
                tools.append(_only(_FUNCTION_KEYS, tool))
            case "mcp":
                _check_mcp(tool, path, labels, alias)
                _keep_secret(tool, path, secrets)
                tools.append(_only(_MCP_KEYS, tool))
            case _:
                tools.append(tool)
    return tools, secrets


def _only(keys: tuple[str, ...], tool: Mapping[str, Any]) -> JSON:
    return {key: tool[key] for key in keys if tool.get(key) is not None}


def _check_mcp(tool: Mapping[str, Any], path: str, labels: set[str], alias: bool) -> None:
    for key in ("connector_id", "tunnel_id"):
        if tool.get(key) is not None:
            _unsupported(f"{path}.{key}", "Connectors are not supported: name the server by 'server_url'.")
    _check(McpTool, tool, path)
    if tool["server_label"] in labels:
        message = f"Two MCP servers have the label '{tool['server_label']}'."
        raise InvalidRequest(message, code="invalid_value", param=f"{path}.server_label")
    labels.add(tool["server_label"])
    if (tool.get("require_approval") or ("never" if alias else "always")) != "never":
        _unsupported(f"{path}.require_approval", "MCP approvals are not supported yet: set it to 'never'.")


def _keep_secret(tool: Mapping[str, Any], path: str, secrets: dict[str, dict[str, str]]) -> None:
    headers = dict(tool.get("headers") or {})
    if tool.get("authorization") is not None:
        headers["Authorization"] = f"Bearer {tool['authorization']}"
    if headers and secrets.setdefault(tool["server_url"], headers) != headers:
        message = f"Two MCP tools give different credentials for the same server, '{tool['server_label']}'."
        raise InvalidRequest(message, code="invalid_value", param=path)


# --- errors


def _check(model: type[Body], given: Mapping[str, Any], path: str) -> None:
    """Raise InvalidRequest for the first thing that the model finds wrong with the value at `path`."""
    try:
        model.model_validate(_without_nulls(given))
    except ValidationError as error:
        _raise_first(error.errors(include_url=False, include_input=False)[0], path)


def _raise_first(error: ErrorDetails, path: str) -> NoReturn:
    param = _path(path, error["loc"])
    if error["type"] == "missing":
        _missing(param)
    wrong_type = error["type"].endswith(("_type", "_parsing"))
    code, what = ("invalid_type", "type") if wrong_type else ("invalid_value", "value")
    raise InvalidRequest(f"Invalid {what} for '{param}': {error['msg']}.", code=code, param=param)


def _missing(param: str) -> NoReturn:
    message = f"Missing required parameter: '{param}'."
    raise InvalidRequest(message, code="missing_required_parameter", param=param)


def _unsupported(param: str, message: str) -> NoReturn:
    raise InvalidRequest(message, code="unsupported_parameter", param=param)


def _path(path: str, places: tuple[int | str, ...]) -> str:
    for place in places:
        if place == "[key]":
            continue
        path = f"{path}[{place}]" if isinstance(place, int) else f"{path}.{place}".removeprefix(".")
    return path
