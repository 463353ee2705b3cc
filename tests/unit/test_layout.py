"""Where items stand, what they are called, and what is left when some are taken out."""

from __future__ import annotations

from typing import Any

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
    TakenOver,
    ToolCompleted,
    ToolsListed,
    ToolStarted,
    TurnCompleted,
    TurnStarted,
)
from turnloom.domain.layout import INPUT_POSITION, PREFIXES, input_ids, item_id, item_positions, placed, without
from turnloom.domain.message import AssistantMessage, Message, Spec, SystemMessage, ToolMessage, UserMessage
from turnloom.domain.responses_input import RESPONSES
from turnloom.domain.transcript import NOT_ALLOWED, transcript
from turnloom.domain.turn import Resumption, Turn, fold

SPEC = Spec("m")
TURN = ids.response_id(1_750_000_000_000_000, 3, "0" * 15 + "7")
LATER = ids.response_id(1_750_000_001_000_000, 4, "0" * 15 + "7")


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text, **more}


def call(call_id: str, runner: Any = "client", kind: Any = "function", group: str | None = None) -> list[Event]:
    return [CallStarted(call_id, f"tool_{call_id}", runner, group, kind), Delta("arguments", "{}")]


def answer(*written: Event, finish: Any = "stop") -> list[Event]:
    return [InferenceStarted(2), *written, InferenceCompleted(3, finish)]


def ran(call_id: str) -> list[Event]:
    return [ToolStarted(4, call_id), ToolCompleted(5, call_id, f"result of {call_id}")]


def turn_of(*events: Event, given: tuple[Any, ...] = (said("Go."),), name: str = TURN) -> Turn:
    return fold(Turn(name), [TurnStarted(1, given), *events, TurnCompleted(9)])


def kinds(turn: Turn) -> list[str]:
    return [item.kind for item in placed(turn)]


FULL = turn_of(
    ToolsListed(1, "srv"),
    *answer(
        Delta("reasoning", "Hm."),
        Delta("text", "Let me see."),
        *call("s", "server", group="srv"),
        *call("u", "unknown"),
        *call("a", "approval", group="srv"),
        finish="tool_calls",
    ),
    *ran("s"),
    *ran("u"),
    *answer(Delta("text", "Well,"), Delta("refusal", "no."), *call("f"), *call("c", kind="custom"), Delta("text", "x")),
)


# --- places and names


def test_every_item_has_its_place_and_the_calls_of_nobody_have_none() -> None:
    assert kinds(FULL) == [
        "mcp_list_tools",
        "reasoning",
        "message",
        "mcp_call",
        "mcp_approval_request",
        "message",
        "function_call",
        "custom_tool_call",
        "message",
    ]
    assert [item.position for item in placed(FULL)] == list(range(9))


def test_text_and_refusal_beside_each_other_are_one_message_and_a_call_divides_two() -> None:
    messages = [item for item in placed(FULL) if item.kind == "message"]
    assert [len(item.blocks) for item in messages] == [1, 2, 1]


def test_allowed_calls_and_summaries_are_items() -> None:
    allowed = {"call_id": "a", "name": "act", "group": "srv", "arguments": "{}", "request": "mcpr_x"}
    turn = turn_of(Compacted(1, "So far."), CallsAllowed(1, (allowed,)), *ran("a"), *answer(Delta("text", "Done.")))
    assert kinds(turn) == ["compaction", "mcp_call", "message"]


def test_what_is_still_open_has_a_place_too() -> None:
    turn = fold(Turn(TURN), [TurnStarted(1, ()), InferenceStarted(2), Delta("text", "Hm"), *call("f")])
    assert kinds(turn) == ["message", "function_call"]


def test_a_cut_answer_keeps_its_places_and_the_next_goes_on_behind_it() -> None:
    turn = turn_of(InferenceStarted(2), Delta("text", "Hel"), TakenOver(3), *answer(Delta("text", "Hello")))
    assert kinds(turn) == ["message", "message"]


@pytest.mark.parametrize("kind", PREFIXES)
def test_an_id_leads_back_to_its_item(kind: str) -> None:
    for position in (0, 7, INPUT_POSITION, INPUT_POSITION + 1000):
        name = item_id(kind, TURN, position)
        assert ids.item_place(name) == (TURN, position) and len(name) <= 64


def test_ids_of_the_client_are_kept_if_they_are_new_and_short_enough() -> None:
    given = (said("a", id="mine"), said("b", id="mine"), said("c", id="taken"), said("d", id="x" * 65), said("e"))
    turn = turn_of(given=given)
    names = input_ids(turn, {"taken"})
    assert names[0] == "mine" and len(set(names)) == 5 and "taken" not in names
    assert [ids.item_place(name) for name in names[1:]] == [(TURN, INPUT_POSITION + n) for n in range(1, 5)]


@pytest.mark.parametrize("given", ["", ".", "..", "a/b", "/", "x" * 65])
def test_an_id_that_is_no_segment_of_a_path_is_replaced(given: str) -> None:
    [name] = input_ids(turn_of(given=(said("a", id=given),)))
    assert ids.item_place(name) == (TURN, INPUT_POSITION)


def test_positions_name_input_and_output_alike() -> None:
    positions = item_positions(FULL)
    assert len(positions) == 10 and sorted(positions.values())[-1] == INPUT_POSITION
    assert positions[item_id("function_call", TURN, 6)] == 6


# --- taking items out


def left(turns: list[Turn], *removed: set[int]) -> list[Turn]:
    return without(turns, removed)


def told(*turns: Turn) -> list[Message]:
    """What the model is shown of these turns, before the newest one."""
    return list(transcript(SPEC, turns, Turn("now"), RESPONSES))


def position(turn: Turn, kind: str) -> int:
    return next(item.position for item in placed(turn) if item.kind == kind)


def test_nothing_taken_out_changes_nothing() -> None:
    assert left([FULL], set()) == [FULL]


@pytest.mark.parametrize("taken", range(9))
def test_what_is_left_keeps_its_place_and_its_id(taken: int) -> None:
    [turn] = left([FULL], {taken})
    before, after = list(placed(FULL)), list(placed(turn))
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        if old.position != taken:
            assert (new.position, new.kind, new.blocks) == (old.position, old.kind, old.blocks)
    assert after[taken].blocks != before[taken].blocks or before[taken].kind != after[taken].kind


@pytest.mark.parametrize("taken", range(9))
def test_the_model_is_not_told_of_it(taken: int) -> None:
    item = list(placed(FULL))[taken]
    [turn] = left([FULL], {taken})
    text = str(told(turn))
    for block in item.blocks:
        assert getattr(block, "call_id", getattr(block, "text", "")) not in names_in(text), block


def names_in(text: str) -> set[str]:
    return {piece for piece in text.replace('"', "'").split("'") if piece}


def test_everything_taken_out_leaves_nothing_to_tell() -> None:
    turns = left([FULL], {*range(9), INPUT_POSITION})
    shown = told(*turns)
    assert [type(message) for message in shown] == [AssistantMessage, ToolMessage]
    assert isinstance(shown[0], AssistantMessage) and [c.call_id for c in shown[0].calls] == ["u"], "nobody saw it"


def test_input_that_was_taken_out_keeps_the_ids_of_what_follows() -> None:
    turn = turn_of(given=(said("a"), said("b"), said("c")))
    [thinned] = left([turn], {INPUT_POSITION})
    assert input_ids(thinned)[1:] == input_ids(turn)[1:]
    assert told(thinned) == [UserMessage("b"), UserMessage("c")]


def output(call_id: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": "found"}


@pytest.mark.parametrize("half", ["call", "output"])
def test_both_halves_of_a_call_go_also_from_different_turns(half: str) -> None:
    asking = turn_of(*answer(Delta("text", "Let me see."), *call("f"), finish="tool_calls"))
    telling = turn_of(*answer(Delta("text", "There.")), given=(output("f"), said("Well?")), name=LATER)
    removed = [{position(asking, "function_call")}, set()] if half == "call" else [set(), {INPUT_POSITION}]
    shown = told(*without([asking, telling], removed))
    texts = [m.text if isinstance(m, AssistantMessage) else m.content for m in shown]
    assert texts == ["Go.", "Let me see.", "Well?", "There."]


def test_the_result_of_a_hosted_call_goes_with_it_and_its_neighbours_stay() -> None:
    turn = turn_of(*answer(*call("a", "server"), *call("b", "server"), finish="tool_calls"), *ran("a"), *ran("b"))
    shown = told(*left([turn], {0}))
    assert [m.call_id for m in shown if isinstance(m, ToolMessage)] == ["b"]
    assert [c.call_id for m in shown if isinstance(m, AssistantMessage) for c in m.calls] == ["b"]


def test_an_approved_call_goes_with_its_request_from_both_turns() -> None:
    asking = turn_of(*answer(*call("a", "approval", group="srv"), finish="tool_calls"))
    request = item_id("mcp_approval_request", TURN, 0)
    allowed = {"call_id": "a", "name": "tool_a", "group": "srv", "arguments": "{}", "request": request}
    acting = turn_of(CallsAllowed(1, (allowed,)), *ran("a"), *answer(Delta("text", "Done.")), given=(), name=LATER)
    assert "result of a" in str(told(asking, acting)) and NOT_ALLOWED not in str(told(asking, acting))
    for removed in ([{0}, set()], [set(), {0}]):
        turns = without([asking, acting], removed)
        assert told(*turns) == [UserMessage("Go."), AssistantMessage("Done.")]
        [resumption] = [step for step in turns[1].steps if isinstance(step, Resumption)]
        assert resumption.calls[0].request == request, "it counts as made all the same"


def test_a_message_of_several_parts_leaves_one_place_behind() -> None:
    turn = turn_of(*answer(Delta("text", "Well,"), Delta("refusal", "no."), *call("f")))
    [thinned] = left([turn], {0})
    assert [item.kind for item in placed(thinned)] == ["reasoning", "function_call"]


def test_a_summary_taken_out_brings_back_what_it_stood_for() -> None:
    before = turn_of(*answer(Delta("text", "Hello.")))
    after = turn_of(Compacted(1, "They said hello."), *answer(Delta("text", "On.")), given=(said("On?"),), name=LATER)
    assert isinstance(told(before, after)[0], SystemMessage)
    texts = [
        getattr(message, "text", "") or getattr(message, "content", "")
        for message in told(*left([before, after], set(), {0}))
    ]
    assert texts == ["Go.", "Hello.", "On?", "On."]
