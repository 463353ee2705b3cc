"""Input items as chat messages, and calls that match their outputs."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import (
    AssistantMessage,
    FilePart,
    ImagePart,
    Message,
    Spec,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from turnloom.domain.responses_input import RESPONSES, UNKEPT, check_calls, read
from turnloom.domain.transcript import transcript
from turnloom.domain.turn import Call, Inference, Said, Turn

Item = dict[str, Any]


def message(role: str, content: Any) -> Item:
    return {"type": "message", "role": role, "content": content}


def call(call_id: str, **more: Any) -> Item:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}", **more}


def output(call_id: str, content: Any = "found") -> Item:
    return {"type": "function_call_output", "call_id": call_id, "output": content}


def reasoning(text: str) -> Item:
    return {"type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}


def mcp(name: str, **outcome: Any) -> Item:
    return {"type": "mcp_call", "id": f"mcp_{name}", "server_label": "s", "name": name, "arguments": "{}", **outcome}


def messages(*items: Item) -> list[Message]:
    return read(items, True)


F = ToolCall("c", "f", "{}")

# --- messages


def test_each_role_speaks_with_its_own_voice_and_the_developer_as_the_system() -> None:
    assert messages(*(message(role, "x") for role in ("user", "system", "developer", "assistant"))) == [
        UserMessage("x"),
        SystemMessage("x"),
        SystemMessage("x"),
        AssistantMessage("x"),
    ]


def test_parts_stay_parts_but_one_text_is_a_string() -> None:
    text: Item = {"type": "input_text", "text": "Look"}
    image: Item = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    assert messages(message("system", [text])) == [SystemMessage("Look")]
    assert messages(message("user", [text, image])) == [
        UserMessage((TextPart("Look"), ImagePart("data:image/png;base64,AA==")))
    ]
    assert messages(message("user", [])) == [UserMessage("")]


@pytest.mark.parametrize(("given", "sent"), [("low", "low"), ("auto", "auto"), ("original", "high")])
def test_the_detail_of_an_image_goes_along(given: str, sent: str) -> None:
    [shown] = messages(message("user", [{"type": "input_image", "image_url": "https://x/y", "detail": given}]))
    assert shown == UserMessage((ImagePart("https://x/y", sent),))


def test_text_and_refusal_of_the_assistant_come_back_as_text() -> None:
    parts = [{"type": "output_text", "text": "Well. "}, {"type": "refusal", "refusal": "No."}]
    assert messages(message("assistant", parts)) == [AssistantMessage("Well. No.")]


def file(name: str | None, content: bytes, media: str | None = None) -> Item:
    data = base64.b64encode(content).decode()
    data = data if media is None else f"data:{media};base64,{data}"
    return {"type": "input_file", "file_data": data} | ({} if name is None else {"filename": name})


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (file("a.txt", b"hello"), "a.txt\n\nhello"),
        (file("a.csv", b"1;\xff", "text/csv"), "a.csv\n\n1;\N{REPLACEMENT CHARACTER}"),
        (file("a.json", b"{}", "application/json"), "a.json\n\n{}"),
        (file("a.svg", b"<svg/>", "image/svg+xml"), "a.svg\n\n<svg/>"),
        (file("notes.qqq", "\ufeffé".encode()), "notes.qqq\n\né"),
        (file(None, b"x", "application/octet-stream"), "file\n\nx"),
        ({"type": "input_file", "file_data": "data:text/plain,a%20b", "filename": "a"}, "a\n\na b"),
    ],
)
def test_a_file_of_text_is_text_under_its_name(part: Item, text: str) -> None:
    assert messages(message("user", [part])) == [UserMessage(text)]


@pytest.mark.parametrize(
    ("part", "media"),
    [
        (file("a.pdf", b"%PDF", "application/pdf"), "application/pdf"),
        (file("a.pdf", b"%PDF"), "application/pdf"),
        (file("a.bin", b"\xff\x00"), "application/octet-stream"),
        (file("a.qqq", b"a\x00b"), "application/octet-stream"),
    ],
)
def test_any_other_file_is_passed_on(part: Item, media: str) -> None:
    [shown] = messages(message("user", [part]))
    assert isinstance(shown, UserMessage)
    sent = shown.content[0]
    assert isinstance(sent, FilePart)
    assert sent.filename == part["filename"]
    assert sent.data.startswith(f"data:{media};base64,")


# --- one model message from many items


def test_reasoning_text_and_calls_of_one_model_message_merge_whatever_their_order() -> None:
    one = AssistantMessage("Let me see.", (F, ToolCall("d", "f", "{}")), "Hm.")
    items = (reasoning("Hm."), message("assistant", "Let me see."), call("c"), call("d"))
    assert messages(*items) == [one]
    assert messages(*items[::-1]) == [AssistantMessage("Let me see.", one.calls[::-1], "Hm.")]


def test_outputs_end_the_message_that_made_the_calls() -> None:
    items = (call("c"), call("d"), output("c"), output("d", "lost"), call("e"), output("e"))
    assert messages(*items) == [
        AssistantMessage(calls=(F, ToolCall("d", "f", "{}"))),
        ToolMessage("c", "found"),
        ToolMessage("d", "lost"),
        AssistantMessage(calls=(ToolCall("e", "f", "{}"),)),
        ToolMessage("e", "found"),
    ]


def test_reasoning_alone_makes_no_message() -> None:
    assert messages(reasoning("Hm."), message("user", "x"), message("assistant", "y")) == [
        UserMessage("x"),
        AssistantMessage("y"),
    ]


def test_reasoning_prefers_what_the_model_wrote_to_its_summary() -> None:
    item = {**reasoning("short"), "content": [{"type": "reasoning_text", "text": "long"}]}
    assert messages(item, message("assistant", "y")) == [AssistantMessage("y", (), "long")]


def test_calls_that_were_not_finished_are_left_out() -> None:
    assert messages(call("c", status="incomplete"), mcp("x", status="incomplete"), message("user", "x")) == [
        UserMessage("x")
    ]


def test_a_custom_call_is_a_function_with_one_string() -> None:
    custom: Item = {"type": "custom_tool_call", "call_id": "c", "name": "sh", "input": 'ls "é"'}
    answer: Item = {"type": "custom_tool_call_output", "call_id": "c", "output": "a"}
    said, told = messages(custom, answer)
    assert isinstance(said, AssistantMessage)
    assert json.loads(said.calls[0].arguments) == {"input": 'ls "é"'}
    assert told == ToolMessage("c", "a")


def test_images_in_an_output_follow_as_a_message_of_the_users() -> None:
    parts = [
        {"type": "input_text", "text": "a"},
        {"type": "input_image", "image_url": "u"},
        {"type": "input_text", "text": "b"},
    ]
    assert messages(call("c"), output("c", parts)) == [
        AssistantMessage(calls=(F,)),
        ToolMessage("c", "a\nb"),
        UserMessage((TextPart("Part of the result of c:"), ImagePart("u"))),
    ]


def test_hosted_calls_bring_their_results_and_text_behind_them_is_the_next_message() -> None:
    items = (mcp("x", output="one"), mcp("y", error={"type": "http_error", "code": 500, "message": "boom"}))
    assert messages(reasoning("Hm."), *items, message("assistant", "So.")) == [
        AssistantMessage(calls=tuple(ToolCall(f"mcp_{n}", n, "{}", "s", hosted=True) for n in "xy"), reasoning="Hm."),
        ToolMessage("mcp_x", "one", "x"),
        ToolMessage("mcp_y", "boom", "y"),
        AssistantMessage("So."),
    ]


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        ({"error": "boom"}, "boom"),
        ({"error": {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "bad"}]}}, "bad"),
        ({}, UNKEPT),
    ],
)
def test_a_failed_hosted_call_says_what_the_echo_holds(outcome: Item, result: str) -> None:
    assert messages(mcp("x", **outcome))[1] == ToolMessage("mcp_x", result, "x")


def test_a_search_from_an_echo_is_a_call_and_what_it_found() -> None:
    found = [{"filename": "a", "text": "b"}]
    search: Item = {"type": "file_search_call", "id": "fs_1", "status": "completed", "queries": ["q"], "results": found}
    said, told = messages(search)
    assert said == AssistantMessage(calls=(ToolCall("fs_1", "file_search", '{"queries": ["q"]}', hosted=True),))
    assert told == ToolMessage("fs_1", json.dumps(found), "file_search")
    assert messages({**search, "results": None})[1] == ToolMessage("fs_1", UNKEPT, "file_search")


def test_hosted_calls_without_an_id_get_one_each_that_stays() -> None:
    nameless = {key: value for key, value in mcp("x", output="one").items() if key != "id"}
    said, first, second = messages(nameless, nameless)
    assert isinstance(said, AssistantMessage)
    assert [c.call_id for c in said.calls] == [m.call_id for m in (first, second) if isinstance(m, ToolMessage)]
    assert len({c.call_id for c in said.calls}) == 2
    assert messages(nameless, nameless)[0] == said


def test_calls_of_the_clients_own_machine_are_replayed_as_generic_calls() -> None:
    shell: Item = {
        "type": "shell_call",
        "id": "x",
        "call_id": "c",
        "action": {"commands": ["ls"]},
        "status": "completed",
    }
    told: Item = {"type": "shell_call_output", "call_id": "c", "output": [{"stdout": "a", "stderr": ""}]}
    assert messages(shell, told) == [
        AssistantMessage(calls=(ToolCall("c", "shell", '{"action": {"commands": ["ls"]}}'),)),
        ToolMessage("c", '[{"stdout": "a", "stderr": ""}]'),
    ]
    screen: Item = {
        "type": "computer_call_output",
        "call_id": "c",
        "output": {"type": "computer_screenshot", "image_url": "u"},
    }
    assert messages(screen)[1] == UserMessage((TextPart("Part of the result of c:"), ImagePart("u")))


@pytest.mark.parametrize("kind", ["mcp_list_tools", "item_reference", "turnip"])
def test_what_means_nothing_to_the_model_makes_no_message_and_parts_none(kind: str) -> None:
    assert messages(message("assistant", "x"), {"type": kind, "id": "y"}, call("c")) == [AssistantMessage("x", (F,))]


def test_the_transcript_puts_an_output_behind_its_call_in_the_turn_before() -> None:
    asked = Inference(1, (Call("c", "f", "client", None, "{}"),), 2, "tool_calls")
    parent = Turn("resp_a", "completed", input=(message("user", "x"),), steps=(asked,))
    turn = Turn("resp_b", input=(message("user", "well?"), output("c")))
    assert list(transcript(Spec("m", "Be brief."), [parent], turn, RESPONSES)) == [
        SystemMessage("Be brief."),
        UserMessage("x"),
        UserMessage("well?"),
        AssistantMessage(calls=(F,)),
        ToolMessage("c", "found", "f"),
    ]


def test_what_a_failed_turn_said_is_shown_to_the_next() -> None:
    failed = Turn("resp_a", "failed", input=(message("user", "x"),), steps=(Inference(1, (Said("text", "Hal"),)),))
    shown = transcript(Spec("m"), [failed], Turn("resp_b", input=(message("user", "y"),)), RESPONSES)
    assert list(shown) == [UserMessage("x"), AssistantMessage("Hal"), UserMessage("y")]


# --- calls and outputs


def turn_with(*calls: Call, finish: Any = "tool_calls", given: tuple[Item, ...] = ()) -> Turn:
    return Turn("resp_a", "completed", input=given, steps=(Inference(1, calls, 2, finish),))


ASKED = Call("c", "f", "client", None, "{}")


def test_an_output_needs_a_call_somewhere_in_the_context() -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_calls([turn_with(ASKED)], [output("c"), output("d")])
    assert raised.value.message == "No tool call found for function call output with call_id d."
    assert raised.value.param == "input"


def test_an_output_without_a_call_id_is_the_result_of_the_tool_it_names() -> None:
    result = {"type": "function_call_output", "name": "f", "output": "found"}
    check_calls([], [result])
    turn = Turn("resp_a", input=(message("user", "x"), result))
    assert list(transcript(Spec("m"), [], turn, RESPONSES)) == [UserMessage("x"), UserMessage("Result of f: found")]


def test_a_call_that_is_async_may_stay_open() -> None:
    check_calls([], [{**call("c"), "async": True}])
    asked = Inference(1, (Call("c", "f", "client", None, "{}"),), 2, "tool_calls")
    settings = {"tools": [{"type": "function", "name": "f", "async": True}]}
    check_calls([Turn("resp_a", "completed", settings=settings, steps=(asked,))], [message("user", "x")])


def test_a_call_needs_an_output_before_the_model_is_asked() -> None:
    for history, items in (([turn_with(ASKED)], [message("user", "x")]), ([], [call("c"), message("user", "x")])):
        with pytest.raises(InvalidRequest) as raised:
            check_calls(history, items)
        assert raised.value.message == "No tool output found for function call c."
        assert raised.value.param == "input"


def test_calls_are_answered_wherever_the_output_stands() -> None:
    check_calls([turn_with(ASKED)], [output("c")])
    check_calls([turn_with(ASKED), turn_with(given=(output("c"),))], [message("user", "x")])
    check_calls([], [output("c"), call("c")])
    check_calls([], [{"type": "custom_tool_call", "call_id": "c"}, {"type": "custom_tool_call_output", "call_id": "c"}])


@pytest.mark.parametrize("finish", ["length", "content_filter", None])
def test_a_call_that_the_model_did_not_finish_needs_no_output(finish: Any) -> None:
    check_calls([turn_with(ASKED, finish=finish)], [message("user", "x")])
    check_calls([], [call("c", status="incomplete"), message("user", "x")])
    whole = turn_with(ASKED, Call("d", "f", "client"), finish=finish)
    with pytest.raises(InvalidRequest, match="function call c"):
        check_calls([whole], [message("user", "x")])


def test_calls_that_are_not_the_clients_need_no_output_of_its() -> None:
    others = (Call("a", "f", "server", "s"), Call("b", "g", "unknown"))
    check_calls([turn_with(*others)], [mcp("x"), message("user", "x")])
