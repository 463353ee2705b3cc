"""Answers in the many forms in which endpoints send them, byte by byte from a real loopback server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest
from tests.upstream import Answer, BreakOff, Gate, ScriptedUpstream, delta, fail, send

from turnloom.adapters.openai_model import OpenAIModel
from turnloom.domain.errors import UpstreamBroken, UpstreamError, UpstreamLimited, UpstreamRejected
from turnloom.domain.message import Usage, UserMessage
from turnloom.ports import CallChunk, Chunk, Finished, ModelRequest, TextChunk

HELLO, STOP = delta(content="Hello"), delta("stop")
REQUEST = ModelRequest("m", (UserMessage("hi"),))


async def ask(model: OpenAIModel) -> list[Chunk]:
    async with aclosing(model.stream(REQUEST)) as chunks:
        return [chunk async for chunk in chunks]


async def failure(model: OpenAIModel) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await ask(model)
    return caught.value


def text(chunks: Sequence[Chunk], block: str = "text") -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk) and chunk.block == block)


def end(chunks: Sequence[Chunk]) -> Finished:
    assert isinstance(chunks[-1], Finished)
    return chunks[-1]


def calls(chunks: Sequence[Chunk]) -> list[tuple[str, str, str]]:
    """(id, name, arguments) of each call, its fragments put together by their index."""
    calls: dict[int, tuple[str, str, str]] = {}
    for chunk in chunks:
        if isinstance(chunk, CallChunk):
            call_id, name, arguments = calls.get(chunk.index, ("", "", ""))
            calls[chunk.index] = (call_id + chunk.call_id, name + chunk.name, arguments + chunk.arguments)
    return list(calls.values())


def call(arguments: str, *, index: int | None = 0, call_id: str = "", name: str = "get_weather") -> dict[str, Any]:
    """A chunk with a fragment of a call."""
    function = {"arguments": arguments, **({"name": name} if name else {})}
    fragment: dict[str, Any] = {"function": function, **({"id": call_id} if call_id else {})}
    return delta(tool_calls=[fragment if index is None else {**fragment, "index": index}])


# --- how an answer ends


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        *((word, "stop") for word in ("stop", "eos", "end_turn", "stop_sequence", "COMPLETE", "tool_use")),
        *((word, "length") for word in ("length", "MAX_TOKENS", "max_tokens", "model_length")),
        *((word, "content_filter") for word in ("content_filter", "content_filtered", "SAFETY", "RECITATION")),
        *((word, "content_filter") for word in ("sensitive", "refusal", "content_filter: PROHIBITED_CONTENT")),
    ],
)
async def test_a_finish_reason_is_known_by_a_closed_list_of_words(
    model: OpenAIModel, upstream: ScriptedUpstream, word: str, meaning: str
) -> None:
    upstream.send(HELLO, delta(word))
    assert end(await ask(model)).reason == meaning


@pytest.mark.parametrize("word", ["error", "network_error", "abort", "malformed_function_call", "whatever"])
async def test_any_other_word_is_a_failure_that_names_it(
    model: OpenAIModel, upstream: ScriptedUpstream, word: str
) -> None:
    upstream.send(HELLO, delta(word))
    error = await failure(model)
    assert isinstance(error, UpstreamBroken) and word in error.message


@pytest.mark.parametrize("reason", ["error", "stop", None])
@pytest.mark.parametrize("place", ["choice", "delta"])
async def test_an_error_counts_wherever_a_chunk_has_it(
    model: OpenAIModel, upstream: ScriptedUpstream, reason: str | None, place: str
) -> None:
    error = {"code": 502, "message": "Provider died"}
    chunk = delta(reason, error=error) if place == "delta" else delta(reason)
    if place == "choice":
        chunk["choices"][0]["error"] = error
    upstream.send(HELLO, chunk)
    assert "Provider died" in (await failure(model)).message


async def test_an_error_in_the_first_choice_means_what_its_status_means(
    model: OpenAIModel, upstream: ScriptedUpstream
) -> None:
    chunk = delta("error")
    chunk["choices"][0]["error"] = {"code": 429, "message": "busy"}
    upstream.answer = lambda request: send(chunk)
    error = await failure(model)
    assert isinstance(error, UpstreamLimited) and error.message == "busy"
    assert len(upstream.requests) == 3


@pytest.mark.parametrize("first", [delta("stop", role="assistant", content=""), delta("null", content="part one ")])
async def test_an_answer_goes_on_behind_a_finish_reason_that_came_too_early(
    model: OpenAIModel, upstream: ScriptedUpstream, first: dict[str, Any]
) -> None:
    gate = Gate()
    gate.open()
    upstream.send(first, gate, delta(content="the answer"), STOP)
    assert text(await ask(model)).endswith("the answer")


async def test_a_finish_reason_that_is_none_does_not_end_an_answer(
    model: OpenAIModel, upstream: ScriptedUpstream
) -> None:
    upstream.send(delta("null", content="part one "), BreakOff())
    assert isinstance(await failure(model), UpstreamBroken)


async def test_calls_may_each_have_the_finish_reason_in_their_own_chunk(
    model: OpenAIModel, upstream: ScriptedUpstream
) -> None:
    first, second = call("{}", call_id="c1"), call("{}", index=1, call_id="c2")
    for chunk in (first, second):
        chunk["choices"][0]["finish_reason"] = "tool_calls"
    upstream.send(first, second)
    assert [made[0] for made in calls(await ask(model))] == ["c1", "c2"]


async def test_silence_behind_the_finish_reason_ends_the_answer_when_reading_times_out(
    upstream: ScriptedUpstream,
) -> None:
    model, gate = OpenAIModel(upstream.url, "key", timeout=0.2), Gate()
    upstream.send(HELLO, STOP, gate)
    assert text(await ask(model)) == "Hello"
    await model.aclose()


# --- calls


@pytest.mark.parametrize(
    ("chunks", "made"),
    [
        ([call('{"ci', call_id="c1"), call('ty":"A"}', call_id="c2")], [("c1", '{"city":"A"}')]),
        ([call('{"a":1}', call_id="c1"), call('{"b":2}', call_id="c2")], [("c1", '{"a":1}'), ("c2", '{"b":2}')]),
        ([call("", call_id="c1"), call("", call_id="c2")], [("c1", ""), ("c2", "")]),
        ([call('{"ci', call_id="c1"), call('ty":"A"}', call_id="c2", name="")], [("c1", '{"city":"A"}')]),
        (
            [call('{"a":1}', call_id="c1"), call("", call_id="c2"), call('{"b":2}', index=1, name="")],
            [("c1", '{"a":1}'), ("c2", '{"b":2}')],
        ),
        (
            [call('{"a":1}', call_id="c1"), call("", call_id="c2"), call('{"b":2}', index=1, call_id="c2", name="")],
            [("c1", '{"a":1}'), ("c2", '{"b":2}')],
        ),
    ],
    ids=["new id and name", "two calls", "two empty calls", "new id", "other index", "other index with id"],
)
async def test_a_fragment_belongs_to_the_call_that_needs_it(
    model: OpenAIModel, upstream: ScriptedUpstream, chunks: list[Any], made: list[tuple[str, str]]
) -> None:
    upstream.send(*chunks, delta("tool_calls"))
    assert [(call_id, arguments) for call_id, _, arguments in calls(await ask(model))] == made


@pytest.mark.parametrize("in_one_piece", [False, True])
async def test_the_older_form_of_a_call_is_a_call(
    model: OpenAIModel, upstream: ScriptedUpstream, in_one_piece: bool
) -> None:
    older = {"name": "get_weather", "arguments": '{"city":"A"}'}
    if in_one_piece:
        message = {"role": "assistant", "content": None, "function_call": older}
        document = {"choices": [{"index": 0, "message": message, "finish_reason": "function_call"}]}
        upstream.send(json.dumps(document), content_type="application/json")
    else:
        head, rest = {**older, "arguments": ""}, {"arguments": older["arguments"]}
        upstream.send(delta(function_call=head), delta(function_call=rest), delta("function_call"))
    chunks = await ask(model)
    assert calls(chunks) == [("", "get_weather", '{"city":"A"}')]
    assert end(chunks).reason == "tool_calls"


async def test_a_function_call_of_null_is_none(model: OpenAIModel, upstream: ScriptedUpstream) -> None:
    upstream.send(delta(content="Hello", function_call=None), STOP)
    assert calls(await ask(model)) == []


# --- usage


@pytest.mark.parametrize(
    ("given", "usage"),
    [
        (
            [{"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135}],
            Usage(32, 103),
        ),
        ([{"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 115}], Usage(10, 105)),
        ([{"prompt_tokens": 32, "completion_tokens": 103, "total_tokens": 135}], Usage(32, 103)),
        ([{"prompt_tokens": 3.0, "completion_tokens": 2.0}], Usage(3, 2)),
        ([{"prompt_tokens": "3", "completion_tokens": "2"}], Usage(3, 2)),
        ([{"prompt_tokens": float("inf"), "completion_tokens": "many"}], Usage()),
        (
            [
                {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
                {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
            ],
            Usage(5, 3),
        ),
    ],
)
async def test_usage_is_what_is_known_of_it(
    model: OpenAIModel, upstream: ScriptedUpstream, given: list[Any], usage: Usage
) -> None:
    chunks = [{**HELLO, "usage": first} for first in given[:-1]]
    upstream.send(*(chunks or [HELLO]), STOP, {"choices": [], "usage": given[-1]})
    assert end(await ask(model)).usage == usage


# --- content


async def test_content_may_be_a_list_of_parts(model: OpenAIModel, upstream: ScriptedUpstream) -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "greet"}]}
    said = [{"type": "text", "text": "Hello"}, {"type": "reference", "reference_ids": [1]}]
    upstream.send(delta(content=[thinking]), delta(content=said), delta("stop", content=" you"))
    chunks = await ask(model)
    assert (text(chunks, "reasoning"), text(chunks)) == ("greet", "Hello you")
    message = {"role": "assistant", "content": [thinking, *said]}
    document = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    upstream.send(json.dumps(document), content_type="application/json")
    chunks = await ask(model)
    assert (text(chunks, "reasoning"), text(chunks)) == ("greet", "Hello")


# --- bytes


def event(chunk: dict[str, Any], ending: str = "\n\n") -> str:
    return f"data: {json.dumps(chunk)}{ending}"


async def test_a_byte_order_mark_costs_no_event(model: OpenAIModel, upstream: ScriptedUpstream) -> None:
    upstream.send("\ufeff" + event(HELLO), event(STOP))
    assert text(await ask(model)) == "Hello"


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
async def test_the_last_event_needs_no_blank_line(model: OpenAIModel, upstream: ScriptedUpstream, ending: str) -> None:
    upstream.send(event(HELLO), event(STOP, ending))
    assert text(await ask(model)) == "Hello"


async def test_half_an_event_at_the_end_is_none(model: OpenAIModel, upstream: ScriptedUpstream) -> None:
    upstream.send(event(HELLO), event(STOP)[:-10])
    assert "without a finish reason" in (await failure(model)).message


async def test_an_event_may_be_cut_anywhere_and_have_any_line_ends(
    model: OpenAIModel, upstream: ScriptedUpstream
) -> None:
    stream = f": ping\r\n\r\nevent: x\r\nid: 1\r\n{event(HELLO, chr(13) + chr(10))}\r\nretry: 1\n\n{event(STOP)}"
    upstream.send(*stream)
    assert text(await ask(model)) == "Hello"


@pytest.mark.parametrize(
    "label", ["", "text/plain", "application/json", "application/octet-stream", "application/x-ndjson"]
)
async def test_the_first_bytes_tell_a_stream_whatever_its_label(
    model: OpenAIModel, upstream: ScriptedUpstream, label: str
) -> None:
    upstream.send(event(HELLO), event(STOP), content_type=label)
    assert text(await ask(model)) == "Hello"


@pytest.mark.parametrize("label", ["text/event-stream", "text/plain", ""])
async def test_the_first_bytes_tell_an_answer_in_one_piece(
    model: OpenAIModel, upstream: ScriptedUpstream, label: str
) -> None:
    message = {"role": "assistant", "content": "Hello"}
    document = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    upstream.send(f" \n{json.dumps(document)}", content_type=label)
    assert text(await ask(model)) == "Hello"


# --- errors

QUOTA = {
    "code": 429,
    "message": "Quota exceeded.",
    "status": "RESOURCE_EXHAUSTED",
    "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "31s"}],
}


@pytest.mark.parametrize(
    "answer",
    [
        fail(429, [{"error": QUOTA}]),
        send(json.dumps([{"error": QUOTA}]), content_type="application/json"),
        send(f"data: {json.dumps([{'error': QUOTA}])}\n\n"),
    ],
    ids=["status", "body", "event"],
)
async def test_an_error_in_an_array_has_its_words_and_its_wish(
    model: OpenAIModel, upstream: ScriptedUpstream, answer: Answer
) -> None:
    upstream.add(answer)
    error = await failure(model)
    assert (type(error), error.message, error.extra["retry_after"]) == (UpstreamLimited, "Quota exceeded.", 31)
    assert len(upstream.requests) == 1


async def test_a_rejection_in_an_array_has_its_words(model: OpenAIModel, upstream: ScriptedUpstream) -> None:
    upstream.fail(400, [{"error": {"code": 400, "message": "Bad field.", "status": "INVALID_ARGUMENT"}}])
    error = await failure(model)
    assert (type(error), error.message) == (UpstreamRejected, "Bad field.")


TOO_LONG = [
    {
        "code": "Client specified an invalid argument",
        "error": "This model's maximum prompt length is 8 but the request contains 9 tokens.",
    },
    {"error": {"message": "Your request exceeded model token limit: 8", "type": "invalid_request_error"}},
    {"error": {"code": "1261", "message": "Prompt exceeds max length"}},
    {"error": {"message": "Range of input length should be [1, 8]", "code": "invalid_parameter_error"}},
    {"error": {"message": "invalid params, context window exceeds limit (2013)", "type": "bad_request_error"}},
    {"error": "The number of tokens to keep from the initial prompt is greater than the context length."},
    {
        "object": "error",
        "message": "The input (9 tokens) is longer than the model's context length (8 tokens).",
        "code": 400,
    },
    {"message": "too many tokens: total number of tokens in the prompt cannot exceed 8 - received 9"},
    {
        "error": {
            "message": "prompt token count of 9 exceeds the limit of 8",
            "code": "model_max_prompt_tokens_exceeded",
        }
    },
    {"error": {"message": "max_tokens must be at least 1, got -904.", "type": "BadRequestError", "code": 400}},
]


@pytest.mark.parametrize("body", TOO_LONG, ids=str)
async def test_a_context_that_is_too_long_is_known_by_its_words(
    model: OpenAIModel, upstream: ScriptedUpstream, body: dict[str, Any]
) -> None:
    upstream.fail(400, body)
    assert (await failure(model)).code == "context_length_exceeded"


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 9. This model supports at most 8 completion tokens.",
        "Request too large for model on tokens per minute (TPM): Limit 8, Requested 9",
        "Invalid 'tools': array too long.",
    ],
)
async def test_other_limits_are_no_context_that_is_too_long(
    model: OpenAIModel, upstream: ScriptedUpstream, message: str
) -> None:
    upstream.fail(400, message)
    assert (await failure(model)).code == "upstream_rejected"
