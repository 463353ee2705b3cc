"""What a text offers for the arguments of a tool.

A model this small invents arguments, or copies examples from descriptions. It chooses well, though: so free strings
are narrowed to phrases of the text, and what is not in the text is left out where the schema allows it.
"""

from __future__ import annotations

import ast
import re
import zoneinfo
from collections.abc import Callable, Mapping
from functools import cache

from turnloom.domain.message import JSON

_SMALL_WORDS = """
a about all am an and any are as at be by call can could current currently do does did e for from function g get gets
give given has have he her him his how i if in into is it its just let list look make many may me much must my name new
no not now of off on one or our out please provide return returned returns say she should show so some such take tell
than thank thanks that the their them then there these they this those to tool up us use used user uses using value want
was we were what when where whether which who whose why will with would yes you your
"""
STOP_WORDS = frozenset(_SMALL_WORDS.split())
"""Words that tell nothing about a subject, in what people ask and in what tools say of themselves."""
PHRASE_WORDS = 6
PHRASES = 200
FREE_CHARACTERS = 120
_WORD = re.compile(r"[\w@./+'’:-]*\w")
_SENTENCE = re.compile(r"(?<=[.?!;])\s+|\n+")
_PLAIN_STRING = {"type", "title", "description", "default", "examples"}
_SPOKEN = (
    (r"\bplus\b", "+"),
    (r"\bminus\b", "-"),
    (r"\b(?:times|multiplied by)\b|×", "*"),
    (r"\bdivided by\b|÷", "/"),
    (r"\bto the power of\b|\^", "**"),
    (r"(?<=\d)\s*x\s*(?=[\d(])", "*"),
    (r"(?<=\d),(?=\d{3}\b)", ""),
)
_ARITHMETIC = re.compile(r"[-(\d.][-\d .+*/%()]*[\d)]")
_EXPRESSION = r"expression|formula|equation"
_DATE = re.compile(r"\d{4}-\d\d-\d\d|\d{1,2}/\d{1,2}/\d{2,4}")


def narrowed(schema: Mapping[str, JSON], text: str, known: frozenset[str]) -> JSON:
    """The object schema with its properties narrowed to what `text` offers; what it allows, `schema` allows.

    `known` are stems of words that name the tool, and so are no argument of it.
    """
    required = schema.get("required") or ()
    properties: dict[str, JSON] = {}
    for name, given in (schema.get("properties") or {}).items():
        offered = _offered(name, _present(given), text, known)
        if offered is None and name in required:
            offered = _offered(name, _present(given), text, frozenset()) or _bounded(given)
        if offered is not None:
            properties[name] = offered
    kept = {name: value for name, value in schema.items() if name in ("$defs", "definitions")}
    return {
        **kept,
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def arithmetic(text: str) -> str | None:
    """The longest arithmetic expression in the text, as Python writes it; spoken operators count."""
    for spoken, written in _SPOKEN:
        text = re.sub(spoken, written, text, flags=re.IGNORECASE)
    found = (_balanced(match.group()) for match in _ARITHMETIC.finditer(_DATE.sub(" ", text)))
    return max((expression for expression in found if _is_arithmetic(expression)), key=len, default=None)


def phrases(text: str, known: frozenset[str]) -> list[str]:
    """Runs of up to six words of one sentence that may be an argument: they begin and end with a word that tells."""
    found: dict[str, None] = {}
    for sentence in _SENTENCE.split(text):
        words = list(_WORD.finditer(sentence))
        for first, start in enumerate(words):
            for length in range(1, min(PHRASE_WORDS, len(words) - first) + 1):
                run = words[first : first + length]
                if _telling(start.group(), known) and _telling(run[-1].group(), known):
                    found[sentence[start.start() : run[-1].end()]] = None
    return list(found)[:PHRASES]


def stems(text: str) -> list[str]:
    """The words that carry meaning, in a form that `calculate` and `calculator` share."""
    words = re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text))
    return [_stem(word) for word in words if len(word) > 1 and word.lower() not in STOP_WORDS]


def wants_expression(name: str, schema: JSON) -> bool:
    """Whether a property takes an arithmetic expression, by what it says of itself."""
    return _says(_EXPRESSION, name, schema)


def _offered(name: str, schema: JSON, text: str, known: frozenset[str]) -> JSON | None:
    """The property's schema with the text's offers for it; None if there are none."""
    match schema:
        case {"enum": [*values]}:
            mentioned = [value for value in values if re.search(rf"\b{re.escape(str(value))}\b", text, re.IGNORECASE)]
            return {"enum": mentioned} if mentioned else None
        case {"type": "string", **rest} if rest.keys() <= _PLAIN_STRING:
            special = (find(text) for says, find in _SPECIAL if _says(says, name, schema))
            value = next((value for value in special if value), None)
            offers = [value] if value else phrases(text, known)
            return {"type": "string", "enum": offers} if offers else None
        case {"type": "number" | "integer" as kind}:
            return {"type": kind} if re.search(r"\d", text) else None
        case _:
            return None


def _present(schema: JSON) -> JSON:
    """The schema of a value that may be null, for when it is not."""
    match schema:
        case {"anyOf": [dict(first), {"type": "null"}]}:
            return {**{key: value for key, value in schema.items() if key != "anyOf"}, **first}
        case {"type": [str(first), "null"]}:
            return {**schema, "type": first}
        case _:
            return schema


def _bounded(schema: JSON) -> JSON:
    """The schema with an end to free strings, as the model finds none by itself."""
    match schema:
        case {"type": "string"}:
            return {"maxLength": FREE_CHARACTERS, **schema}
        case _:
            return schema


def _zone(text: str) -> str | None:
    """The time zone that the text names, in full or by its city."""
    words = " ".join(["", *re.findall(r"[\w/+-]+", text.lower()), ""])
    for zone in _zones():
        city = zone.rpartition("/")[2].replace("_", " ")
        if f" {zone.lower()} " in words or (len(city) > 3 and "/" in zone and f" {city.lower()} " in words):
            return zone
    return None


@cache
def _zones() -> list[str]:
    """All time zones, the longest names first, as some contain others."""
    return sorted(zoneinfo.available_timezones(), key=lambda zone: (-len(zone), zone))


_SPECIAL: tuple[tuple[str, Callable[[str], str | None]], ...] = (
    (_EXPRESSION, arithmetic),
    (r"time.?zone|\biana\b", _zone),
)


def _says(pattern: str, name: str, schema: JSON) -> bool:
    return re.search(pattern, f"{name} {schema.get('description', '')}", re.IGNORECASE) is not None


def _telling(word: str, known: frozenset[str]) -> bool:
    return word.lower() not in STOP_WORDS and _stem(word) not in known


def _stem(word: str) -> str:
    return word.lower().removesuffix("s")[:6]


def _balanced(text: str) -> str:
    """The text without brackets at its ends that have no partner."""
    text = text.strip()
    while text.endswith(")") and text.count(")") > text.count("("):
        text = text[:-1].strip()
    while text.startswith("(") and text.count("(") > text.count(")"):
        text = text[1:].strip()
    return text


def _is_arithmetic(text: str) -> bool:
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return isinstance(tree, ast.BinOp)
