"""Events keep every field, and every delta its place, through the store."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from turnloom.domain.event import Delta, Event
from turnloom.store import codec

times = st.integers(0, 2**53)
texts = st.text(max_size=20)
plain = st.none() | st.booleans() | st.integers() | texts | st.lists(texts, max_size=3)
objects = st.dictionaries(texts, plain, max_size=3)
deltas = st.builds(
    Delta, st.sampled_from(["text", "refusal", "reasoning", "arguments"]), st.text(min_size=1, max_size=9)
)
FIELDS = {
    "input": st.lists(objects, max_size=2).map(tuple),
    "settings": objects,
    "tools": st.lists(objects, max_size=2).map(tuple),
    "violation": st.none() | objects,
    "content": plain,
    "metadata": objects,
    "error": st.none() | texts,
    "calls": st.lists(objects, max_size=2).map(tuple),
    "responses": st.lists(objects, max_size=2).map(tuple),
}


def any_event() -> st.SearchStrategy[Event]:
    kinds = [kind for kind in get_args(Event) if kind is not Delta]
    return st.one_of(deltas, *(events_of(kind) for kind in kinds))


def events_of(kind: type[Event]) -> st.SearchStrategy[Event]:
    return st.builds(kind, **{field.name: FIELDS[field.name] for field in fields(kind) if field.name in FIELDS})


@given(st.lists(any_event(), max_size=12))
def test_events_come_back_as_they_went(events: list[Event]) -> None:
    packed = json.loads(json.dumps(codec.dump(events)))
    assert list(codec.load(packed)) == events


@given(st.lists(deltas, min_size=1, max_size=12))
def test_merged_deltas_have_the_same_text(run: list[Delta]) -> None:
    merged = list(codec.load(codec.dump(run), merged=True))
    for block in ("text", "refusal", "reasoning", "arguments"):
        whole = "".join(d.text for d in merged if isinstance(d, Delta) and d.block == block)
        assert whole == "".join(d.text for d in run if d.block == block)


def test_a_run_of_deltas_is_one_text_with_its_cuts() -> None:
    run = [Delta("text", "Hel"), Delta("text", "lo")]
    assert codec.dump(run) == [["delta", "text", "Hello", [3, 2]]]
