"""Whether the arguments of a call are whole, found out while they come in."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from types import FrameType, FunctionType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnloom.domain.event import CallStarted, Event
from turnloom.domain.json_scanner import JsonScanner
from turnloom.domain.turn import Call, Turn
from turnloom.engine.answer import AnswerReader
from turnloom.ports import CallChunk

values = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)
objects = st.dictionaries(st.text(), values) | st.lists(values)


def pieces_of(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


@given(value=objects, places=st.lists(st.integers(0, 10_000), max_size=12), often=st.booleans())
def test_arguments_are_whole_with_their_last_character(value: object, places: list[int], often: bool) -> None:
    arguments = JsonScanner()
    text = json.dumps(value)
    for piece in pieces_of(text[:-1], places):
        arguments.add(piece)
        assert not (often and arguments.is_complete())
    assert not arguments.is_complete()
    arguments.add(text[-1])
    assert arguments.is_complete() and arguments.is_complete()


@pytest.mark.parametrize(
    "text", ["", " ", "{", '{"a": 1}}', "{a}", "[1, 2", "not json", "}", '{"a": "\\', "[" * 50_000 + "]" * 50_000]
)
def test_what_is_no_object_or_list_is_never_whole(text: str) -> None:
    arguments = JsonScanner()
    arguments.add(text)
    assert not arguments.is_complete()


def test_space_around_arguments_is_part_of_them() -> None:
    arguments = JsonScanner()
    arguments.add(' {"a": "}"} ')
    assert arguments.is_complete()


def test_arguments_in_many_fragments_are_parsed_once_although_another_call_waits() -> None:
    reader = AnswerReader(Turn("t"), (), set(), parallel_calls=True)
    first = [CallChunk(0, arguments=fragment) for fragment in ('{"a": [', *['"}]", {}, '] * 500, "1]", "}")]
    mixed = [CallChunk(0, "c", "f"), CallChunk(1, "d", "f", "{}"), *first]
    told: list[Event] = []

    def read() -> None:
        for chunk in mixed:
            told.extend(reader.call(chunk))

    assert isinstance(json.loads, FunctionType)
    assert calls_of(json.loads, read) == 1
    assert [event.call_id for event in told if isinstance(event, CallStarted)] == ["c", "d"]


def calls_of(function: FunctionType, work: Callable[[], None]) -> int:
    """How often the work calls the function."""
    seen: list[str] = []

    def see(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is function.__code__:
            seen.append(frame.f_code.co_name)

    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(None)
    return len(seen)


def test_arguments_that_are_nested_too_deep_to_read_are_no_object() -> None:
    assert Call("c", "f", "client", arguments="[" * 100_000).parsed() is None


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "[" * 100 + "]" * 100, "9" * 5000])
def test_arguments_that_cannot_be_written_as_json_again_are_no_object(value: str) -> None:
    assert Call("c", "f", "client", arguments=f'{{"a": {value}}}').parsed() is None
