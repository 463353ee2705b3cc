"""What is remembered of the turns of a history, and which result is whose."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from turnloom.domain.message import JSON, AssistantMessage, Message, Spec, ToolMessage, Usage, UserMessage
from turnloom.domain.responses_input import RESPONSES, check_calls, read
from turnloom.domain.transcript import NO_RESULT, NOT_ALLOWED, SUMMARY, Dialect, transcript
from turnloom.domain.turn import Call, Compaction, Inference, Said, Turn


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


# --- results

Item = dict[str, Any]


def said(text: str, role: str = "user") -> Item:
    return {"type": "message", "role": role, "content": text}


def call(call_id: str = "c") -> Item:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"}


def output(text: Any, call_id: str = "c") -> Item:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def seen(*items: Item, history: tuple[Turn, ...] = (), summary: str | None = None) -> list[str]:
    """What the model is told, calls by their ids."""
    steps = () if summary is None else (Compaction(1, summary, Usage()),)
    told = transcript(Spec("m"), history, Turn("resp_z", input=items, steps=steps), RESPONSES)
    return [word for message in told for word in words(message)]


def words(message: Message) -> list[str]:
    if isinstance(message, AssistantMessage):
        return [*filter(None, [message.text]), *(f"call {call.call_id}" for call in message.calls)]
    return [f"= {message.content}"] if isinstance(message, ToolMessage) else [str(message.content)]


def test_calls_of_one_id_in_different_messages_each_have_their_own_result() -> None:
    first = (said("1"), call(), output("one"))
    assert seen(*first, said("2"), call(), output("two")) == ["1", "call c", "= one", "2", "call c", "= two"]
    earlier = Turn("resp_a", "completed", input=first)
    assert seen(said("2"), call(), output("two"), history=(earlier,)) == seen(*first, said("2"), call(), output("two"))


def test_calls_of_one_id_in_one_message_have_its_results_in_order() -> None:
    assert seen(call(), call(), output("one"), output("two")) == ["call c", "call c", "= one", "= two"]
    assert seen(call(), said("?"), call(), output("one"), output("two")) == ["?", "call c", "= one", "call c", "= two"]


def test_a_result_is_for_the_newest_call_of_its_id() -> None:
    assert seen(call(), said("?"), call(), output("two")) == ["call c", f"= {NO_RESULT}", "?", "call c", "= two"]
    assert seen(call(), output("one"), said("?"), call()) == ["call c", "= one", "?", "call c", f"= {NO_RESULT}"]


def test_the_newest_of_several_results_of_a_call_counts_and_no_other_call_gets_the_older() -> None:
    assert seen(call(), output("one"), said("?"), call(), output("x"), output("two")) == [
        "call c", "= one", "?", "call c", "= two",
    ]  # fmt: skip


def test_an_allowed_call_has_its_result_although_its_id_comes_again() -> None:
    asked = {"type": "mcp_approval_request", "id": "c", "server_label": "s", "name": "f", "arguments": "{}"}
    made = {"type": "mcp_call", "id": "x", "server_label": "s", "name": "f", "arguments": "{}", "output": "one"}
    told = seen(asked, said("ok"), {**made, "approval_request_id": "c"}, said("2"), asked)
    assert told == ["ok", "call c", "= one", "2", "call c", f"= {NOT_ALLOWED}"]


def test_a_call_moves_down_to_its_result_so_that_the_newest_message_stays_the_newest() -> None:
    assert seen(said("1"), call(), said("2"), output("one")) == ["1", "2", "call c", "= one"]
    earlier = Turn("resp_a", "completed", input=(said("1"), call()))
    assert seen(said("2"), output("one"), history=(earlier,)) == ["1", "2", "call c", "= one"]


def test_the_calls_of_one_message_move_down_together_to_the_last_of_their_results() -> None:
    items = (call("a"), call("b"), output("one", "a"), said("?"), output("two", "b"), said("!"))
    assert seen(*items) == ["?", "call a", "call b", "= one", "= two", "!"]
    assert seen(call("a"), output("one", "a"), said("?")) == ["call a", "= one", "?"]


def test_an_image_in_a_result_stays_behind_it_when_its_call_moves() -> None:
    image = {"type": "input_image", "image_url": "https://x/y.png"}
    items = (call("a"), call("b"), said("?"), output([image], "a"), output("two", "b"))
    assert [text[:20] for text in seen(*items)] == ["?", "call a", "call b", "= ", "= two", "(TextPart(text='Part"]
    unmoved = (call("a"), call("b"), output([image], "a"), output("two", "b"))
    assert [text[:20] for text in seen(*unmoved)] == ["call a", "call b", "= ", "= two", "(TextPart(text='Part"]


def test_a_call_that_is_answered_before_and_after_it_was_made_stays_where_it_is() -> None:
    assert seen(output("one"), said("?"), call()) == ["?", "call c", "= one"]


def test_a_result_before_its_call_stands_behind_it() -> None:
    assert seen(output("one"), call()) == ["call c", "= one"]


def test_a_result_whose_call_is_gone_is_not_taken_for_that_of_a_later_call_of_its_id() -> None:
    assert seen(output("old"), said("?"), call(), output("new")) == [
        "Result of a tool: old", "?", "call c", "= new",
    ]  # fmt: skip


# --- summaries


def test_a_summary_leaves_out_an_old_call_of_the_id_of_a_new_one() -> None:
    old, new = (said("1"), call(), output("one")), (said("2"), call(), output("two"))
    assert seen(*old, *new, summary="s") == [f"{SUMMARY}\n\ns", "2", "call c", "= two"]


@pytest.mark.parametrize("more", [[], [call(), output("one")]])
def test_a_summary_stands_for_the_one_that_the_client_brought(more: list[Item]) -> None:
    brought = {"type": "compaction", "encrypted_content": "x", "summary": "old"}
    assert f"{SUMMARY}\n\nold" not in seen(said("1"), brought, *more, summary="new")


# --- keys that only the model understands which wrote them


@pytest.mark.parametrize(("model", "sent"), [("m", {"signature": "x"}), ("another", {})])
def test_what_a_model_gave_to_a_call_goes_back_to_that_model_alone(model: str, sent: Item) -> None:
    extras = {"c": {"signature": "x"}, "": {"details": 1}}
    asked = Inference(1, (Call("c", "f", "client", None, "{}"),), 2, "tool_calls", extras=extras)
    earlier = Turn("resp_a", "completed", input=(said("1"),), steps=(asked,), settings={"model": "m"})
    newest = Turn("resp_b", input=(output("one"),), settings={"model": model})
    _, message, _ = transcript(Spec(model), [earlier], newest, RESPONSES)
    assert isinstance(message, AssistantMessage)
    assert message.calls[0].extra == sent
    assert message.extra == ({"details": 1} if sent else {})
