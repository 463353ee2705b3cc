"""The input of an Agents turn, read as chat messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from turnloom.domain.message import JSON, Content, Message, Part, TextPart, UserMessage
from turnloom.domain.tool_result import agents_image
from turnloom.domain.transcript import Dialect, result_messages


def read(messages: Sequence[JSON], current: bool) -> list[Message]:
    """User and tool messages as the API writes them; the deprecated `context` counts in its own turn only."""
    return [told for message in messages for told in _messages(message, current)]


AGENTS = Dialect(read, replays_failed=False)


def _messages(message: Mapping[str, JSON], current: bool) -> list[Message]:
    if message["role"] == "tool":
        return result_messages(str(message["call_id"]), message["content"], str(message.get("tool_name", "")))
    content = interleaved(message["content"])
    context = message.get("context") if current else None
    if context is None:
        return [UserMessage(content)]
    return [UserMessage((*_parts(content), *_parts(interleaved(context))))]


def interleaved(content: JSON) -> Content:
    """A string, one item or a list of items as message content; images by address or as data URL."""
    if isinstance(content, str):
        return content
    items = content if isinstance(content, list | tuple) else [content]
    return tuple(_part(item) for item in items)


def _parts(content: Content) -> tuple[Part, ...]:
    return (TextPart(content),) if isinstance(content, str) else content


def _part(item: JSON) -> Part:
    if isinstance(item, str):
        return TextPart(item)
    if item["type"] == "text":
        return TextPart(item["text"])
    image = agents_image(item["image"])
    return TextPart("[image]") if image is None else image
