"""Scripted turns through the encoder: every stream is held against the contract's invariants and the SDK's types."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
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
    CallStarted,
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
from turnloom.domain.message import Usage
from turnloom.domain.turn import Turn, evolve, fold
from turnloom.wire import sse
from turnloom.wire.responses_api.encode import ResponseEncoder, response_json
from turnloom.wire.responses_api.items import input_items, item_id, output_items

SECOND = 1_000_000
AT = 1_700_000_000 * SECOND
TURN = ids.response_id(AT, 0, "0" * 16)
SETTINGS: dict[str, Any] = {"model": "m", "tools": [{"type": "function", "name": "weather"}]}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

START = TurnStarted(AT, ({"type": "message", "role": "user", "content": "Hi"},), SETTINGS)
ASK = InferenceStarted(AT + 1)
USAGE = Usage(7, 5, 3, 2)
STOP = InferenceCompleted(AT + 2, "stop", USAGE)
CALLED = InferenceCompleted(AT + 2, "tool_calls", USAGE)
END = TurnCompleted(AT + 3 * SECOND)
LISTED = ToolsListed(AT, "docs", ({"name": "search", "input_schema": {"type": "object"}},))


def text(*parts: str, block: Any = "text") -> list[Event]:
    return [Delta(block, part) for part in parts]


def client_call(call_id: str, *arguments: str) -> list[Event]:
    return [CallStarted(call_id, "weather", "client"), *text(*arguments, block="arguments")]


def hosted_call(call_id: str, *arguments: str) -> list[Event]:
    return [CallStarted(call_id, "search", "server", "docs"), *text(*arguments, block="arguments")]


def answer(call_id: str, content: Any = "found", error: Any = None) -> Event:
    return ToolCompleted(AT + 3, call_id, content, {}, error)


def folded(events: Iterable[Event]) -> Turn:
    turn = Turn(TURN)
    for event in events:
        turn = evolve(turn, event)
    return turn


def raw_stream(events: Sequence[Event], *, alias: bool = False, obfuscation: bool = True) -> bytes:
    encoder = ResponseEncoder(TURN, alias=alias, obfuscation=obfuscation)
    frames = [frame for event in events for frame in encoder.encode(event)]
    body = b"".join(sse.frame(frame, frame["type"]) for frame in frames)
    return body if alias else body + sse.DONE


def told(events: Sequence[Event], *, alias: bool = False, cancelled: bool = False) -> list[dict[str, Any]]:
    """The frames of this turn, after every check that they can be put to."""
    crashed = any(isinstance(event, TakenOver) for event in events)
    frames = check_stream(raw_stream(events, alias=alias), alias=alias, cancelled=cancelled, crashed=crashed)
    for frame in frames:
        EVENT.validate_python(as_the_sdk_knows_it(frame))
    shown = response_json(folded(events), alias=alias)
    check_response(shown, alias=alias)
    done = [f["item"] for f in sorted(of(frames, "output_item.done"), key=lambda f: int(f["output_index"]))]
    assert shown["output"] == done
    if not cancelled:
        assert shown == frames[-1]["response"]
    return frames


def as_the_sdk_knows_it(frame: dict[str, Any]) -> dict[str, Any]:
    """The frame without what the contract has beyond the SDK's closed lists of codes, reasons and shapes."""
    frame = json.loads(json.dumps(frame))
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
    frames = told([START, ASK, Delta("text", "Hi", (token,)), STOP, END])
    shown = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}
    other = {"token": "Hé", "logprob": -2.0, "bytes": [72, 195, 169]}
    assert of(frames, "output_text.delta")[0]["logprobs"] == [{**shown, "top_logprobs": [other]}]
    assert done(frames)[0]["content"][0]["logprobs"] == [{**shown, "top_logprobs": [other]}]


# --- hosted tools


def test_a_listing_is_told_at_once() -> None:
    frames = told([START, LISTED, Gathered(AT), ASK, *text("ok"), STOP, END])
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
    frames = told([START, failed, Gathered(AT), ASK, *text("ok"), STOP, END])
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
    frames = told([START, LISTED, Gathered(AT), TakenOver(AT + 1, 3), ASK, *text("Hi"), STOP, END])
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
            {"type": "namespace", "name": "n", "tools": [{"x": None}]},
        ],
        "text": {"format": schema, "verbosity": "low"},
        "reasoning": {"effort": "low", "context": "auto"},
        "max_infer_iters": 3,
        "alias": True,
        "include": ["reasoning.encrypted_content"],
    }
    shown = response_json(Turn(TURN, started_at=AT, settings=settings))
    check_response(shown)
    function, redacted, origin, unknown = shown["tools"]
    assert function == {"type": "function", "name": "f", "description": None, "parameters": None, "strict": True}
    assert redacted["server_url"] == "https://mcp.example.com:8443/<redacted>"
    assert origin["server_url"] == "https://mcp.example.com"
    assert unknown == settings["tools"][3]  # type: ignore[index]
    assert shown["text"] == {"format": {**schema, "description": None, "strict": False}, "verbosity": "low"}
    assert shown["reasoning"] == {"effort": "low", "summary": None, "context": "auto"}
    assert (shown["temperature"], shown["store"], shown["instructions"]) == (0, False, "Be brief.")


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


# --- any turn at all


@st.composite
def turns(draw: st.DrawFn) -> list[Event]:
    """A turn of one or more model messages, with hosted calls answered in any order, cut anywhere and ended anyhow."""
    listings: list[Event] = draw(st.lists(st.just(LISTED), max_size=1))
    events: list[Event] = [START, *listings, Gathered(AT)]
    calls = iter(f"call_{number}" for number in range(1000))
    for _ in range(draw(st.integers(1, 3))):
        message, hosted = draw(messages(calls))
        events += [ASK, *message]
        if draw(st.integers(0, 5)) == 0:
            events.append(TakenOver(AT + 1, draw(st.integers(0, 3))))
            continue
        events.append(InferenceCompleted(AT + 2, "tool_calls", USAGE))
        order = draw(st.permutations(hosted))
        events += [answer(call_id) for call_id in order[: draw(st.integers(0, len(order)))]]
        if len(order) and events[-1] != answer(order[-1]):
            ends: list[Event] = [TurnFailed(AT + 4, "internal_error", "x"), TurnCancelled(AT + 4)]
            return [*events, draw(st.sampled_from(ends))]
    finish: Any = draw(st.sampled_from(["stop", "length", "content_filter"]))
    reason: Any = {"stop": None, "length": "out_of_tokens", "content_filter": "content_filter"}[finish]
    message, hosted = draw(messages(calls))
    events += [ASK, *message, InferenceCompleted(AT + 2, finish, USAGE)]
    if finish == "stop":
        events += [answer(call_id) for call_id in draw(st.permutations(hosted))]
    return [*events, TurnCompleted(AT + 5, reason)]


@st.composite
def messages(draw: st.DrawFn, calls: Any) -> tuple[list[Event], list[str]]:
    """What one model message says, and the calls in it that the server must answer."""
    events: list[Event] = []
    hosted: list[str] = []
    for block in draw(
        st.lists(st.sampled_from(["text", "refusal", "reasoning", "client", "server", "unknown"]), max_size=5)
    ):
        parts = draw(st.lists(st.text("aé {}", min_size=1, max_size=3), max_size=2))
        if block in ("text", "refusal", "reasoning"):
            events += text(*(parts or ["x"]), block=block)
            continue
        call_id = next(calls)
        if block != "client":
            hosted.append(call_id)
        runner: Any = block
        events += [CallStarted(call_id, "tool", runner, "docs"), *text(*parts, block="arguments")]
    return events, hosted


@given(turns(), st.booleans())
def test_any_turn_makes_a_stream_without_fault_and_the_turn_agrees_at_every_moment(
    events: list[Event], alias: bool
) -> None:
    told(events, alias=alias, cancelled=isinstance(events[-1], TurnCancelled))
    encoder = ResponseEncoder(TURN, alias=alias)
    finished: dict[int, Any] = {}
    turn = Turn(TURN)
    for event in events:
        finished |= {frame["output_index"]: frame["item"] for frame in of(encoder.encode(event), "output_item.done")}
        turn = evolve(turn, event)
        assert output_items(turn, alias=alias) == [finished[place] for place in sorted(finished)]


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
