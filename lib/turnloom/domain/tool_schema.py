"""JSON schemas of tools: made of a list of parameters, as the Agents API has them, or written by others and checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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
_LIST_PREFIXES = tuple(f"{name}[" for name in _LISTS)
_LEVELS = 64
_VALUES = 20_000

_SCHEMAS_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_SCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMAS = ("additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then")
_TEXTS = ("$ref", "description", "format", "pattern", "title")


@dataclass(frozen=True, slots=True)
class SchemaFault:
    """What is wrong with a schema, and where: `path` is like `.properties.city`, empty for the schema itself."""

    path: str
    message: str


def schema_fault(schema: JSON) -> SchemaFault | None:
    """The first thing in a tool's schema that keeps it from being listed or sent to a model; None when it is sound.

    Keywords are checked for their shape, names and values that are no keywords are not.
    """
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        return SchemaFault("", "must be a schema of type object")
    if _is_too_large(schema):
        return SchemaFault("", f"has more than {_LEVELS} levels or {_VALUES} values")
    return next(_faults(schema, ""), None)


def usable_schema(schema: JSON) -> dict[str, JSON]:
    """The schema of a tool whose server wrote it; one that permits any arguments in place of one that is not sound."""
    if isinstance(schema, dict):
        schema = {keyword: value for keyword, value in schema.items() if value is not None}
    if schema_fault(schema) is not None:
        return {"type": "object", "properties": {}}
    return {"type": "object", **schema}


def _is_too_large(schema: JSON) -> bool:
    level, values = [schema], 0
    for _ in range(_LEVELS):
        level = [child for each in level for child in _children(each)]
        values += len(level)
        if not level or values > _VALUES:
            return values > _VALUES
    return True


def _children(value: JSON) -> Iterable[JSON]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _faults(schema: JSON, path: str) -> Iterator[SchemaFault]:
    if isinstance(schema, bool) and path:
        return
    if not isinstance(schema, dict):
        yield SchemaFault(path, "must be a schema")
        return
    for keyword, value in schema.items():
        yield from _keyword_faults(keyword, value, f"{path}.{keyword}")


def _keyword_faults(keyword: str, value: JSON, path: str) -> Iterator[SchemaFault]:
    if keyword in _SCHEMAS_BY_NAME:
        if not isinstance(value, dict):
            yield SchemaFault(path, "must be an object of schemas")
            return
        for name, schema in value.items():
            yield from _faults(schema, f"{path}.{name}")
    elif keyword in _SCHEMA_LISTS or (keyword == "items" and isinstance(value, list)):
        if not isinstance(value, list):
            yield SchemaFault(path, "must be a list of schemas")
            return
        for number, schema in enumerate(value):
            yield from _faults(schema, f"{path}[{number}]")
    elif keyword in _SCHEMAS:
        yield from _faults(value, path)
    elif keyword in _TEXTS and not isinstance(value, str):
        yield SchemaFault(path, "must be a text")
    elif keyword == "required" and not _are_texts(value):
        yield SchemaFault(path, "must be a list of texts")
    elif keyword == "type" and not (isinstance(value, str) or _are_texts(value)):
        yield SchemaFault(path, "must be a text or a list of texts")
    elif keyword == "enum" and not isinstance(value, list):
        yield SchemaFault(path, "must be a list")
    elif isinstance(value, float) and not math.isfinite(value):
        yield SchemaFault(path, "must be a finite number")


def _are_texts(value: JSON) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


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
    levels = 0
    while levels < _LEVELS and name.startswith(_LIST_PREFIXES):
        name = name.partition("[")[2].removesuffix("]")
        levels += 1
    schema = json_type(name) if levels and not name.startswith(_LIST_PREFIXES) else {}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema
