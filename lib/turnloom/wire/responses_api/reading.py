"""Input items as clients send them, checked and brought into one form.

What is known is kept without nulls and without keys that mean nothing here; items of unknown types are kept as given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import JSON
from turnloom.domain.responses_input import file_content
from turnloom.wire.responses_api.items import MOST_ID_CHARACTERS, Item

ROLES = ("user", "assistant", "system", "developer")
PHASES = ("commentary", "final_answer")
DETAILS = ("auto", "low", "high", "original")
STATUSES = ("in_progress", "completed", "incomplete", "failed", "calling", "searching", "interpreting")

# Of each item type, the keys it must have and those it may have, with the type of their values.
_OUTPUT = (str, list)
_NEEDED: dict[str, dict[str, type | tuple[type, ...]]] = {
    "function_call": {"call_id": str, "name": str, "arguments": str},
    "function_call_output": {"call_id": str, "output": _OUTPUT},
    "custom_tool_call": {"call_id": str, "name": str, "input": str},
    "custom_tool_call_output": {"call_id": str, "output": _OUTPUT},
    "reasoning": {},
    "mcp_call": {"server_label": str, "name": str, "arguments": str},
    "mcp_list_tools": {"server_label": str, "tools": list},
    "mcp_approval_request": {"server_label": str, "name": str, "arguments": str},
    "item_reference": {"id": str},
}
_OPTIONAL: dict[str, dict[str, type | tuple[type, ...]]] = {
    "function_call": {"namespace": str},
    "custom_tool_call": {"namespace": str},
    "reasoning": {"summary": list, "content": list, "encrypted_content": str},
    "mcp_call": {"output": str, "error": (str, dict), "approval_request_id": str},
    "mcp_list_tools": {"error": str},
}

# Of each part of content, the key that makes it what it is, and what else is kept.
_PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "input_text": ("text", ()),
    "output_text": ("text", ("annotations",)),
    "text": ("text", ()),
    "refusal": ("refusal", ()),
    "input_image": ("image_url", ("detail",)),
    "input_file": ("file_data", ("filename",)),
}
_BY_REFERENCE = ("file_id", "file_url")

_TYPE_NAMES: dict[type, str] = {str: "a string", list: "an array", dict: "an object"}


def read_input(given: JSON) -> tuple[JSON, ...]:
    """The items of the parameter `input`: a string is one user's message, unless empty. Raises InvalidRequest."""
    if isinstance(given, str):
        return () if not given else ({"type": "message", "role": "user", "content": given},)
    if not isinstance(given, list):
        _wrong_type("input", "a string or an array of items")
    return tuple(_item(item, f"input[{place}]") for place, item in enumerate(given))


def _item(given: JSON, path: str) -> JSON:
    if not isinstance(given, dict):
        _wrong_type(path, "an object")
    kind = _kind(given, path)
    if kind == "message":
        return _message(given, path)
    if kind in ("compaction", "mcp_approval_response"):
        _refuse_unread(kind, path)
    if kind not in _NEEDED:
        return {**given, **_bookkeeping({**given, "id": _optional_text(given, "id", path)}, kind)}
    item = _bookkeeping(given, kind)
    for key, types in _NEEDED[kind].items():
        item[key] = _value(given, key, types, path)
    for key, types in _OPTIONAL.get(kind, {}).items():
        if given.get(key) is not None:
            item[key] = _value(given, key, types, path)
    return _checked_lists(item, path)


def _optional_text(given: Mapping[str, Any], key: str, path: str) -> str | None:
    for name in (key, "call_id"):
        if given.get(name) is not None:
            _value(given, name, str, path)
    found: str | None = given.get(key)
    return found


def _kind(given: Mapping[str, Any], path: str) -> str:
    """The item's type; a message may leave it out, and so may a reference."""
    kind = given.get("type")
    if kind is None and "role" in given:
        return "message"
    if kind is None and "id" in given:
        return "item_reference"
    return str(_value(given, "type", str, path))


def _refuse_unread(kind: str, path: str) -> NoReturn:
    if kind == "compaction":
        message = "The encrypted content of the compaction item cannot be read."
        raise InvalidRequest(message, code="invalid_encrypted_content", param=path)
    raise InvalidRequest("MCP approvals are not supported yet.", code="unsupported_parameter", param=path)


def _bookkeeping(given: Mapping[str, Any], kind: str) -> Item:
    item: Item = {"type": kind}
    identifier = given.get("id")
    if isinstance(identifier, str) and 0 < len(identifier) <= MOST_ID_CHARACTERS:
        item["id"] = identifier
    if given.get("status") in STATUSES:
        item["status"] = given["status"]
    return item


def _message(given: Mapping[str, Any], path: str) -> JSON:
    item = _bookkeeping(given, "message")
    item["role"] = _one_of(given, "role", ROLES, path)
    content = _value(given, "content", (str, list), path)
    item["content"] = content if isinstance(content, str) else _content(content, f"{path}.content", item["role"])
    if given.get("phase") in PHASES:
        item["phase"] = given["phase"]
    return item


def _checked_lists(item: Item, path: str) -> JSON:
    if isinstance(item.get("output"), list):
        item["output"] = _content(item["output"], f"{path}.output", "user")
    for key in ("summary", "content"):
        if item["type"] == "reasoning" and key in item:
            item[key] = [_thought(part, f"{path}.{key}[{place}]") for place, part in enumerate(item[key])]
    return item


def _thought(part: JSON, path: str) -> Item:
    if not isinstance(part, dict):
        _wrong_type(path, "an object")
    return {"type": _value(part, "type", str, path), "text": _value(part, "text", str, path)}


# --- parts of content


def _content(parts: Sequence[JSON], path: str, role: str) -> list[Item]:
    return [_part(part, f"{path}[{place}]", role) for place, part in enumerate(parts)]


def _part(given: JSON, path: str, role: str) -> Item:
    if not isinstance(given, dict):
        _wrong_type(path, "an object")
    kind = _one_of(given, "type", tuple(_PARTS), path)
    main, others = _PARTS[kind]
    if given.get(main) is None:
        _refuse_reference(given, path)
    if kind == "text":
        kind = "output_text" if role == "assistant" else "input_text"
    part: Item = {"type": kind, main: _value(given, main, str, path)}
    part |= {key: given[key] for key in others if given.get(key) is not None}
    _check_part(part, path)
    return part


def _check_part(part: Item, path: str) -> None:
    if "detail" in part:
        _one_of(part, "detail", DETAILS, path)
    if "filename" in part:
        _value(part, "filename", str, path)
    if "file_data" in part:
        try:
            file_content(part["file_data"])
        except ValueError:
            message = f"Invalid '{path}.file_data': neither a data URL nor base64."
            raise InvalidRequest(message, code="invalid_value", param=f"{path}.file_data") from None


def _refuse_reference(given: Mapping[str, Any], path: str) -> None:
    for key in _BY_REFERENCE:
        if given.get(key) is not None:
            message = f"'{path}.{key}' is not supported yet: send the content itself."
            raise InvalidRequest(message, code="unsupported_parameter", param=f"{path}.{key}")


# --- values


def _value(given: Mapping[str, Any], key: str, types: type | tuple[type, ...], path: str) -> Any:
    value = given.get(key)
    if value is None:
        message = f"Missing required parameter: '{path}.{key}'."
        raise InvalidRequest(message, code="missing_required_parameter", param=f"{path}.{key}")
    if not isinstance(value, types):
        wanted = types if isinstance(types, tuple) else (types,)
        _wrong_type(f"{path}.{key}", " or ".join(_TYPE_NAMES[kind] for kind in wanted))
    return value


def _one_of(given: Mapping[str, Any], key: str, known: tuple[str, ...], path: str) -> str:
    value = str(_value(given, key, str, path))
    if value not in known:
        message = f"Invalid value: '{value}'. Supported values of '{path}.{key}' are: {', '.join(known)}."
        raise InvalidRequest(message, code="invalid_value", param=f"{path}.{key}")
    return value


def _wrong_type(param: str, wanted: str) -> NoReturn:
    raise InvalidRequest(f"Invalid type for '{param}': expected {wanted}.", code="invalid_type", param=param)
