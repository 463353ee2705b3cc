"""A model request as the JSON that goes over the wire, and the laxer forms of it for endpoints that refuse it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import IntEnum
from typing import assert_never

from turnloom.domain.message import (
    JSON,
    AssistantMessage,
    Content,
    FilePart,
    ImagePart,
    Message,
    Part,
    SystemMessage,
    TextPart,
    Tool,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from turnloom.ports import ModelRequest


def body_of(request: ModelRequest, sends_reasoning: bool) -> dict[str, JSON]:
    """The request as JSON; what is not asked for is left out, as few endpoints know every key."""
    body: dict[str, JSON] = {
        **request.sampling,
        "model": request.model,
        "messages": [_message(message, sends_reasoning) for message in request.messages],
        "stream": True,
    }
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        if not request.parallel_calls:
            body["parallel_tool_calls"] = False
    if request.tool_choice is not None:
        body["tool_choice"] = _choice(request.tool_choice)
    if request.response_format is not None:
        body["response_format"] = request.response_format
    if request.max_tokens is not None:
        # Deprecated at OpenAI in favour of `max_completion_tokens`, yet the one word that all endpoints know.
        body["max_tokens"] = request.max_tokens
    return body


def _message(message: Message, sends_reasoning: bool) -> dict[str, JSON]:
    match message:
        case SystemMessage():
            return {"role": "system", "content": _content(message.content)}
        case UserMessage():
            return {"role": "user", "content": _content(message.content)}
        case AssistantMessage():
            return _assistant(message, sends_reasoning)
        case ToolMessage():
            return {"role": "tool", "tool_call_id": message.call_id, "content": message.content}
        case _:
            assert_never(message)


def _assistant(message: AssistantMessage, sends_reasoning: bool) -> dict[str, JSON]:
    shown: dict[str, JSON] = {"role": "assistant", "content": message.text or (None if message.calls else "")}
    if message.calls:
        shown["tool_calls"] = [_called(call) for call in message.calls]
    if sends_reasoning and message.reasoning:
        shown["reasoning_content"] = message.reasoning
    return shown


def _called(call: ToolCall) -> dict[str, JSON]:
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _content(content: Content) -> JSON:
    return content if isinstance(content, str) else [_part(part) for part in content]


def _part(part: Part) -> dict[str, JSON]:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text}
        case ImagePart():
            detail = {} if part.detail is None else {"detail": part.detail}
            return {"type": "image_url", "image_url": {"url": part.url, **detail}}
        case FilePart():
            return {"type": "file", "file": {"filename": part.filename, "file_data": part.data}}
        case _:
            assert_never(part)


def _tool(tool: Tool) -> dict[str, JSON]:
    function: dict[str, JSON] = {"name": tool.name, "parameters": tool.parameters}
    if tool.description:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _choice(choice: str) -> JSON:
    return choice if choice == "required" else {"type": "function", "function": {"name": choice}}


def has_files(request: ModelRequest) -> bool:
    """Whether a message shows the model a file."""
    shown = (message.content for message in request.messages if isinstance(message, SystemMessage | UserMessage))
    return any(isinstance(part, FilePart) for content in shown if not isinstance(content, str) for part in content)


# --- answers by a schema


class Strictness(IntEnum):
    """How an answer by a JSON Schema is asked for; below `SCHEMA` the model is told the schema in a message."""

    SCHEMA = 0
    JSON_MODE = 1
    INSTRUCTION = 2


_OF_FORMAT = re.compile(r"response_format|json_schema|json_object")
_OF_THIS_SCHEMA = re.compile(r"invalid[ _](json[ _])?schema", re.IGNORECASE)


def refuses_format(words: str) -> bool:
    """Whether a refusal may mean the kind of `response_format`; one that means the schema itself is the caller's."""
    return bool(_OF_FORMAT.search(words)) and not _OF_THIS_SCHEMA.search(words)


def wants_schema(body: Mapping[str, JSON]) -> bool:
    """Whether the request asks for an answer by a schema, and so has laxer forms."""
    return bool((body.get("response_format") or {}).get("type") == "json_schema")


def laxer(body: Mapping[str, JSON], strictness: Strictness) -> Mapping[str, JSON]:
    """The request with its answer asked for in this way; a request for another kind of answer stays as it is."""
    if strictness is Strictness.SCHEMA or not wants_schema(body):
        return body
    lax = {**body, "messages": _with_schema(body["messages"], body["response_format"]["json_schema"])}
    if strictness is Strictness.JSON_MODE:
        lax["response_format"] = {"type": "json_object"}
    else:
        del lax["response_format"]
    return lax


def _with_schema(messages: list[JSON], wanted: JSON) -> list[JSON]:
    """The messages with the schema behind the first system message, or in front."""
    place = next((place for place, message in enumerate(messages, 1) if message["role"] == "system"), 0)
    about = f" ({wanted['description']})" if wanted.get("description") else ""
    text = (
        f"Answer with JSON and nothing else: no text around it, no code fence. The JSON must be valid by this"
        f" JSON Schema{about}:\n{json.dumps(wanted.get('schema', {}), ensure_ascii=False)}"
    )
    return [*messages[:place], {"role": "system", "content": text}, *messages[place:]]
