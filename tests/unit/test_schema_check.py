"""Arguments are checked in a bounded time, whatever the schema and the arguments are."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from turnloom.domain.schema_check import FAULT_CHARACTERS, MOST_FAULTS, faults_of, is_schema, shortened

SECONDS = 1.0
"""Far more than a check may take, and far less than any of the hostile ones takes without bounds."""


def doubled(levels: int, **leaf: Any) -> dict[str, Any]:
    """Definitions each of which refers to the next one twice."""
    kinds = ("allOf", "anyOf", "oneOf")
    definitions = {
        f"d{level}": {kinds[level % 3]: [{"$ref": f"#/$defs/d{level + 1}"}, {"$ref": f"#/$defs/d{level + 1}"}]}
        for level in range(levels)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{levels}": leaf}}


def nested(levels: int, keyword: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        schema = {keyword: schema, "not": schema}
    return schema


def properties(**schemas: Any) -> dict[str, Any]:
    return {"type": "object", "properties": schemas}


LETTERS = "".join(random.Random(1).choices("ab", k=100_000))
PATTERNS = ["(a+)+$", "(a|aa)+$", "(.*a){30}$", "[ab]*a[ab]{500}c", "((a{0,9}){0,9}){0,9}$", "(" * 40_000, "a" * 90_000]
TEXTS = ["a" * 31 + "!", "a" * 100_000 + "!", LETTERS]
OBJECTS = [{"n": n} for n in range(20_000)]
NAMES = {f"{'a' * 40}{n}!": n for n in range(5000)}

HOSTILE: dict[str, tuple[Any, Any]] = {
    **{
        f"pattern-{n}": (properties(x={"pattern": p}), {"x": t})
        for n, (p, t) in enumerate((p, t) for p in PATTERNS for t in TEXTS)
    },
    "names of properties": ({"patternProperties": {"(a+)+$": {}, "(a|a)*$": False}}, NAMES),
    "additional properties": (
        {"patternProperties": {f"(a+)+{n}$": {} for n in range(2000)}, "additionalProperties": False},
        NAMES,
    ),
    "property names": ({"propertyNames": {"pattern": "(a+)+$"}}, NAMES),
    "unevaluated properties": ({"patternProperties": {"(a+)+$": {}}, "unevaluatedProperties": False}, NAMES),
    "references that double": (doubled(40, type="string"), {}),
    "references that double and hold": (doubled(40), {}),
    "references to itself": ({"$ref": "#"}, {}),
    "references to itself, twice": ({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}, {}),
    "references by anchor": (
        properties(
            x={"items": {"$ref": "#named"}},
        )
        | {"$defs": {f"d{n}": {"$anchor": "named", "type": "string"} for n in range(200)}},
        {"x": ["y"] * 5000},
    ),
    "items without keywords": (properties(x={"items": {"items": {}}}), {"x": [[1] * 10] * 4000}),
    "dynamic references": ({"$dynamicAnchor": "x", "anyOf": [{"$dynamicRef": "#x"}, {"$dynamicRef": "#x"}]}, {}),
    "deep": (nested(200, "allOf"), {}),
    "deep and unevaluated": (nested(40, "unevaluatedProperties"), {"a": {"a": 1}}),
    "unique objects": (properties(x={"uniqueItems": True}), {"x": OBJECTS}),
    "unique objects in the schema": ({"required": OBJECTS[:5000]}, {}),
    "an enum of lists": (
        properties(x={"items": {"enum": [[1] * 50 + [n] for n in range(400)]}}),
        {"x": [[1] * 51] * 500},
    ),
    "alternatives": (properties(x={"items": {"anyOf": [{"const": n} for n in range(1000)]}}), {"x": ["y" * 99] * 4000}),
    "alternatives of a long text": (properties(x={"anyOf": [{"const": n} for n in range(2000)]}), {"x": "y" * 400_000}),
    "dependent schemas": (
        {"dependentSchemas": {name: doubled(20, type="object") for name in list(NAMES)[:50]}},
        NAMES,
    ),
    "a multiple of a tiny number": (properties(x={"items": {"multipleOf": 1e-300}}), {"x": [10**4000, 1e308] * 200}),
    "another draft inside": (
        properties(x={"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "(a+)+$"}),
        {"x": "a" * 31 + "!"},
    ),
    "a large schema": (properties(**{f"p{n}": {"type": "string"} for n in range(300_000)}), {}),
    "large arguments": (properties(x={"items": {"type": "string"}}), {"x": list(range(1_000_000))}),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("draft", ["", "http://json-schema.org/draft-07/schema#"], ids=["newest", "draft-07"])
def test_a_check_takes_a_bounded_time(name: str, draft: str) -> None:
    schema, arguments = HOSTILE[name]
    began = time.thread_time()
    faults = faults_of(arguments, {"$schema": draft, **schema} if draft else schema)
    assert time.thread_time() - began < SECONDS
    assert len(faults) <= MOST_FAULTS and all(len(fault) <= FAULT_CHARACTERS for fault in faults)


def test_a_pattern_that_holds_up_a_backtracking_engine_is_checked() -> None:
    schema = properties(x={"pattern": "^(a+)+$"})
    assert faults_of({"x": "a" * 31}, schema) == []
    assert faults_of({"x": "a" * 31 + "!"}, schema) == [f"'{'a' * 31}!' does not match '^(a+)+$'"]


@pytest.mark.parametrize("pattern", ["(?=a)b", r"(a)\1", "a{2000}", "(", r"\p{Unknown}"])
def test_a_pattern_that_is_not_supported_is_left_to_the_tool_and_the_rest_is_checked(pattern: str) -> None:
    schema = properties(x={"pattern": pattern, "maxLength": 1}) | {
        "patternProperties": {pattern: {"type": "null"}},
        "additionalProperties": False,
    }
    assert faults_of({"x": "no", "y": 1}, schema) == ["'no' is too long"]


def test_letters_beyond_ascii_may_be_word_characters() -> None:
    schema = properties(x={"pattern": r"^\w+$"})
    assert faults_of({"x": "Grüße"}, schema) == []
    assert faults_of({"x": "a b"}, schema)
    assert faults_of({"x": "ü"}, properties(x={"pattern": "^[a-z]+$"}))


def test_properties_that_match_a_pattern_are_checked_by_its_schema_and_are_not_additional() -> None:
    schema = {"patternProperties": {"^n_": {"type": "integer"}}, "additionalProperties": False}
    assert faults_of({"n_a": 1}, schema) == []
    assert faults_of({"n_a": "x"}, schema) == ["'x' is not of type 'integer'"]
    [fault] = faults_of({"m_a": 1}, schema)
    assert "'m_a'" in fault


@pytest.mark.parametrize(("items", "unique"), [([1, 2], True), ([{"a": 1}, {"a": 1}], False), ([1, True, "1"], True)])
def test_items_must_be_unique_where_the_schema_says_so(items: list[Any], unique: bool) -> None:
    assert (faults_of({"x": items}, properties(x={"uniqueItems": True})) == []) is unique


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": "x"},
        {"required": "name"},
        {"$schema": 5},
        {"$schema": [5]},
        {"$ref": "https://schemas.test/x"},
        {"$schema": "https://schemas.test/x", "$ref": "https://schemas.test/x"},
    ],
)
def test_what_is_no_schema_or_refers_to_the_outside_finds_no_fault(schema: dict[str, Any]) -> None:
    assert faults_of({"x": 1}, schema) == []


def test_a_long_fault_loses_its_middle() -> None:
    [fault] = faults_of({"x": "y" * 100_000}, properties(x={"type": "integer"}))
    assert fault.startswith("'yyy") and fault.endswith("yyy' is not of type 'integer'")
    assert len(fault) <= FAULT_CHARACTERS
    assert shortened("short", 10) == "short"


def test_a_schema_is_told_from_what_is_none_and_from_what_is_too_large() -> None:
    assert is_schema(properties(x={"type": "string"})) is True
    assert is_schema({"required": "name"}) is False
    assert is_schema(properties(**{f"p{n}": {"type": "string"} for n in range(2000)})) is None
