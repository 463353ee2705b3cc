"""Halves of surrogate pairs in texts and in JSON that come in fragments."""

from __future__ import annotations

import json

import pytest

from turnloom.domain.surrogates import JSONRepair, TextRepair, repair


@pytest.mark.parametrize(
    ("text", "repaired"),
    [("plain", "plain"), ("a\ud800b", "a\ufffdb"), ("\udc00", "\ufffd"), ("\ud83d\ude00é", "😀é")],
)
def test_half_of_a_pair_becomes_the_replacement_character(text: str, repaired: str) -> None:
    assert repair(text) == repaired


def test_pair_split_over_two_fragments_stays_a_pair() -> None:
    text = TextRepair()
    assert text.add("a\ud83d") + text.add("\ude00b") + text.rest() == "a😀b"


def test_half_at_the_end_of_a_text_is_replaced_at_the_end() -> None:
    text = TextRepair()
    assert text.add("a\ud83d") == "a"
    assert text.rest() == "\ufffd"


@pytest.mark.parametrize(
    ("written", "repaired"),
    [
        (r'{"a": "\ud800"}', r'{"a": "\ufffd"}'),
        (r'{"a": "\uDC00\ud800x"}', r'{"a": "\ufffd\ufffdx"}'),
        (r'{"a": "\ud83d\ude00"}', r'{"a": "\ud83d\ude00"}'),
        (r'{"a": "\ud83d\ud83d\ude00"}', r'{"a": "\ufffd\ud83d\ude00"}'),
        (r'{"a": "\\ud800 \\\ud800 \u00e9"}', r'{"a": "\\ud800 \\\ufffd \u00e9"}'),
        ('{"a": "\ud800"}', '{"a": "\ufffd"}'),
        ('{"a": "\ud83d\ude00"}', '{"a": "😀"}'),
        (r'{"a": "\ud8', r'{"a": "\ud8'),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_escapes_in_json_are_repaired_however_it_is_cut(written: str, repaired: str, size: int) -> None:
    arguments = JSONRepair()
    fragments = [arguments.add(written[at : at + size]) for at in range(0, len(written), size)]
    assert "".join(fragments) + arguments.rest() == repaired


def test_repaired_json_can_be_encoded_once_it_is_read() -> None:
    json.loads(JSONRepair().add(r'{"\udfff": "\ud800\u0041"}'))["\ufffd"].encode()
