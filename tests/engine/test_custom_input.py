"""The text of a custom tool, read out of arguments that are not written as they should be."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnloom.engine.custom_input import CustomInput


def read(arguments: str, size: int) -> str:
    reader = CustomInput()
    pieces = [arguments[start : start + size] for start in range(0, len(arguments), size)]
    return "".join(map(reader.take, pieces)) + reader.rest()


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r"grep '\d+' a \\ b", r"grep '\d+' a \ b"),
        (r"\u12 is \u00e9 \u", r"\u12 is é \u"),
        (r"\\d \\\d \q\"q\"", r"\d \\d " + r'\q"q"'),
        ("a\nb\tc", "a\nb\tc"),
    ],
)
def test_an_escape_that_json_does_not_know_stands_for_itself(written: str, text: str, size: int) -> None:
    assert read(f'{{"input": "{written}"}}', size) == text


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r"a\ud83db", "a\N{REPLACEMENT CHARACTER}b"),
        (r"a\ude00b", "a\N{REPLACEMENT CHARACTER}b"),
        (r"\ud83d\ud83d\ude00", "\N{REPLACEMENT CHARACTER}😀"),
        (r"\ud83d\n", "\N{REPLACEMENT CHARACTER}\n"),
        (r"\ud83d", "\N{REPLACEMENT CHARACTER}"),
        (r"\uD83D\uDE00", "😀"),
    ],
)
def test_half_of_a_surrogate_pair_is_no_character(written: str, text: str, size: int) -> None:
    assert read(f'{{"input": "{written}"}}', size) == text


@given(
    text=st.text(alphabet=st.sampled_from('\\"u0dD83eE"n \n{}😀'), max_size=30),
    behind=st.sampled_from(["", "}", ', "more": "x"}', '"}']),
    size=st.integers(1, 9),
)
@settings(deadline=None)
def test_nothing_behind_the_text_is_taken_for_a_part_of_it(text: str, behind: str, size: int) -> None:
    arguments = f'{{"input": {json.dumps(text)}'
    assert read(arguments + behind, size) == text


@given(arguments=st.text(alphabet=st.sampled_from('\\"u0dD83eE"n \n'), max_size=40), size=st.integers(1, 9))
@settings(deadline=None)
def test_the_pieces_make_no_difference(arguments: str, size: int) -> None:
    arguments = f'{{"input": "{arguments}'
    told = read(arguments, size)
    assert told == read(arguments, len(arguments))
    told.encode()


def test_a_long_text_costs_no_more_memory_than_its_own() -> None:
    arguments = json.dumps({"input": 'Say "so" \\ é.\n' * 20_000})
    tracemalloc.start()
    read(arguments, len(arguments))
    peak_at_once = tracemalloc.get_traced_memory()[1]
    reader = CustomInput()
    for start in range(0, len(arguments), 100):
        reader.take(arguments[start : start + 100])
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert peak_at_once < 10 * len(arguments) and kept < len(arguments) / 10
