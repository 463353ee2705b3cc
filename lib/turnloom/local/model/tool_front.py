"""Tools for a model that calls none by itself (demo model; tool choice is a heuristic).

The tool is the one whose name and description share most words with what the user said; the model then writes the
arguments, held to the tool's JSON schema, and they are validated. Once the tools have answered, the model tells the
result; a short one it is held to quote word for word, as it would rather calculate for itself, and wrongly.
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
_ENDS = (".", "!", "?")


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
    """The request that makes the model tell the newest results of tools; it is held to quote short ones.

    What was said before is left out, but for the instructions: the model would rather go on with that.
    """
    conversation = body["messages"]
    question = messages.question(conversation)
    statements = [statement(result, question) for result in messages.newest_results(conversation)]
    answer = " ".join(statements)[:TOLD_CHARACTERS]
    instructions = messages.instructions(conversation) or f"{messages.ASSISTANT} Use the tools."
    system = f"{instructions}\nAnswer in one short sentence. The answer is: {answer}"
    free = (body.get("response_format") or {}).get("type", "text") == "text"
    quotable = free and len(answer) <= QUOTED_CHARACTERS
    question = f"{question} (The answer is: {answer})" if quotable else question
    shown = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    grammar = {"grammar": f"root ::= {json.dumps(answer, ensure_ascii=False)}"} if quotable else {}
    return {**body, "messages": shown, **grammar}


def statement(result: str, question: str) -> str:
    """A sentence that states a tool's result: all it says, but for what the question says already.

    `{"item": "apples", "count": 3}` is "The count is 3." to who asks for apples, `42` is "The answer is 42.", and a
    text of several words stands for itself.
    """
    match messages.parsed(result):
        case dict() as fields if fields:
            text = _fields_statement(fields, question)
        case value:
            text = messages.one_line(value) or "The result is empty"
            text = f"The answer is {text}" if len(text.split()) == 1 else text
    return text if text.endswith(_ENDS) else f"{text}."


def _fields_statement(fields: Mapping[str, JSON], question: str) -> str:
    news = {name: value for name, value in fields.items() if not _mentions(question, value)} or fields
    lines = {name.replace("_", " "): messages.one_line(value) for name, value in news.items()}
    match list(lines.items()):
        case [(name, value)] if name:
            return value if value.endswith(_ENDS) else f"The {name} is {value or 'empty'}"
        case _:
            return messages.one_line(lines)


def _mentions(question: str, value: JSON) -> bool:
    """Whether the question has the words of a value that is no container."""
    if isinstance(value, dict | list):
        return False
    return re.search(rf"(?<!\w){re.escape(messages.one_line(value))}(?!\w)", question, re.IGNORECASE) is not None


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
