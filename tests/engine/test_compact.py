"""Contexts that are too long: summed up, left out in part, counted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.conftest import House
from tests.engine.test_responses import (
    LOOKUP,
    MCP,
    Item,
    answered,
    ask,
    check_well_formed,
    echo,
    found,
    item_ids,
    results,
    said,
    serve,
    served,
    stored,
    texts,
    until,
)
from turnloom.domain.errors import UpstreamBroken, UpstreamRejected
from turnloom.domain.event import Compacted
from turnloom.domain.message import (
    AssistantMessage,
    ImagePart,
    Message,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    Usage,
    UserMessage,
)
from turnloom.domain.transcript import SUMMARY
from turnloom.engine.compact import MOST_SUMMARY_CHARACTERS, estimate, shortened
from turnloom.ports import Finished, ModelRequest, TextChunk
from turnloom.testing import USAGE
from turnloom.usecases.contexts import compact, count_tokens
from turnloom.usecases.conversations import create_conversation
from turnloom.usecases.responses import ResponseRequest, cancel_response

ABOVE = [{"type": "compaction", "compact_threshold": 1000}]
SUMMED_UP = f"{SUMMARY}\n\nThey said hello."
LONG = "word " * 1200


def summing(request: ModelRequest) -> list[Any]:
    """A model that sums up when it is asked to, and echoes otherwise."""
    last = request.messages[-1]
    if isinstance(last, UserMessage) and "Sum up the conversation" in str(last.content):
        return [TextChunk("They said "), TextChunk("hello."), Finished("stop", Usage(100, 7))]
    return echo(request)


# --- compaction


async def test_a_long_context_is_summed_up_before_the_model_is_asked(house: House) -> None:
    house.model._rule = summing
    first = await answered(house, LONG)
    assert len(house.model.requests) == 1, "nobody asked for a compaction"
    turn = await answered(
        house, "And?", previous_response_id=first.id, context_management=ABOVE, instructions="Be brief."
    )
    assert texts(house) == ["Be brief.", SUMMED_UP, "And?"]
    assert list(item_ids(turn)) == ["compaction", "message"]
    assert turn.usage == Usage(100, 7) + USAGE


async def test_the_summary_stands_for_what_was_before_in_all_later_turns(house: House) -> None:
    house.model._rule = summing
    first = await answered(house, LONG)
    turn = await answered(house, "2", previous_response_id=first.id, context_management=ABOVE)
    third = await answered(house, "3", previous_response_id=turn.id)
    await answered(house, "4", previous_response_id=third.id, context_management=ABOVE)
    assert texts(house) == [SUMMED_UP, "2", "re: 2", "3", "re: 3", "4"]
    assert sum(len(request.tools) for request in house.model.requests) == 0
    assert len(house.model.requests) == 5, "one summary in four responses"


async def test_a_context_at_the_threshold_is_left_as_it_is(house: House) -> None:
    house.model._rule = summing
    house.model.tokens = lambda request: 1000
    turn = await answered(house, "Hi", context_management=ABOVE)
    assert list(item_ids(turn)) == ["message"]
    house.model.tokens = lambda request: 1001
    turn = await answered(house, "Hi", context_management=ABOVE)
    assert list(item_ids(turn)) == ["compaction", "message"]


async def test_the_lowest_threshold_counts(house: House) -> None:
    house.model._rule = summing
    house.model.tokens = lambda request: 500
    strategies = [{"type": "compaction", "compact_threshold": n} for n in (1000, 400)]
    assert "compaction" in item_ids(await answered(house, "Hi", context_management=strategies))


@pytest.mark.parametrize("background", [False, True])
async def test_a_result_whose_call_was_summed_up_is_not_lost(house: House, background: bool) -> None:
    house.model.calls(("lookup", {"q": 1}))
    first = await answered(house, LONG, tools=[LOOKUP])
    house.model._rule = summing
    turn = await answered(
        house,
        found(first.open_calls[0].call_id, "42"),
        previous_response_id=first.id,
        tools=[LOOKUP],
        context_management=ABOVE,
        background=background,
    )
    assert turn.status == "completed" and results(house) == []
    assert texts(house)[0] == SUMMED_UP and "42" in texts(house)[1]


async def test_a_response_whose_summary_fails_has_failed(house: House) -> None:
    house.model.answers(TextChunk("They sa"), UpstreamBroken("gone"))
    turn = await answered(house, LONG, context_management=ABOVE)
    assert turn.failure is not None and turn.failure.code == "upstream_error" and item_ids(turn) == {}


async def test_a_client_that_sends_its_whole_history_is_answered_from_the_summary_and_its_newest_message(
    house: House,
) -> None:
    house.model._rule = summing
    history = [said("Be kind.", "developer"), said(LONG), said("re: long", "assistant"), said("And now?")]
    await answered(house, *history, context_management=ABOVE, store=False)
    assert texts(house) == [SUMMED_UP, "Be kind.", "And now?"]


async def test_a_client_whose_newest_message_led_to_a_call_keeps_the_call_with_its_result(house: House) -> None:
    house.model._rule = summing
    call = {"type": "function_call", "call_id": "c", "name": "lookup", "arguments": "{}"}
    history = [said(LONG), said("re: long", "assistant"), said("Look it up."), call, found("c", "42")]
    await answered(house, *history, context_management=ABOVE, tools=[LOOKUP])
    assert texts(house)[:2] == [SUMMED_UP, "Look it up."] and results(house) == ["42"]


def call(call_id: str) -> Item:
    return {"type": "function_call", "call_id": call_id, "name": "lookup", "arguments": "{}"}


async def test_what_the_user_says_behind_a_result_is_the_newest_message(house: House) -> None:
    house.model._rule = summing
    history = [said(LONG), call("c"), found("c", "41"), said("And?"), call("d"), found("d", "42"), said("So?")]
    await answered(house, *history, context_management=ABOVE, tools=[LOOKUP], store=False)
    assert texts(house) == [SUMMED_UP, "So?"] and results(house) == []


async def test_a_result_keeps_its_call_although_the_user_spoke_between_them(house: House) -> None:
    house.model._rule = summing
    history = [said(LONG), call("a"), call("b"), found("a", "41"), said("Well?"), found("b", "42")]
    await answered(house, *history, context_management=ABOVE, tools=[LOOKUP], store=False)
    told = house.model.requests[-1].messages
    check_well_formed(told)
    assert results(house) == ["42"] and [m.content for m in told if isinstance(m, UserMessage)] == ["Well?"]


async def test_an_allowed_call_keeps_its_request_although_the_user_spoke_between_them(house: House) -> None:
    serve(house, {"srv": [served("act")]}, act=lambda: "acted")
    house.model._rule = summing
    asked = {"type": "mcp_approval_request", "id": "r", "server_label": "srv", "name": "act", "arguments": "{}"}
    allowed = {"type": "mcp_approval_response", "approval_request_id": "r", "approve": True}
    history = [said(LONG), asked, said("Well?"), allowed]
    await answered(house, *history, context_management=ABOVE, tools=[MCP], store=False)
    told = house.model.requests[-1].messages
    check_well_formed(told)
    assert results(house) == ["acted"] and [m.content for m in told if isinstance(m, UserMessage)] == ["Well?"]


@pytest.mark.parametrize(
    "said_of_it",
    [
        [TextChunk("They sa"), Finished("length", USAGE)],
        [TextChunk("I will not.", "refusal"), Finished("stop", USAGE)],
        [TextChunk(" \n"), Finished("stop", USAGE)],
        [TextChunk("x" * MOST_SUMMARY_CHARACTERS), TextChunk("x"), Finished("stop", USAGE)],
    ],
    ids=["cut", "refused", "empty", "too long"],
)
async def test_a_summary_that_is_none_stands_for_nothing(house: House, said_of_it: list[Any]) -> None:
    house.model.answers(*said_of_it)
    turn = await answered(house, LONG, context_management=ABOVE)
    assert turn.failure is not None and turn.failure.code == "upstream_error" and item_ids(turn) == {}
    house.model.answers(*said_of_it)
    with pytest.raises(UpstreamBroken):
        await compact(house.services, "me", ResponseRequest([said("Hi")], {"model": "m"}))


async def test_the_form_of_the_answer_is_not_that_of_the_summary(house: House) -> None:
    house.model._rule = summing
    form = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}
    await answered(house, LONG, context_management=ABOVE, text=form, max_output_tokens=20)
    summing_up, answering = house.model.requests
    assert summing_up.response_format is None and summing_up.max_tokens is None
    assert answering.response_format is not None


async def test_a_summary_is_made_once_although_the_driver_was_lost_behind_it(house: House) -> None:
    house.model._rule = summing
    house.orchestrator.refusals = 1
    made = await ask(house, LONG, context_management=ABOVE, background=True)
    done = Compacted(house.clock.now(), "They said hello.", Usage(100, 7))
    await house.services.responses.append(made.record, [done], house.engine.lease())
    house.clock.advance(60)
    turn = await made.settled()
    assert turn.status == "completed" and len(house.model.requests) == 1 and texts(house)[0] == SUMMED_UP
    assert sum(isinstance(event, Compacted) for event in (await stored(house, made.record)).events) == 1


async def test_tools_run_after_a_summary_as_ever(house: House) -> None:
    serve(house, {"srv": [served("act")]}, act=lambda: "acted")
    house.model.answers(TextChunk("They said hello."), Finished("stop", Usage(100, 7)))
    house.model.calls(("act", {}))
    house.model.says("Done.")
    turn = await answered(house, LONG, tools=[MCP], context_management=ABOVE)
    assert turn.status == "completed" and results(house) == ["acted"]
    assert texts(house) == [SUMMED_UP, LONG, ""] and next(iter(item_ids(turn))) == "compaction"


async def test_a_compaction_that_the_client_brings_stands_for_what_was_before(house: House) -> None:
    house.model._rule = echo
    first = await answered(house, "Before")
    brought: Item = {"type": "compaction", "encrypted_content": "x", "summary": "They said hello."}
    second = await answered(house, said("gone"), brought, said("kept"), previous_response_id=first.id)
    await answered(house, "on", previous_response_id=second.id)
    assert texts(house) == [SUMMED_UP, "kept", "re: kept", "on"]


async def test_a_summary_in_a_conversation_is_there_for_the_next_response(house: House) -> None:
    house.model._rule = summing
    conversation = {"id": (await create_conversation(house.services, "me", [said(LONG)], {})).conversation_id}
    await answered(house, "1", conversation=conversation, context_management=ABOVE)
    await answered(house, "2", conversation=conversation)
    assert texts(house) == [SUMMED_UP, "1", "re: 1", "2"]


async def test_a_context_is_summed_up_without_storing_anything(house: House) -> None:
    house.model._rule = summing
    first = await answered(house, "Hi")
    asked = ResponseRequest([said("More")], {"model": "m", "previous_response_id": first.id})
    compacted = await compact(house.services, "me", asked)
    assert (compacted.summary, compacted.usage) == ("They said hello.", Usage(100, 7))
    assert [turn.input[0]["content"] for turn in compacted.turns] == ["Hi", "More"]
    records, more = await house.services.responses.listed("me", after=None, descending=True, limit=10)
    assert [record.turn.id for record in records] == [first.id] and not more


# --- truncation


def too_long(limit: int, said: list[int] | None = None) -> Any:
    """A model that takes no more than this many messages."""

    def answer(request: ModelRequest) -> list[Any]:
        if said is not None:
            said.append(len(request.messages))
        if len(request.messages) > limit:
            return [UpstreamRejected("Too long.", code="context_length_exceeded", param="input")]
        return echo(request)

    return answer


async def chain(house: House, length: int) -> str:
    """The id of the last of this many responses."""
    house.model._rule = echo
    turn = await answered(house, "0")
    for number in range(1, length):
        turn = await answered(house, str(number), previous_response_id=turn.id)
    return turn.id


async def test_the_oldest_turns_are_left_out_until_the_rest_fits(house: House) -> None:
    parent = await chain(house, 8)
    tried: list[int] = []
    house.model._rule = too_long(8, tried)
    turn = await answered(house, "on", previous_response_id=parent, truncation="auto", instructions="Be brief.")
    assert turn.status == "completed" and tried == sorted(tried, reverse=True)
    told = texts(house)
    assert told[0] == "Be brief." and told[1] != "0" and told[-1] == "on" and len(told) == tried[-1]
    assert told[1:-1] == [text for n in range(8 - (len(told) - 2) // 2, 8) for text in (str(n), f"re: {n}")]
    house.model._rule = echo
    await answered(house, "and", previous_response_id=turn.id)
    assert len(texts(house)) == 19, "what is stored has not changed"


@pytest.mark.parametrize("truncation", ["disabled", "auto"])
async def test_a_context_that_is_too_long_after_all_is_refused_in_the_same_words(house: House, truncation: str) -> None:
    parent = await chain(house, 3)
    house.model._rule = too_long(0)
    run = await ask(house, "on", previous_response_id=parent, truncation=truncation)
    turn = await run.settled()
    assert turn.failure is not None
    assert (turn.failure.code, turn.failure.message) == ("context_length_exceeded", "Too long.")
    assert run.problem is not None and run.problem.param == "input"
    if truncation == "disabled":
        assert len(house.model.requests) == 4


async def test_other_refusals_are_not_answered_by_leaving_something_out(house: House) -> None:
    parent = await chain(house, 3)
    house.model._rule = lambda request: [UpstreamRejected("No.", code="model_not_found")]
    turn = await answered(house, "on", previous_response_id=parent, truncation="auto")
    assert turn.failure is not None and turn.failure.code == "model_not_found" and len(house.model.requests) == 4


async def test_an_answer_that_has_begun_is_not_asked_for_again(house: House) -> None:
    parent = await chain(house, 3)
    house.model._rule = lambda request: [
        TextChunk("Hal"),
        UpstreamRejected("Too long.", code="context_length_exceeded"),
    ]
    turn = await answered(house, "on", previous_response_id=parent, truncation="auto")
    assert turn.failure is not None and turn.failure.code == "context_length_exceeded"
    assert len(house.model.requests) == 4


async def test_the_usage_that_nobody_counted_is_estimated_from_what_was_asked_in_the_end(house: House) -> None:
    parent = await chain(house, 8)
    limited = too_long(6)
    house.model._rule = lambda request: [
        Finished("stop") if isinstance(chunk, Finished) else chunk for chunk in limited(request)
    ]
    turn = await answered(house, "on", previous_response_id=parent, truncation="auto")
    assert turn.usage.input_tokens == estimate(house.model.requests[-1]) < estimate(house.model.requests[-2])


@pytest.mark.parametrize("truncation", ["disabled", "auto"])
async def test_a_context_too_long_even_to_be_summed_up_is_summed_up_in_part_if_it_may_be(
    house: House, truncation: str
) -> None:
    parent = await chain(house, 8)
    limited = too_long(7)
    house.model._rule = lambda request: summing(request) if len(request.messages) <= 7 else limited(request)
    house.model.tokens = lambda request: 2000
    turn = await answered(house, "on", previous_response_id=parent, truncation=truncation, context_management=ABOVE)
    if truncation == "disabled":
        assert turn.failure is not None and turn.failure.code == "context_length_exceeded"
        return
    asked = house.model.requests[-2].messages
    assert 2 < len(asked) <= 7 and asked[-2] == UserMessage("on")
    assert turn.status == "completed" and texts(house) == [SUMMED_UP, "on"]


def every_shortening(messages: list[Message]) -> list[tuple[Message, ...]]:
    found: list[tuple[Message, ...]] = []
    shorter: tuple[Message, ...] | None = tuple(messages)
    while (shorter := shortened(shorter or ())) is not None:
        found.append(shorter)
    return found


def exchange(number: int) -> list[Message]:
    call = f"call_{number}"
    return [
        UserMessage(f"question {number}"),
        AssistantMessage("", (ToolCall(call, "look", "{}"),)),
        ToolMessage(call, "found"),
        AssistantMessage(f"answer {number}"),
    ]


def test_no_call_is_left_without_its_result() -> None:
    system = SystemMessage("Be brief.")
    messages: list[Message] = [system, *(m for n in range(9) for m in exchange(n)), UserMessage("newest")]
    shorter = every_shortening(messages)
    assert shorter[-1] == (system, UserMessage("newest")) and len(shorter) > 3
    for kept in shorter:
        check_well_formed(kept)
        assert kept[0] == system and kept[-1] == UserMessage("newest")
        assert list(kept[1:]) == messages[len(messages) - len(kept) + 1 :]


def test_an_image_in_a_result_is_not_taken_for_a_turn() -> None:
    image = UserMessage((TextPart("Part of the result of c:"), ImagePart("https://images.test/1.png")))
    newest: list[Message] = [
        UserMessage("look"),
        AssistantMessage("", (ToolCall("c", "look", "{}"),)),
        ToolMessage("c", ""),
        image,
    ]
    assert shortened(newest) is None
    assert shortened([*exchange(0), *newest]) == tuple(newest)


def test_what_the_user_says_behind_a_result_begins_a_turn() -> None:
    stopped = [message for number in range(3) for message in exchange(number)[:3]]
    assert shortened([*stopped, UserMessage("newest")]) == (*stopped[3:], UserMessage("newest"))


def test_none_of_several_images_in_results_is_taken_for_a_turn() -> None:
    calls = (ToolCall("c", "look", "{}"), ToolCall("d", "look", "{}"))
    images = [
        UserMessage((TextPart(f"Part of the result of {call.call_id}:"), ImagePart("https://images.test/1.png")))
        for call in calls
    ]
    newest: list[Message] = [UserMessage("look"), AssistantMessage("", calls), *map(empty, calls), *images]
    assert shortened([*exchange(0), *newest]) == tuple(newest) and shortened(newest) is None


def empty(call: ToolCall) -> ToolMessage:
    return ToolMessage(call.call_id, "")


# --- counting


async def counted(house: House, *items: Item, **settings: Any) -> int:
    return await count_tokens(house.services, "me", ResponseRequest(items, {"model": "m", **settings}))


async def test_a_longer_context_counts_for_more(house: House) -> None:
    parent = await chain(house, 2)
    image = {"type": "input_image", "image_url": "https://images.test/1.png"}
    format_ = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}
    alone = await counted(house, said("Hello there"))
    assert alone > 0
    assert await counted(house, said("Hello there, how are you?")) > alone
    assert await counted(house, said("Hello there"), instructions="Be brief.") > alone
    assert await counted(house, said("Hello there"), tools=[LOOKUP]) > alone
    assert await counted(house, said("Hello there"), text=format_) > alone
    assert await counted(house, said("Hello there"), previous_response_id=parent) > alone
    assert await counted(house, {"type": "message", "role": "user", "content": [image]}) > alone
    conversation = await create_conversation(house.services, "me", [said("Before")], {})
    assert await counted(house, said("Hello there"), conversation={"id": conversation.conversation_id}) > alone
    assert len(house.model.requests) == 2, "counting is free"


async def test_an_endpoint_that_can_count_is_believed(house: House) -> None:
    house.model.tokens = lambda request: 4711
    assert await counted(house, said("Hi")) == 4711


def test_the_estimate_grows_with_all_that_a_message_holds() -> None:
    bare = ModelRequest("m", (AssistantMessage("Hi"),))
    for message in (
        AssistantMessage("Hi, how are you?"),
        AssistantMessage("Hi", (ToolCall("c", "look", '{"q": 1}'),)),
        AssistantMessage("Hi", reasoning="Somebody is there."),
    ):
        assert estimate(ModelRequest("m", (message,))) > estimate(bare)


async def test_a_summary_that_is_cut_short_by_a_cancel_is_not_kept(house: House) -> None:
    house.model.answers(TextChunk("They"), asyncio.Event())
    made = await ask(house, LONG, context_management=ABOVE, background=True)
    await until(lambda: house.model.requests)
    record = await cancel_response(house.services, "me", made.record.turn.id)
    house.clock.advance(3)
    await house.orchestrator.finished()
    assert house.model.closed == 1 and (await stored(house, record)).events == record.events
