"""What is left of a hidden turn when an item of it was removed: everything but the item's content."""

from __future__ import annotations

from dataclasses import replace

import pytest

from turnloom.domain import ids
from turnloom.domain.event import (
    CallsAllowed,
    CallStarted,
    Compacted,
    Delta,
    Event,
    InferenceCompleted,
    InferenceStarted,
    ToolCompleted,
    ToolsListed,
    ToolStarted,
    TurnCompleted,
    TurnStarted,
)
from turnloom.domain.layout import INPUT_POSITION, item_positions, placed
from turnloom.domain.turn import Resumption, Turn, fold
from turnloom.store import codec
from turnloom.store.turns import Place, Record
from turnloom.usecases.conversations import blanked

THREAD = "0" * 15 + "7"
TURN = ids.response_id(1_750_000_000_000_000, 3, THREAD)

INPUT = (
    {"type": "message", "role": "user", "content": "content-0"},
    {"type": "function_call_output", "id": "fc_mine", "call_id": "call_before", "output": "content-1"},
)
ALLOWED = {"call_id": "old", "name": "content-a", "group": "content-a", "arguments": "content-a", "request": "mcpr_1"}

EVENTS: list[Event] = [
    TurnStarted(1, INPUT),
    Compacted(2, "content-b"),
    CallsAllowed(3, (ALLOWED,)),
    ToolStarted(3, "old"),
    ToolCompleted(4, "old", "content-a", {"m": "content-a"}, {"kind": "tool", "code": 1, "message": "content-a"}),
    ToolsListed(5, "content-c", ({"name": "content-c"},)),
    InferenceStarted(6),
    Delta("reasoning", "content"),
    Delta("reasoning", "-d"),
    Delta("text", "content-", ({"token": "content-e", "logprob": 0.0},)),
    Delta("text", "e"),
    Delta("refusal", "content-e"),
    CallStarted("s", "content-f", "server", "content-f"),
    Delta("arguments", "content-f"),
    CallStarted("u", "unlisted", "unknown"),
    Delta("arguments", "unlisted"),
    InferenceCompleted(7, "tool_calls", extras={"s": {"signature": "content-f"}}),
    ToolStarted(7, "s"),
    ToolStarted(7, "u"),
    ToolCompleted(8, "u", "unlisted"),
    ToolCompleted(8, "s", [{"type": "text", "text": "content-f"}]),
    InferenceStarted(9),
    CallStarted("u2", "unlisted", "unknown"),
    Delta("arguments", "unlisted"),
    Delta("text", "content-g"),
    CallStarted("a", "content-h", "approval", "content-h"),
    Delta("arguments", "content-h"),
    CallStarted("f", "content-i", "client", "content-i"),
    Delta("arguments", "content-i"),
    CallStarted("c", "content-j", "client", kind="custom"),
    Delta("arguments", "content-j"),
    InferenceCompleted(10, "tool_calls"),
    TurnCompleted(11),
]
RECORD = Record(Place("responses", "me", THREAD, 3), fold(Turn(TURN), EVENTS), tuple(EVENTS), hidden=True)

# In the order of the positions: a summary, an allowed call, a list of tools, and what the model said.
MARKS = {position: f"content-{letter}" for position, letter in enumerate("bacdefghij")}
MARKS |= {INPUT_POSITION: "content-0", INPUT_POSITION + 1: "content-1"}


def without(*positions: int) -> Record:
    return blanked(replace(RECORD, origin={"removed": list(positions)}))


def text(record: Record) -> str:
    return str(codec.dump(record.events))


def test_every_item_of_the_turn_has_a_mark() -> None:
    assert set(MARKS) == set(item_positions(RECORD.turn).values())
    assert all(mark in text(RECORD) for mark in MARKS.values())


@pytest.mark.parametrize("position", MARKS)
def test_the_content_of_a_removed_item_is_gone_and_that_of_the_others_stays(position: int) -> None:
    left = text(without(position))
    assert {at for at, mark in MARKS.items() if mark not in left} == {position}
    assert left.count("unlisted") == text(RECORD).count("unlisted")


@pytest.mark.parametrize("position", MARKS)
def test_items_keep_their_ids_places_and_kinds(position: int) -> None:
    left = without(position)
    assert item_positions(left.turn) == item_positions(RECORD.turn)
    assert [item.kind for item in placed(left.turn)] == [item.kind for item in placed(RECORD.turn)]
    assert len(left.events) == len(RECORD.events)


def test_a_turn_of_which_everything_was_removed_can_be_stored_and_read_again() -> None:
    left = without(*MARKS)
    assert "content" not in text(left).replace("'content'", "")
    again = fold(Turn(TURN), codec.load(codec.dump(left.events)))
    assert item_positions(again) == item_positions(RECORD.turn)
    assert blanked(replace(left, turn=again)).events == left.events


def test_a_removed_call_is_still_known_by_its_id_and_as_one_that_was_made() -> None:
    left = without(*MARKS).turn
    assert left.input[1]["call_id"] == "call_before"
    assert {"s", "a", "f", "c"} <= {call.call_id for inference in left.inferences for call in inference.calls}
    [resumption] = (step for step in left.steps if isinstance(step, Resumption))
    assert [call.request for call in resumption.calls] == ["mcpr_1"]
