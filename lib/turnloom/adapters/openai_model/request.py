"""A model request as the JSON of a chat-completions call, in the form that endpoints are asked in first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
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

_REASONING = "reasoning_content"


@dataclass(frozen=True, slots=True)
class Draft:
    """A request as it would usually be sent, and what its other forms need to know."""

    body: Mapping[str, JSON]
    """The body of the call.

    Messages of the assistant hold their `reasoning_content`, which few endpoints are sent; where it is, one with calls
    always has the key.
    """
    optional: frozenset[str] = frozenset()
    """Parameters that nobody asked for: a model that refuses one is asked without it."""
    schema: JSON = None
    """The `json_schema` of the answer, if it is to follow one."""
    sends_reasoning: bool = False
    """Whether the model is shown its earlier reasoning."""

    def wire_body(self) -> dict[str, JSON]:
        """The body as it goes over the wire."""
        if self.sends_reasoning:
            return dict(self.body)
        messages = [_without_reasoning(m) if _REASONING in m else m for m in self.body["messages"]]
        return {**self.body, "messages": messages}


def draft_of(request: ModelRequest, sends_reasoning: bool) -> Draft:
    """The request as a draft; what is not asked for is left out, as few endpoints know every key."""
    body: dict[str, JSON] = {
        **request.optional_sampling,
        **request.sampling,
        "model": request.model,
        "messages": list(_messages(request.messages)),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        if not request.parallel_calls:
            body["parallel_tool_calls"] = False
    if request.tool_choice is not None:
        body["tool_choice"] = _choice(request.tool_choice)
    schema = None
    if request.response_format is not None:
        body["response_format"] = request.response_format
        schema = request.response_format.get("json_schema")
    if request.max_tokens is not None:
        # Deprecated at OpenAI in favour of `max_completion_tokens`, yet the one word that all endpoints know.
        body["max_tokens"] = request.max_tokens
    return Draft(body, frozenset(request.optional_sampling) - request.sampling.keys(), schema, sends_reasoning)


def _without_reasoning(message: Mapping[str, JSON]) -> dict[str, JSON]:
    return {key: value for key, value in message.items() if key != _REASONING}


def _messages(messages: Iterable[Message]) -> Iterator[dict[str, JSON]]:
    """The messages as JSON; arguments that are no JSON object go as an empty one, and their text with the result.

    Strict endpoints refuse a history whose calls have other arguments, whoever wrote them.
    """
    unreadable: dict[str, str] = {}
    for message in messages:
        if isinstance(message, AssistantMessage):
            unreadable |= {call.call_id: call.arguments for call in message.calls if not _is_object(call.arguments)}
        if isinstance(message, ToolMessage) and (arguments := unreadable.pop(message.call_id, "")):
            message = _quoting(arguments, message)
        yield _message(message)


def _quoting(arguments: str, result: ToolMessage) -> ToolMessage:
    if arguments in result.content:
        return result
    content = f"The arguments of this call were not a JSON object: {arguments}\n\n{result.content}"
    return replace(result, content=content)


def _is_object(arguments: str) -> bool:
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False


def _message(message: Message) -> dict[str, JSON]:
    match message:
        case SystemMessage():
            return {"role": "system", "content": _content(message.content)}
        case UserMessage():
            return {"role": "user", "content": _content(message.content)}
        case AssistantMessage():
            return _assistant(message)
        case ToolMessage():
            return {"role": "tool", "tool_call_id": message.call_id, "content": message.content}
        case _:
            assert_never(message)


def _assistant(message: AssistantMessage) -> dict[str, JSON]:
    content = message.text or (None if message.calls else "")
    shown: dict[str, JSON] = {**message.extra, "role": "assistant", "content": content}
    if message.calls:
        shown["tool_calls"] = [_called(call) for call in message.calls]
    if message.calls or message.reasoning:
        shown[_REASONING] = message.reasoning
    return shown


def _called(call: ToolCall) -> dict[str, JSON]:
    arguments = call.arguments if _is_object(call.arguments) else "{}"
    function = {"name": call.name, "arguments": arguments}
    return {**call.extra, "id": call.call_id, "type": "function", "function": function}


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
    function: dict[str, JSON] = {"name": tool.name, "parameters": _parameters(tool.parameters)}
    if tool.description:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _parameters(schema: Mapping[str, JSON]) -> Mapping[str, JSON]:
    """The schema with what strict endpoints insist on: the type object, and an object of properties."""
    if schema.get("type") == "object" and isinstance(schema.get("properties"), Mapping):
        return schema
    properties = schema.get("properties")
    return {**schema, "type": "object", "properties": properties if isinstance(properties, Mapping) else {}}


def _choice(choice: str) -> JSON:
    return choice if choice == "required" else {"type": "function", "function": {"name": choice}}


def has_files(request: ModelRequest) -> bool:
    """Whether a message shows the model a file."""
    shown = (message.content for message in request.messages if isinstance(message, SystemMessage | UserMessage))
    return any(isinstance(part, FilePart) for content in shown if not isinstance(content, str) for part in content)
