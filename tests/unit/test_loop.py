"""The pure loop: what a turn is after its events, and what it wants next."""

from __future__ import annotations

from typing import Any

import pytest

from turnloom.domain.action import AwaitClient, CallModel, CallTools, Finish, Gather, RunShields
from turnloom.domain.agents_input import AGENTS
from turnloom.domain.decide import decide
from turnloom.domain.event import (
    CallStarted,
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
    ToolStarted,
    TurnAbandoned,
    TurnCompleted,
    TurnStarted,
)
from turnloom.domain.message import AssistantMessage, Message, Spec, SystemMessage, ToolMessage, UserMessage
from turnloom.domain.transcript import NO_RESULT, transcript
from turnloom.domain.turn import IllegalEvent, ToolRun, Turn, fold, withheld

SPEC = Spec("m", instructions="Be brief.")
STARTED = TurnStarted(1, ({"role": "user", "content": "Go."},))


def call(call_id: str, runner: Any = "server", arguments: str = "{}") -> list[Event]:
    return [CallStarted(call_id, "tool", runner), Delta("arguments", arguments)]


def inference(*said: Event, finish: Any = "stop") -> list[Event]:
    return [InferenceStarted(2), *said, InferenceCompleted(3, finish)]


def turn(*events: Event) -> Turn:
    return fold(Turn("01977420-dc00-7000-8000-00000000000c"), [STARTED, *events])


VIOLATION = {"violation_level": "error", "user_message": "No.", "metadata": {}}


@pytest.mark.parametrize(
    ("events", "spec", "action"),
    [
        ([], SPEC, CallModel(forced=True)),
        ([], Spec("m", documents=({"content": "x"},)), Gather()),
        ([Gathered(2)], Spec("m", documents=({"content": "x"},)), CallModel(forced=True)),
        ([], Spec("m", input_shields=("s",)), RunShields("user-input", ("s",))),
        ([ShieldsRun(2, 2, "user-input", VIOLATION)], Spec("m", input_shields=("s",)), Finish()),
        (inference(Delta("text", "Hi")), SPEC, Finish()),
        (inference(Delta("text", "Hi"), finish="length"), SPEC, Finish("out_of_tokens")),
        (inference(*call("a"), finish="length"), SPEC, Finish("out_of_tokens")),
        (inference(finish="content_filter"), SPEC, Finish("content_filter")),
        (inference(*call("a"), *call("b")), SPEC, CallTools(("a", "b"))),
        (inference(*call("a"), *call("b", "client")), SPEC, CallTools(("a",))),
        (inference(*call("a", "unknown")), SPEC, CallTools(("a",))),
        (inference(*call("a", "client")), SPEC, AwaitClient()),
        (inference(*call("a", "client", "{")), SPEC, CallTools(("a",))),
        (inference(*call("a", "client")), Spec("m", suspends_for_client=False), Finish()),
        (inference(*call("a", "client")), Spec("m", output_shields=("s",)), RunShields("assistant-output", ("s",))),
        ([*inference(*call("a")), ToolCompleted(4, "a", "x")], SPEC, CallModel(forced=False)),
        (inference(*call("a")), Spec("m", max_inferences=1), Finish("max_infer_iters")),
        (inference(*call("a", "client")), Spec("m", max_inferences=1), Finish("max_infer_iters")),
        (inference(*call("a")), Spec("m", max_inferences=1, runs_last_calls=True), CallTools(("a",))),
        (
            [*inference(*call("a")), ToolCompleted(4, "a", "x")],
            Spec("m", max_inferences=1, runs_last_calls=True),
            Finish("max_infer_iters"),
        ),
        ([InferenceStarted(2), Delta("text", "Hi")], SPEC, CallModel(forced=False)),
    ],
)
def test_a_turn_wants_next(events: list[Event], spec: Spec, action: object) -> None:
    assert decide(turn(*events), spec) == action


def test_a_resumed_leg_has_at_least_one_inference() -> None:
    events = [*inference(Delta("text", "Action: x")), TurnCompleted(5), InputProvided(6, ({"call_id": "z"},))]
    assert decide(turn(*events), Spec("m", max_inferences=1)) == CallModel(forced=False)


def test_runs_stand_in_the_order_of_the_calls_whoever_was_first() -> None:
    events = [*inference(*call("a"), *call("b")), ToolStarted(4, "a"), ToolCompleted(5, "b", "2")]
    done = turn(*events, ToolCompleted(6, "a", "1"))
    assert [step.call.call_id for step in done.steps if isinstance(step, ToolRun)] == ["a", "b"]


def test_a_turn_that_is_over_takes_nothing_but_input() -> None:
    done = turn(*inference(Delta("text", "Hi")), TurnCompleted(5))
    with pytest.raises(IllegalEvent):
        fold(done, [InferenceStarted(6)])
    with pytest.raises(IllegalEvent):
        fold(done, [TurnAbandoned(6)])
    assert fold(done, [InputProvided(6, ())]).running


def test_a_takeover_has_the_model_asked_again_without_what_was_cut() -> None:
    cut = turn(InferenceStarted(2), Delta("text", "Hel"))
    taken = fold(cut, [TakenOver(3, 64)])
    assert cut.cut and not taken.cut and taken.inferences == ()
    assert decide(taken, SPEC) == CallModel(forced=True)
    assert seen(taken) == (SystemMessage("Be brief."), UserMessage("Go."))
    assert fold(turn(InferenceStarted(2)), [TakenOver(3, 64)]).steps == (), "what said nothing is forgotten"


def test_withheld_events_keep_their_number_and_lose_their_text() -> None:
    events = [STARTED, *inference(Delta("text", "secret"))]
    kept = withheld(events)
    assert len(kept) == len(events) and "secret" not in str(kept)


# --- transcripts


def seen(*turns: Turn) -> tuple[Message, ...]:
    *history, current = turns
    return transcript(SPEC, history, current, AGENTS)


def test_results_stand_behind_their_calls_and_no_call_is_left_alone() -> None:
    events = [*inference(*call("a"), *call("b", "client")), ToolCompleted(4, "a", "1"), InputAwaited(5)]
    messages = seen(turn(*events, TurnAbandoned(6)), turn())
    assert messages[0] == SystemMessage("Be brief.")
    assert isinstance(messages[2], AssistantMessage)
    assert messages[3:5] == (ToolMessage("a", "1", "tool"), ToolMessage("b", NO_RESULT, "tool"))


def test_tool_messages_of_the_next_turn_answer_the_open_calls_of_the_one_before() -> None:
    waiting = turn(*inference(*call("a", "client")), InputAwaited(4), TurnAbandoned(5))
    old_way = fold(Turn("x"), [TurnStarted(6, ({"role": "tool", "call_id": "a", "content": "42"},))])
    assert seen(waiting, old_way)[-1] == ToolMessage("a", "42", "tool")


def test_a_blocked_input_is_withheld_and_its_refusal_told() -> None:
    blocked = turn(ShieldsRun(2, 2, "user-input", VIOLATION), TurnCompleted(3))
    messages = seen(blocked, turn())
    assert "Go." not in str(messages[:-1])
    assert AssistantMessage("No.") in messages


def test_the_text_of_documents_stands_behind_the_last_user_message() -> None:
    assert seen(turn(ContextInserted(2, 2, "Read me.")))[-1] == UserMessage("Go.\n\nRead me.")
