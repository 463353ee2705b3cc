"""Conversations as the embedded model can read them: text only, and for the demo model no tool messages."""

from __future__ import annotations

import json
from collections.abc import Sequence

from turnloom.domain.message import JSON

ASSISTANT = "You are a helpful assistant."
"""The instructions of who has none: with those of its own template the model raves."""

RESULT_CHARACTERS = 400
"""How much of a tool's result stays in the history once it has been answered: the context is small."""


def plain(messages: Sequence[JSON]) -> list[JSON]:
    """The messages with contents of parts as text, and `developer` called `system`; all else as it is."""
    return [_plain(message) for message in messages]


def without_tools(messages: Sequence[JSON]) -> list[JSON]:
    """Plain messages with calls left out and results told as text, for a template that knows no tools.

    The call is left out as a model this small would imitate it instead of talking.
    """
    names = _names(messages)
    told: list[JSON] = []
    if not instructions(messages):
        told.append({"role": "system", "content": ASSISTANT})
    for message in plain(messages):
        match message["role"]:
            case "tool":
                result = shown(message["content"])[:RESULT_CHARACTERS]
                told.append({"role": "system", "content": f"The tool {_name(message, names)} said: {result}"})
            case "assistant" if not message["content"]:
                continue
            case role:
                told.append({"role": role, "content": message["content"]})
    return told


def question(messages: Sequence[JSON]) -> str:
    """The text of the last user message; empty if there is none."""
    users = (message for message in reversed(messages) if message.get("role") == "user")
    return next((text(message.get("content")) for message in users), "")


def newest_results(messages: Sequence[JSON]) -> list[str]:
    """What the tools said that were called last, as they said it, if the conversation ends with it; in order."""
    results: list[str] = []
    for message in reversed(messages):
        if message.get("role") != "tool":
            break
        results.append(text(message.get("content")))
    return results[::-1]


def instructions(messages: Sequence[JSON]) -> str:
    """The text of all system messages."""
    systems = (message for message in plain(messages) if message["role"] == "system")
    return "\n".join(message["content"] for message in systems)


def shortened(messages: Sequence[JSON]) -> list[JSON] | None:
    """The conversation without the older half of what is not a system message; None if only one such is left."""
    spoken = [message for message in messages if message["role"] != "system"]
    if len(spoken) < 2:
        return None
    kept = spoken[(len(spoken) + 1) // 2 :]
    return [message for message in messages if message["role"] == "system"] + kept


def text(content: JSON) -> str:
    """A content as text: its parts on lines of their own, and a note where there was something to see or to hear."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "\n".join(_part(part) for part in content)
    return str(content)


def parsed(result: str) -> JSON:
    """A tool's result as the JSON object or array that it is, numbers as they were written, or else as a text.

    JSON may be wrapped in JSON: clients make a string of what their functions return.
    """
    try:
        value = json.loads(result, parse_float=str, parse_int=str)
    except ValueError:
        return result
    if isinstance(value, str) and result.lstrip().startswith('"'):
        return parsed(value)
    return value if isinstance(value, dict | list) else result


def one_line(value: JSON) -> str:
    """A value on one line, JSON as `key: value, ...`, which small models quote better than brackets."""
    return " ".join(_leaves(value).split())


def shown(result: str) -> str:
    """A tool's result on one line."""
    return one_line(parsed(result))


def _plain(message: JSON) -> JSON:
    role = "system" if message["role"] == "developer" else message["role"]
    return {**message, "role": role, "content": text(message.get("content"))}


def _part(part: JSON) -> str:
    match part:
        case str():
            return part
        case {"type": "text" | "input_text" | "output_text", "text": str(words)}:
            return words
        case {"type": "refusal", "refusal": str(words)}:
            return words
        case {"type": str(kind)}:
            return f"[{kind.removesuffix('_url')}: this model reads text only]"
        case _:
            return json.dumps(part, ensure_ascii=False)


def _leaves(value: JSON) -> str:
    match value:
        case dict():
            return ", ".join(f"{key}: {_leaves(part)}" for key, part in value.items())
        case list():
            return "; ".join(_leaves(part) for part in value)
        case str():
            return value
        case _:
            return json.dumps(value)


def _names(messages: Sequence[JSON]) -> dict[str, str]:
    """The names of all called tools, by the id of the call."""
    calls = (call for message in messages for call in message.get("tool_calls") or ())
    return {call.get("id", ""): call["function"].get("name", "") for call in calls if "function" in call}


def _name(message: JSON, names: dict[str, str]) -> str:
    return names.get(message.get("tool_call_id") or "") or message.get("name") or "call"
