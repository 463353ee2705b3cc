"""Input items as clients send them, checked and brought into one form.

What is known is kept without nulls and without keys that mean nothing here; items of unknown types are kept as given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from turnloom.domain.layout import is_item_id
from turnloom.domain.message import JSON
from turnloom.domain.responses_input import file_content
from turnloom.wire.responses_api.checks import (
    is_web_address,
    missing,
    unsupported,
    without_nulls,
    wrong_type,
    wrong_value,
)
from turnloom.wire.responses_api.shapes import Item
from turnloom.wire.responses_api.tools import read_tools

ROLES = ("user", "assistant", "system", "developer")
PHASES = ("commentary", "final_answer")
DETAILS = ("auto", "low", "high", "original")
STATUSES = ("in_progress", "completed", "incomplete", "failed", "calling", "searching", "interpreting")

_Types = type | tuple[type, ...]
_OUTPUT = (str, list)

# Of each item type, the keys it must have and those it may have, with the type of their values.
_NEEDED: dict[str, dict[str, _Types]] = {
    "function_call": {"call_id": str, "name": str, "arguments": str},
    "function_call_output": {"output": _OUTPUT},
    "custom_tool_call": {"call_id": str, "name": str, "input": str},
    "custom_tool_call_output": {"call_id": str, "output": _OUTPUT},
    "reasoning": {},
    "mcp_call": {"server_label": str, "name": str, "arguments": str},
    "mcp_list_tools": {"server_label": str, "tools": list},
    "mcp_approval_request": {"server_label": str, "name": str, "arguments": str},
    "mcp_approval_response": {"approval_request_id": str, "approve": bool},
    "file_search_call": {"queries": list},
    "web_search_call": {},
    "code_interpreter_call": {},
    "compaction": {"encrypted_content": str},
    "item_reference": {"id": str},
    "additional_tools": {"tools": list},
}
_OPTIONAL: dict[str, dict[str, _Types]] = {
    "function_call": {"namespace": str, "async": bool},
    "function_call_output": {"call_id": str, "name": str, "namespace": str},
    "additional_tools": {"role": str},
    "custom_tool_call": {"namespace": str},
    "reasoning": {"summary": list, "content": list, "encrypted_content": str},
    "mcp_call": {"output": str, "error": (str, dict), "approval_request_id": str},
    "mcp_list_tools": {"error": (str, dict)},
    "mcp_approval_response": {"reason": str},
    "file_search_call": {"results": list},
    "web_search_call": {"action": dict, "sources": list},
    "code_interpreter_call": {"container_id": str, "code": str, "outputs": list},
}

# Lists whose members nobody looks into, so that it is enough to know their type.
_MEMBERS: dict[tuple[str, str], type] = {
    ("file_search_call", "queries"): str,
    ("file_search_call", "results"): dict,
    ("web_search_call", "sources"): dict,
    ("code_interpreter_call", "outputs"): dict,
}

# The types of thoughts; clients may leave them out.
_THOUGHTS = {"summary": "summary_text", "content": "reasoning_text"}

# Results of calls that mean nothing here, but whose text and images the model is shown.
_FOREIGN_RESULTS = ("computer_call_output", "shell_call_output", "local_shell_call_output", "apply_patch_call_output")

# Of each part of content, the keys that make it what it is, one of which it must have, and what else is kept.
_PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "input_text": (("text",), ()),
    "output_text": (("text",), ("annotations",)),
    "text": (("text",), ()),
    "refusal": (("refusal",), ()),
    "input_image": (("image_url",), ("detail",)),
    "input_file": (("file_data", "file_url"), ("filename",)),
}

_TYPE_NAMES: dict[type, str] = {str: "a string", list: "an array", dict: "an object", bool: "a boolean"}


def read_input(given: JSON) -> tuple[JSON, ...]:
    """The items of the parameter `input`: a string is one user's message, unless empty. Raises InvalidRequest."""
    if isinstance(given, str):
        return () if not given else ({"type": "message", "role": "user", "content": given},)
    if not isinstance(given, list):
        wrong_type("input", "a string or an array of items")
    return read_items(given, "input")


def read_items(given: JSON, param: str) -> tuple[JSON, ...]:
    """The items of a list, which is the value of `param`. Raises InvalidRequest."""
    if not isinstance(given, list):
        wrong_type(param, "an array of items")
    return tuple(_item(item, f"{param}[{place}]") for place, item in enumerate(given))


def _item(given: JSON, path: str) -> Item:
    if not isinstance(given, dict):
        wrong_type(path, "an object")
    kind = _kind(given, path)
    if kind == "message":
        return _message(given, path)
    return _known(given, kind, path) if kind in _NEEDED else _foreign(given, kind, path)


def _kind(given: Mapping[str, Any], path: str) -> str:
    """The item's type; a message may leave it out, and so may a reference that is nothing but an id."""
    if given.get("type") is None and "role" in given:
        return "message"
    if without_nulls(given).keys() == {"id"}:
        return "item_reference"
    return str(_value(given, "type", str, path))


def _bookkeeping(given: Mapping[str, Any], kind: str, path: str) -> Item:
    item: Item = {"type": kind}
    if given.get("id") is not None and is_item_id(_value(given, "id", str, path)):
        item["id"] = given["id"]
    if given.get("status") in STATUSES:
        item["status"] = given["status"]
    return item


def _message(given: Mapping[str, Any], path: str) -> Item:
    item = _bookkeeping(given, "message", path)
    item["role"] = _one_of(given, "role", ROLES, path)
    content = _value(given, "content", (str, list), path)
    item["content"] = content if isinstance(content, str) else _content(content, f"{path}.content", item["role"])
    if item["role"] == "assistant" and given.get("phase") is not None:
        item["phase"] = _one_of(given, "phase", PHASES, path)
    return item


def _known(given: Mapping[str, Any], kind: str, path: str) -> Item:
    if kind == "function_call_output" and given.get("call_id") is None and given.get("name") is None:
        missing(f"{path}.call_id")
    item = _bookkeeping(given, kind, path)
    optional = {key: types for key, types in _OPTIONAL.get(kind, {}).items() if given.get(key) is not None}
    for key, types in (_NEEDED[kind] | optional).items():
        value = _value(given, key, types, path)
        if (kind, key) == ("additional_tools", "tools"):
            item[key] = _tools(value, f"{path}.{key}")
            continue
        item[key] = _list(value, kind, key, f"{path}.{key}") if isinstance(value, list) else _plain(value)
    return item


def _foreign(given: Mapping[str, Any], kind: str, path: str) -> Item:
    """An item that means nothing here, as it is; what the model may be shown of it must be readable all the same."""
    for key in ("id", "call_id"):
        if given.get(key) is not None:
            _value(given, key, str, path)
    if kind not in _FOREIGN_RESULTS:
        return {**given}
    output = given.get("output")
    if isinstance(output, dict) and output.get("image_url") is not None:
        _value(output, "image_url", str, f"{path}.output")
    if not isinstance(output, list):
        return {**given}
    shown = [_foreign_part(part, f"{path}.output[{place}]") for place, part in enumerate(output)]
    return {**given, "output": shown}


def _foreign_part(part: JSON, path: str) -> JSON:
    """A part, kept as it is unless its type is known; what would have to be fetched first is not looked for here."""
    _check_type(part, dict, path)
    if part.get("type") not in tuple(_PARTS):
        return part
    known = _part(part, path, "user")
    if "file_url" in known:
        unsupported(f"{path}.file_url", f"'{path}.file_url' is not supported here: send the content itself.")
    return known


def _list(values: list[JSON], kind: str, key: str, path: str) -> list[JSON]:
    match kind, key:
        case (_, "output"):
            return _content(values, path, "user")
        case ("reasoning", _):
            return [_thought(part, _THOUGHTS[key], f"{path}[{place}]") for place, part in enumerate(values)]
        case ("mcp_list_tools", _):
            return [_listed_tool(tool, f"{path}[{place}]") for place, tool in enumerate(values)]
        case _:
            for place, value in enumerate(values):
                _check_type(value, _MEMBERS[kind, key], f"{path}[{place}]")
            return [_plain(value) for value in values]


def _tools(given: list[JSON], path: str) -> list[JSON]:
    """Tools that come as an item, as Codex sends them to some models; without secrets, which only `tools` may bring."""
    for place, tool in enumerate(given):
        _check_type(tool, dict, f"{path}[{place}]")
    tools, _ = read_tools(given, path, alias=False)
    return tools


def _plain(value: JSON) -> JSON:
    return without_nulls(value) if isinstance(value, dict) else value


def _thought(part: JSON, kind: str, path: str) -> Item:
    _check_type(part, dict, path)
    if part.get("type") is not None:
        kind = _value(part, "type", str, path)
    return {"type": kind, "text": _value(part, "text", str, path)}


def _listed_tool(tool: JSON, path: str) -> Item:
    _check_type(tool, dict, path)
    _value(tool, "name", str, path)
    return without_nulls(tool)


# --- parts of content


def _content(parts: Sequence[JSON], path: str, role: str) -> list[Item]:
    return [_part(part, f"{path}[{place}]", role) for place, part in enumerate(parts)]


def _part(given: JSON, path: str, role: str) -> Item:
    _check_type(given, dict, path)
    kind = _one_of(given, "type", tuple(_PARTS), path)
    choices, others = _PARTS[kind]
    main = _only_one(given, choices, path)
    if kind == "text":
        kind = "output_text" if role == "assistant" else "input_text"
    part: Item = {"type": kind, main: _value(given, main, str, path)}
    part |= {key: given[key] for key in others if given.get(key) is not None}
    _check_part(part, path)
    return part


def _only_one(given: Mapping[str, Any], keys: tuple[str, ...], path: str) -> str:
    """The one of these keys that is given."""
    found = [key for key in keys if given.get(key) is not None]
    if len(found) > 1:
        wrong_value(f"{path}.{found[1]}", f"Give one of '{found[0]}' and '{found[1]}', not both.")
    if not found and given.get("file_id") is not None:
        unsupported(f"{path}.file_id", f"'{path}.file_id' is not supported yet: send the content itself.")
    return found[0] if found else missing(f"{path}.{keys[0]}")


def _check_part(part: Item, path: str) -> None:
    for key, value in part.items():
        match key:
            case "detail":
                _one_of(part, key, DETAILS, path)
            case "filename":
                _value(part, key, str, path)
            case "annotations":
                _value(part, key, list, path)
                for place, annotation in enumerate(value):
                    _check_type(annotation, dict, f"{path}.annotations[{place}]")
            case "file_data":
                _check_file(value, f"{path}.{key}")
            case "file_url" if not is_web_address(value):
                wrong_value(f"{path}.{key}", f"Invalid '{path}.{key}': not an http or https address.")


def _check_file(data: str, path: str) -> None:
    try:
        file_content(data)
    except ValueError:
        wrong_value(path, f"Invalid '{path}': neither a data URL nor base64.")


# --- values


def _value(given: Mapping[str, Any], key: str, types: _Types, path: str) -> Any:
    value = given.get(key)
    if value is None:
        missing(f"{path}.{key}")
    _check_type(value, types, f"{path}.{key}")
    return value


def _check_type(value: JSON, types: _Types, path: str) -> None:
    if not isinstance(value, types):
        wanted = types if isinstance(types, tuple) else (types,)
        wrong_type(path, " or ".join(_TYPE_NAMES[kind] for kind in wanted))


def _one_of(given: Mapping[str, Any], key: str, known: tuple[str, ...], path: str) -> str:
    value = str(_value(given, key, str, path))
    if value not in known:
        message = f"Invalid value: '{value}'. Supported values of '{path}.{key}' are: {', '.join(known)}."
        wrong_value(f"{path}.{key}", message)
    return value
