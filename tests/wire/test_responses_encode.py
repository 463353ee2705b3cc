"""Scripted turns through the encoder: every stream is held against the contract's invariants and the SDK's types."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.wire.responses_stream_checker import check_response, check_stream
from turnloom.domain import ids
from turnloom.domain.event import (
    CallsAllowed,
    CallStarted,
    Compacted,
    Delta,
    Event,
    Gathered,
    InferenceCompleted,
    InferenceStarted,
    TakenOver,
    ToolCompleted,
    ToolsListed,
    ToolStarted,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnStarted,
)
from turnloom.domain.layout import item_id
from turnloom.domain.message import Usage
from turnloom.domain.turn import Turn, evolve, fold
from turnloom.wire import sse
from turnloom.wire.responses_api.encode import ResponseEncoder
from turnloom.wire.responses_api.items import input_items, output_items
from turnloom.wire.responses_api.response import response_json

SECOND = 1_000_000
AT = 1_700_000_000 * SECOND
TURN = ids.response_id(AT, 0, "0" * 16)
SETTINGS: dict[str, Any] = {"model": "m", "tools": [{"type": "function", "name": "weather"}]}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

START = TurnStarted(AT, ({"type": "message", "role": "user", "content": "Hi"},), SETTINGS)
BACKGROUND = TurnStarted(AT, START.input, {**SETTINGS, "background": True})
SEALING = TurnStarted(AT, START.input, {**SETTINGS, "include": ["reasoning.encrypted_content"]})
ASK = InferenceStarted(AT + 1)
USAGE = Usage(7, 5, 3, 2)
STOP = InferenceCompleted(AT + 2, "stop", USAGE)
CALLED = InferenceCompleted(AT + 2, "tool_calls", USAGE)
END = TurnCompleted(AT + 3 * SECOND)
GATHERED = Gathered(AT + 1)
LISTED = ToolsListed(AT + 1, "docs", ({"name": "search", "input_schema": {"type": "object"}},))


def text(*parts: str, block: Any = "text") -> list[Event]:
    return [Delta(block, part) for part in parts]


def client_call(call_id: str, *arguments: str) -> list[Event]:
    return [CallStarted(call_id, "weather", "client"), *text(*arguments, block="arguments")]


def hosted_call(call_id: str, *arguments: str) -> list[Event]:
    return [CallStarted(call_id, "search", "server", "docs"), *text(*arguments, block="arguments")]


def custom_call(call_id: str, *input_: str, namespace: str | None = None) -> list[Event]:
    return [CallStarted(call_id, "patch", "client", namespace, "custom"), *text(*input_, block="arguments")]


def unapproved_call(call_id: str, *arguments: str) -> list[Event]:
    return [CallStarted(call_id, "search", "approval", "docs"), *text(*arguments, block="arguments")]


def allowed(**arguments: str) -> Event:
    """Calls of an earlier turn, by their ids, each asked for by `mcpr_<id>`."""
    described = [
        {"call_id": call_id, "name": "search", "group": "docs", "arguments": given, "request": f"mcpr_{call_id}"}
        for call_id, given in arguments.items()
    ]
    return CallsAllowed(AT + 1, tuple(described))


def sealed(words: str) -> str:
    return "sealed-" + base64.b64encode(words.encode()).decode()


def answer(call_id: str, content: Any = "found", error: Any = None) -> Event:
    return ToolCompleted(AT + 3, call_id, content, {}, error)


def folded(events: Iterable[Event]) -> Turn:
    turn = Turn(TURN)
    for event in events:
        turn = evolve(turn, event)
    return turn


def raw_stream(events: Sequence[Event], *, alias: bool = False, obfuscation: bool = True) -> bytes:
    encoder = ResponseEncoder(TURN, alias=alias, obfuscation=obfuscation, seal=sealed)
    frames = [frame for event in events for frame in encoder.encode(event)]
    body = b"".join(sse.frame(frame, frame["type"]) for frame in frames)
    return body if alias else body + sse.DONE


def told(events: Sequence[Event], *, alias: bool = False, cancelled: bool = False) -> list[dict[str, Any]]:
    """The frames of this turn, after every check that they can be put to."""
    crashed = any(isinstance(event, TakenOver) for event in events)
    frames = check_stream(raw_stream(events, alias=alias), alias=alias, cancelled=cancelled, crashed=crashed)
    for frame in frames:
        EVENT.validate_python(as_the_sdk_knows_it(frame))
    shown = agreed(events, alias=alias)
    assert [ids.item_place(item["id"]) for item in shown["output"]] == [(TURN, k) for k in range(len(shown["output"]))]
    if cancelled:
        assert shown["status"] == "cancelled"
    else:
        assert shown == frames[-1]["response"]
    return frames


def agreed(events: Sequence[Event], *, alias: bool = False) -> dict[str, Any]:
    """The Response in the end, after holding it together with the stream at every moment."""
    encoder = ResponseEncoder(TURN, alias=alias, seal=sealed)
    finished: dict[int, Any] = {}
    status = ""
    turn = Turn(TURN)
    shown: dict[str, Any] = {}
    for event in events:
        frames = encoder.encode(event)
        finished |= {frame["output_index"]: frame["item"] for frame in of(frames, "output_item.done")}
        status = next((frame["response"]["status"] for frame in reversed(frames) if "response" in frame), status)
        turn = evolve(turn, event)
        shown = response_json(turn, alias=alias, seal=sealed)
        check_response(shown, alias=alias)
        assert shown["output"] == [finished[place] for place in sorted(finished)]
        assert shown["status"] == ("cancelled" if isinstance(event, TurnCancelled) else status)
    return shown


def as_the_sdk_knows_it(frame: dict[str, Any]) -> dict[str, Any]:
    """The frame without what the contract has beyond the SDK's closed lists of codes, reasons and shapes."""
    frame = json.loads(json.dumps(frame))
    frame["type"] = frame["type"].replace(".mcp_call.arguments.", ".mcp_call_arguments.")
    response = frame.get("response", {})
    if response.get("error"):
        response["error"]["code"] = "server_error"
    if response.get("incomplete_details", None):
        reason = response["incomplete_details"]["reason"]
        response["incomplete_details"]["reason"] = reason.replace("max_iterations_exceeded", "max_messages")
    for item in [frame.get("item") or {}, *response.get("output", [])]:
        if item.get("type") == "mcp_call" and isinstance(item["error"], str):
            item["error"] = None
    return frame


def of(frames: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [frame for frame in frames if frame["type"] == f"response.{kind}"]


def kinds(frames: Sequence[dict[str, Any]]) -> list[str]:
    return [frame["type"].removeprefix("response.") for frame in frames]


def done(frames: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [frame["item"] for frame in of(frames, "output_item.done")]


# --- what the model writes


def test_text_is_a_message_with_one_part() -> None:
    frames = told([START, ASK, *text("Hel", "lo"), STOP, END])
    assert kinds(frames) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    response = frames[-1]["response"]
    part = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
    assert response["output"] == [
        {
            "id": item_id("message", TURN, 0),
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [part],
        }
    ]
    assert response["created_at"] == AT // SECOND
    assert response["completed_at"] == AT // SECOND + 3
    assert response["usage"]["total_tokens"] == 12
    assert response["usage"]["input_tokens_details"] == {"cached_tokens": 3, "cache_write_tokens": 0}
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}


def test_a_refusal_is_a_part_of_its_own() -> None:
    frames = told([START, ASK, *text("I ", "won't.", block="refusal"), STOP, END])
    assert done(frames)[0]["content"] == [{"type": "refusal", "refusal": "I won't."}]
    assert "logprobs" not in of(frames, "refusal.delta")[0]


def test_text_and_refusal_next_to_each_other_are_parts_of_one_message() -> None:
    frames = told([START, ASK, *text("Well. "), *text("No.", block="refusal"), STOP, END])
    [message] = done(frames)
    assert [part["type"] for part in message["content"]] == ["output_text", "refusal"]
    assert [frame["content_index"] for frame in of(frames, "content_part.added")] == [0, 1]


def test_reasoning_is_a_summary_before_the_message() -> None:
    frames = told([START, ASK, *text("Let me ", "see.", block="reasoning"), *text("42"), STOP, END])
    assert [item["type"] for item in done(frames)] == ["reasoning", "message"]
    assert done(frames)[0]["summary"] == [{"type": "summary_text", "text": "Let me see."}]
    assert done(frames)[0]["id"].startswith("rs_")


def test_calls_for_the_client_end_the_response_with_the_calls_open() -> None:
    events = [START, ASK, *client_call("call_a", '{"city":', '"Rome"}'), *client_call("call_b"), CALLED, END]
    frames = told(events)
    first, second = done(frames)
    assert first["arguments"] == '{"city":"Rome"}'
    assert first["id"].startswith("fc_")
    assert (first["status"], first["call_id"], first["name"]) == ("completed", "call_a", "weather")
    assert second["arguments"] == "{}"
    assert [frame["delta"] for frame in of(frames, "function_call_arguments.delta")][-1] == "{}"
    assert frames[-1]["response"]["status"] == "completed"


def test_text_beside_calls_is_an_item_of_its_own() -> None:
    frames = told([START, ASK, *text("One moment."), *client_call("call_a", "{}"), *text("Done."), CALLED, END])
    assert [item["type"] for item in done(frames)] == ["message", "function_call", "message"]
    assert len({item["id"] for item in done(frames)}) == 3


def test_a_call_to_a_name_that_was_never_offered_is_no_item() -> None:
    unknown = [CallStarted("call_x", "rm", "unknown"), *text('{"a":1}', block="arguments")]
    frames = told(
        [
            *(START, ASK, *text("Hm."), *unknown, *text("So."), CALLED),
            *(
                ToolStarted(AT + 3, "call_x"),
                answer("call_x", "no such tool", {"kind": "unknown", "code": 1, "message": "no"}),
            ),
            *(ASK, *text("Sorry."), STOP, END),
        ]
    )
    assert [item["content"][0]["text"] for item in done(frames)] == ["Hm.", "So.", "Sorry."]


def test_logprobs_are_whole_in_the_deltas_and_in_the_text() -> None:
    token = {"token": "Hi", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "Hé", "logprob": -2.0}]}
    start = TurnStarted(AT, START.input, {**SETTINGS, "include": ["message.output_text.logprobs"]})
    frames = told([start, ASK, Delta("text", "Hi", (token,)), STOP, END])
    shown = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}
    other = {"token": "Hé", "logprob": -2.0, "bytes": [72, 195, 169]}
    assert of(frames, "output_text.delta")[0]["logprobs"] == [{**shown, "top_logprobs": [other]}]
    assert done(frames)[0]["content"][0]["logprobs"] == [{**shown, "top_logprobs": [other]}]


@pytest.mark.parametrize("settings", [{}, {"top_logprobs": 0}, {"include": ["reasoning.encrypted_content"]}])
def test_logprobs_that_nobody_asked_for_are_not_shown(settings: dict[str, Any]) -> None:
    start = TurnStarted(AT, START.input, {**SETTINGS, **settings})
    token = {"token": "Hi", "logprob": -0.5, "bytes": None, "top_logprobs": []}
    frames = told([start, ASK, Delta("text", "Hi", (token,)), STOP, END])
    assert of(frames, "output_text.delta")[0]["logprobs"] == []
    assert done(frames)[0]["content"][0]["logprobs"] == []


# --- hosted tools


def test_a_listing_is_told_at_once() -> None:
    frames = told([START, LISTED, GATHERED, ASK, *text("ok"), STOP, END])
    assert kinds(frames)[2:6] == [
        "output_item.added",
        "mcp_list_tools.in_progress",
        "mcp_list_tools.completed",
        "output_item.done",
    ]
    assert done(frames)[0]["tools"] == [{"name": "search", "input_schema": {"type": "object"}}]
    assert "error" not in done(frames)[0]


def test_a_listing_that_failed_says_why_and_the_run_goes_on() -> None:
    failed = ToolsListed(AT, "docs", (), "connection refused")
    frames = told([START, failed, GATHERED, ASK, *text("ok"), STOP, END])
    assert "mcp_list_tools.failed" in kinds(frames)
    assert done(frames)[0]["error"] == "connection refused"
    assert frames[-1]["response"]["status"] == "completed"


def test_hosted_calls_close_in_call_order_whoever_is_first() -> None:
    events = [
        *(START, ASK, *hosted_call("call_a", '{"q":1}'), *hosted_call("call_b", "{}"), CALLED),
        *(ToolStarted(AT + 3, "call_a"), ToolStarted(AT + 3, "call_b")),
        answer(
            "call_b", [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}, {"type": "image", "data": "z"}]
        ),
    ]
    encoder = ResponseEncoder(TURN)
    early = [frame for event in events for frame in encoder.encode(event)]
    assert done(early) == []
    frames = told([*events, answer("call_a"), ASK, *text("So."), STOP, END])
    first, second, _ = done(frames)
    assert (first["arguments"], first["output"], first["server_label"]) == ('{"q":1}', "found", "docs")
    assert second["output"] == 'x\ny\n{"type": "image", "data": "z"}'
    assert kinds(frames).count("mcp_call.completed") == 2


def test_a_client_call_closes_while_a_hosted_call_before_it_still_runs() -> None:
    events = [START, ASK, *hosted_call("call_a", "{}"), *client_call("call_b", "{}"), CALLED]
    assert [item["type"] for item in output_items(folded(events))] == ["function_call"]
    frames = told([*events, answer("call_a"), END])
    assert [frame["output_index"] for frame in of(frames, "output_item.done")] == [1, 0]
    assert [item["type"] for item in frames[-1]["response"]["output"]] == ["mcp_call", "function_call"]


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("tool", {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "boom"}]}),
        ("timeout", {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "boom"}]}),
        ("protocol", {"type": "mcp_protocol_error", "code": 5, "message": "m"}),
        ("http", {"type": "http_error", "code": 5, "message": "m"}),
    ],
)
def test_a_hosted_call_that_failed_is_told_as_what_it_was(kind: str, shown: dict[str, Any]) -> None:
    events = [
        START,
        ASK,
        *hosted_call("call_a", "{}"),
        CALLED,
        answer("call_a", "boom", {"kind": kind, "code": 5, "message": "m"}),
    ]
    frames = told([*events, ASK, *text("So."), STOP, END])
    call = done(frames)[0]
    assert "mcp_call.failed" in kinds(frames)
    assert (call["status"], call["output"], call["error"]) == ("failed", None, shown)
    assert done(told([*events, ASK, *text("So."), STOP, END], alias=True))[0]["error"] == "m"


# --- custom tools and namespaces


def test_a_custom_call_has_a_text_for_its_input() -> None:
    frames = told([START, ASK, *custom_call("call_a", "*** Begin", "\n"), CALLED, END])
    assert kinds(frames)[2:-1] == [
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
    ]
    assert done(frames) == [
        {
            "id": item_id("custom_tool_call", TURN, 0),
            "type": "custom_tool_call",
            "status": "completed",
            "call_id": "call_a",
            "name": "patch",
            "input": "*** Begin\n",
        }
    ]


def test_an_empty_input_of_a_custom_call_stays_empty() -> None:
    frames = told([START, ASK, *custom_call("call_a"), CALLED, END])
    assert [item["input"] for item in done(frames)] == [""]
    assert of(frames, "custom_tool_call_input.delta") == []


def test_a_namespace_is_shown_only_where_there_is_one() -> None:
    call = [CallStarted("call_b", "weather", "client", "geo"), *text("{}", block="arguments")]
    frames = told([START, ASK, *client_call("call_a"), *call, *custom_call("call_c", namespace="edit"), CALLED, END])
    assert [item.get("namespace", "absent") for item in done(frames)] == ["absent", "geo", "edit"]
    assert [frame["item"].get("namespace") for frame in of(frames, "output_item.added")] == [None, "geo", "edit"]


# --- approvals


def test_a_call_that_needs_approval_is_told_when_it_is_whole() -> None:
    frames = told([START, ASK, *unapproved_call("call_a", '{"q":', "1}"), *unapproved_call("call_b"), CALLED, END])
    assert kinds(frames)[2:-1] == ["output_item.added", "output_item.done"] * 2
    asked = {"type": "mcp_approval_request", "server_label": "docs", "name": "search"}
    assert [frame["item"]["arguments"] for frame in of(frames, "output_item.added")] == ["", ""]
    assert done(frames) == [
        {"id": item_id("mcp_approval_request", TURN, 0), "status": "completed", "arguments": '{"q":1}', **asked},
        {"id": item_id("mcp_approval_request", TURN, 1), "status": "completed", "arguments": "{}", **asked},
    ]
    assert frames[-1]["response"]["status"] == "completed"


def test_a_request_for_approval_that_was_cut_is_incomplete() -> None:
    short = InferenceCompleted(AT + 2, "length")
    end = TurnCompleted(AT + 3, "out_of_tokens")
    [request] = done(told([START, ASK, *unapproved_call("call_a", '{"q'), short, end]))
    assert (request["status"], request["arguments"]) == ("incomplete", '{"q')


def test_calls_that_the_client_allowed_run_before_the_model_is_asked() -> None:
    asked: list[Event] = [START, LISTED, allowed(a='{"q":1}', b=""), GATHERED]
    ran: list[Event] = [ToolStarted(AT + 2, "a"), ToolStarted(AT + 2, "b"), answer("b"), answer("a", "both")]
    frames = told([*asked, *ran, ASK, *text("So."), STOP, END])
    call = ["output_item.added", "mcp_call.in_progress", "mcp_call_arguments.delta", "mcp_call_arguments.done"]
    assert kinds(frames)[6:14] == [*call, *call]
    listing, first, second, _ = done(frames)
    assert (first["approval_request_id"], first["arguments"], first["output"]) == ("mcpr_a", '{"q":1}', "both")
    assert (second["approval_request_id"], second["arguments"], second["output"]) == ("mcpr_b", "{}", "found")
    added = [frame["item"] for frame in of(frames, "output_item.added")[1:3]]
    assert [item["approval_request_id"] for item in added] == ["mcpr_a", "mcpr_b"]
    assert output_items(folded([*asked, answer("b")])) == [listing]


def test_a_call_that_nobody_had_to_allow_says_so() -> None:
    events = [START, ASK, *hosted_call("call_a", "{}"), CALLED, answer("call_a"), END]
    assert done(told(events))[0]["approval_request_id"] is None


def test_an_allowed_call_stays_open_when_its_driver_is_lost() -> None:
    lost = [START, allowed(a="{}", b="{}"), GATHERED, answer("a"), ToolStarted(AT + 4, "b"), TakenOver(AT + 5)]
    frames = told([*lost, answer("b"), ASK, *text("So."), STOP, END])
    assert [item["status"] for item in done(frames)] == ["completed"] * 3


# --- sealed text


def test_a_compaction_shows_its_summary_only_sealed() -> None:
    frames = told([START, Compacted(AT + 1, "They like tea.", USAGE), GATHERED, ASK, *text("ok"), STOP, END])
    assert kinds(frames)[2:5] == ["output_item.added", "compaction.compacting", "output_item.done"]
    opened, compaction = of(frames, "output_item.added")[0]["item"], done(frames)[0]
    assert opened == {**compaction, "status": "in_progress", "encrypted_content": ""}
    assert compaction["encrypted_content"] == sealed("They like tea.")
    assert "tea" not in json.dumps(frames)
    assert frames[-1]["response"]["usage"]["total_tokens"] == 24


def test_a_summary_that_cannot_be_sealed_is_not_shown() -> None:
    [compaction] = output_items(folded([START, Compacted(AT + 1, "They like tea.")]))
    assert compaction["encrypted_content"] == ""


def test_reasoning_is_sealed_for_whoever_asked_for_it() -> None:
    rest = [ASK, *text("Let me ", "see.", block="reasoning"), *text("42"), STOP, END]
    frames = told([SEALING, *rest])
    assert done(frames)[0]["encrypted_content"] == sealed("Let me see.")
    assert "encrypted_content" not in of(frames, "output_item.added")[0]["item"]
    assert "encrypted_content" not in done(told([START, *rest]))[0]
    assert "encrypted_content" not in output_items(folded([SEALING, *rest]))[0]


# --- background


def test_a_turn_in_the_background_is_queued_until_something_is_done_for_it() -> None:
    frames = told([BACKGROUND, ASK, *text("ok"), STOP, END])
    assert kinds(frames)[:4] == ["created", "queued", "in_progress", "output_item.added"]
    assert [frame["response"]["status"] for frame in frames[:3]] == ["queued", "queued", "in_progress"]
    waiting = response_json(folded([BACKGROUND]))
    check_response(waiting)
    assert waiting == frames[0]["response"]
    assert response_json(folded([BACKGROUND, ASK]))["status"] == "in_progress"


@pytest.mark.parametrize("first", [LISTED, GATHERED, Compacted(AT + 1, "x"), allowed(a="{}"), ASK])
def test_the_first_event_behind_the_queue_comes_after_in_progress(first: Event) -> None:
    encoder = ResponseEncoder(TURN)
    assert kinds(encoder.encode(BACKGROUND)) == ["created", "queued"]
    assert kinds(encoder.encode(first))[0] == "in_progress"
    assert "in_progress" not in kinds(encoder.encode(TakenOver(AT + 9)))


def test_a_queued_turn_that_is_cancelled_says_nothing_more() -> None:
    frames = told([BACKGROUND, TurnCancelled(AT + 3)], cancelled=True)
    assert kinds(frames) == ["created", "queued"]
    shown = response_json(folded([BACKGROUND, TurnCancelled(AT + 3)]))
    assert (shown["status"], shown["error"], shown["usage"]["total_tokens"]) == ("cancelled", None, 0)


def test_a_queued_turn_that_fails_never_was_in_progress() -> None:
    frames = told([BACKGROUND, TurnFailed(AT + 3, "internal_error", "x")])
    assert kinds(frames) == ["created", "queued", "failed"]


@pytest.mark.parametrize("unlogged", [0, 3])
def test_a_queued_turn_that_is_taken_over_is_in_progress_once_and_then_fills_the_numbers(unlogged: int) -> None:
    frames = told([BACKGROUND, TakenOver(AT + 1, unlogged), ASK, *text("ok"), STOP, END])
    assert kinds(frames)[: 4 + unlogged] == [
        "created",
        "queued",
        *["in_progress"] * (1 + unlogged),
        "output_item.added",
    ]


# --- how it ends


def test_length_leaves_the_open_item_incomplete() -> None:
    short = InferenceCompleted(AT + 2, "length", USAGE)
    frames = told([START, ASK, *text("Once upon"), short, TurnCompleted(AT + 3, "out_of_tokens")])
    assert done(frames)[0]["status"] == "incomplete"
    assert frames[-1]["type"] == "response.incomplete"
    assert frames[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert frames[-1]["response"]["usage"]["output_tokens"] == 5
    assert "phase" not in done(frames)[0]


def test_length_in_the_middle_of_a_call_keeps_the_call_as_far_as_it_came() -> None:
    short = InferenceCompleted(AT + 2, "length")
    end = TurnCompleted(AT + 3, "out_of_tokens")
    frames = told([START, ASK, *hosted_call("call_a", "{}"), *client_call("call_b", '{"ci'), short, end])
    call, hosted = done(frames)
    assert (call["status"], call["arguments"]) == ("incomplete", '{"ci')
    assert (hosted["status"], hosted["output"], hosted["error"]) == ("incomplete", None, None)
    assert of(frames, "mcp_call.completed") == []


def test_a_call_cut_before_its_first_argument_has_none() -> None:
    short = InferenceCompleted(AT + 2, "length")
    frames = told([START, ASK, *client_call("call_a"), short, TurnCompleted(AT + 3, "out_of_tokens")])
    assert done(frames)[0]["arguments"] == ""


def test_content_filter_is_a_reason_to_be_incomplete() -> None:
    filtered = InferenceCompleted(AT + 2, "content_filter", USAGE)
    frames = told([START, ASK, *text("Well"), filtered, TurnCompleted(AT + 3, "content_filter")])
    assert frames[-1]["response"]["incomplete_details"] == {"reason": "content_filter"}
    assert done(frames)[0]["status"] == "incomplete"


def test_too_many_model_calls_is_incomplete_and_on_the_alias_completed() -> None:
    events = [
        START,
        ASK,
        *hosted_call("call_a", "{}"),
        CALLED,
        answer("call_a"),
        TurnCompleted(AT + 3, "max_infer_iters"),
    ]
    here, alias = told(events)[-1], told(events, alias=True)[-1]
    assert here["response"]["incomplete_details"] == {"reason": "max_iterations_exceeded"}
    assert alias["type"] == "response.completed"
    assert alias["response"]["completed_at"] == AT // SECOND
    assert done(told(events))[0]["status"] == "completed"


def test_the_llama_stack_path_names_the_response_and_the_arguments_as_its_client_does() -> None:
    from llama_stack_client.types.response_object_stream import ResponseObjectStream

    events = [START, ASK, *text("Hi"), *hosted_call("call_a", "{}"), CALLED, answer("call_a"), ASK, STOP, END]
    frames = told(events, alias=True)
    assert {"mcp_call.arguments.delta", "mcp_call.arguments.done"} <= set(kinds(frames))
    assert all(
        frame["response_id"] == TURN for kind in ("added", "done") for frame in of(frames, f"output_item.{kind}")
    )
    client_types: TypeAdapter[Any] = TypeAdapter(ResponseObjectStream)
    for frame in [*of(frames, "mcp_call.arguments.delta"), *of(frames, "mcp_call.arguments.done")]:
        assert client_types.validate_python(frame).type == frame["type"]


@pytest.mark.parametrize(
    ("before", "open_types"),
    [
        ([], []),
        ([ASK], []),
        ([ASK, *text("Hal")], ["message"]),
        ([ASK, *text("Hm", block="reasoning")], ["reasoning"]),
        ([ASK, *text("Hm", block="reasoning"), *text("Hal")], ["message"]),
        ([ASK, *client_call("call_a", '{"c')], ["function_call"]),
        ([ASK, *hosted_call("call_a", '{"c')], ["mcp_call"]),
        ([ASK, *hosted_call("call_a", "{}"), *text("Hal")], ["mcp_call", "message"]),
        ([ASK, *hosted_call("call_a", "{}"), CALLED], ["mcp_call"]),
        ([ASK, *hosted_call("call_a", "{}"), *hosted_call("call_b"), CALLED, answer("call_b")], ["mcp_call"]),
        ([ASK, *hosted_call("call_a", "{}"), CALLED, answer("call_a")], []),
        ([ASK, *custom_call("call_a", "*** B")], ["custom_tool_call"]),
        ([ASK, *unapproved_call("call_a", '{"c')], ["mcp_approval_request"]),
        ([ASK, *unapproved_call("call_a", "{}"), *text("Hal")], ["message"]),
        ([Compacted(AT + 1, "x"), allowed(a="{}", b="{}"), GATHERED, answer("b")], ["mcp_call"]),
    ],
)
def test_a_failure_closes_what_is_open_wherever_it_strikes(before: list[Event], open_types: list[str]) -> None:
    failed = told([START, *before, TurnFailed(AT + 3, "upstream_error", "It broke off.")])
    assert failed[-1]["type"] == "response.failed"
    assert failed[-1]["response"]["error"] == {
        "code": "server_error",
        "message": "It broke off.",
        "type": "server_error",
        "param": None,
    }
    incomplete = [item for item in failed[-1]["response"]["output"] if item["status"] == "incomplete"]
    assert [item["type"] for item in incomplete] == open_types
    cancelled = told([START, *before, TurnCancelled(AT + 3)], cancelled=True)
    assert [
        item for item in output_items(folded([START, *before, TurnCancelled(AT + 3)])) if item in incomplete
    ] == incomplete
    assert kinds(cancelled) == kinds(failed)[:-1]


@pytest.mark.parametrize(
    ("code", "shown", "kind", "param"),
    [
        ("internal_error", "server_error", "server_error", None),
        ("upstream_authentication_error", "server_error", "server_error", None),
        ("upstream_timeout", "upstream_timeout", "server_error", None),
        ("rate_limited", "rate_limit_exceeded", "rate_limit_error", None),
        ("insufficient_quota", "insufficient_quota", "rate_limit_error", None),
        ("context_length_exceeded", "context_length_exceeded", "invalid_request_error", "input"),
        ("upstream_rejected", "invalid_prompt", "invalid_request_error", None),
    ],
)
def test_a_failure_has_a_code_that_clients_know(code: str, shown: str, kind: str, param: str | None) -> None:
    error = told([START, TurnFailed(AT + 3, code, "why")])[-1]["response"]["error"]
    assert error == {"code": shown, "message": "why", "type": kind, "param": param}


# --- crash


def test_a_takeover_fills_the_numbers_that_may_have_been_used() -> None:
    frames = told([START, LISTED, GATHERED, TakenOver(AT + 1, 3), ASK, *text("Hi"), STOP, END])
    fillers = of(frames, "in_progress")[1:]
    assert [frame["sequence_number"] for frame in fillers] == [6, 7, 8]
    assert all(frame["response"]["output"] == done(frames)[:1] for frame in fillers)


def test_an_item_of_which_nothing_was_logged_starts_over_under_the_same_name() -> None:
    logged: list[Event] = [START, ASK]
    lost = ResponseEncoder(TURN)
    ahead = [frame for event in [*logged, *text("Hel", "lo")] for frame in lost.encode(event)]
    frames = told([*logged, TakenOver(AT + 1, 64), ASK, *text("Good day"), STOP, END])
    assert of(frames, "output_item.added")[0]["item"] == of(ahead, "output_item.added")[0]["item"]
    assert [item["status"] for item in done(frames)] == ["completed"]


def test_a_reader_who_saw_both_attempts_can_tell_them_apart() -> None:
    """Frames of the lost driver, then the continuation above the numbers that it may have used."""
    logged: list[Event] = [START, ASK, *text("Hel")]
    lost, next_driver = ResponseEncoder(TURN), ResponseEncoder(TURN)
    seen = [frame for event in [*logged, *text("lo")] for frame in lost.encode(event)]
    rest = [*logged, TakenOver(AT + 1, 64), ASK, *text("Good day"), STOP, END]
    replayed = [frame for event in rest for frame in next_driver.encode(event)]
    frames = seen + [frame for frame in replayed if frame["sequence_number"] >= len(seen)]
    body = b"".join(sse.frame(frame, frame["type"]) for frame in frames) + sse.DONE
    check_stream(body, crashed=True)


def test_what_was_logged_of_a_cut_answer_stays_as_commentary() -> None:
    events = [
        START,
        ASK,
        *text("Thinking", block="reasoning"),
        *text("Hel"),
        TakenOver(AT + 1, 2),
        ASK,
        *text("Hello"),
        STOP,
        END,
    ]
    frames = told(events)
    reasoning, cut, answer_ = frames[-1]["response"]["output"]
    assert reasoning["status"] == "completed"
    assert (cut["status"], cut["phase"], cut["content"][0]["text"]) == ("incomplete", "commentary", "Hel")
    assert (answer_["status"], answer_["content"][0]["text"]) == ("completed", "Hello")
    assert "phase" not in answer_
    assert frames[-1]["type"] == "response.completed"


def test_a_hosted_call_of_a_cut_message_is_left_incomplete() -> None:
    cut = [START, ASK, *hosted_call("call_a", "{}"), *client_call("call_b", '{"c')]
    frames = told([*cut, TakenOver(AT + 1), ASK, *text("Hello"), STOP, END])
    assert [(item["type"], item["status"]) for item in frames[-1]["response"]["output"]] == [
        ("mcp_call", "incomplete"),
        ("function_call", "incomplete"),
        ("message", "completed"),
    ]


def test_a_hosted_call_that_was_running_when_its_driver_was_lost_stays_open() -> None:
    events = [START, ASK, *hosted_call("call_a", "{}"), CALLED, ToolStarted(AT + 3, "call_a"), TakenOver(AT + 4, 2)]
    frames = told([*events, answer("call_a"), ASK, *text("Hello"), STOP, END])
    assert [item["status"] for item in done(frames)] == ["completed", "completed"]


# --- the wire


def test_padding_hides_the_length_and_is_left_out_when_not_wanted() -> None:
    events = [START, ASK, *text("Hi", "!"), *client_call("call_a"), CALLED, END]
    for frame in told(events):
        if frame["type"].endswith(".delta"):
            assert (len(frame["delta"]) + len(frame["obfuscation"])) % 16 == 0
    assert b"obfuscation" not in raw_stream(events, obfuscation=False)
    assert b"obfuscation" not in raw_stream(events, alias=True)


def test_padding_comes_from_the_given_chance() -> None:
    encoder = ResponseEncoder(TURN, chance=bytes)
    frames = [frame for event in [START, ASK, *text("Hi")] for frame in encoder.encode(event)]
    assert frames[-1]["obfuscation"] == "A" * 14


def test_a_second_telling_has_the_same_frames() -> None:
    events = [
        START,
        LISTED,
        ASK,
        *text("Hi"),
        *hosted_call("call_a", "{}"),
        CALLED,
        answer("call_a"),
        ASK,
        *text("So"),
        STOP,
        END,
    ]
    assert raw_stream(events, obfuscation=False) == raw_stream(events, obfuscation=False)


def test_the_sdk_accumulates_the_stream_to_the_same_response() -> None:
    events = [
        START,
        LISTED,
        ASK,
        *text("Hi"),
        *hosted_call("call_a", "{}"),
        CALLED,
        answer("call_a"),
        ASK,
        *text("So"),
        STOP,
        END,
    ]
    state: Any = ResponseStreamState(input_tools=[], text_format=omit)
    for frame in told(events):
        state.handle_event(EVENT.validate_python(frame))
    assert state._completed_response.output_text == "HiSo"


# --- the Response object


def test_a_response_has_every_key_with_its_default() -> None:
    shown = response_json(Turn(TURN, started_at=AT, settings={"model": "m"}))
    check_response(shown)
    Response.model_validate(shown)
    assert shown["status"] == "in_progress"
    assert shown["text"] == {"format": {"type": "text"}}
    assert shown["reasoning"] == {"effort": None, "summary": None}
    assert (shown["tool_choice"], shown["temperature"], shown["truncation"]) == ("auto", 1.0, "disabled")
    assert (shown["store"], shown["parallel_tool_calls"], shown["metadata"]) == (True, True, {})


def test_a_response_repeats_what_was_asked() -> None:
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    settings = {
        "model": "m",
        "instructions": "Be brief.",
        "temperature": 0,
        "store": False,
        "tools": [
            {"type": "function", "name": "f", "strict": True},
            {"type": "mcp", "server_label": "a", "server_url": "https://user:pw@mcp.example.com:8443/key/mcp?token=1"},
            {"type": "mcp", "server_label": "b", "server_url": "https://mcp.example.com/"},
            {
                "type": "namespace",
                "name": "n",
                "description": "d",
                "tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "c"}],
            },
            {"type": "custom", "name": "c", "format": {"type": "text"}},
            {"type": "mcp", "server_label": "c", "server_url": "https://x", "require_approval": {"never": {}}},
        ],
        "text": {"format": schema, "verbosity": "low"},
        "reasoning": {"effort": "low", "context": "auto"},
        "max_infer_iters": 3,
        "alias": True,
        "include": ["reasoning.encrypted_content"],
    }
    shown = response_json(Turn(TURN, started_at=AT, settings=settings))
    check_response(shown)
    function, redacted, origin, namespace, custom, asking = shown["tools"]
    assert function == {"type": "function", "name": "f", "description": None, "parameters": None, "strict": True}
    assert redacted["server_url"] == "https://mcp.example.com:8443/<redacted>"
    assert origin["server_url"] == "https://mcp.example.com"
    inner = {"type": "function", "name": "f", "description": None, "parameters": None, "strict": None}
    assert namespace["tools"] == [inner, {"type": "custom", "name": "c"}]
    assert (custom, asking) == (settings["tools"][4], settings["tools"][5])  # type: ignore[index]
    assert shown["text"] == {"format": {**schema, "description": None, "strict": False}, "verbosity": "low"}
    assert shown["reasoning"] == {"effort": "low", "summary": None, "context": "auto"}
    assert (shown["temperature"], shown["store"], shown["instructions"]) == (0, False, "Be brief.")


def test_a_server_that_was_kept_without_its_address_is_shown_without_one() -> None:
    server = {"type": "mcp", "server_label": "s"}
    kept = [{"type": "namespace", "name": "n", "tools": [server]}]
    assert response_json(Turn(TURN, started_at=AT, settings={"model": "m", "tools": kept}))["tools"] == kept


def test_a_cancelled_response_tells_its_usage_and_no_end() -> None:
    shown = response_json(folded([START, ASK, *hosted_call("call_a"), CALLED, TurnCancelled(AT + 3)]))
    check_response(shown)
    assert (shown["status"], shown["completed_at"], shown["usage"]["total_tokens"]) == ("cancelled", None, 12)


# --- input items


def test_a_string_is_listed_as_a_part_of_the_voice_that_spoke() -> None:
    given = (
        {"type": "message", "role": "user", "content": "Hi"},
        {"type": "message", "role": "assistant", "content": "Ho"},
        {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "https://x/y"}]},
    )
    user, assistant, image = input_items(Turn(TURN, input=given))
    assert user["content"] == [{"type": "input_text", "text": "Hi"}]
    assert assistant["content"] == [{"type": "output_text", "text": "Ho", "annotations": [], "logprobs": []}]
    assert image["content"][0]["detail"] == "auto"
    assert {item["status"] for item in (user, assistant, image)} == {"completed"}


def test_input_items_have_stable_ids_that_no_output_item_has() -> None:
    turn = Turn(TURN, input=({"type": "message", "role": "user", "content": "Hi"},) * 2)
    first, second = (item["id"] for item in input_items(turn))
    assert first != second
    assert [first, second] == [item["id"] for item in input_items(turn)]
    assert ids.item_place(first) == (TURN, 1 << 19)


def test_an_id_of_the_clients_is_kept_unless_it_is_taken() -> None:
    given = {"type": "function_call_output", "call_id": "c", "output": "x", "id": "mine"}
    turn = Turn(TURN, input=(given, given))
    first, second = input_items(turn)
    assert (first["id"], second["id"]) == ("mine", item_id("function_call_output", TURN, (1 << 19) + 1))
    assert input_items(turn, {"mine"})[0]["id"] != "mine"


def test_listed_hosted_calls_show_their_outcome_or_null() -> None:
    given = {"type": "mcp_call", "server_label": "s", "name": "n", "arguments": "{}", "status": "incomplete"}
    [shown] = input_items(Turn(TURN, input=(given,)))
    assert (shown["status"], shown["output"], shown["error"]) == ("incomplete", None, None)


def test_what_the_server_keeps_with_an_item_is_not_listed() -> None:
    given = (
        {"type": "compaction", "encrypted_content": "zzz", "summary": "They like tea."},
        {"type": "reasoning", "encrypted_content": "yyy", "opened": "Let me see."},
        {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True, "call_id": "call_1"},
    )
    compaction, reasoning, response = input_items(Turn(TURN, input=given))
    assert (compaction["encrypted_content"], reasoning["encrypted_content"]) == ("zzz", "yyy")
    assert reasoning["summary"] == []
    assert set(compaction) == {"id", "type", "status", "encrypted_content"}
    assert set(response) == {"id", "type", "status", "approval_request_id", "approve"}
    assert set(reasoning) == {"id", "type", "status", "encrypted_content", "summary"}


def test_a_file_is_listed_as_it_was_given() -> None:
    fetched = {"type": "input_file", "file_url": "https://x/y", "file_data": "QQ==", "text": "A"}
    sent = {"type": "input_file", "file_data": "QQ==", "filename": "a.txt", "text": "A"}
    given = (
        {"type": "message", "role": "user", "content": [fetched, sent]},
        {"type": "function_call_output", "call_id": "call_1", "output": [fetched, sent]},
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": "plain"},
    )
    message, output, plain = input_items(Turn(TURN, input=given))
    shown = [
        {"type": "input_file", "file_url": "https://x/y"},
        {"type": "input_file", "file_data": "QQ==", "filename": "a.txt"},
    ]
    assert (message["content"], output["output"], plain["output"]) == (shown, shown, "plain")


def test_tools_that_came_as_an_item_are_listed_like_those_of_a_response() -> None:
    server = {"type": "mcp", "server_label": "s", "server_url": "https://user:pw@mcp.example.com/key?token=1"}
    tools = [server, {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}]}]
    [listed] = input_items(Turn(TURN, input=({"type": "additional_tools", "tools": tools},)))
    assert listed["tools"] == response_json(Turn(TURN, started_at=AT, settings={"tools": tools}))["tools"]
    assert listed["tools"][0]["server_url"] == "https://mcp.example.com/<redacted>"


def test_every_listed_item_has_an_id_a_type_and_a_status() -> None:
    given = ({"type": "shell_call", "action": {}}, {"type": "message", "role": "user", "content": "Hi", "id": "m"})
    for item in input_items(Turn(TURN, input=given)):
        assert item["id"]
        assert item["type"]
        assert item["status"] == "completed"


# --- any turn at all


RUNNERS: dict[str, Any] = {
    "client": {"runner": "client"},
    "namespaced": {"runner": "client", "group": "geo"},
    "custom": {"runner": "client", "kind": "custom"},
    "server": {"runner": "server", "group": "docs"},
    "approval": {"runner": "approval", "group": "docs"},
    "unknown": {"runner": "unknown"},
}


@st.composite
def turns(draw: st.DrawFn) -> list[Event]:
    """A turn of one or more model messages, told to its end or stopped anywhere, cancelled or failed."""
    calls = iter(f"call_{number}" for number in range(1000))
    events: list[Event] = [start(draw), *gathered(draw, calls)]
    for _ in range(draw(st.integers(0, 3))):
        message, hosted = said(draw, calls)
        events += [ASK, *message]
        if draw(st.booleans()):
            events.append(TakenOver(AT + 2, draw(st.integers(0, 3))))
        else:
            events += [CALLED, *answers(draw, hosted)]
    finish: Any = draw(st.sampled_from(["stop", "length", "content_filter"]))
    reason: Any = {"stop": None, "length": "out_of_tokens", "content_filter": "content_filter"}[finish]
    message, hosted = said(draw, calls)
    events += [ASK, *message, InferenceCompleted(AT + 2, finish, USAGE)]
    events += [*(answers(draw, hosted) if finish == "stop" else []), TurnCompleted(AT + 5, reason)]
    return stopped(draw, events) if draw(st.integers(0, 2)) == 2 else events


def start(draw: st.DrawFn) -> Event:
    include = draw(st.sampled_from([[], ["reasoning.encrypted_content"]]))
    return TurnStarted(AT, START.input, {**SETTINGS, "background": draw(st.booleans()), "include": include})


def gathered(draw: st.DrawFn, calls: Iterator[str]) -> list[Event]:
    """What happens before the first model call; the driver may be lost meanwhile."""
    found: list[Event] = [Compacted(AT + 1, "They like tea.", USAGE)] if draw(st.booleans()) else []
    found += [LISTED] if draw(st.booleans()) else []
    arguments = draw(st.lists(st.sampled_from(["", "{}", '{"q":1}']), max_size=3))
    named = {next(calls): given for given in arguments}
    lost: list[Event] = [TakenOver(AT + 2, draw(st.integers(0, 3)))] if draw(st.integers(0, 4)) == 0 else []
    place = draw(st.integers(0, len(found)))
    found = [*found[:place], *lost, *found[place:]]
    return [*found, *([allowed(**named)] if named else []), GATHERED, *answers(draw, list(named))]


def answers(draw: st.DrawFn, hosted: list[str]) -> list[Event]:
    """The answers to these calls in any order; the driver may be lost meanwhile, which closes none of them."""
    events: list[Event] = [answer(call_id) for call_id in draw(st.permutations(hosted))]
    if events and draw(st.integers(0, 4)) == 0:
        events.insert(draw(st.integers(0, len(events))), TakenOver(AT + 3, draw(st.integers(0, 3))))
    return events


def stopped(draw: st.DrawFn, events: list[Event]) -> list[Event]:
    """The beginning of the turn, which then is cancelled or fails; its driver may have been ahead of the log."""
    kept = events[: draw(st.integers(1, len(events) - 1))]
    ahead: list[Event] = draw(st.sampled_from([[], [TakenOver(AT + 4, 2)]]))
    ends: list[Event] = [TurnFailed(AT + 4, "internal_error", "x"), TurnCancelled(AT + 4)]
    return [*kept, *ahead, draw(st.sampled_from(ends))]


def said(draw: st.DrawFn, calls: Iterator[str]) -> tuple[list[Event], list[str]]:
    """What one model message says, and the calls in it that the server must answer."""
    events: list[Event] = []
    hosted: list[str] = []
    for block in draw(st.lists(st.sampled_from(["text", "refusal", "reasoning", "server", *RUNNERS]), max_size=5)):
        parts = draw(st.lists(st.text("aé {}", min_size=1, max_size=3), max_size=2))
        if block not in RUNNERS:
            events += text(*(parts or ["x"]), block=block)
            continue
        call_id = next(calls)
        if RUNNERS[block]["runner"] in ("server", "unknown"):
            hosted.append(call_id)
        events += [CallStarted(call_id, "tool", **RUNNERS[block]), *text(*parts, block="arguments")]
    return events, hosted


@given(turns(), st.booleans())
def test_any_turn_makes_a_stream_without_fault_and_the_turn_agrees_at_every_moment(
    events: list[Event], alias: bool
) -> None:
    told(events, alias=alias, cancelled=isinstance(events[-1], TurnCancelled))


def test_evolve_agrees_with_the_stream_where_no_driver_was_lost() -> None:
    events = [
        START,
        ASK,
        *text("Hi"),
        *hosted_call("call_a", "{}"),
        CALLED,
        answer("call_a"),
        ASK,
        *text("So"),
        STOP,
        END,
    ]
    assert response_json(fold(Turn(TURN), events)) == told(events)[-1]["response"]


# --- the checker itself


def without(kind: str, nth: int = 0) -> Any:
    def spoil(frames: list[dict[str, Any]]) -> None:
        frames.remove(of(frames, kind)[nth])
        for number, frame in enumerate(frames):
            frame["sequence_number"] = number

    return spoil


def changed(kind: str, *path: Any, to: Any) -> Any:
    def spoil(frames: list[dict[str, Any]]) -> None:
        target: Any = of(frames, kind)[-1]
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = to

    return spoil


def opened(index: int, key: str, *, to: Any) -> Any:
    return changed_at("output_item.added", index, key, to)


def finished(index: int, key: str, *, to: Any) -> Any:
    """Another value of a done item, in its own frame and in the terminal one alike."""
    return changed_at("output_item.done", index, key, to)


def changed_at(kind: str, index: int, key: str, to: Any) -> Any:
    def spoil(frames: list[dict[str, Any]]) -> None:
        of(frames, kind)[index]["item"][key] = to
        if kind == "output_item.done":
            frames[-1]["response"]["output"][index][key] = to

    return spoil


def swapped(first: str, second: str) -> Any:
    def spoil(frames: list[dict[str, Any]]) -> None:
        one, other = frames.index(of(frames, first)[0]), frames.index(of(frames, second)[0])
        frames[one], frames[other] = frames[other], frames[one]
        frames[one]["sequence_number"], frames[other]["sequence_number"] = one, other

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        without("created"),
        without("in_progress"),
        without("output_item.added"),
        without("content_part.added"),
        without("output_text.delta"),
        without("output_text.done"),
        without("content_part.done"),
        without("output_item.done"),
        without("output_item.done", 1),
        without("function_call_arguments.done"),
        without("mcp_call.in_progress"),
        without("mcp_call.completed"),
        without("completed"),
        swapped("created", "in_progress"),
        swapped("content_part.done", "output_text.done"),
        swapped("in_progress", "output_item.added"),
        changed("output_text.delta", "sequence_number", to=99),
        changed("output_text.delta", "delta", to=""),
        changed("output_text.delta", "output_index", to=3),
        changed("output_text.delta", "item_id", to="msg_x"),
        changed("output_text.delta", "content_index", to=1),
        changed("output_text.done", "text", to="other"),
        changed("content_part.added", "part", "text", to="early"),
        changed("content_part.done", "part", "text", to="other"),
        changed("output_item.added", "output_index", to=0),
        changed("output_item.added", "item", "status", to="completed"),
        changed("output_item.done", "item", "status", to="in_progress"),
        changed("output_item.done", "item", "name", to="other"),
        changed("output_item.done", "item", "arguments", to='{"a":1}'),
        changed("output_item.done", "item", "type", to="turnloom:own"),
        changed("output_item.done", "item", "namespace", to=None),
        changed("mcp_call.completed", "error", to="top level"),
        changed("completed", "response", "id", to="resp_other"),
        changed("completed", "response", "created_at", to=1.5),
        changed("completed", "response", "output", to=[]),
        changed("completed", "response", "usage", to=None),
        changed("completed", "response", "usage", "total_tokens", to=1),
        changed("completed", "response", "status", to="failed"),
        changed("completed", "response", "incomplete_details", to={"reason": "content_filter"}),
        changed("completed", "response", "metadata", to=None),
    ],
)
def test_the_checker_finds_what_is_wrong_with_a_stream(spoil: Any) -> None:
    call = [*hosted_call("call_a", '{"q":1}'), *client_call("call_b", "{}")]
    frames = told([START, ASK, *text("Hel", "lo"), *call, CALLED, answer("call_a"), END])
    spoil(frames)
    with pytest.raises(AssertionError):
        check_stream(b"".join(sse.frame(frame, frame["type"]) for frame in frames) + sse.DONE)


@pytest.mark.parametrize(
    "spoil",
    [
        without("queued"),
        without("in_progress"),
        swapped("queued", "in_progress"),
        without("compaction.compacting"),
        without("custom_tool_call_input.delta"),
        without("custom_tool_call_input.done"),
        changed("created", "response", "status", to="in_progress"),
        changed("queued", "response", "status", to="in_progress"),
        changed("created", "response", "background", to=False),
        changed("custom_tool_call_input.done", "input", to="other"),
        opened(0, "encrypted_content", to="early"),
        opened(1, "approval_request_id", to="mcpr_other"),
        opened(1, "error", to={"type": "http_error"}),
        opened(2, "namespace", to="other"),
        opened(3, "arguments", to="{}"),
        finished(0, "status", to="incomplete"),
        finished(0, "encrypted_content", to=None),
        finished(0, "summary", to="They like tea."),
        finished(1, "approval_request_id", to=None),
        finished(2, "input", to="other"),
        finished(2, "namespace", to=""),
        finished(2, "status", to="failed"),
        finished(3, "arguments", to=""),
        finished(3, "call_id", to="call_c"),
        finished(3, "status", to="failed"),
    ],
)
def test_the_checker_finds_what_is_wrong_with_a_stream_of_the_rarer_kinds(spoil: Any) -> None:
    gathered = [Compacted(AT + 1, "They like tea."), allowed(a="{}"), GATHERED, answer("a")]
    calls = [*custom_call("call_b", "x", "y", namespace="edit"), *unapproved_call("call_c", "{}")]
    frames = told([BACKGROUND, *gathered, ASK, *calls, CALLED, END])
    spoil(frames)
    with pytest.raises(AssertionError):
        check_stream(b"".join(sse.frame(frame, frame["type"]) for frame in frames) + sse.DONE)


@pytest.mark.parametrize(
    "events",
    [
        [START, ASK, *text("Hi"), Compacted(AT + 1, "x"), STOP, END],
        [START, Compacted(AT + 1, "x"), Compacted(AT + 1, "x"), END],
        [START, ASK, *text("Hi"), STOP, allowed(a="{}"), answer("a"), END],
    ],
)
def test_the_checker_knows_what_comes_before_the_model_is_asked(events: list[Event]) -> None:
    with pytest.raises(AssertionError):
        check_stream(raw_stream(events))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\n\ndata: [DONE]", b"\n\ndata: [DONE]\n\ndata: [DONE]"),
        (b"data: [DONE]\n\n", b""),
        (b"\n", b"\r\n"),
        (b"event: response.created\n", b""),
        (b"event: response.created\n", b"event: response.queued\n"),
        (b"event: response.created\n", b"id: 1\nevent: response.created\n"),
        (b"Hello", "a\u2028b".encode()),
    ],
)
def test_the_checker_finds_what_is_wrong_with_the_frames(old: bytes, new: bytes) -> None:
    body = raw_stream([START, ASK, *text("Hello"), STOP, END])
    check_stream(body)
    assert old in body
    with pytest.raises(AssertionError):
        check_stream(body.replace(old, new))


def test_the_checker_wants_to_know_of_crashes_and_cancels() -> None:
    crash = raw_stream([START, ASK, *text("Hel"), TakenOver(AT + 1, 1), ASK, *text("Hello"), STOP, END])
    cancel = raw_stream([START, ASK, *text("Hel"), TurnCancelled(AT + 3)])
    for body in (crash, cancel):
        with pytest.raises(AssertionError):
            check_stream(body)
    check_stream(crash, crashed=True)
    check_stream(cancel, cancelled=True)
    with pytest.raises(AssertionError):
        check_stream(raw_stream([START, END]), cancelled=True)
    check_stream(raw_stream([BACKGROUND, TurnCancelled(AT + 3)]), cancelled=True)
    with pytest.raises(AssertionError):
        check_stream(raw_stream([BACKGROUND]), cancelled=False)


def test_the_checker_wants_hosted_calls_to_close_in_their_order() -> None:
    calls = [*hosted_call("call_a", "{}"), *hosted_call("call_b", "{}")]
    frames = told([START, ASK, *calls, CALLED, answer("call_a"), answer("call_b"), END])
    *before, a, a_done, b, b_done, end = frames
    swapped_ = [*before, b, b_done, a, a_done, end]
    body = b"".join(sse.frame({**f, "sequence_number": n}, f["type"]) for n, f in enumerate(swapped_)) + sse.DONE
    with pytest.raises(AssertionError, match="closed before"):
        check_stream(body)
