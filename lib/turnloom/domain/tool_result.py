"""What a tool gave back, and what its readers are shown of it.

The result of an MCP tool is kept as the content blocks that its server sent; any other is a text, or what a client
gave for one. Blocks: https://modelcontextprotocol.io/specification/2025-06-18/server/tools#tool-result
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from turnloom.domain.message import JSON, ImagePart

_PAYLOADS = ("data", "blob")
_TOLD_BLOCK = '{"type": "'


def text_of(result: JSON) -> str:
    """The text that the model reads; its images are left out, as it is shown these themselves."""
    if isinstance(result, str):
        return result
    if isinstance(result, list | tuple):
        return "\n".join(text_of(item) for item in result if image_of(item) is None)
    if isinstance(result, dict):
        return str(result["text"]) if "text" in result else _named(result)
    return "" if result is None else str(result)


def images_of(result: JSON) -> tuple[ImagePart, ...]:
    """The images in a result, for the model to see."""
    items = result if isinstance(result, list | tuple) else (result,)
    return tuple(image for item in items if (image := image_of(item)) is not None)


def image_of(item: JSON) -> ImagePart | None:
    """The image that a content item is: a block of MCP, also with a resource in it, or an item of the Agents API."""
    match item:
        case {"type": "image", "data": str(data), "mimeType": str(media)}:
            return ImagePart(f"data:{media};base64,{data}")
        case {"type": "resource", "resource": {"blob": str(data), "mimeType": str(media)}} if _is_image(media):
            return ImagePart(f"data:{media};base64,{data}")
        case {"type": "image", "image": dict(image)}:
            return agents_image(image)
        case _:
            return None


def agents_image(image: Mapping[str, Any]) -> ImagePart | None:
    """The image in an item of the Agents API, which has an address, a data URL, or data in base64."""
    url = image.get("url")
    if url is not None:
        return ImagePart(url["uri"] if isinstance(url, dict) else url)
    data = image.get("data")
    if not isinstance(data, str):
        return None
    return ImagePart(data if data.startswith("data:") else f"data:{_media_of(data)};base64,{data}")


def as_output(result: JSON) -> str:
    """The result as the Responses API writes it: texts, and any other block as JSON, each on a line of its own."""
    if isinstance(result, str):
        return result
    return "\n".join(_told(block) for block in result)


def from_output(output: str) -> str | list[JSON]:
    """The result that `as_output` wrote down; a text where it has no image."""
    if _TOLD_BLOCK not in output:
        return output
    blocks = list(_blocks(output.split("\n")))
    return blocks if images_of(blocks) else output


def _blocks(lines: Sequence[str]) -> Iterator[JSON]:
    for line in lines:
        block = _read(line) if line.startswith(_TOLD_BLOCK) else None
        yield {"type": "text", "text": line} if image_of(block) is None else block


def _read(line: str) -> JSON:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _told(block: JSON) -> str:
    if isinstance(block, str):
        return block
    if isinstance(block, dict) and block.get("type") == "text":
        return str(block["text"])
    return json.dumps(block, ensure_ascii=False)


def _named(block: Mapping[str, JSON]) -> str:
    """A block that is neither text nor image, without data that no model can read."""
    if "type" not in block:
        return "[content]"
    known = {key: value for key, value in block.items() if key not in _PAYLOADS}
    if isinstance(resource := known.get("resource"), dict):
        known["resource"] = {key: value for key, value in resource.items() if key not in _PAYLOADS}
    return json.dumps(known, ensure_ascii=False) if len(known) > 1 else f"[{block['type']}]"


def _is_image(media: str) -> bool:
    return media.lower().startswith("image/")


def _media_of(data: str) -> str:
    """The media type by the first bytes of the base64 text; PNG when unknown, as most senders mean it."""
    starts = {"/9j/": "image/jpeg", "iVBORw0KGgo": "image/png", "R0lGOD": "image/gif", "UklGR": "image/webp"}
    return next((media for start, media in starts.items() if data.startswith(start)), "image/png")
