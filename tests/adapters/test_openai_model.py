"""The Model port against a real loopback server that answers as OpenAI, and as its many likenesses."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from tests.upstream import Answer, BreakOff, Gate, Received, ScriptedUpstream, delta, fail, say, send

from turnloom.adapters.openai_model import OpenAIModel
from turnloom.adapters.openai_model.connections import Connections
from turnloom.adapters.openai_model.errors import MOST_BYTES
from turnloom.adapters.openai_model.tokenizer import Tokenizer
from turnloom.domain.errors import (
    UpstreamBroken,
    UpstreamError,
    UpstreamLimited,
    UpstreamRejected,
    UpstreamTimeout,
)
from turnloom.domain.message import (
    AssistantMessage,
    FilePart,
    ImagePart,
    Message,
    SystemMessage,
    TextPart,
    Tool,
    ToolCall,
    ToolMessage,
    Usage,
    UserMessage,
)
from turnloom.engine.engine import Pace
from turnloom.ports import CallChunk, Chunk, Finished, ModelInfo, ModelRequest, TextChunk

KEY = "sk-very-secret"
HELLO = ModelRequest("test-model", (UserMessage("Hello"),))
CALCULATOR = Tool("calculator", "Does sums.", {"type": "object", "properties": {"expression": {"type": "string"}}})


class Pauses:
    """A sleep that only notes for how long it was asked."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


Build = Callable[..., OpenAIModel]


@pytest.fixture
async def build(upstream: ScriptedUpstream, pauses: Pauses) -> AsyncIterator[Build]:
    """Makes models whose connections are closed in the end."""
    built: list[OpenAIModel] = []

    def build(url: str = upstream.url, key: str = KEY, **settings: Any) -> OpenAIModel:
        built.append(OpenAIModel(url, key, sleep=pauses, **settings))
        return built[-1]

    yield build
    for model in built:
        await model.aclose()


@pytest.fixture
def model(build: Build) -> OpenAIModel:
    return build()


async def answer(model: OpenAIModel, request: ModelRequest = HELLO) -> list[Chunk]:
    async with aclosing(model.stream(request)) as chunks:
        return [chunk async for chunk in chunks]


async def failure(model: OpenAIModel, request: ModelRequest = HELLO) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await answer(model, request)
    return caught.value


def text(chunks: list[Chunk], block: str = "text") -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk) and chunk.block == block)


def calls(chunks: list[Chunk]) -> list[tuple[str, str, str]]:
    """(id, name, arguments) per call, put together as a reader does who trusts nothing but `index`."""
    found: dict[int, list[str]] = {}
    for chunk in chunks:
        if isinstance(chunk, CallChunk):
            parts = found.setdefault(chunk.index, ["", "", ""])
            for place, value in enumerate((chunk.call_id, chunk.name, chunk.arguments)):
                parts[place] += value
    return [(parts[0], parts[1], parts[2]) for parts in found.values()]


def fragment(arguments: str = "", *, name: str = "", call_id: str = "", index: int | None = None) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    given: dict[str, Any] = {"function": function}
    if call_id:
        given["id"] = call_id
    return given if index is None else {**given, "index": index}


# --- the request


async def sent(model: OpenAIModel, upstream: ScriptedUpstream, request: ModelRequest) -> dict[str, Any]:
    upstream.say("Hi")
    await answer(model, request)
    body: dict[str, Any] = upstream.bodies[-1]
    return body


async def messages_sent(model: OpenAIModel, upstream: ScriptedUpstream, *messages: Message) -> Any:
    return (await sent(model, upstream, ModelRequest("test-model", messages)))["messages"]


async def test_a_bare_request_asks_for_a_stream_with_usage_and_for_nothing_else(model, upstream):
    assert await sent(model, upstream, HELLO) == {
        "model": "test-model",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_the_key_goes_out_as_a_bearer_token(model, upstream):
    await sent(model, upstream, HELLO)
    assert upstream.requests[0].headers["authorization"] == f"Bearer {KEY}"


async def test_an_endpoint_that_needs_no_key_is_called_without_the_one_of_the_environment(build, upstream, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    await sent(build(key=""), upstream, HELLO)
    assert KEY not in upstream.requests[0].headers["authorization"]


async def test_messages_of_every_role_are_mapped_in_order_with_arguments_verbatim(model, upstream):
    arguments = '{ "expression":"1+1" }'
    shown = await messages_sent(
        model,
        upstream,
        SystemMessage("Be brief."),
        UserMessage("1+1?"),
        AssistantMessage("Let me see.", (ToolCall("call_1", "calculator", arguments),), reasoning="hm"),
        ToolMessage("call_1", "2", "calculator"),
        AssistantMessage("2"),
    )
    function = {"name": "calculator", "arguments": arguments}
    assert shown == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
        {"role": "assistant", "content": "2"},
    ]


async def test_calls_without_text_have_null_content_and_an_empty_answer_an_empty_string(model, upstream):
    shown = await messages_sent(
        model, upstream, AssistantMessage(calls=(ToolCall("c", "t", "{}"),)), AssistantMessage("")
    )
    assert [message["content"] for message in shown] == [None, ""]


async def test_parts_become_an_array_of_text_image_and_file(build, upstream):
    parts = (
        TextPart("What is this?"),
        ImagePart("https://example.com/a.png"),
        ImagePart("data:image/png;base64,AA==", "high"),
        FilePart("data:application/pdf;base64,AA==", "a.pdf"),
    )
    shown = await messages_sent(build(takes_files=True), upstream, UserMessage(parts))
    assert shown[0]["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "high"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
    ]


@pytest.mark.parametrize("message", [UserMessage, SystemMessage])
async def test_a_file_for_an_endpoint_that_takes_none_is_refused_before_any_call(model, upstream, message):
    pdf = FilePart("data:application/pdf;base64,AA==", "a.pdf")
    error = await failure(model, ModelRequest("test-model", (message((TextPart("Read this."), pdf)),)))
    assert (type(error), error.code) == (UpstreamRejected, "unsupported_file")
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("url", "told", "takes"),
    [
        ("https://api.openai.com/v1", None, True),
        ("https://API.OpenAI.com", None, True),
        ("https://api.openai.com/v1", False, False),
        ("https://example.com/api.openai.com/v1", None, False),
        ("https://api.openai.com.example.com/v1", None, False),
        ("http://127.0.0.1:8000/v1", None, False),
        ("http://127.0.0.1:8000/v1", True, True),
    ],
)
def test_only_the_endpoint_of_openai_takes_files_unless_told(url, told, takes):
    assert OpenAIModel(url, KEY, takes_files=told).takes_files is takes


async def test_earlier_reasoning_is_shown_to_endpoints_that_want_it(build, upstream):
    model = build(sends_reasoning=True)
    shown = await messages_sent(model, upstream, AssistantMessage("2", reasoning="1+1 is 2"))
    assert shown == [{"role": "assistant", "content": "2", "reasoning_content": "1+1 is 2"}]


async def test_tools_are_functions_and_strict_is_sent_only_where_given(model, upstream):
    tools = (CALCULATOR, Tool("plain", strict=True))
    body = await sent(model, upstream, ModelRequest("test-model", (UserMessage("Hello"),), tools))
    function = {"name": "calculator", "description": "Does sums.", "parameters": CALCULATOR.parameters}
    plain = {"name": "plain", "parameters": {"type": "object", "properties": {}}, "strict": True}
    assert body["tools"] == [{"type": "function", "function": function}, {"type": "function", "function": plain}]
    assert "tool_choice" not in body
    assert "parallel_tool_calls" not in body


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("required", "required"), ("calculator", {"type": "function", "function": {"name": "calculator"}})],
)
async def test_a_forced_tool_choice_is_sent(model, upstream, choice, expected):
    request = ModelRequest("test-model", (UserMessage("Hello"),), (CALCULATOR,), tool_choice=choice)
    assert (await sent(model, upstream, request))["tool_choice"] == expected


async def test_parallel_calls_are_forbidden_only_where_there_are_tools(model, upstream):
    without = ModelRequest("test-model", (UserMessage("Hello"),), parallel_calls=False)
    assert "parallel_tool_calls" not in await sent(model, upstream, without)
    with_tools = ModelRequest("test-model", (UserMessage("Hello"),), (CALCULATOR,), parallel_calls=False)
    assert (await sent(model, upstream, with_tools))["parallel_tool_calls"] is False


async def test_sampling_goes_as_it_is_also_what_the_sdk_does_not_know(model, upstream):
    sampling = {"temperature": 0, "top_k": 5, "repetition_penalty": 1.1, "stop": ["END"], "logprobs": True}
    body = await sent(model, upstream, ModelRequest("test-model", (UserMessage("Hello"),), sampling=sampling))
    assert {name: body[name] for name in sampling} == sampling


async def test_sampling_cannot_turn_the_stream_off(model, upstream):
    request = ModelRequest("test-model", (UserMessage("Hello"),), sampling={"stream": False})
    assert (await sent(model, upstream, request))["stream"] is True


async def test_max_tokens_and_response_format_are_sent_when_given(model, upstream):
    wanted = {"type": "json_schema", "json_schema": {"name": "response", "schema": {"type": "object"}}}
    request = ModelRequest("test-model", (UserMessage("Hello"),), response_format=wanted, max_tokens=7)
    body = await sent(model, upstream, request)
    assert (body["max_tokens"], body["response_format"]) == (7, wanted)


@pytest.mark.parametrize("status", [400, 422])
async def test_an_endpoint_that_refuses_stream_options_is_asked_without_them_from_then_on(model, upstream, status):
    def strict(request: Received) -> Answer:
        return fail(status, "Unknown key: stream_options") if "stream_options" in request.body else say("Hi")

    upstream.answer = strict
    first, second = await answer(model), await answer(model)
    assert first == second == [TextChunk("Hi"), Finished("stop")]
    assert ["stream_options" in body for body in upstream.bodies] == [True, False, False]


async def test_a_refusal_that_only_quotes_stream_options_does_not_give_up_usage(model, upstream):
    quoting = {"detail": [{"msg": "bad model", "input": {"stream_options": {"include_usage": True}}}]}
    upstream.answer = lambda request: fail(422, quoting)
    assert (await failure(model)).code == "upstream_rejected"
    upstream.answer = lambda request: say("Hi", usage={"prompt_tokens": 3, "completion_tokens": 1})
    assert (await answer(model))[-1] == Finished("stop", Usage(3, 1))


# --- answers by a schema

SCHEMA = {"type": "object", "properties": {"größe": {"type": "number"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "size", "schema": SCHEMA, "description": "How big."}}
BY_SCHEMA = ModelRequest("test-model", (SystemMessage("Be brief."), UserMessage("How big?")), response_format=FORMAT)
REFUSALS = {
    "DeepSeek": fail(400, "This response_format type is unavailable now"),
    "OpenAI": fail(400, "Invalid parameter: 'response_format' of type 'json_schema' is not supported."),
    "Groq": fail(400, "This model does not support response format `json_schema`."),
    "a validator": fail(
        422, {"detail": [{"loc": ["body", "response_format", "type"], "msg": "Input should be 'text'"}]}
    ),
}


def formats(upstream: ScriptedUpstream) -> list[str | None]:
    return [body.get("response_format", {}).get("type") for body in upstream.bodies]


def takes(*kinds: str | None, refusal: Answer = REFUSALS["DeepSeek"]) -> Callable[[Received], Answer]:
    """An endpoint that refuses every `response_format` but these."""
    return lambda request: say("{}") if request.body.get("response_format", {}).get("type") in kinds else refusal


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
async def test_a_model_that_refuses_a_schema_is_asked_in_json_mode_from_then_on(model, upstream, refusal):
    upstream.answer = takes("json_object", refusal=refusal)
    assert text(await answer(model, BY_SCHEMA)) == text(await answer(model, BY_SCHEMA)) == "{}"
    assert formats(upstream) == ["json_schema", "json_object", "json_object"]
    assert upstream.bodies[1] == upstream.bodies[2]
    assert upstream.bodies[1]["response_format"] == {"type": "json_object"}


async def test_in_json_mode_the_schema_stands_behind_the_first_system_message(model, upstream):
    upstream.answer = takes("json_object")
    await answer(model, BY_SCHEMA)
    first, told, user = upstream.bodies[-1]["messages"]
    assert (first["content"], told["role"], user["role"]) == ("Be brief.", "system", "user")
    assert json.dumps(SCHEMA, ensure_ascii=False) in told["content"]
    assert "How big." in told["content"]
    assert "JSON" in told["content"]


async def test_without_a_system_message_the_schema_comes_first(model, upstream):
    upstream.answer = takes("json_object")
    await answer(model, replace(BY_SCHEMA, messages=(UserMessage("How big?"), UserMessage("Well?"))))
    assert [message["role"] for message in upstream.bodies[-1]["messages"]] == ["system", "user", "user"]


async def test_a_model_that_refuses_json_mode_too_is_told_the_schema_alone_from_then_on(model, upstream):
    upstream.answer = takes(None)
    await answer(model, BY_SCHEMA)
    await answer(model, BY_SCHEMA)
    assert formats(upstream) == ["json_schema", "json_object", None, None]
    assert "response_format" not in upstream.bodies[-1]
    assert upstream.bodies[1]["messages"] == upstream.bodies[2]["messages"] == upstream.bodies[3]["messages"]


async def test_what_one_model_refuses_another_is_still_asked(model, upstream):
    upstream.answer = lambda request: (
        takes("json_object")(request) if request.body["model"] == "test-model" else say("{}")
    )
    await answer(model, BY_SCHEMA)
    await answer(model, replace(BY_SCHEMA, model="another"))
    assert formats(upstream) == ["json_schema", "json_object", "json_schema"]


async def test_an_endpoint_may_refuse_a_schema_and_stream_options(model, upstream):
    def strict(request: Received) -> Answer:
        known = "stream_options" not in request.body
        return takes("json_object")(request) if known else fail(400, "Unknown: stream_options")

    upstream.answer = strict
    await answer(model, BY_SCHEMA)
    await answer(model, BY_SCHEMA)
    assert "stream_options" not in upstream.bodies[-1]
    assert formats(upstream)[-1] == "json_object"
    assert upstream.bodies[-1] == upstream.bodies[-2]


async def test_a_refusal_that_only_quotes_the_format_does_not_give_up_the_schema(model, upstream):
    quoting = {"detail": [{"msg": "too hot", "input": {"response_format": FORMAT}}]}
    upstream.answer = lambda request: fail(422, quoting)
    assert (await failure(model, BY_SCHEMA)).code == "upstream_rejected"
    upstream.answer = takes("json_schema")
    assert text(await answer(model, BY_SCHEMA)) == "{}"


@pytest.mark.parametrize(
    "message",
    [
        "Invalid schema for response_format 'size': In context=(), 'required' is missing.",
        "invalid_json_schema in json_schema",
        "Too hot.",
    ],
)
async def test_a_refusal_of_this_schema_or_of_something_else_is_for_the_caller(model, upstream, message):
    upstream.fail(400, message)
    error = await failure(model, BY_SCHEMA)
    assert (error.code, error.message) == ("upstream_rejected", message)
    assert len(upstream.requests) == 1


async def test_what_is_wrong_in_json_mode_is_told(model, upstream):
    too_long = {"error": {"message": "Too much.", "code": "context_length_exceeded"}}
    upstream.add(REFUSALS["DeepSeek"], fail(400, too_long))
    assert (await failure(model, BY_SCHEMA)).code == "context_length_exceeded"


async def test_a_refused_json_mode_that_the_request_itself_asked_for_is_for_the_caller(model, upstream):
    upstream.answer = takes(None)
    error = await failure(model, replace(BY_SCHEMA, response_format={"type": "json_object"}))
    assert error.code == "upstream_rejected"
    assert len(upstream.requests) == 1


async def test_a_model_that_refuses_schemas_is_sent_other_requests_as_they_are(model, upstream):
    upstream.answer = takes("json_object", None)
    await answer(model, BY_SCHEMA)
    await answer(model, HELLO)
    assert upstream.bodies[-1]["messages"] == [{"role": "user", "content": "Hello"}]


# --- text


async def test_text_comes_chunk_by_chunk_and_ends_with_usage(model, upstream):
    upstream.say("Hello", " world")
    assert await answer(model) == [TextChunk("Hello"), TextChunk(" world"), Finished("stop", Usage(10, 2))]


async def test_a_chunk_is_passed_on_before_the_next_one_exists(model, upstream):
    gate = Gate()
    upstream.say("Hello", gate, " world")
    async with aclosing(model.stream(HELLO)) as chunks:
        assert await anext(chunks) == TextChunk("Hello")
        await gate.reached.wait()
        gate.open()
        assert await anext(chunks) == TextChunk(" world")


async def test_text_that_rides_with_the_finish_reason_is_kept(model, upstream):
    upstream.send(delta(content="Hello"), delta("stop", content=" world"), "data: [DONE]\n\n")
    assert await answer(model) == [TextChunk("Hello"), TextChunk(" world"), Finished("stop")]


async def test_empty_text_is_never_yielded(model, upstream):
    upstream.send(delta(content=""), delta(content=None), delta(content="Hi"), delta("stop", content=""))
    assert await answer(model) == [TextChunk("Hi"), Finished("stop")]


async def test_chunks_without_choices_are_skipped_and_comments_too(model, upstream):
    upstream.send({"choices": []}, {}, ": ping\n\n", delta(content="Hi"), {"choices": None}, delta("stop"))
    assert await answer(model) == [TextChunk("Hi"), Finished("stop")]


async def test_only_the_first_choice_is_read(model, upstream):
    other = {"choices": [{"index": 1, "delta": {"content": "no"}, "finish_reason": "length"}]}
    upstream.send(delta(content="Hi"), other, delta("stop"), other)
    assert await answer(model) == [TextChunk("Hi"), Finished("stop")]


async def test_line_ends_of_unicode_and_of_windows_do_not_break_an_answer(model, upstream):
    chunk = json.dumps(delta(content="a\u2028b\u0085c 😀"), ensure_ascii=False)
    upstream.send(f"data:{chunk}\r\n\r\n", delta("stop"))
    assert text(await answer(model)) == "a\u2028b\u0085c 😀"


async def test_refusal_and_reasoning_come_as_their_own_blocks(model, upstream):
    upstream.say(reasoning=["Let me", " think"], refusal=["I", " won't"])
    chunks = await answer(model)
    assert (text(chunks, "reasoning"), text(chunks, "refusal"), text(chunks)) == ("Let me think", "I won't", "")


async def test_reasoning_under_either_name_is_read_once(model, upstream):
    upstream.send(delta(reasoning="a"), delta(reasoning="b", reasoning_content="b"), delta("stop", content="c"))
    assert await answer(model) == [
        TextChunk("a", "reasoning"),
        TextChunk("b", "reasoning"),
        TextChunk("c"),
        Finished("stop"),
    ]


async def test_logprobs_come_with_their_text(model, upstream):
    logprobs = [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}]
    upstream.send(delta(content="Hi", logprobs={"content": logprobs, "refusal": None}), delta("stop", logprobs=None))
    assert await answer(model) == [TextChunk("Hi", logprobs=tuple(logprobs)), Finished("stop")]


async def test_a_whole_completion_instead_of_a_stream_is_read_too(model, upstream):
    function = {"name": "calculator", "arguments": "{}"}
    message = {
        "role": "assistant",
        "content": "Hi",
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }
    whole = {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    upstream.send(json.dumps(whole), content_type="application/json")
    assert await answer(model) == [
        TextChunk("Hi"),
        CallChunk(0, "c", "calculator", "{}"),
        Finished("tool_calls", Usage(1, 2)),
    ]


# --- usage and the end


async def test_usage_is_read_with_its_details(model, upstream):
    usage = {
        "prompt_tokens": 20,
        "completion_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 16, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    upstream.say("Hi", usage=usage)
    assert (await answer(model))[-1] == Finished("stop", Usage(20, 9, 16, 4))


@pytest.mark.parametrize(
    "details",
    [
        {"prompt_tokens_details": None, "completion_tokens_details": None},
        {"prompt_tokens_details": {"cached_tokens": None}, "completion_tokens_details": {"reasoning_tokens": None}},
        {"prompt_tokens_details": {}, "completion_tokens_details": {"reasoning_tokens": "many"}},
        {"prompt_tokens_details": {"cached_tokens": -1}, "total_tokens": None},
    ],
)
async def test_figures_that_the_endpoint_does_not_give_are_nought(model, upstream, details):
    upstream.say("Hi", usage={"prompt_tokens": 20, "completion_tokens": 9, **details})
    assert (await answer(model))[-1] == Finished("stop", Usage(20, 9))


async def test_usage_of_nulls_is_a_usage_of_noughts(model, upstream):
    upstream.say("Hi", usage={"prompt_tokens": None, "completion_tokens": None, "total_tokens": None})
    assert (await answer(model))[-1] == Finished("stop", Usage())


async def test_usage_in_the_chunk_with_the_finish_reason_counts(model, upstream):
    usage = {"prompt_tokens": 2, "completion_tokens": 1, "prompt_tokens_details": None}
    upstream.send(delta(content="Hi"), {**delta("stop"), "usage": usage})
    assert (await answer(model))[-1] == Finished("stop", Usage(2, 1))


async def test_usage_after_the_finish_reason_is_waited_for(model, upstream):
    gate = Gate()
    usage = {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}
    upstream.send(delta(content="Hi"), delta("stop"), gate, usage, "data: [DONE]\n\n")
    reading = asyncio.create_task(answer(model))
    await gate.reached.wait()
    gate.open()
    assert await reading == [TextChunk("Hi"), Finished("stop", Usage(2, 1))]


async def test_a_break_after_the_finish_reason_does_not_spoil_the_answer(model, upstream):
    upstream.send(delta(content="Hi"), delta("stop"), BreakOff())
    assert await answer(model) == [TextChunk("Hi"), Finished("stop")]


@pytest.mark.parametrize(
    ("said", "meant"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), ("eos_token", "stop")],
)
async def test_finish_reasons_are_mapped(model, upstream, said, meant):
    upstream.say("Hi", reason=said)
    assert (await answer(model))[-1] == Finished(meant, Usage(10, 1))


@pytest.mark.parametrize(
    ("said", "meant"),
    [("tool_calls", "tool_calls"), ("function_call", "tool_calls"), ("stop", "tool_calls"), ("length", "length")],
)
async def test_calls_are_an_ending_of_their_own_unless_cut_off(model, upstream, said, meant):
    upstream.call(("calculator", {}), reason=said)
    assert (await answer(model))[-1] == Finished(meant, Usage(10, 2))


async def test_an_ending_for_calls_without_a_call_is_a_stop(model, upstream):
    upstream.say("Hi", reason="tool_calls")
    assert (await answer(model))[-1] == Finished("stop", Usage(10, 1))


# --- tool calls


async def test_calls_come_in_fragments_by_index(model, upstream):
    upstream.call(("calculator", '{"expression": "1+1"}'), ("clock", {}), text="One moment.", size=4)
    chunks = await answer(model)
    assert text(chunks) == "One moment."
    assert calls(chunks) == [("call_0", "calculator", '{"expression": "1+1"}'), ("call_1", "clock", "{}")]
    assert chunks[1] == CallChunk(0, "call_0", "calculator")
    assert chunks[2] == CallChunk(0, arguments='{"ex')


SHAPES = {
    "whole calls in one chunk, without an index": [
        delta(tool_calls=[fragment("{}", name="a", call_id="1"), fragment("{}", name="b", call_id="2")])
    ],
    "whole calls in a chunk each, without an index": [
        delta(tool_calls=[fragment("{}", name="a", call_id="1")]),
        delta(tool_calls=[fragment("{}", name="b", call_id="2")]),
    ],
    "every call at index 0": [
        delta(tool_calls=[fragment("{}", name="a", call_id="1", index=0)]),
        delta(tool_calls=[fragment("{}", name="b", call_id="2", index=0)]),
    ],
    "id and name in every fragment": [
        delta(tool_calls=[fragment("{", name="a", call_id="1", index=0)]),
        delta(tool_calls=[fragment("}", name="a", call_id="1", index=0)]),
        delta(tool_calls=[fragment("{", name="b", call_id="2", index=1)]),
        delta(tool_calls=[fragment("}", name="b", call_id="2", index=1)]),
    ],
    "id and name in every fragment, without an index": [
        delta(tool_calls=[fragment("{", name="a", call_id="1")]),
        delta(tool_calls=[fragment("}", name="a", call_id="1")]),
        delta(tool_calls=[fragment("{}", name="b", call_id="2")]),
    ],
    "fragments without an index": [
        delta(tool_calls=[fragment("{", name="a", call_id="1")]),
        delta(tool_calls=[fragment("}")]),
        delta(tool_calls=[fragment("{", name="b", call_id="2")]),
        delta(tool_calls=[fragment("}")]),
    ],
    "another id with every fragment": [
        delta(tool_calls=[fragment("{", name="a", call_id="1", index=0)]),
        delta(tool_calls=[fragment("}", call_id="x", index=0)]),
        delta(tool_calls=[fragment("{}", name="b", call_id="2", index=1)]),
    ],
    "id before the name": [
        delta(tool_calls=[fragment(call_id="1", index=0)]),
        delta(tool_calls=[fragment("{}", name="a", index=0)]),
        delta(tool_calls=[fragment("{}", name="b", call_id="2", index=1)]),
    ],
    "an index that starts at 1": [
        delta(tool_calls=[fragment("{}", name="a", call_id="1", index=1)]),
        delta(tool_calls=[fragment("{}", name="b", call_id="2", index=2)]),
    ],
}


@pytest.mark.parametrize("chunks", SHAPES.values(), ids=SHAPES.keys())
async def test_calls_are_told_apart_in_every_shape_that_endpoints_send(model, upstream, chunks):
    upstream.send(*chunks, delta("tool_calls"))
    assert calls(await answer(model)) == [("1", "a", "{}"), ("2", "b", "{}")]


async def test_calls_without_id_or_index_are_told_apart_by_their_names(model, upstream):
    upstream.send(delta(tool_calls=[fragment("{}", name="a"), fragment("{}", name="a")]), delta("stop"))
    assert calls(await answer(model)) == [("", "a", "{}"), ("", "a", "{}")]


async def test_arguments_sent_as_an_object_become_its_json(model, upstream):
    given = {"index": 0, "id": "1", "function": {"name": "a", "arguments": {"x": 1}}}
    upstream.send(delta(tool_calls=[given]), delta("stop"))
    assert calls(await answer(model)) == [("1", "a", '{"x": 1}')]


# --- answers that go wrong


BROKEN = {
    "nothing at all": send(),
    "no finish reason": send(delta(content=""), "data: [DONE]\n\n"),
    "an error object": send({"error": {"message": "out of memory", "code": 500}}),
    "an error of the old kind": send({"object": "error", "message": "out of memory", "code": 500}),
    "invalid JSON": send("data: {nope\n\n"),
    "JSON that is no chunk": send("data: [1, 2]\n\n"),
    "JSON that is a number": send("data: 1\n\n"),
    "JSON without an end": send("data: " + "[" * 100_000 + "\n\n"),
    "choices that are none": send({"choices": 1}),
    "a choice that is none": send({"choices": ["Hi"]}),
    "a delta that is none": send({"choices": [{"delta": "Hi"}]}),
    "calls that are none": send(delta(tool_calls=["calculator"])),
    "a call at no place": send(delta(tool_calls=[fragment("{}", name="a") | {"index": []}])),
    "usage that is none": send({"usage": "much"}, delta("stop")),
    "text that is no text": send(delta(content={"a": 1}), delta("stop")),
    "a page for people": send("<html>Welcome</html>", content_type="text/html"),
    "JSON that is no completion": send("[]", content_type="application/json"),
    "half a JSON answer": send('{"choices": [', content_type="application/json"),
    "a connection closed at once": send(BreakOff()),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
async def test_an_answer_that_is_none_is_broken_and_asked_for_again(model, upstream, pauses, broken):
    upstream.add(broken, broken, broken)
    error = await failure(model)
    assert isinstance(error, UpstreamBroken)
    assert error.code == "upstream_error"
    assert len(upstream.requests) == 3
    assert len(pauses.seconds) == 2


@pytest.mark.parametrize(
    "error",
    [{"error": {"message": "out of memory", "code": 500}}, {"object": "error", "message": "out of memory"}],
    ids=["in an envelope", "bare"],
)
async def test_an_error_in_the_stream_is_told(model, upstream, error):
    upstream.send(delta(content="Hi"), error, delta("stop"))
    assert "out of memory" in (await failure(model)).message


ENVELOPED: dict[str, tuple[Any, type[UpstreamError], str]] = {
    "OpenAI, too long": (
        {"message": "Too much.", "type": "invalid_request_error", "code": "context_length_exceeded"},
        UpstreamRejected,
        "context_length_exceeded",
    ),
    "vLLM, too long": (
        {"message": "This model's maximum context length is 16 tokens.", "type": "BadRequestError", "code": 400},
        UpstreamRejected,
        "context_length_exceeded",
    ),
    "Ollama, too long": ("the request exceeds the available context size", UpstreamRejected, "context_length_exceeded"),
    "OpenAI, no such model": (
        {"message": "No.", "type": "invalid_request_error", "code": "model_not_found"},
        UpstreamRejected,
        "model_not_found",
    ),
    "OpenAI, wrong": (
        {"message": "No.", "type": "invalid_request_error", "code": "invalid_value"},
        UpstreamRejected,
        "upstream_rejected",
    ),
    "OpenAI, limit": (
        {"message": "Slow.", "type": "tokens", "code": "rate_limit_exceeded"},
        UpstreamLimited,
        "rate_limited",
    ),
    "OpenRouter, limit": ({"message": "Slow.", "code": 429}, UpstreamLimited, "rate_limited"),
    "Gemini, limit": ({"message": "Slow.", "status": "RESOURCE_EXHAUSTED"}, UpstreamLimited, "rate_limited"),
    "a number as text": ({"message": "Slow.", "code": "429"}, UpstreamLimited, "rate_limited"),
    "OpenAI, quota": (
        {"message": "Pay.", "type": "insufficient_quota", "code": "insufficient_quota"},
        UpstreamLimited,
        "insufficient_quota",
    ),
    "OpenAI, key": (
        {"message": f"Incorrect API key: {KEY}", "type": "invalid_request_error", "code": "invalid_api_key"},
        UpstreamRejected,
        "upstream_authentication_error",
    ),
    "Anthropic, time": ({"message": "Late.", "type": "timeout_error"}, UpstreamTimeout, "upstream_timeout"),
    "Anthropic, overloaded": ({"message": "Busy.", "type": "overloaded_error"}, UpstreamBroken, "upstream_error"),
}


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
@pytest.mark.parametrize(("error", "meaning", "code"), ENVELOPED.values(), ids=ENVELOPED.keys())
async def test_an_error_in_place_of_an_answer_means_what_its_status_would_have_meant(
    model, upstream, pauses, error, meaning, code, kind
):
    body = {"error": error}
    part = json.dumps(body) if kind == "application/json" else body
    for _ in range(3):
        upstream.send(
            *([] if kind == "application/json" else [delta(role="assistant", content="")]), part, content_type=kind
        )
    told = await failure(model)
    assert (type(told), told.code) == (meaning, code)
    assert KEY not in told.message
    assert len(pauses.seconds) == (2 if code in ("rate_limited", "upstream_error") else 0)


async def test_the_code_of_a_rejection_under_status_200_is_kept(model, upstream):
    upstream.send({"error": {"message": "No.", "type": "invalid_request_error", "code": "invalid_value"}})
    error = await failure(model)
    assert (error.message, error.extra) == ("No.", {"upstream_code": "invalid_value"})


async def test_an_error_behind_some_of_the_answer_is_a_break_whatever_its_kind(model, upstream):
    upstream.send(delta(content="Hi"), {"error": {"message": "Slow.", "code": 429}})
    assert (type(await failure(model)), len(upstream.requests)) == (UpstreamBroken, 1)


def in_one_piece(text: str, kind: str) -> Answer:
    answer = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]}
    return whole(answer) if kind == "application/json" else send(answer)


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
async def test_a_long_answer_may_come_in_one_piece(model, upstream, kind):
    upstream.add(in_one_piece("x" * (MOST_BYTES - 1000), kind))
    assert len(text(await answer(model))) == MOST_BYTES - 1000


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
async def test_a_piece_that_is_too_large_is_told_and_not_asked_for_again(model, upstream, pauses, kind):
    upstream.add(in_one_piece("x" * MOST_BYTES, kind))
    error = await failure(model)
    assert (isinstance(error, UpstreamBroken), error.code, error.retryable) == (True, "upstream_error", False)
    assert str(MOST_BYTES) in error.message
    assert len(upstream.requests) == 1


async def test_the_end_mark_ends_an_answer_whose_connection_stays_open(build, upstream):
    model = build(retries=0, timeout=2)
    upstream.send(delta(content="Hi"), delta("stop"), "data: [DONE]\n\n", Gate())
    assert await answer(model) == [TextChunk("Hi"), Finished("stop")]
    upstream.send(delta(content=""), "data: [DONE]\n\n", Gate())
    assert isinstance(await failure(model), UpstreamBroken)


@pytest.mark.parametrize("ending", [[], [BreakOff()], ["data: {nope\n\n"], [{"error": "gone"}], ["data: [DONE]\n\n"]])
async def test_nothing_is_asked_for_again_once_a_chunk_is_out(model, upstream, pauses, ending):
    upstream.send(delta(content="Hi"), *ending)
    upstream.say("never")
    chunks: list[Chunk] = []
    with pytest.raises(UpstreamBroken):
        async for chunk in model.stream(HELLO):
            chunks.append(chunk)  # noqa: PERF401  (what came before the error is the point)
    assert chunks == [TextChunk("Hi")]
    assert len(upstream.requests) == 1
    assert pauses.seconds == []


async def test_an_answer_broken_before_its_first_chunk_is_had_by_asking_again(model, upstream):
    upstream.send(delta(role="assistant", content=""), BreakOff())
    upstream.say("Hi")
    assert text(await answer(model)) == "Hi"


# --- error statuses


async def test_a_rejected_request_has_upstreams_words_and_is_not_repeated(model, upstream, pauses):
    upstream.fail(400, "temperature must be below 2")
    error = await failure(model)
    assert (type(error), error.code, error.message) == (
        UpstreamRejected,
        "upstream_rejected",
        "temperature must be below 2",
    )
    assert not error.retryable
    assert len(upstream.requests) == 1


WORDS: dict[str, Any] = {
    "OpenAI": ({"error": {"message": "bad", "type": "invalid_request_error", "param": None, "code": None}}, "bad"),
    "vLLM of old": ({"object": "error", "message": "bad", "type": "BadRequestError", "code": 400}, "bad"),
    "Ollama": ({"error": "bad"}, "bad"),
    "FastAPI": ({"detail": "bad"}, "bad"),
    "FastAPI's validation": ({"detail": [{"msg": "bad"}]}, "bad"),
    "Mistral": ({"message": {"detail": [{"msg": "bad"}]}}, "bad"),
    "Gemini": ([{"error": {"message": "bad"}}], "bad"),
    "an empty object": ({}, "The model endpoint answered with status 422."),
}


@pytest.mark.parametrize(("body", "message"), WORDS.values(), ids=WORDS.keys())
async def test_the_words_of_a_rejection_are_found_in_every_usual_body(model, upstream, body, message):
    upstream.fail(422, body)
    assert (await failure(model)).message == message


async def test_a_page_of_html_is_not_passed_on_as_a_message(model, upstream):
    upstream.send("<!doctype html><h1>nginx</h1>", content_type="text/html", status=418)
    assert (await failure(model)).message == "The model endpoint answered with status 418."


async def test_a_very_long_rejection_is_cut(model, upstream):
    upstream.fail(400, "x" * 10_000)
    assert (await failure(model)).message == "x" * 2000


TOO_LONG = {
    "OpenAI, by code": {"error": {"message": "Too much.", "code": "context_length_exceeded"}},
    "OpenAI": {"error": {"message": "Your input exceeds the context window of this model."}},
    "vLLM": {"message": "This model's maximum context length is 16384 tokens. However, you requested 122946 tokens"},
    "vLLM, engine": {"message": "The decoder prompt (length 17772) is longer than the maximum model length of 16384."},
    "vLLM, older": {"message": "Input prompt (36893 tokens) is too long and exceeds limit of 1000"},
    "llama.cpp, by type": {"error": {"code": 400, "message": "No.", "type": "exceed_context_size_error"}},
    "llama.cpp": {"error": {"message": "the request exceeds the available context size. try increasing it"}},
    "llama.cpp for Python": {"error": {"message": "Requested tokens (2285) exceed context window of 2048"}},
    "Ollama": {"error": '{"error":{"message":"request (351 tokens) exceeds the available context size (256 tokens)"}}'},
    "Anthropic": {"error": {"message": "prompt is too long: 210000 tokens > 200000 maximum"}},
    "Gemini": [{"error": {"message": "The input token count (9) exceeds the maximum number of tokens allowed (8)."}}],
    "TGI": {"error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 3000"},
}


@pytest.mark.parametrize("body", TOO_LONG.values(), ids=TOO_LONG.keys())
async def test_a_context_that_is_too_long_is_recognised(model, upstream, body):
    upstream.fail(400, body)
    error = await failure(model)
    assert (type(error), error.code) == (UpstreamRejected, "context_length_exceeded")


NO_MODEL = {
    "OpenAI": (404, {"error": {"message": "The model `x` does not exist", "code": "model_not_found"}}),
    "Ollama": (404, {"error": 'model "x" not found, try pulling it first'}),
    "by code alone": (400, {"error": {"message": "No.", "code": "model_not_found"}}),
    "llama-stack": (400, {"error": {"message": "Model 'qwen2.5:0.5b' not found"}}),
    "OpenRouter": (400, {"error": {"message": "x/y is not a valid model ID"}}),
    "Mistral": (400, {"object": "error", "message": "Invalid model: x", "type": "invalid_model"}),
}


@pytest.mark.parametrize(("status", "body"), NO_MODEL.values(), ids=NO_MODEL.keys())
async def test_an_unknown_model_is_recognised(model, upstream, status, body):
    upstream.fail(status, body)
    error = await failure(model)
    assert (type(error), error.code) == (UpstreamRejected, "model_not_found")


ORDINARY = [
    "Invalid 'messages[0].content': string too long. Expected a string with maximum length 10.",
    "'max_tokens' must be a positive integer",
    "This model does not support image input",
    "The tool 'calculator' was not found",
]


@pytest.mark.parametrize("message", ORDINARY)
async def test_an_ordinary_rejection_is_not_taken_for_something_special(model, upstream, message):
    upstream.fail(400, message)
    assert (await failure(model)).code == "upstream_rejected"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("invalid_value", "invalid_value"),
        ("x" * 200, "x" * 100),
        (400, None),
        (None, None),
        ("", None),
        ({"a": 1}, None),
    ],
)
async def test_the_code_of_an_ordinary_rejection_is_kept_if_it_is_one(model, upstream, given, told):
    upstream.fail(400, {"error": {"message": "No.", "code": given}})
    error = await failure(model)
    assert (error.code, error.extra.get("upstream_code")) == ("upstream_rejected", told)
    assert ("upstream_code" in error.extra) == (told is not None)


async def test_a_rejection_that_has_a_code_here_does_not_carry_the_endpoints(model, upstream):
    upstream.fail(400, {"error": {"message": "No.", "code": "context_length_exceeded"}})
    assert "upstream_code" not in (await failure(model)).extra


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_credential_is_told_without_upstreams_words(model, upstream, status):
    upstream.fail(status, f"Incorrect API key provided: {KEY}")
    error = await failure(model)
    assert (type(error), error.code, error.retryable) == (UpstreamRejected, "upstream_authentication_error", False)
    assert "Incorrect" not in error.message
    assert KEY not in error.message
    assert error.__cause__ is None
    assert error.__suppress_context__
    assert len(upstream.requests) == 1


async def test_a_limit_is_waited_out_and_then_told(model, upstream, pauses):
    for _ in range(3):
        upstream.fail(429, "slow down", headers={"retry-after": "2"})
    error = await failure(model)
    assert (type(error), error.code, error.message) == (UpstreamLimited, "rate_limited", "slow down")
    assert error.extra["retry_after"] == 2
    assert len(upstream.requests) == 3
    assert all(2 <= seconds <= 3 for seconds in pauses.seconds)


async def test_a_limit_that_lasts_long_is_told_at_once(model, upstream, pauses):
    upstream.fail(429, headers={"retry-after": "60"})
    assert (await failure(model)).extra["retry_after"] == 60
    assert pauses.seconds == []


@pytest.mark.parametrize(("patience", "asked"), [(0.5, 1), (1, 3), (90, 3)])
async def test_the_request_says_how_long_a_wish_may_be(model, upstream, pauses, patience, asked):
    for _ in range(3):
        upstream.fail(429, headers={"retry-after": "1"})
    await failure(model, replace(HELLO, patience=patience))
    assert len(upstream.requests) == asked


async def test_a_wish_for_less_than_a_second_is_granted_as_it_is_and_told_in_whole_seconds(model, upstream, pauses):
    for _ in range(3):
        upstream.fail(429, headers={"retry-after-ms": "290", "retry-after": "1"})
    error = await failure(model, replace(HELLO, patience=Pace().patience[0]))
    assert len(pauses.seconds) == 2
    assert all(seconds >= 0.29 for seconds in pauses.seconds)
    assert sum(pauses.seconds) < 0.85, "the status must still be told within a second"
    assert error.extra["retry_after"] == 1


async def test_a_limit_without_a_wish_has_no_retry_after(build, upstream):
    upstream.fail(429)
    error = await failure(build(retries=0))
    assert "retry_after" not in error.extra


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1200"}, 2),
        ({"retry-after": "0.5"}, 1),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
    ],
)
async def test_every_form_of_retry_after_is_read(build, upstream, headers, seconds):
    upstream.fail(429, headers=headers)
    error = await failure(build(retries=0))
    assert error.extra.get("retry_after") == seconds


async def test_a_date_to_wait_for_becomes_the_seconds_until_then(model, upstream):
    upstream.fail(429, headers={"retry-after": format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)})
    assert 3500 < (await failure(model)).extra["retry_after"] <= 3600


QUOTA = {
    "by code": (429, {"error": {"message": "Check your plan.", "code": "insufficient_quota"}}),
    "by type": (429, {"error": {"message": "Check your plan.", "type": "insufficient_quota"}}),
    "by status": (402, {"error": {"message": "Check your plan."}}),
}


@pytest.mark.parametrize(("status", "body"), QUOTA.values(), ids=QUOTA.keys())
async def test_a_used_up_quota_is_not_waited_for(model, upstream, pauses, status, body):
    upstream.fail(status, body)
    error = await failure(model)
    assert (type(error), error.code) == (UpstreamLimited, "insufficient_quota")
    assert pauses.seconds == []


async def test_a_limit_without_a_wish_is_told_before_a_caller_stops_waiting_for_the_status(model, upstream, pauses):
    for _ in range(3):
        upstream.fail(429)
    await failure(model)
    assert len(pauses.seconds) == 2
    assert sum(pauses.seconds) <= 0.8


@pytest.mark.parametrize("status", [500, 502, 503, 529])
async def test_a_failing_endpoint_is_asked_again_with_growing_pauses(model, upstream, pauses, status):
    upstream.fail(status)
    upstream.fail(status)
    upstream.say("Hi")
    assert text(await answer(model)) == "Hi"
    first, second = pauses.seconds
    assert 0.15 <= first <= 0.225
    assert 0.3 <= second <= 0.45


async def test_an_endpoint_that_keeps_failing_is_broken(model, upstream):
    for _ in range(3):
        upstream.fail(500, "out of memory")
    error = await failure(model)
    assert (type(error), error.code, error.message) == (UpstreamBroken, "upstream_error", "out of memory")
    assert error.retryable


async def test_retries_can_be_turned_off(build, upstream, pauses):
    upstream.fail(503)
    await failure(build(retries=0))
    assert (len(upstream.requests), pauses.seconds) == (1, [])


async def test_a_refused_connection_is_tried_again_and_then_broken(build, pauses):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        error = await failure(build(f"http://127.0.0.1:{closed.getsockname()[1]}/v1"))
    assert (type(error), error.code) == (UpstreamBroken, "upstream_error")
    assert len(pauses.seconds) == 2


@pytest.mark.parametrize("before", [[], [delta(content="Hi")]], ids=["first byte", "between bytes"])
async def test_an_endpoint_that_stays_silent_is_a_timeout_and_not_asked_again(build, upstream, before):
    upstream.send(*before, Gate())
    error = await failure(build(timeout=0.3))
    assert (type(error), error.code) == (UpstreamTimeout, "upstream_timeout")
    assert len(upstream.requests) == 1
    await upstream.requests[0].disconnected.wait()


async def test_a_status_of_timeout_is_a_timeout(model, upstream):
    upstream.fail(408)
    assert isinstance(await failure(model), UpstreamTimeout)


# --- counting


COUNTED = ModelRequest("test-model", (SystemMessage("Be brief."), UserMessage("Hello")), (CALCULATOR,), max_tokens=7)


def whole(body: Any, status: int = 200) -> Answer:
    return send(body if isinstance(body, str) else json.dumps(body), content_type="application/json", status=status)


def vllm(request: Received) -> Answer:
    tokens = 10 * len(request.body["messages"]) + len(request.body.get("tools", ()))
    return whole({"count": tokens, "max_model_len": 4096, "tokens": [0] * tokens})


def llama_tokens(request: Received) -> Answer:
    words = request.body.get("content", "").split()
    return whole({"tokens": [1] * request.body.get("add_special", False) + [2] * len(words)})


def llama_prompt(request: Received) -> Answer:
    words = [message["content"] for message in request.body["messages"]]
    words += [tool["function"]["name"] for tool in request.body.get("tools", ())]
    return whole({"prompt": " ".join(words)})


class Time:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def time() -> Time:
    return Time()


def paths(upstream: ScriptedUpstream) -> list[str]:
    return [request.path for request in upstream.requests]


async def test_vllm_counts_messages_and_tools_in_one_call(model, upstream):
    upstream.beside["/tokenize"] = vllm
    function = {"name": "calculator", "description": "Does sums.", "parameters": CALCULATOR.parameters}
    assert await model.count(COUNTED) == 21
    assert paths(upstream) == ["/tokenize"]
    assert upstream.bodies[0] == {
        "model": "test-model",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        "tools": [{"type": "function", "function": function}],
        "add_generation_prompt": True,
    }
    assert upstream.requests[0].headers["authorization"] == f"Bearer {KEY}"
    await model.count(HELLO)
    assert "tools" not in upstream.bodies[1]


async def test_llama_cpp_counts_what_its_template_makes_of_messages_and_tools(model, upstream):
    upstream.beside |= {"/tokenize": llama_tokens, "/apply-template": llama_prompt}
    assert await model.count(COUNTED) == 1 + len(["Be", "brief.", "Hello", "calculator"])
    assert paths(upstream) == ["/tokenize", "/apply-template", "/tokenize"]


@pytest.mark.parametrize("base", ["", "/", "/v1/", "/v1"])
async def test_the_tokenizer_stands_beside_v1(build, upstream, base):
    upstream.beside["/tokenize"] = vllm
    assert await build(upstream.url.removesuffix("/v1") + base).count(HELLO) == 10


ABSENT = {
    "not found": lambda request: fail(404, {"detail": "Not Found"}),
    "llama.cpp's not found": lambda request: fail(404, {"error": {"code": 404, "message": "File Not Found"}}),
    "not allowed": lambda request: fail(405),
    "not allowed for this key": lambda request: fail(401),
    "broken": lambda request: fail(500),
    "busy": lambda request: fail(429, headers={"retry-after": "1"}),
    "a page for people": lambda request: send("<html>", content_type="text/html"),
    "nothing": lambda request: send(""),
    "a list": lambda request: whole([1, 2, 3]),
    "no number": lambda request: whole({"count": "ten"}),
    "a truth": lambda request: whole({"count": True}),
    "nought": lambda request: whole({"count": 0}),
    "half an answer": lambda request: send("{", BreakOff()),
    "tokens without a template": llama_tokens,
}


@pytest.mark.parametrize("absent", ABSENT.values(), ids=ABSENT.keys())
async def test_a_tokenizer_that_is_not_there_is_looked_for_again_after_ten_minutes(
    build, upstream, time, pauses, absent
):
    model = build(now=time)
    upstream.beside["/tokenize"] = absent
    assert await model.count(HELLO) is None
    upstream.beside["/tokenize"] = vllm
    asked = len(upstream.requests)
    time.seconds += 599
    assert await model.count(HELLO) is None
    assert len(upstream.requests) == asked
    time.seconds += 1
    assert await model.count(HELLO) == 10
    assert pauses.seconds == []


@pytest.mark.parametrize("prompt", [{}, {"prompt": None}, [], "<html>"])
async def test_a_template_that_gives_no_prompt_counts_nothing(model, upstream, prompt):
    upstream.beside |= {"/tokenize": llama_tokens, "/apply-template": lambda request: whole(prompt)}
    assert await model.count(HELLO) is None


REFUSED = {
    "too long": fail(400, "This model's maximum context length is 10 tokens."),
    "malformed": fail(422, {"detail": [{"msg": "no images"}]}),
    "vLLM, another model": fail(404, {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError"}}),
}


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED.keys())
async def test_a_request_that_the_tokenizer_refuses_does_not_keep_the_next_from_being_counted(model, upstream, refused):
    upstream.beside["/tokenize"] = lambda request: refused
    assert await model.count(HELLO) is None
    upstream.beside["/tokenize"] = vllm
    assert await model.count(HELLO) == 10


async def test_an_endpoint_that_cannot_be_reached_counts_nothing_and_is_left_alone(build, upstream, pauses):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        model = build(f"http://127.0.0.1:{closed.getsockname()[1]}/v1")
        assert await model.count(HELLO) is None
    assert pauses.seconds == []


async def test_a_tokenizer_that_stays_silent_is_not_waited_for_twice(upstream):
    connections = Connections(upstream.url, lambda: KEY, timeout=10)
    tokenizer = Tokenizer(upstream.url, connections.client, Time(), timeout=0.05)
    upstream.beside["/tokenize"] = lambda request: send(Gate())
    body = {"model": "test-model", "messages": []}
    assert await tokenizer.count(body) is None
    assert await tokenizer.count(body) is None
    assert len(upstream.requests) == 1
    await connections.aclose()


async def test_openai_is_never_asked_to_count():
    def key() -> str:
        raise AssertionError("a call was made ready")

    assert await OpenAIModel("https://api.openai.com/v1", key).count(HELLO) is None


async def test_a_request_that_the_endpoint_would_not_read_is_not_counted(model, upstream):
    upstream.beside["/tokenize"] = vllm
    pdf = FilePart("data:application/pdf;base64,AA==", "a.pdf")
    assert await model.count(ModelRequest("test-model", (UserMessage((pdf,)),))) is None
    assert upstream.requests == []


async def test_a_schema_that_the_model_is_told_counts_too(model, upstream):
    upstream.beside["/tokenize"] = vllm
    assert await model.count(BY_SCHEMA) == 20
    upstream.answer = takes("json_object")
    await answer(model, BY_SCHEMA)
    assert await model.count(BY_SCHEMA) == 30


# --- connections


async def test_closing_the_answer_is_seen_by_the_endpoint_at_once(model, upstream):
    upstream.say("Hello", Gate())
    chunks = model.stream(HELLO)
    assert await anext(chunks) == TextChunk("Hello")
    await chunks.aclose()
    await upstream.requests[0].disconnected.wait()


@pytest.mark.parametrize("before", [[], [delta(content="Hi")]], ids=["before", "between"])
async def test_cancelling_the_reader_is_seen_by_the_endpoint_at_once(model, upstream, before):
    gate = Gate()
    upstream.send(*before, gate)
    reading = asyncio.create_task(answer(model))
    await gate.reached.wait()
    reading.cancel()
    await upstream.requests[0].disconnected.wait()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_an_answer_read_to_its_end_leaves_its_connection_to_the_next(model, upstream):
    for _ in range(3):
        upstream.say("Hi")
        await answer(model)
    assert len({request.client for request in upstream.requests}) == 1
    assert not any(request.disconnected.is_set for request in upstream.requests)


async def test_calls_run_side_by_side(model, upstream):
    gates = {str(number): Gate() for number in range(8)}

    def scripted(request: Received) -> Answer:
        number = request.body["messages"][0]["content"]
        return say(gates[number], number)

    upstream.answer = scripted
    requests = [ModelRequest("test-model", (UserMessage(number),)) for number in gates]
    reading = asyncio.gather(*(answer(model, request) for request in requests))
    for gate in gates.values():
        await gate.reached.wait()
    for gate in gates.values():
        gate.open()
    assert [text(chunks) for chunks in await reading] == list(gates)


def test_one_instance_serves_one_event_loop_after_another(upstream):
    model = OpenAIModel(upstream.url, KEY)

    async def whole() -> str:
        chunks = await answer(model)
        await model.aclose()
        return text(chunks)

    for number in range(3):
        upstream.say(str(number))
        assert asyncio.run(whole()) == str(number)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_connections_left_behind_by_a_loop_that_is_gone_are_let_go(upstream):
    model = OpenAIModel(upstream.url, KEY)

    async def looped() -> weakref.ref[asyncio.AbstractEventLoop]:
        upstream.say("Hi")
        await answer(model)
        return weakref.ref(asyncio.get_running_loop())

    first, second = asyncio.run(looped()), asyncio.run(looped())
    gc.collect()
    assert first() is None
    assert second() is not None


async def test_an_instance_can_be_used_after_closing(model, upstream):
    for _ in range(2):
        upstream.say("Hi")
        await answer(model)
        await model.aclose()
    assert len({request.client for request in upstream.requests}) == 2


def test_importing_the_adapter_does_not_import_openai():
    code = (
        "import sys; from turnloom.adapters.openai_model import OpenAIModel; OpenAIModel('http://x/v1', 'k');"
        "sys.exit('openai' in sys.modules or 'httpx2' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": os.pathsep.join(sys.path)})


# --- the list of models


async def test_models_are_listed(model, upstream):
    upstream.models = ["a", "b"]
    assert await model.models() == [ModelInfo("a", 1, "tests"), ModelInfo("b", 1, "tests")]


async def test_models_that_say_little_are_listed(model, upstream):
    upstream.models = send('{"data": [{"id": "a", "created": null}]}', content_type="application/json")
    assert await model.models() == [ModelInfo("a")]


async def test_a_refused_credential_is_told_by_the_list_too(model, upstream):
    upstream.models = fail(401, f"Incorrect API key provided: {KEY}")
    with pytest.raises(UpstreamRejected) as caught:
        await model.models()
    assert caught.value.code == "upstream_authentication_error"
    assert KEY not in caught.value.message


@pytest.mark.parametrize(
    "broken", [fail(500), send("<html>"), send("{}", content_type="application/json")], ids=["500", "HTML", "no data"]
)
async def test_a_list_that_is_none_is_broken(model, upstream, pauses, broken):
    upstream.models = broken
    with pytest.raises(UpstreamBroken):
        await model.models()
    assert len(pauses.seconds) == 2


# --- an endpoint that means harm


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
@pytest.mark.parametrize("echo", [KEY, KEY[:9], KEY[3:]])
async def test_api_key_in_an_error_is_masked(build: Build, upstream: ScriptedUpstream, status: int, echo: str) -> None:
    upstream.fail(status, {"message": f"Bad key {echo}!", "code": f"code {echo}"})
    error = await failure(build(retries=0))
    assert echo not in f"{error} {error.message} {error.extra}"


async def test_api_key_in_an_error_within_a_stream_is_masked(build: Build, upstream: ScriptedUpstream) -> None:
    upstream.send(delta(content="Hi"), {"error": {"message": f"Bad key {KEY}"}})
    error = await failure(build(retries=0))
    assert error.message == "The model endpoint reported an error: Bad key <redacted>"


@pytest.mark.parametrize("status", [200, 400])
async def test_compressed_answer_is_refused(build: Build, upstream: ScriptedUpstream, status: int) -> None:
    upstream.add(Answer(["few bytes"], status, {"content-type": "application/json", "content-encoding": "gzip"}))
    error = await failure(build(retries=0))
    assert "compressed" in error.message
    assert upstream.requests[0].headers["accept-encoding"] == "identity"


async def test_long_body_of_an_error_is_read_in_part(build: Build, upstream: ScriptedUpstream) -> None:
    upstream.send("x" * 5_000_000, content_type="text/plain", status=400)
    error = await failure(build(retries=0))
    assert isinstance(error, UpstreamRejected)
    assert error.message.strip("x") == ""


@pytest.mark.parametrize("written", [r'{"a": "\ud800"}', '{"a": "\ud800"}'])
async def test_half_pair_in_arguments_is_repaired(model: OpenAIModel, upstream: ScriptedUpstream, written: str) -> None:
    upstream.call(("lookup", written), size=3)
    chunks = await answer(model)
    arguments = "".join(chunk.arguments for chunk in chunks if isinstance(chunk, CallChunk))
    assert json.loads(arguments) == {"a": "\ufffd"}


async def test_answer_of_too_many_calls_is_broken_off(build: Build, upstream: ScriptedUpstream) -> None:
    calls = [{"index": at, "id": f"c{at}", "function": {"name": "f", "arguments": "{}"}} for at in range(2000)]
    upstream.send(delta(tool_calls=calls))
    assert "more than 1024 tool calls" in (await failure(build(retries=0))).message


@pytest.mark.parametrize("count", [10**40, 1e30, -1, "many", True])
async def test_impossible_count_of_tokens_counts_as_absent(
    model: OpenAIModel, upstream: ScriptedUpstream, count: Any
) -> None:
    upstream.send(delta("stop", content="Hi"), {"choices": [], "usage": {"prompt_tokens": count}}, "data: [DONE]\n\n")
    assert (await answer(model))[-1] == Finished("stop", Usage(0, 0))
