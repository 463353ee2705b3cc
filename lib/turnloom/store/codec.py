"""Events as compact JSON: `[tag, field, ...]`, trailing defaults left out, a run of deltas as one text and its cuts.

The cuts (lengths in code points) keep every delta at its place for ever, so that a stream which is told again from
the stored turn has the same frames under the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields
from itertools import groupby
from typing import Any, get_args

from turnloom.domain.event import (
    CallsAllowed,
    CallStarted,
    Compacted,
    ContextInserted,
    Delta,
    Event,
    Gathered,
    InferenceCompleted,
    InferenceStarted,
    InputAwaited,
    InputProvided,
    ShieldsRun,
    TakenOver,
    ToolCompleted,
    ToolsListed,
    ToolStarted,
    TurnAbandoned,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnStarted,
)
from turnloom.domain.message import JSON, Usage

# Tags are stored: never give one a second meaning.
_TAGS: dict[str, type[Event]] = {
    "start": TurnStarted,
    "context": ContextInserted,
    "listed": ToolsListed,
    "compacted": Compacted,
    "allowed": CallsAllowed,
    "gathered": Gathered,
    "shields": ShieldsRun,
    "infer": InferenceStarted,
    "call": CallStarted,
    "delta": Delta,
    "inferred": InferenceCompleted,
    "tool": ToolStarted,
    "result": ToolCompleted,
    "await": InputAwaited,
    "input": InputProvided,
    "taken": TakenOver,
    "done": TurnCompleted,
    "failed": TurnFailed,
    "abandoned": TurnAbandoned,
    "cancelled": TurnCancelled,
}
_TAG_OF = {kind: tag for tag, kind in _TAGS.items()}
assert set(_TAG_OF) == set(get_args(Event))


def dump(events: Iterable[Event]) -> list[JSON]:
    """The events as JSON, to be read by `load`."""
    packed: list[JSON] = []
    for run, group in groupby(events, key=lambda e: e.block if isinstance(e, Delta) else None):
        if run is None:
            packed.extend(_pack(event) for event in group)
        else:
            packed.append(_pack_run(run, [event for event in group if isinstance(event, Delta)]))
    return packed


def load(packed: Iterable[JSON], *, merged: bool = False) -> Iterator[Event]:
    """The events that `dump` was given, delta by delta; `merged`, each run of deltas as one, for who only folds."""
    for tag, *values in packed:
        if tag == "delta":
            yield from [Delta(values[0], values[1])] if merged else _unpack_run(*values)
        else:
            kind = _TAGS[tag]
            yield kind(*(read(value) for read, value in zip(_READERS[kind], values, strict=False)))


def _pack_run(block: str, run: list[Delta]) -> JSON:
    packed: list[JSON] = ["delta", block, "".join(delta.text for delta in run)]
    logprobs = [list(delta.logprobs) for delta in run]
    if len(run) > 1 or any(logprobs):
        packed.append([len(delta.text) for delta in run])
    if any(logprobs):
        packed.append(logprobs)
    return packed


def _unpack_run(
    block: Any, text: str, cuts: list[int] | None = None, logprobs: list[JSON] | None = None
) -> Iterator[Delta]:
    start = 0
    for place, length in enumerate(cuts or [len(text)]):
        yield Delta(block, text[start : start + length], tuple(logprobs[place]) if logprobs else ())
        start += length


def _pack(event: Event) -> JSON:
    kind = type(event)
    values = [getattr(event, name) for name in _NAMES[kind]]
    while values and values[-1] == _DEFAULTS[kind][len(values) - 1]:
        values.pop()
    return [_TAG_OF[kind], *(_plain(value) for value in values)]


def _plain(value: Any) -> JSON:
    if isinstance(value, Usage):
        return [value.input_tokens, value.output_tokens, value.cached_tokens, value.reasoning_tokens]
    return list(value) if isinstance(value, tuple) else value


def _reader(annotation: str) -> Callable[[Any], Any]:
    if annotation.startswith("tuple"):
        return tuple
    return (lambda value: Usage(*value)) if annotation == "Usage" else lambda value: value


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


_NAMES = {kind: [field.name for field in fields(kind)] for kind in _TAG_OF}
_DEFAULTS = {kind: [_default(field) for field in fields(kind)] for kind in _TAG_OF}
_READERS = {kind: [_reader(str(field.type)) for field in fields(kind)] for kind in _TAG_OF}
