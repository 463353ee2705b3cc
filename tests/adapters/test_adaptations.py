"""Requests in the form that an endpoint takes, which it tells by refusing the usual one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from tests.upstream import Answer, Received, ScriptedUpstream, delta, fail, say

from turnloom.adapters.openai_model import OpenAIModel
from turnloom.domain.errors import UpstreamError
from turnloom.domain.message import (
    AssistantMessage,
    ImagePart,
    Message,
    SystemMessage,
    TextPart,
    Tool,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from turnloom.domain.transcript import part_of_result
from turnloom.ports import Finished, ModelRequest

Body = dict[str, Any]
HI = UserMessage("hi")
FORMAT = {"type": "json_schema", "json_schema": {"name": "size", "schema": {"type": "object"}}}


async def ask(model: OpenAIModel, *messages: Message, **settings: Any) -> None:
    async with aclosing(model.stream(ModelRequest("m", messages or (HI,), **settings))) as chunks:
        assert [chunk async for chunk in chunks]


def refusing(faulty: Callable[[Body], bool], refusal: Answer) -> Callable[[Received], Answer]:
    """An endpoint that refuses each request with this fault."""
    return lambda request: refusal if faulty(request.body) else say("Hello")


def detail(message: str, **error: Any) -> Answer:
    return fail(400, {"error": {"message": message, **error}})


# --- parameters

NO_MAX_TOKENS = detail(
    "'max_tokens' is not supported with this model; use 'max_completion_tokens'.",
    param="max_tokens",
    code="unsupported_parameter",
)


async def test_a_limit_of_tokens_is_sent_under_the_name_that_the_model_takes(
    model: OpenAIModel, upstream: ScriptedUpstream
) -> None:
    upstream.answer = refusing(lambda body: "max_tokens" in body and body["model"] == "m", NO_MAX_TOKENS)
    for _ in range(2):
        await ask(model, max_tokens=200)
    limits = [(body.get("max_tokens"), body.get("max_completion_tokens")) for body in upstream.bodies]
    assert limits == [(200, None), (None, 200), (None, 200)]
    async with aclosing(model.stream(ModelRequest("other", (HI,), max_tokens=200))) as chunks:
        assert [chunk async for chunk in chunks]
    assert upstream.bodies[-1]["max_tokens"] == 200, "another model still starts with the usual name"


@pytest.mark.parametrize("code", ["unsupported_value", "unsupported_parameter"])
async def test_a_temperature_that_nobody_asked_for_never_costs_the_answer(
    model: OpenAIModel, upstream: ScriptedUpstream, code: str
) -> None:
    words = "'temperature' does not support 0 with this model; only the default (1) is."
    upstream.answer = refusing(lambda body: body.get("temperature", 1) != 1, detail(words, code=code))
    for _ in range(2):
        await ask(model, optional_sampling={"temperature": 0.0})
    assert ["temperature" in body for body in upstream.bodies] == [True, False, False]
    with pytest.raises(UpstreamError, match="only the default"):
        await ask(model, sampling={"temperature": 0})


async def test_two_refusals_are_learned_one_after_the_other(model: OpenAIModel, upstream: ScriptedUpstream) -> None:
    def strict(request: Received) -> Answer:
        if "max_tokens" in request.body:
            return NO_MAX_TOKENS
        return detail("Unsupported value: temperature") if "temperature" in request.body else say("Hello")

    upstream.answer = strict
    for _ in range(2):
        await ask(model, max_tokens=5, optional_sampling={"temperature": 0.0})
    assert len(upstream.bodies) == 4


async def test_the_first_refusal_is_the_callers_when_the_other_form_is_refused_too(
    model: OpenAIModel, upstream: ScriptedUpstream
) -> None:
    upstream.add(NO_MAX_TOKENS, detail("Something else."))
    with pytest.raises(UpstreamError, match="max_completion_tokens"):
        await ask(model, max_tokens=5)
    upstream.say("Hello")
    await ask(model, max_tokens=5)
    assert upstream.bodies[-1]["max_tokens"] == 5, "nothing is remembered"


# --- answers by a schema


@pytest.mark.parametrize(
    "refusal",
    [
        detail("json mode cannot be combined with tool/function calling", type="invalid_request_error"),
        fail(400, [{"error": {"message": "Function calling with a response mime type: 'application/json'"}}]),
    ],
    ids=["Groq", "Gemini"],
)
async def test_a_schema_that_is_refused_beside_tools_is_still_sent_without_them(
    model: OpenAIModel, upstream: ScriptedUpstream, refusal: Answer
) -> None:
    upstream.answer = refusing(lambda body: "tools" in body and "response_format" in body, refusal)
    for _ in range(2):
        await ask(model, response_format=FORMAT, tools=(Tool("f"),))
    await ask(model, response_format=FORMAT)
    kinds = [body.get("response_format", {}).get("type") for body in upstream.bodies]
    assert kinds == ["json_schema", "json_object", None, None, "json_schema"]


# --- messages

NOT_FIRST = "System message must be at the beginning."


@pytest.mark.parametrize(
    "refusal",
    [
        fail(400, {"object": "error", "message": NOT_FIRST, "type": "BadRequestError", "param": None, "code": 400}),
        fail(500, {"error": {"code": 500, "message": NOT_FIRST, "type": "server_error"}}),
    ],
    ids=["400", "500"],
)
async def test_system_messages_are_joined_in_order_for_a_model_that_takes_one(
    model: OpenAIModel, upstream: ScriptedUpstream, refusal: Answer
) -> None:
    upstream.answer = refusing(lambda body: any(m["role"] == "system" for m in body["messages"][1:]), refusal)
    for _ in range(2):
        await ask(model, SystemMessage("A"), SystemMessage("B"), HI, AssistantMessage("x"), SystemMessage("C"), HI)
    assert len(upstream.bodies) == 3
    first, *others = upstream.bodies[-1]["messages"]
    assert first == {"role": "system", "content": "A\n\nB\n\nC"}
    assert [message["role"] for message in others] == ["user", "assistant", "user"]


async def test_the_message_with_a_refused_schema_is_joined_as_well(
    model: OpenAIModel, upstream: ScriptedUpstream
) -> None:
    def strict(request: Received) -> Answer:
        if "response_format" in request.body:
            return detail("This response_format is not supported.")
        late = any(message["role"] == "system" for message in request.body["messages"][1:])
        return detail(NOT_FIRST) if late else say("{}")

    upstream.answer = strict
    await ask(model, SystemMessage("A"), HI, response_format=FORMAT)
    first, user = upstream.bodies[-1]["messages"]
    assert first["content"].startswith("A\n\nAnswer with JSON") and user["role"] == "user"


async def test_neighbours_of_one_role_are_merged_for_a_model_whose_roles_must_alternate(
    model: OpenAIModel, upstream: ScriptedUpstream
) -> None:
    def repeats(body: Body) -> bool:
        roles = [message["role"] for message in body["messages"] if message["role"] != "system"]
        return any(first == second for first, second in pairwise(roles))

    words = "Conversation roles must alternate user/assistant/user/assistant/..."
    upstream.answer = refusing(repeats, fail(400, {"object": "error", "message": words, "code": 400}))
    await ask(model, UserMessage("a"), UserMessage("b"))
    assert upstream.bodies[-1]["messages"] == [{"role": "user", "content": "a\n\nb"}]
    await ask(model, UserMessage("a"), UserMessage((TextPart("b"), ImagePart("data:x"))), AssistantMessage("c"))
    user, _ = upstream.bodies[-1]["messages"]
    assert [part["type"] for part in user["content"]] == ["text", "text", "image_url"]
    assert len(upstream.bodies) == 3


CALL = (AssistantMessage(calls=(ToolCall("c1", "f", "{}"),)), ToolMessage("c1", "x"))


async def test_an_answer_stands_between_a_result_and_the_user_for_a_model_that_wants_one(
    model: OpenAIModel, upstream: ScriptedUpstream
) -> None:
    def bare(body: Body) -> bool:
        roles = [message["role"] for message in body["messages"]]
        return ("tool", "user") in pairwise(roles)

    words = "Unexpected role 'user' after role 'tool'"
    upstream.answer = refusing(bare, fail(400, {"object": "error", "message": words, "code": "3230"}))
    await ask(model, HI, *CALL, UserMessage("and?"))
    *_, tool, bridge, user = upstream.bodies[-1]["messages"]
    assert (tool["role"], bridge["role"], user["role"]) == ("tool", "assistant", "user")
    assert bridge["content"]


async def test_images_in_results_are_named_for_a_model_that_refuses_images(
    model: OpenAIModel, upstream: ScriptedUpstream
) -> None:
    upstream.answer = refusing(lambda body: "image_url" in json.dumps(body), detail("This model reads no images."))
    for _ in range(2):
        await ask(model, HI, *CALL, part_of_result("c1", [ImagePart("data:image/png;base64,aGk=")]))
    assert upstream.bodies[-1]["messages"][-1] == {"role": "tool", "tool_call_id": "c1", "content": "x\n[image]"}
    assert len(upstream.bodies) == 3
    with pytest.raises(UpstreamError, match="no images"):
        await ask(model, UserMessage((ImagePart("data:image/png;base64,aGk="),)))


@pytest.mark.parametrize("status", [400, 404, 422, 500])
async def test_a_refusal_of_images_in_results_may_have_any_of_these_statuses(
    model: OpenAIModel, upstream: ScriptedUpstream, status: int
) -> None:
    refusal = fail(status, {"error": {"message": "No endpoints found that support image input.", "code": status}})
    upstream.answer = refusing(lambda body: "image_url" in json.dumps(body), refusal)
    await ask(model, HI, *CALL, part_of_result("c1", [ImagePart("data:image/png;base64,aGk=")]))
    assert upstream.bodies[-1]["messages"][-1]["content"] == "x\n[image]"


# --- calls

BAD_ID = "Tool call id was mcp_1 but must be a-z, A-Z, 0-9, with a length of 9."


async def test_call_ids_go_in_nine_letters_and_digits_to_a_model_that_insists(
    model: OpenAIModel, upstream: ScriptedUpstream
) -> None:
    def ids(body: Body) -> list[str]:
        calls = [call["id"] for message in body["messages"] for call in message.get("tool_calls") or ()]
        return calls + [message["tool_call_id"] for message in body["messages"] if "tool_call_id" in message]

    def foreign(body: Body) -> bool:
        return not all(re.fullmatch("[a-zA-Z0-9]{9}", each) for each in ids(body))

    upstream.answer = refusing(foreign, fail(400, {"object": "error", "message": BAD_ID, "code": "3280"}))
    history = [
        message
        for name in ("mcp_1", "call_abcdefghijklmnopqrstuvwx", "Ab1cdef01")
        for message in (AssistantMessage(calls=(ToolCall(name, "f", "{}"),)), ToolMessage(name, "x"))
    ]
    for _ in range(2):
        await ask(model, HI, *history)
    first, second, own, *results = ids(upstream.bodies[-1])
    assert [first, second, own] == results and own == "Ab1cdef01" and first != second
    assert ids(upstream.bodies[1]) == ids(upstream.bodies[2])


@pytest.mark.parametrize(
    "arguments", ['{"x": ', "null", "[]", '"x"', " ", '{"x":"a"}{"x":"b"}', '```json\n{"x":1}\n```']
)
async def test_arguments_that_are_no_object_go_as_an_empty_one_and_their_text_with_the_result(
    model: OpenAIModel, upstream: ScriptedUpstream, arguments: str
) -> None:
    upstream.say("Hello")
    await ask(model, HI, AssistantMessage(calls=(ToolCall("c1", "f", arguments),)), ToolMessage("c1", "failed"))
    _, call, result = upstream.bodies[-1]["messages"]
    assert call["tool_calls"][0]["function"]["arguments"] == "{}"
    assert arguments in result["content"] and "failed" in result["content"]


async def test_a_result_that_quotes_the_arguments_is_sent_as_it_is(
    model: OpenAIModel, upstream: ScriptedUpstream
) -> None:
    upstream.say("Hello")
    await ask(model, AssistantMessage(calls=(ToolCall("c1", "f", '{"x": '),)), ToolMessage("c1", 'No JSON: {"x": '))
    assert upstream.bodies[-1]["messages"][1]["content"] == 'No JSON: {"x": '


@pytest.mark.parametrize("parameters", [{}, {"type": "object"}, {"type": "object", "properties": None}])
async def test_every_tool_has_a_schema_of_an_object_with_properties(
    model: OpenAIModel, upstream: ScriptedUpstream, parameters: Body
) -> None:
    upstream.say("Hello")
    await ask(model, tools=(replace(Tool("f"), parameters=parameters),))
    assert upstream.bodies[-1]["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {}}


# --- reasoning

MISSING = detail("Missing reasoning_content in the assistant message.")


def unreasoned(body: Body) -> bool:
    return any("tool_calls" in message and "reasoning_content" not in message for message in body["messages"])


async def test_calls_go_back_with_reasoning_even_if_there_was_none(upstream: ScriptedUpstream) -> None:
    model = OpenAIModel(upstream.url, "key", sends_reasoning=True)
    upstream.answer = refusing(unreasoned, MISSING)
    await ask(model, HI, AssistantMessage("text"), *CALL)
    await model.aclose()
    assert [message.get("reasoning_content") for message in upstream.bodies[0]["messages"]] == [None, None, "", None]


async def test_a_refusal_that_names_the_reasoning_teaches_to_send_it(
    model: OpenAIModel, upstream: ScriptedUpstream
) -> None:
    upstream.answer = refusing(unreasoned, MISSING)
    call = AssistantMessage(calls=(ToolCall("c1", "f", "{}"),), reasoning="Hm.")
    for _ in range(2):
        await ask(model, HI, call, ToolMessage("c1", "x"))
    shown = [body["messages"][1].get("reasoning_content") for body in upstream.bodies]
    assert shown == [None, "Hm.", "Hm."]


# --- keys that only the endpoint understands

SIGNED = {"extra_content": {"google": {"thought_signature": "AbC="}}}


async def test_keys_of_a_call_and_of_its_message_come_with_the_end_of_the_answer(
    model: OpenAIModel, upstream: ScriptedUpstream
) -> None:
    fragment = {"id": "c1", "type": "function", **SIGNED, "function": {"name": "f", "arguments": "{}"}}
    details = [{"reasoning_details": [{"text": "a"}]}, {"reasoning_details": [{"text": "b"}], "tool_calls": [fragment]}]
    upstream.send(*(delta(**content) for content in details), delta("stop"))
    async with aclosing(model.stream(ModelRequest("m", (HI,)))) as chunks:
        end = [chunk async for chunk in chunks][-1]
    assert isinstance(end, Finished)
    assert (end.extra, end.call_extras) == ({"reasoning_details": [{"text": "a"}, {"text": "b"}]}, {0: SIGNED})


SIGNED_CALL = AssistantMessage(calls=(ToolCall("c1", "f", "{}", extra=SIGNED),), extra={"reasoning_details": [1]})


async def test_they_go_back_as_they_came_unless_they_are_refused(
    model: OpenAIModel, upstream: ScriptedUpstream
) -> None:
    upstream.say("Hello")
    await ask(model, HI, SIGNED_CALL, ToolMessage("c1", "x"))
    message = upstream.bodies[-1]["messages"][1]
    assert (message["reasoning_details"], message["tool_calls"][0]["extra_content"]) == ([1], SIGNED["extra_content"])
    upstream.answer = refusing(lambda body: "reasoning_details" in str(body), detail("Extra inputs are not permitted"))
    await ask(model, HI, SIGNED_CALL, ToolMessage("c1", "x"))
    assert upstream.bodies[-1]["messages"][1].keys() == {"role", "content", "tool_calls"}
