"""The JSON schema of a tool that was described by a list of parameters, as the Agents API does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from turnloom.domain.message import JSON

_TYPES = {
    "str": "string",
    "string": "string",
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "bool": "boolean",
    "boolean": "boolean",
    "dict": "object",
    "Dict": "object",
    "object": "object",
}
_LISTS = ("list", "List", "array")


def parameters_schema(parameters: Iterable[Mapping[str, Any]] | None) -> dict[str, JSON]:
    """The JSON schema of a ToolDef's parameters; type names that have no JSON type leave `type` out."""
    properties: dict[str, JSON] = {}
    required: list[str] = []
    for parameter in parameters or ():
        schema = json_type(parameter.get("parameter_type") or "")
        if parameter.get("description"):
            schema["description"] = parameter["description"]
        if parameter.get("default") is not None:
            schema["default"] = parameter["default"]
        properties[parameter["name"]] = schema
        if parameter.get("required") is not False:
            required.append(parameter["name"])
    return {"type": "object", "properties": properties, "required": required}


def json_type(name: str) -> dict[str, JSON]:
    """The JSON schema for a Python or JSON type name, e.g. `list[int]`."""
    if name in _TYPES:
        return {"type": _TYPES[name]}
    if name in _LISTS:
        return {"type": "array", "items": {}}
    outer, bracket, inner = name.partition("[")
    if bracket and outer in _LISTS:
        return {"type": "array", "items": json_type(inner.removesuffix("]"))}
    return {}
