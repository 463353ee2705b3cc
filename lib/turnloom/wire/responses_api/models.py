"""Bodies of requests about responses and conversations. `null` means not given; what is unknown is passed over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from turnloom.domain.message import JSON
from turnloom.wire.body import json_object
from turnloom.wire.responses_api.checks import (
    Name,
    Shape,
    check,
    missing,
    only,
    unsupported,
    without_nulls,
    wrong_type,
    wrong_value,
)
from turnloom.wire.responses_api.reading import read_input, read_items
from turnloom.wire.responses_api.tools import Secrets, check_distinct, read_tools

MOST_ITEMS = 20
"""Of a conversation in one request."""

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

# Parameters that are kept as they came in; the others that are kept are cleaned first.
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
_FORMAT_KEYS = ("type", "name", "description", "schema", "strict")

# How an answer is brought, which makes it no other one; and kept, with which a count of tokens has nothing to do.
_BROUGHT = ("stream", "stream_options")
_DELIVERY = (*_BROUGHT, "store", "background")

Raw = bytes | dict[str, Any]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=1)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """A response as asked for.

    `input` holds the new items, `settings` the parameters that the client gave, as far as they are echoed or needed
    while the response runs. `secrets` are HTTP headers by MCP server address; they are in nothing else.
    """

    input: tuple[JSON, ...]
    settings: dict[str, JSON]
    secrets: Secrets
    stream: bool
    store: bool
    include_obfuscation: bool
    background: bool = False
    conversation: str | None = None


@dataclass(frozen=True, slots=True)
class CompactRequest:
    """A context to be summed up: that of an earlier response, if one is named, and the new items."""

    model: str
    input: tuple[JSON, ...]
    instructions: str | None
    previous_response_id: str | None


@dataclass(frozen=True, slots=True)
class ConversationRequest:
    """A conversation to be opened with these items in it."""

    items: tuple[JSON, ...]
    metadata: dict[str, str]


def parse_create(body: Raw, alias: bool = False) -> CreateRequest:
    """Read the body of a create request; `alias` says that it came to the llama-stack path.

    Raises InvalidRequest: `missing_required_parameter`, `invalid_type`, `invalid_value` or `unsupported_parameter`,
    with the culprit's path as `param`; `invalid_request` when the body is no JSON object. So do the other readers.
    """
    given = _given(body)
    check(CreateBody, given, "")
    _refuse_unbuilt(given)
    conversation = _conversation(given)
    _check_context(given)
    tools, secrets = read_tools(given.get("tools", []), "tools", alias)
    items = read_input(given.get("input", []))
    check_distinct({"tools": tools, **_newest_tools(items)})
    return CreateRequest(
        input=items,
        settings=_settings(given, tools, conversation, alias=alias),
        secrets=secrets,
        stream=given.get("stream", False),
        store=given.get("store", True),
        include_obfuscation=given.get("stream_options", {}).get("include_obfuscation") is not False,
        background=given.get("background", False),
        conversation=conversation,
    )


def fingerprint_of(path: str, body: bytes) -> str:
    """What tells a create request from others: its path and what it asks for, however the JSON is written.

    Whether the answer is to be streamed does not count: a response that was begun can be told either way.
    """
    wanted = {key: value for key, value in _given(body).items() if key not in _BROUGHT}
    return hashlib.sha256(f"{path}\0{json.dumps(wanted, sort_keys=True)}".encode()).hexdigest()


def parse_count(body: Raw, alias: bool = False) -> CreateRequest:
    """Read the body of a request to count tokens: that of a create request, whose answer goes nowhere.

    The model may be left out: an endpoint with one model ignores its name, and others make us estimate.
    """
    given = _given(body)
    counted = {key: value for key, value in given.items() if key not in _DELIVERY}
    return parse_create({"model": "default", **counted}, alias)


def parse_compact(body: Raw) -> CompactRequest:
    """Read the body of a request for compaction, which needs something to sum up."""
    given = _given(body)
    check(CompactBody, given, "")
    if "previous_response_id" not in given:
        _need_input(given)
    return CompactRequest(
        model=given["model"],
        input=read_input(given.get("input", [])),
        instructions=given.get("instructions"),
        previous_response_id=given.get("previous_response_id"),
    )


def parse_conversation(body: Raw) -> ConversationRequest:
    """Read the body of a request to open a conversation, which may be empty."""
    given = _given(body or {})
    check(ConversationBody, given, "")
    return ConversationRequest(_few_items(given.get("items", [])), given.get("metadata", {}))


def parse_metadata(body: Raw) -> dict[str, str] | None:
    """Read the metadata that a conversation is to have from now on; null means that nothing is to change."""
    given = json_object(body) if isinstance(body, bytes) else body
    if "metadata" not in given:
        missing("metadata")
    check(ConversationBody, {"metadata": given["metadata"]}, "")
    return None if given["metadata"] is None else dict(given["metadata"])


def parse_items(body: Raw) -> tuple[JSON, ...]:
    """Read the items that are to be put into a conversation, one at least."""
    given = _given(body)
    if "items" not in given:
        missing("items")
    items = _few_items(given["items"])
    return items or wrong_value("items", "There must be one item at least.")


class TextConfig(Shape):
    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class PlainFormat(Shape):
    type: Literal["text", "json_object", "json_schema"]


class JsonSchemaFormat(Shape):
    name: Name
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class Reasoning(Shape):
    effort: str | None = None
    summary: str | None = None


class StreamOptions(Shape):
    include_obfuscation: bool | None = None


class NamedConversation(Shape):
    id: Name


class CompactionStrategy(Shape):
    type: Literal["compaction"]
    compact_threshold: Count | None = None


class CreateBody(Shape):
    """The parameters whose type or range matters; `input`, `tools` and others of many forms are looked at later."""

    model: Name
    instructions: str | None = None
    previous_response_id: Name | None = None
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
    context_management: list[dict[str, Any]] | None = None
    include: list[str] | None = None
    metadata: Metadata | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None


class CompactBody(Shape):
    model: Name
    instructions: str | None = None
    previous_response_id: Name | None = None


class ConversationBody(Shape):
    metadata: Metadata | None = None


# --- what belongs together


def _given(body: Raw) -> dict[str, Any]:
    return without_nulls(json_object(body) if isinstance(body, bytes) else body)


def _refuse_unbuilt(given: Mapping[str, Any]) -> None:
    """Refuse what Turnloom does not do yet and may not pass over in silence."""
    asked = {
        "prompt": "prompt" in given,
        "guardrails": bool(given.get("guardrails")),
        "moderation": _blocks(given.get("moderation")),
    }
    for name, wanted in asked.items():
        if wanted:
            unsupported(name, f"The parameter '{name}' is not supported yet.")


def _blocks(moderation: JSON) -> bool:
    """Whether anything in it is to be blocked, wherever the mode is said."""
    if isinstance(moderation, list):
        return any(map(_blocks, moderation))
    if not isinstance(moderation, dict):
        return False
    return moderation.get("mode") == "block" or any(map(_blocks, moderation.values()))


def _conversation(given: Mapping[str, Any]) -> str | None:
    """The id of the conversation, which is named by a string or an object."""
    named = given.get("conversation")
    if named is None:
        return None
    if isinstance(named, str):
        named = {"id": named}
    if not isinstance(named, dict):
        wrong_type("conversation", "a string or an object")
    check(NamedConversation, named, "conversation")
    return str(named["id"])


def _check_context(given: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for parameters that exclude each other, or when there is nothing to answer."""
    if "conversation" in given and "previous_response_id" in given:
        wrong_value("conversation", "Give 'conversation' or 'previous_response_id', not both.")
    if given.get("background") and given.get("store") is False:
        wrong_value("background", "A response that is not stored cannot run in the background.")
    if "conversation" not in given and "previous_response_id" not in given:
        _need_input(given)


def _newest_tools(items: Sequence[JSON]) -> dict[str, list[JSON]]:
    """The tools that came as an item, by their path; of several such lists, only the newest counts."""
    lists = {f"input[{n}].tools": item["tools"] for n, item in enumerate(items) if item["type"] == "additional_tools"}
    return dict([lists.popitem()]) if lists else {}


def _need_input(given: Mapping[str, Any]) -> None:
    if given.get("input", "") in ("", []):
        missing("input")


def _few_items(given: JSON) -> tuple[JSON, ...]:
    if isinstance(given, list) and len(given) > MOST_ITEMS:
        wrong_value("items", f"At most {MOST_ITEMS} items can be given at once.")
    return read_items(given, "items")


# --- settings


def _settings(given: Mapping[str, Any], tools: list[JSON], conversation: str | None, *, alias: bool) -> dict[str, JSON]:
    include = _INCLUDABLE.intersection(given.get("include", ()))
    cleaned = {
        "tools": tools,
        "text": _text(given.get("text", {})),
        "reasoning": without_nulls(given.get("reasoning", {})),
        "include": sorted(include),
        "context_management": _strategies(given.get("context_management", [])),
        "conversation": conversation and {"id": conversation},
        "background": given.get("background"),
        "alias": alias,
    }
    settings = only(_KEPT, given) | {key: value for key, value in cleaned.items() if value}
    return settings if given.get("store", True) else settings | {"store": False}


def _text(given: Mapping[str, Any]) -> dict[str, JSON]:
    text = only(("format", "verbosity"), given)
    if "format" in text:
        chosen = text["format"]
        check(PlainFormat, chosen, "text.format")
        if chosen["type"] == "json_schema":
            check(JsonSchemaFormat, chosen, "text.format")
        text["format"] = only(_FORMAT_KEYS, chosen)
    return text


def _strategies(given: list[dict[str, Any]]) -> list[JSON]:
    for place, strategy in enumerate(given):
        check(CompactionStrategy, strategy, f"context_management[{place}]")
    return [only(("type", "compact_threshold"), strategy) for strategy in given]
