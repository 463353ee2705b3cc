"""Tool calls for a model that knows none: the demo model's, by rules of thumb.

Which tool is called is decided by the words that the question shares with the tools' names and descriptions. The
arguments are taken from the question where a pattern finds them, and written by the model under the tool's JSON
schema where not. After a result the model is asked to answer with it. Good enough to show a tool loop, and no more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema

Message = Mapping[str, Any]
Schema = Mapping[str, Any]

_COMMON = frozenset(
    """a an and are as at be by can do for from get give has have how i in is it its me my now of on or please tell
    that the this to tool use used using want what which who will with you your""".split()  # noqa: SIM905
)
_LEAST_OVERLAP = 1
_ARITHMETIC = re.compile(r"[-(]*\d[\d\s.+\-*/%()^]*[-+*/%^][\d\s.+\-*/%()^]*[\d)]")
_ZONE = re.compile(r"\b(?:[A-Z][a-zA-Z]+/[A-Z][a-zA-Z_/]+|UTC|GMT)\b")


@dataclass(frozen=True, slots=True)
class Choice:
    """The tool to call for a question, and what of its arguments the question itself gives away."""

    name: str
    schema: Schema
    found: dict[str, Any]

    @property
    def complete(self) -> bool:
        return set(self.schema.get("required", ())) <= set(self.found)


def choose(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], tool_choice: Any) -> Choice | None:
    """The tool that the newest question wants, if any; none once its results are there."""
    if not messages or tool_choice == "none" or messages[-1]["role"] != "user":
        return None
    question = text_of(messages[-1])
    functions = [tool["function"] for tool in tools]
    named = tool_choice.get("function", {}).get("name") if isinstance(tool_choice, dict) else None
    if named is not None:
        functions = [function for function in functions if function["name"] == named]
    ranked = sorted(functions, key=lambda function: _overlap(question, function), reverse=True)
    forced = tool_choice == "required" or named is not None
    if not ranked or not (forced or _overlap(question, ranked[0]) >= _LEAST_OVERLAP):
        return None
    schema = ranked[0].get("parameters") or {"type": "object", "properties": {}}
    return Choice(ranked[0]["name"], schema, _found(question, schema))


def argument_messages(question: str, choice: Choice) -> list[Message]:
    """What the model is asked so that it writes the arguments."""
    wanted = ", ".join(
        f"{name} ({schema.get('description', schema.get('type', 'any'))})"
        for name, schema in choice.schema.get("properties", {}).items()
    )
    system = f"Write the arguments of the tool '{choice.name}' as JSON: {wanted}. Take them from the question."
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def plain(messages: Sequence[Message]) -> list[Message]:
    """The conversation for a model without tools: results become part of the question that wanted them."""
    told: list[Message] = []
    for message in messages:
        match message["role"]:
            case "tool":
                _add_result(told, text_of(message))
            case "assistant" if not text_of(message):
                continue
            case role:
                told.append({"role": role, "content": text_of(message)})
    return told


def text_of(message: Message) -> str:
    """A message's text; what is no text is named."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text") or f"[{part.get('type', 'part')}]" for part in content)


def _add_result(told: list[Message], result: str) -> None:
    asked = max((place for place, message in enumerate(told) if message["role"] == "user"), default=None)
    question = "" if asked is None else f"{told.pop(asked)['content']}\n\n"
    told.append({"role": "user", "content": f"{question}The answer was looked up: {result}\nSay it in one sentence."})


def _overlap(question: str, function: Mapping[str, Any]) -> int:
    name = set(_words(function["name"].replace("_", " ")))
    described = set(_words(function.get("description") or ""))
    asked = set(_words(question))
    fits = 3 if _found(question, function.get("parameters") or {}) else 0
    return 3 * len(asked & name) + len(asked & described) + fits


def _words(text: str) -> list[str]:
    return [_stem(word) for word in re.findall(r"[a-z]+", text.lower()) if word not in _COMMON]


def _stem(word: str) -> str:
    for ending in ("ulator", "ulate", "ations", "ation", "ing", "es", "s"):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return word.removesuffix(ending)
    return word


def _found(question: str, schema: Schema) -> dict[str, Any]:
    """The arguments that a pattern finds in the question, by the names of the parameters."""
    patterns = {"expression": _ARITHMETIC, "timezone": _ZONE}
    found = {}
    for name in schema.get("properties", {}):
        match = patterns[name].search(question) if name in patterns else None
        if match:
            found[name] = match[0].strip()
    return found


def valid(arguments: str, schema: Schema) -> dict[str, Any] | None:
    """The arguments that the model wrote, if they are what the schema wants."""
    try:
        value = json.loads(arguments)
        jsonschema.validate(value, schema)
    except (ValueError, jsonschema.ValidationError, jsonschema.SchemaError):
        return None
    return value if isinstance(value, dict) else None
