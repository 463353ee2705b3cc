"""The input of an Agents turn, read as chat messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from turnloom.domain.message import JSON, Content, ImagePart, Message, Part, TextPart, ToolMessage, UserMessage
from turnloom.domain.transcript import Dialect, content_text


def read(messages: Sequence[JSON], current: bool) -> list[Message]:
    """User and tool messages as the API writes them; the deprecated `context` counts in its own turn only."""
    return [_message(message, current) for message in messages]


AGENTS = Dialect(read, replays_failed=False)


def _message(message: Mapping[str, JSON], current: bool) -> Message:
    if message["role"] == "tool":
        return ToolMessage(str(message["call_id"]), content_text(message["content"]), str(message.get("tool_name", "")))
    content = interleaved(message["content"])
    context = message.get("context") if current else None
    if context is None:
        return UserMessage(content)
    return UserMessage((*_parts(content), *_parts(interleaved(context))))


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
    image = item["image"]
    url = image.get("url")
    if url is not None:
        return ImagePart(url["uri"] if isinstance(url, dict) else url)
    data = image["data"]
    return ImagePart(data if data.startswith("data:") else f"data:{_mime(data)};base64,{data}")


def _mime(data: str) -> str:
    """The media type by the first bytes of the base64 text; PNG when unknown, as most senders mean it."""
    starts = {"/9j/": "image/jpeg", "iVBORw0KGgo": "image/png", "R0lGOD": "image/gif", "UklGR": "image/webp"}
    return next((mime for start, mime in starts.items() if data.startswith(start)), "image/png")
