"""Tools for a model that calls none by itself (demo model; tool choice is a heuristic).

The tool is the one whose name and description share most words with what the user said; the model then writes the
arguments, held to the tool's JSON schema, and they are validated. Once the tools have answered, the model tells the
result; a short one it is made to quote, as it would rather calculate for itself, and wrongly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from turnloom.domain.message import JSON, Tool
from turnloom.domain.schema_check import faults_of, is_schema
from turnloom.local.model import messages
from turnloom.local.model.offers import arithmetic, narrowed, stems, wants_expression

NOTE = "demo model; tool choice is a heuristic"
ENOUGH = 2
FEW_WORDS = 3
QUOTED_CHARACTERS = 200
TOLD_CHARACTERS = 3000
_ARGUMENT_TOKENS = 256


class BadRequest(ValueError):
    """The request's tools or its tool_choice make no sense; the message says what."""


def offered(body: Mapping[str, JSON]) -> list[Tool]:
    """The request's function tools. Raises BadRequest for one without a name or with parameters that are no schema."""
    given = body.get("tools") or ()
    return [_tool(tool.get("function")) for tool in given if isinstance(tool, dict) and tool.get("type") == "function"]


def choice(body: Mapping[str, JSON], tools: Sequence[Tool]) -> str:
    """`auto`, `none`, `required` or the name of one of `tools`. Raises BadRequest for anything else."""
    match body.get("tool_choice") or "auto":
        case "auto" | "none" | "required" as word:
            return str(word)
        case {"type": "function", "function": {"name": str(name)}} if any(tool.name == name for tool in tools):
            return name
        case other:
            raise BadRequest(f"tool_choice {json.dumps(other)} is none of auto, none, required or an offered function")


def choose(tools: Sequence[Tool], wanted: str, conversation: Sequence[JSON]) -> Tool | None:
    """The tool to call next, or None to talk.

    `wanted` is what `choice` gave. With `auto` a tool is called only if it shares enough words with the last user
    message, and none once the newest messages are results of tools.
    """
    if wanted == "none" or not tools:
        return None
    named = next((tool for tool in tools if tool.name == wanted), None)
    if named:
        return named
    if wanted == "auto" and messages.newest_results(conversation):
        return None
    text = messages.question(conversation)
    best = max(tools, key=lambda tool: affinity(tool, text))
    few = len(set(stems(text))) <= FEW_WORDS
    return best if wanted == "required" or affinity(best, text) >= ENOUGH - few else None


def affinity(tool: Tool, text: str) -> int:
    """How much the text seems to be about the tool: shared words, those of its name twice; 0 is nothing."""
    said, name = set(stems(text)), set(stems(tool.name))
    described = set(stems(tool.description)) - name
    score = 2 * len(said & name) + len(said & described)
    if re.search(rf"\b{re.escape(tool.name)}\b", text, re.IGNORECASE):
        score += 2
    if any(wants_expression(*each) for each in _properties(tool)) and arithmetic(text):
        score += 2
    return score


def arguments_requests(tool: Tool, text: str) -> list[JSON]:
    """Requests that make the model write the arguments: first held to what the text offers, then to the schema."""
    known = frozenset(stems(f"{tool.name} {tool.description}"))
    schemas = (narrowed(tool.parameters, text, known), tool.parameters)
    return [_arguments_request(tool, text, schema) for schema in schemas]


def checked(tool: Tool, written: str) -> str | None:
    """The arguments as JSON text if they satisfy the tool's schema, else None."""
    try:
        arguments = json.loads(written)
    except ValueError:
        return None
    if not isinstance(arguments, dict) or faults_of(arguments, tool.parameters):
        return None
    return json.dumps(arguments, ensure_ascii=False)


def answer_request(body: Mapping[str, JSON]) -> JSON:
    """The request that makes the model tell the newest results of tools; a short result must be in the answer.

    What was said before is left out, but for the instructions: the model would rather go on with that.
    """
    conversation = body["messages"]
    asked = messages.question(conversation)
    result = "; ".join(messages.newest_results(conversation))[:TOLD_CHARACTERS]
    instructions = messages.instructions(conversation) or f"{messages.ASSISTANT} Use the tools."
    system = f"{instructions}\nAnswer in one short sentence. The answer is: {result}"
    free = (body.get("response_format") or {}).get("type", "text") == "text"
    quotable = free and 0 < len(result) <= QUOTED_CHARACTERS
    asked = f"{asked} (The answer is: {result})" if quotable else asked
    told = [{"role": "system", "content": system}, {"role": "user", "content": asked}]
    return {**body, "messages": told, **({"grammar": _quoting(result)} if quotable else {})}


def _quoting(result: str) -> str:
    """A GBNF grammar: one sentence around the literal result, with no other figure to compete with it."""
    return "\n".join(
        (
            f"root ::= start {json.dumps(result, ensure_ascii=False)} end",
            """start ::= ([A-Za-zÀ-ÿ'’]{1,14} [,:]? " "){0,9}""",
            """end ::= ([,;]? " " [A-Za-zÀ-ÿ ,'’"°%()-]{1,60})? [.!]?""",
        )
    )


def _arguments_request(tool: Tool, text: str, schema: JSON) -> JSON:
    parameters = "\n".join(
        f"- {name} ({schema.get('type', 'any')}): {schema.get('description', '')}" for name, schema in _properties(tool)
    )
    system = (
        f"Write the arguments of the function {tool.name} as JSON, taken from the user's message.\n"
        f"{tool.name}: {tool.description}\n{parameters}"
    )
    return {
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": text}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "arguments", "schema": schema}},
        "temperature": 0,
        "max_tokens": _ARGUMENT_TOKENS,
    }


def _properties(tool: Tool) -> list[tuple[str, JSON]]:
    properties = tool.parameters.get("properties") or {}
    return [(name, schema) for name, schema in properties.items() if isinstance(schema, dict)]


def _tool(function: JSON) -> Tool:
    match function:
        case {"name": str(name)}:
            schema = function.get("parameters") or {"type": "object", "properties": {}}
        case _:
            raise BadRequest("A tool of type function needs a 'function' with a 'name'")
    if not isinstance(schema, dict) or is_schema(schema) is False:
        raise BadRequest(f"The parameters of tool '{name}' are no JSON schema")
    return Tool(name, function.get("description") or "", schema)
