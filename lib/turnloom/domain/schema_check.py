"""Checking arguments against a JSON schema that anybody may have written, with a bounded effort.

Schemas come from callers and from tool servers, arguments from the model, and the check runs on the event loop. So each
step of it counts against a budget, and patterns run on an engine that takes linear time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from itertools import islice
from typing import Any

from turnloom.domain.message import JSON

STEPS = 8000
"""The budget for looking at a schema, and for checking arguments by it: some 40 ms each."""
MOST_FAULTS = 5
FAULT_CHARACTERS = 300
SCHEMA_SIZE = 100_000
ARGUMENTS_SIZE = 500_000
"""Sizes as `_size` counts them: about the characters of the JSON text."""
PATTERN_BYTES = 128 * 1024
"""What a pattern's automaton may take of memory."""

_NODE_SIZE = 8
# How much of each is worth a step.
_NAMES_PER_STEP = 50
_SIZE_PER_STEP = 64
_POINTER_PER_STEP = 8
_MESSAGE_PER_STEP = 500
_STATES_PER_STEP = 16
_MATCHES_PER_STEP = 1500

Keyword = Callable[[Any, Any, Any, Any], Iterable[Any] | None]

_steps: ContextVar[int] = ContextVar("steps")


class _OutOfSteps(Exception):
    """The budget is spent."""


def faults_of(arguments: Mapping[str, JSON], schema: Mapping[str, JSON]) -> list[str]:
    """The first faults of the arguments by the schema, each of at most `FAULT_CHARACTERS` characters.

    No faults where the schema itself is none, or is too large. What is found before the budget is spent, or before a
    reference that is no pointer into the schema, counts; the rest is not checked. Nothing is fetched. Patterns that RE2
    does not support, `format`, `unevaluated...` and dynamic references are not checked.
    """
    faults: list[str] = []
    # A server may send anything: endless references, a `$schema` that is no text.
    with suppress(Exception), _budget():
        if is_schema(schema) and _size(arguments, ARGUMENTS_SIZE) < ARGUMENTS_SIZE:
            for error in islice(_errors(arguments, dict(schema)), MOST_FAULTS):
                faults += [shortened(error.message, FAULT_CHARACTERS)]
    return faults


def shortened(text: str, limit: int) -> str:
    """The text, without its middle if it has more than `limit` characters."""
    if len(text) <= limit:
        return text
    half = (limit - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def is_schema(schema: Mapping[str, JSON]) -> bool | None:
    """Whether this is a schema of the draft that it names, by default the newest; None where it is too large to say."""
    schema = dict(schema)
    if _size(schema, SCHEMA_SIZE) >= SCHEMA_SIZE:
        return None
    try:
        return _is_schema(json.dumps(schema), _draft(schema))
    except Exception:
        # A `$schema` that is no text, nesting without end.
        return False


def _draft(schema: Mapping[str, JSON]) -> Any:
    # Imported late: it takes 60 ms, and most functions never run a tool.
    from jsonschema.validators import Draft202012Validator, validator_for

    return validator_for(schema, default=Draft202012Validator)


def _errors(arguments: Mapping[str, JSON], schema: dict[str, JSON]) -> Iterator[Any]:
    from referencing import Registry

    draft = _draft(schema)
    # With a registry of its own a schema refers to nothing outside: the default one fetches what is named.
    return iter(_bounded(draft)(schema, registry=Registry()).iter_errors(arguments))


@lru_cache(maxsize=64)
def _is_schema(text: str, draft: Any) -> bool | None:
    """The same of a JSON text; remembered, for that takes longer than to check arguments."""
    with suppress(_OutOfSteps), _budget():
        return not any(_bounded(draft, trusted=True)(draft.META_SCHEMA).iter_errors(json.loads(text)))
    return None


@lru_cache
def _bounded(draft: Any, trusted: bool = False) -> Any:
    """The validator class of a draft, with steps that count; for a trusted schema with references of every kind."""
    from jsonschema.validators import create

    keywords = draft.VALIDATORS | {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties(draft.VALIDATORS["additionalProperties"]),
        "uniqueItems": _unique_items,
    }
    # The first two evaluate every subschema again, once per level, and match patterns on an engine of their own.
    unbounded = {"unevaluatedItems", "unevaluatedProperties", "format"}
    if not trusted:
        keywords["$ref"] = _reference(draft.VALIDATORS["$ref"])
        unbounded |= {"$dynamicRef", "$recursiveRef"}
    kind = create(
        draft.META_SCHEMA,
        {name: _counted(name, keyword) for name, keyword in keywords.items() if name not in unbounded},
        type_checker=draft.TYPE_CHECKER,
        id_of=draft.ID_OF,
        applicable_validators=draft._APPLICABLE_VALIDATORS,
    )
    kind.evolve = _evolve
    return kind


def _evolve(self: Any, **changes: Any) -> Any:
    """The validator for a subschema. The library's own takes the unbounded class of a draft that `$schema` names."""
    import attrs

    _spend(1)
    return attrs.evolve(self, **changes)


# --- the budget


@contextmanager
def _budget() -> Iterator[None]:
    token = _steps.set(STEPS)
    try:
        yield
    finally:
        _steps.reset(token)


def _spend(steps: int) -> None:
    left = _steps.get() - steps
    if left < 0:
        raise _OutOfSteps
    _steps.set(left)


def _counted(name: str, keyword: Keyword) -> Keyword:
    deep = name in ("enum", "const", "uniqueItems")

    def step(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        names = sum(len(each) for each in (value, instance) if isinstance(each, dict | list | str))
        _spend(1 + names // _NAMES_PER_STEP)
        if deep:
            _spend((_size(value) + _size(instance)) // _SIZE_PER_STEP)
        for error in keyword(validator, value, instance, schema) or ():
            _spend(1 + len(error.message) // _MESSAGE_PER_STEP)
            yield error

    return step


def _size(value: JSON, limit: int = ARGUMENTS_SIZE) -> int:
    """About how many characters a value has as JSON; what lies beyond the limit is not looked at."""
    size, rest = 0, [value]
    while rest and size < limit:
        each = rest.pop()
        size += _NODE_SIZE
        if isinstance(each, str):
            size += len(each)
        elif isinstance(each, dict | list):
            size += _NODE_SIZE * len(each)
            if size < limit:
                size += sum(map(len, each)) if isinstance(each, dict) else 0
                rest += each.values() if isinstance(each, dict) else each
    return size


# --- keywords


def _reference(keyword: Keyword) -> Keyword:
    """The keyword for pointers into the schema: each look for a name in it reads the whole schema."""

    def reference(validator: Any, value: Any, instance: Any, schema: Any) -> Iterable[Any] | None:
        if value != "#" and not value.startswith("#/"):
            raise LookupError(value)
        _spend(len(value) // _POINTER_PER_STEP)
        return keyword(validator, value, instance, schema)

    return reference


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if isinstance(instance, str) and _matches(pattern, instance) is False:
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not isinstance(instance, dict):
        return
    for pattern, subschema in patterns.items():
        for name, value in instance.items():
            if _matches(pattern, name):
                yield from validator.descend(value, subschema, path=name, schema_path=pattern)


def _additional_properties(keyword: Keyword) -> Keyword:
    """The keyword for the properties that match none of the patterns; one that is not supported may match anything."""

    def additional_properties(validator: Any, value: Any, instance: Any, schema: Any) -> Iterable[Any] | None:
        patterns = schema.get("patternProperties")
        if patterns and isinstance(instance, dict):
            names = [name for name in instance if all(_matches(pattern, name) is False for pattern in patterns)]
            instance, schema = {name: instance[name] for name in names}, {**schema, "patternProperties": {}}
        return keyword(validator, value, instance, schema)

    return additional_properties


def _unique_items(validator: Any, unique: Any, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    # The library compares each with each. Here 1 and 1.0 count as different.
    if unique and isinstance(instance, list):
        texts = {json.dumps(item, sort_keys=True) for item in instance}
        if len(texts) < len(instance):
            yield ValidationError(f"{instance!r} has non-unique elements")


# --- patterns


def _matches(pattern: str, text: str) -> bool | None:
    """Whether the pattern is found in the text; None where that cannot be said."""
    _spend(1 + len(pattern) // _NAMES_PER_STEP)
    compiled = _compiled(pattern)
    if compiled is None:
        return None
    _spend(compiled.programsize // _STATES_PER_STEP + compiled.programsize * len(text) // _MATCHES_PER_STEP)
    if compiled.search(text):
        return True
    # Dialects differ in whether classes like \\w know letters beyond ASCII.
    return False if text.isascii() or "\\" not in pattern else None


@lru_cache(maxsize=128)
def _compiled(pattern: str) -> Any:
    """The pattern on RE2; None for one that RE2 does not support, or that grows too large."""
    import re2

    options = re2.Options()
    options.max_mem = PATTERN_BYTES
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error:
        return None
