"""Tools as JSON, their parameters made from the schema of their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turnloom.domain.message import JSON, Tool
from turnloom.domain.redaction import redacted_url
from turnloom.usecases.toolgroups import Offer


def tool_json(offer: Offer) -> dict[str, JSON]:
    """A Tool of the API."""
    tool, group = offer.tool, offer.group
    return {
        "identifier": tool.name,
        "toolgroup_id": group.identifier,
        "description": tool.description,
        "parameters": parameters_json(tool.parameters),
        "metadata": _metadata(tool),
        "provider_id": group.provider_id,
        "provider_resource_id": tool.source.name if tool.source else tool.name,
        "type": "tool",
    }


def tool_def_json(tool: Tool) -> dict[str, JSON]:
    """A ToolDef of the API."""
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": parameters_json(tool.parameters),
        "metadata": _metadata(tool),
    }


def parameters_json(schema: Mapping[str, Any]) -> list[dict[str, JSON]]:
    """The ToolParameters for a JSON schema of arguments: its top level, types by their JSON names."""
    required = schema.get("required") or ()
    properties = {name: _resolved(given, schema) for name, given in (schema.get("properties") or {}).items()}
    return [
        {
            "name": name,
            "parameter_type": _type_name(parameter),
            "description": parameter.get("description") or "",
            "required": name in required,
            "default": parameter.get("default"),
        }
        for name, parameter in properties.items()
    ]


def _resolved(given: Any, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A property with the definition that it refers to laid under it; one that allows anything says nothing."""
    if not isinstance(given, dict):
        return {}
    # One reference deep: a definition that refers to itself must not keep us here.
    kind, _, name = str(given.get("$ref", "")).removeprefix("#/").partition("/")
    definition = (schema.get(kind) or {}).get(name) if kind in ("$defs", "definitions") else None
    return {**definition, **given} if isinstance(definition, dict) else given


def _type_name(parameter: Mapping[str, Any]) -> str:
    """The JSON type; of alternatives the first that is not null, and `any` where none has a name."""
    alternatives = [parameter, *(parameter.get("anyOf") or ()), *(parameter.get("oneOf") or ())]
    given = [each.get("type") for each in alternatives if isinstance(each, dict)]
    names = [name for types in given for name in (types if isinstance(types, list) else [types])]
    return next((name for name in names if isinstance(name, str) and name != "null"), "any")


def _metadata(tool: Tool) -> dict[str, JSON]:
    endpoint = tool.source.endpoint if tool.source else None
    return {"endpoint": redacted_url(endpoint)} if endpoint else {}
