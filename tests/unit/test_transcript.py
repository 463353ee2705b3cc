"""What is remembered of the turns of a history."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from turnloom.domain.message import JSON, Message, Spec, UserMessage
from turnloom.domain.responses_input import RESPONSES, check_calls, read
from turnloom.domain.transcript import Dialect, transcript
from turnloom.domain.turn import Inference, Said, Turn


def turn(name: str, text: str, **more: Any) -> Turn:
    given = ({"type": "message", "role": "user", "content": text},)
    return Turn(
        name, "completed", input=given, steps=(Inference(1, (Said("text", f"re: {text}"),), 2, "stop"),), **more
    )


def test_a_turn_that_nobody_holds_is_not_remembered() -> None:
    earlier = turn("resp_a", "x")
    held = weakref.ref(earlier)
    check_calls([earlier], [])
    assert transcript(Spec("m"), [earlier], turn("resp_b", "y"), RESPONSES)
    del earlier
    gc.collect()
    assert held() is None


def test_the_history_is_read_once_for_as_long_as_it_is_held() -> None:
    told: list[str] = []

    def noted(items: list[JSON], current: bool) -> list[Message]:
        told.append(items[0]["content"])
        return read(items, current)

    dialect, history = Dialect(noted, replays_failed=True), [turn("resp_a", "x"), turn("resp_b", "y")]
    for text in ("1", "2"):
        transcript(Spec("m"), history, turn("resp_c", text), dialect)
    assert told == ["x", "y", "1", "2"]


def test_what_was_taken_out_of_a_turn_is_not_told_from_memory() -> None:
    whole, thinned, newest = turn("resp_a", "x"), turn("resp_a", "less"), turn("resp_b", "y")
    assert transcript(Spec("m"), [whole], newest, RESPONSES)[0] == UserMessage("x")
    assert transcript(Spec("m"), [thinned], newest, RESPONSES)[0] == UserMessage("less")
    assert transcript(Spec("m"), [whole], newest, RESPONSES)[0] == UserMessage("x")


def test_each_dialect_is_told_in_its_own_way() -> None:
    shouting = Dialect(lambda items, current: [UserMessage(items[0]["content"].upper())], replays_failed=True)
    earlier, newest = turn("resp_a", "x"), turn("resp_b", "y")
    for dialect, text in ((RESPONSES, "x"), (shouting, "X"), (RESPONSES, "x")):
        assert transcript(Spec("m"), [earlier], newest, dialect)[0] == UserMessage(text)
