"""The official client of the Responses API against the laptop, as its users write against it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import (
    APIStatusError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    OpenAI,
    UnprocessableEntityError,
    pydantic_function_tool,
)
from openai.types.responses import Response
from pydantic import BaseModel

from tests.e2e.conftest import Laptop
from tests.mcp_servers import McpServer, Refusal
from tests.upstream import Answer, BreakOff, Gate, Received, call, fail, say
from tests.wire.responses_stream_checker import check_stream

TERMINAL = {"response.completed", "response.incomplete", "response.failed"}
RUNNING = {"queued", "in_progress"}


class Weather(BaseModel):
    """The weather somewhere."""

    city: str
    degrees: int


class Forecast(BaseModel):
    """Look up the weather of a city."""

    city: str


@pytest.fixture
def client(laptop: Laptop) -> Iterator[OpenAI]:
    laptop.upstream.forget()
    with OpenAI(base_url=f"{laptop.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
    check_all_streams(f"{laptop.url}/v1/responses")


def check_all_streams(url: str) -> None:
    """Replay what the test has left behind against everything that the contract says of streams, and delete it."""
    for stored in httpx2.get(url, params={"limit": 100}).json()["data"]:
        if stored["status"] not in RUNNING:
            raw = httpx2.get(f"{url}/{stored['id']}", params={"stream": "true"}).content
            check_stream(raw, cancelled=stored["status"] == "cancelled")
        httpx2.delete(f"{url}/{stored['id']}").raise_for_status()


@pytest.fixture
def create(client: OpenAI) -> Any:
    return partial(client.responses.create, model="scripted")


@pytest.fixture(scope="module")
def tool_server() -> Iterator[McpServer]:
    with McpServer() as server:
        yield server


@pytest.fixture
def server(tool_server: McpServer) -> McpServer:
    tool_server.forget()
    return tool_server


def told(laptop: Laptop) -> list[tuple[str, Any]]:
    """What the model was last told: role and content of each message."""
    return [(message["role"], message["content"]) for message in laptop.upstream.bodies[-1]["messages"]]


def offered(laptop: Laptop) -> list[dict[str, Any]]:
    """The functions that the model was last offered."""
    return [tool["function"] for tool in laptop.upstream.bodies[-1].get("tools") or []]


def kinds(response: Response) -> list[str]:
    return [item.type for item in response.output]


def numbers(events: Iterable[Any]) -> list[int]:
    return [event.sequence_number for event in events]


def bare(events: Iterable[Any]) -> list[dict[str, Any]]:
    """The events as JSON, without the padding that is new every time."""
    return [{key: value for key, value in event.to_dict().items() if key != "obfuscation"} for event in events]


def joined(events: Iterable[Any], kind: str = "response.output_text.delta") -> str:
    return "".join(event.delta for event in events if event.type == kind)


def up_to_a_delta(stream: Iterable[Any]) -> list[Any]:
    """The events of a stream as far as its first piece of text."""
    seen = []
    for event in stream:
        seen.append(event)
        if event.type == "response.output_text.delta":
            return seen
    raise AssertionError(f"no text among {[event.type for event in seen]}")


def polled(client: OpenAI, response_id: str) -> Response:
    """The response when it has ended, found by asking again and again."""
    for _ in range(600):
        found = client.responses.retrieve(response_id)
        if found.status not in RUNNING:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{response_id} does not end")


def followed(client: OpenAI, response_id: str) -> Response:
    """The response when its stream has ended."""
    list(client.responses.retrieve(response_id, stream=True))
    return client.responses.retrieve(response_id)


# --- create, stream, parse


def test_what_create_gives_is_what_retrieve_finds(laptop: Laptop, client: OpenAI, create: Any) -> None:
    laptop.upstream.say("Good ", "morning.")
    made = create(input="Hello.", instructions="Be brief.", metadata={"trip": "7"}, temperature=0.5)
    assert made.output_text == "Good morning." and made.status == "completed"
    assert (made.usage.input_tokens, made.usage.output_tokens, made.usage.total_tokens) == (10, 2, 12)
    assert client.responses.retrieve(made.id).to_dict() == made.to_dict()
    assert told(laptop) == [("system", "Be brief."), ("user", "Hello.")]
    client.responses.delete(made.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(made.id)


def test_the_stream_helper_puts_the_whole_response_together(laptop: Laptop, client: OpenAI) -> None:
    laptop.upstream.say("Good ", "morning.", reasoning=["They ", "greet."])
    with client.responses.stream(model="scripted", input="Hello.") as stream:
        events: list[Any] = list(stream)
        final = stream.get_final_response()
    assert numbers(events) == list(range(len(events)))
    assert joined(events) == final.output_text == "Good morning."
    assert [event.snapshot for event in events if event.type == "response.output_text.delta"][-1] == final.output_text
    assert client.responses.retrieve(final.id).output_text == "Good morning."


def test_structured_output_goes_upstream_as_a_schema_and_comes_back_parsed(laptop: Laptop, client: OpenAI) -> None:
    answer = json.dumps({"city": "Oslo", "degrees": -3})
    laptop.upstream.say(answer)
    parsed = client.responses.parse(model="scripted", input="Weather?", text_format=Weather)
    assert parsed.output_parsed == Weather(city="Oslo", degrees=-3)
    asked = laptop.upstream.bodies[-1]["response_format"]
    assert asked["type"] == "json_schema" and asked["json_schema"]["name"] == "Weather"
    assert asked["json_schema"]["strict"] is True and set(asked["json_schema"]["schema"]["required"]) == {
        "city",
        "degrees",
    }
    laptop.upstream.say(answer[:9], answer[9:])
    with client.responses.stream(model="scripted", input="Weather?", text_format=Weather) as stream:
        assert stream.get_final_response().output_parsed == Weather(city="Oslo", degrees=-3)


def test_arguments_of_strict_functions_are_parsed_and_their_outputs_go_back(
    laptop: Laptop, client: OpenAI, create: Any
) -> None:
    laptop.upstream.call(("Forecast", {"city": "Oslo"}), ("Forecast", {"city": "Bergen"}))
    tools: Any = [pydantic_function_tool(Forecast)]
    asked = client.responses.parse(model="scripted", input="Weather?", tools=tools)
    calls: list[Any] = list(asked.output)
    assert [item.parsed_arguments for item in calls] == [Forecast(city="Oslo"), Forecast(city="Bergen")]
    laptop.upstream.say("Cold, wet.")
    outputs = [
        {"type": "function_call_output", "call_id": calls[1].call_id, "output": "rain"},
        {"type": "function_call_output", "call_id": calls[0].call_id, "output": "snow"},
    ]
    assert create(previous_response_id=asked.id, input=outputs).output_text == "Cold, wet."
    assert told(laptop)[2:] == [("tool", "snow"), ("tool", "rain")]
    with pytest.raises(BadRequestError, match="No tool output found"):
        create(previous_response_id=asked.id, input=outputs[:1])
    with pytest.raises(BadRequestError, match="No tool call found"):
        create(input=outputs[:1])


# --- background, cancel, resume


def test_a_background_response_is_answered_at_once_and_polled_to_its_end(
    laptop: Laptop, client: OpenAI, create: Any
) -> None:
    gate = Gate()
    laptop.upstream.say(gate, "Done ", "at last.")
    queued = create(input="Take your time.", background=True)
    assert (queued.status, queued.output, queued.usage, queued.background) == ("queued", [], None, True)
    gate.reached.join()
    assert client.responses.retrieve(queued.id).status == "in_progress"
    with pytest.raises(ConflictError) as refused:
        create(input="More.", previous_response_id=queued.id)
    assert refused.value.code == "previous_response_in_progress"
    gate.open()
    done = polled(client, queued.id)
    assert (done.status, done.output_text) == ("completed", "Done at last.")
    assert client.responses.cancel(queued.id).to_dict() == done.to_dict()


def test_a_background_response_whose_model_breaks_off_ends_as_failed(
    laptop: Laptop, client: OpenAI, create: Any
) -> None:
    laptop.upstream.say("Half a ", BreakOff())
    failed = polled(client, create(input="Hello.", background=True).id)
    assert failed.status == "failed" and failed.error is not None and failed.error.code == "server_error"
    with pytest.raises(BadRequestError):
        create(input="Hello.", background=True, store=False)


def test_a_cancelled_background_response_stays_cancelled_and_stops_the_model(
    laptop: Laptop, client: OpenAI, create: Any
) -> None:
    gate = Gate()
    laptop.upstream.say("Once ", gate, "upon a time")
    made = create(input="Tell.", background=True)
    with client.responses.retrieve(made.id, stream=True) as stream:
        seen = up_to_a_delta(stream)
        assert client.responses.cancel(made.id).status == "cancelled"
        laptop.upstream.requests[-1].disconnected.join()
        seen += list(stream)
    gate.open()
    assert numbers(seen) == list(range(len(seen)))
    assert not TERMINAL & {event.type for event in seen}
    cancelled = client.responses.cancel(made.id)
    assert (cancelled.status, cancelled.output_text) == ("cancelled", "Once ")
    assert [item.status for item in cancelled.output] == ["incomplete"]  # type: ignore[union-attr]
    assert client.responses.retrieve(made.id).to_dict() == cancelled.to_dict()
    assert bare(client.responses.retrieve(made.id, stream=True)) == bare(seen)


def test_a_plain_response_can_be_cancelled_while_it_runs_and_not_afterwards(
    laptop: Laptop, client: OpenAI, create: Any
) -> None:
    gate = Gate()
    laptop.upstream.say("Once ", gate, "upon a time")
    with create(input="Tell.", stream=True) as stream:
        seen = up_to_a_delta(stream)
        response_id = seen[0].response.id
        assert client.responses.cancel(response_id).status == "cancelled"
        laptop.upstream.requests[-1].disconnected.join()
        seen += list(stream)
    assert not TERMINAL & {event.type for event in seen}
    assert client.responses.retrieve(response_id).status == "cancelled"
    laptop.upstream.say("Short.")
    done = create(input="Tell.")
    with pytest.raises(BadRequestError):
        client.responses.cancel(done.id)
    with pytest.raises(NotFoundError):
        client.responses.cancel("resp_unknown")


@pytest.mark.parametrize("background", [True, False])
def test_a_stream_dropped_in_the_middle_is_picked_up_live(
    laptop: Laptop, client: OpenAI, create: Any, background: bool
) -> None:
    gate = Gate()
    laptop.upstream.say("Once ", "upon ", gate, "a ", "time")
    with create(input="Tell.", background=background, stream=True) as stream:
        seen = up_to_a_delta(stream)
    response_id, last = seen[0].response.id, seen[-1].sequence_number
    with (
        client.responses.stream(response_id=response_id, starting_after=last) as helper,
        client.responses.retrieve(response_id, stream=True, starting_after=last) as plain,
    ):
        gate.open()
        helped: list[Any] = list(helper)
        rest = list(plain)
        final = helper.get_final_response()
    assert numbers(seen + rest) == list(range(len(seen + rest))) and numbers(helped) == numbers(rest)
    assert joined(seen) + joined(helped) == joined(seen + rest) == final.output_text == "Once upon a time"
    stored = client.responses.retrieve(response_id)
    assert (stored.status, stored.output_text) == ("completed", final.output_text)
    assert bare(client.responses.retrieve(response_id, stream=True)) == bare(seen + rest)


def test_a_stream_that_ended_long_ago_is_replayed_from_any_number(laptop: Laptop, client: OpenAI, create: Any) -> None:
    laptop.upstream.say("One ", "two ", "three.", reasoning=["Count."])
    made = create(input="Count.")
    whole = bare(client.responses.retrieve(made.id, stream=True))
    assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
    assert whole[-1]["response"] == made.to_dict()
    for after in range(len(whole)):
        assert bare(client.responses.retrieve(made.id, stream=True, starting_after=after)) == whole[after + 1 :]
    middle = len(whole) // 2
    with client.responses.stream(response_id=made.id, starting_after=middle) as stream:
        assert numbers(stream) == list(range(middle + 1, len(whole)))
        assert stream.get_final_response().output_text == "One two three."


# --- state


def test_chains_fork_without_leaks_and_miss_a_deleted_parent(laptop: Laptop, client: OpenAI, create: Any) -> None:
    laptop.upstream.answer = lambda request: say(f"Re: {request.body['messages'][-1]['content']}")
    root = create(input="root", instructions="Only here.")
    left = create(input="left", previous_response_id=root.id)
    right = create(input="right", previous_response_id=root.id)
    assert told(laptop) == [("user", "root"), ("assistant", "Re: root"), ("user", "right")]
    end = create(input="end", previous_response_id=left.id)
    assert [text for _, text in told(laptop)] == ["root", "Re: root", "left", "Re: left", "end"]
    backwards = list(client.responses.input_items.list(end.id, limit=2))
    forwards = list(client.responses.input_items.list(end.id, limit=2, order="asc"))
    assert [item.id for item in forwards] == [item.id for item in reversed(backwards)]
    assert len({item.id for item in forwards}) == 5
    client.responses.delete(left.id)
    with pytest.raises(BadRequestError) as refused:
        create(input="more", previous_response_id=left.id)
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")
    with pytest.raises(BadRequestError, match=left.id):
        create(input="more", previous_response_id=end.id)
    assert client.responses.retrieve(end.id).output_text == "Re: end"
    assert create(input="more", previous_response_id=right.id).output_text == "Re: more"


def test_what_is_not_stored_is_unknown_afterwards(laptop: Laptop, client: OpenAI, create: Any) -> None:
    laptop.upstream.say("Gone.")
    made = create(input="Hush.", store=False)
    assert (made.output_text, made.store) == ("Gone.", False)
    ways: list[Any] = [client.responses.retrieve, client.responses.cancel, client.responses.delete]
    for way in (*ways, client.responses.input_items.list):
        with pytest.raises(NotFoundError):
            way(made.id)
    with pytest.raises(BadRequestError) as refused:
        create(input="More.", previous_response_id=made.id)
    assert refused.value.code == "previous_response_not_found"
    gate = Gate()
    laptop.upstream.say("Half ", gate, "a word")
    with create(input="Hush.", store=False, stream=True) as stream:
        up_to_a_delta(stream)
    laptop.upstream.requests[-1].disconnected.join()


def test_truncation_drops_the_oldest_turns_only_when_it_may(laptop: Laptop, client: OpenAI, create: Any) -> None:
    def short_of_room(request: Received) -> Answer:
        if len(request.body["messages"]) > 4:
            message = "This model's maximum context length is 10 tokens."
            return fail(400, {"error": {"message": message, "code": "context_length_exceeded"}})
        return say(f"Re: {request.body['messages'][-1]['content']}")

    laptop.upstream.answer = short_of_room
    first = create(input="one")
    second = create(input="two", previous_response_id=first.id)
    third = partial(create, input="three", previous_response_id=second.id, instructions="Stay.")
    with pytest.raises(BadRequestError) as refused:
        third()
    assert refused.value.code == "context_length_exceeded"
    made = third(truncation="auto")
    assert told(laptop) == [("system", "Stay."), ("user", "two"), ("assistant", "Re: two"), ("user", "three")]
    assert len(client.responses.input_items.list(made.id).data) == 5


def test_a_repeated_key_gives_the_same_response_and_asks_the_model_once(laptop: Laptop, create: Any) -> None:
    gate = Gate()
    laptop.upstream.answer = lambda request: say("Once", gate, ".")
    key = {"Idempotency-Key": "purchase-7"}
    buy = partial(create, input="Buy.", extra_headers=key)
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(buy) for _ in range(3)]
        gate.reached.join()
        gate.open()
        found = [each.result(30) for each in running]
    assert {made.output_text for made in found} == {"Once."} and len({made.id for made in found}) == 1
    assert buy().to_dict() == found[0].to_dict()
    with pytest.raises(UnprocessableEntityError) as refused:
        create(input="Buy two.", extra_headers=key)
    assert refused.value.code == "idempotency_key_reused"
    assert len(laptop.upstream.bodies) == 1
    again = {"Idempotency-Key": "purchase-8"}
    streams = [bare(create(input="Buy.", stream=True, extra_headers=again)) for _ in range(2)]
    assert streams[0] == streams[1] and len(laptop.upstream.bodies) == 2


# --- conversations


def said(text: str) -> Any:
    return {"type": "message", "role": "user", "content": text}


def texts(items: Iterable[Any]) -> list[str]:
    return [item.content[0].text for item in items]


def test_a_conversation_is_kept_changed_and_deleted(client: OpenAI) -> None:
    conversations = client.conversations
    made = conversations.create(items=[said("first")], metadata={"topic": "sea"})
    assert conversations.retrieve(made.id).to_dict() == made.to_dict()
    assert conversations.update(made.id, metadata={"mood": "calm"}).metadata == {"mood": "calm"}
    assert conversations.retrieve(made.id).metadata == {"mood": "calm"}
    for start in (0, 20):
        added = conversations.items.create(made.id, items=[said(str(start + each)) for each in range(20)])
        assert texts(added.data) == [str(start + each) for each in range(20)]
    with pytest.raises(BadRequestError):
        conversations.items.create(made.id, items=[said("too many")] * 21)
    forwards = list(conversations.items.list(made.id, order="asc", limit=7))
    backwards = list(conversations.items.list(made.id, limit=7))
    assert texts(forwards) == ["first", *map(str, range(40))]
    assert [item.id for item in backwards] == [item.id for item in reversed(forwards)]
    some = str(forwards[3].id)
    assert conversations.items.retrieve(some, conversation_id=made.id) == forwards[3]
    assert conversations.items.delete(some, conversation_id=made.id).id == made.id
    assert texts(conversations.items.list(made.id, order="asc", limit=100)) == [
        "first",
        "0",
        "1",
        *map(str, range(3, 40)),
    ]
    assert conversations.delete(made.id).deleted
    ways: list[Any] = [conversations.retrieve, conversations.items.list]
    for way in ways:
        with pytest.raises(NotFoundError):
            way(made.id)


def test_responses_join_their_conversation(laptop: Laptop, client: OpenAI, create: Any) -> None:
    laptop.upstream.answer = lambda request: say(f"Re: {request.body['messages'][-1]['content']}")
    conversation = client.conversations.create(items=[said("before")])
    in_it = partial(create, conversation=conversation.id)
    assert in_it(input="one", instructions="Not kept.").conversation.id == conversation.id
    with in_it(input="two", stream=True) as stream:
        list(stream)
    assert [text for _, text in told(laptop)] == ["before", "one", "Re: one", "two"]
    followed(client, in_it(input="three", background=True).id)
    in_it(input="four", store=False)
    kept = ["before", "one", "Re: one", "two", "Re: two", "three", "Re: three", "four", "Re: four"]
    assert texts(client.conversations.items.list(conversation.id, order="asc")) == kept
    with pytest.raises(BadRequestError):
        in_it(input="five", previous_response_id="resp_1")
    with pytest.raises(NotFoundError):
        create(input="five", conversation="conv_unknown")


def test_a_conversation_takes_one_response_at_a_time_and_loses_nothing(
    laptop: Laptop, client: OpenAI, create: Any
) -> None:
    gate = Gate()
    slow, quick = say("slow", gate, "ly"), say("quickly")
    laptop.upstream.answer = lambda request: slow if request.body["messages"][-1]["content"] == "first" else quick
    conversation = client.conversations.create().id
    notes = [f"note {number}" for number in range(8)]
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(create, input="first", conversation=conversation)
        gate.reached.join()
        with pytest.raises(ConflictError) as refused:
            create(input="second", conversation=conversation)
        list(pool.map(lambda note: client.conversations.items.create(conversation, items=[said(note)]), notes))
        gate.open()
        assert first.result(30).output_text == "slowly"
    assert (refused.value.code, refused.value.param) == ("conversation_locked", "conversation")
    assert float(refused.value.response.headers["retry-after"]) > 0
    kept = texts(client.conversations.items.list(conversation, order="asc", limit=100))
    assert sorted(kept) == sorted(["first", "slowly", *notes])
    assert kept[kept.index("first") + 1] == "slowly"
    assert create(input="second", conversation=conversation).output_text == "quickly"
    assert [text for _, text in told(laptop)] == [*kept, "second"]


def test_a_conversation_is_free_again_when_its_response_is_gone(laptop: Laptop, client: OpenAI, create: Any) -> None:
    laptop.upstream.answer = lambda request: say(
        "Half ", BreakOff() if request.body["messages"][-1]["content"] == "break" else Gate()
    )
    conversation = client.conversations.create().id
    in_it = partial(create, conversation=conversation)
    assert in_it(input="break").status == "failed"
    client.responses.cancel(in_it(input="cancel", background=True).id)
    client.responses.delete(in_it(input="delete", background=True).id)
    with in_it(input="drop", store=False, stream=True) as stream:
        up_to_a_delta(stream)
    laptop.upstream.requests[-1].disconnected.join()
    laptop.upstream.answer = lambda request: say("Whole.")
    # As any client does that was told to come again.
    patient = client.with_options(max_retries=3).responses
    assert patient.create(model="scripted", input="Well?", conversation=conversation).output_text == "Whole."
    assert texts(client.conversations.items.list(conversation, order="asc")) == ["Well?", "Whole."]


def test_a_call_whose_output_is_deleted_from_a_conversation_is_left_out(
    laptop: Laptop, client: OpenAI, create: Any
) -> None:
    made = {"type": "function_call", "call_id": "call_7", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "call_7", "output": "seven"}
    items: Any = [said("first"), made, output]
    conversation = client.conversations.create(items=items).id
    newest = client.conversations.items.list(conversation, limit=1).data[0]
    client.conversations.items.delete(str(newest.id), conversation_id=conversation)
    laptop.upstream.say("Seen.")
    assert create(input="last", conversation=conversation).output_text == "Seen."
    assert told(laptop) == [("user", "first"), ("user", "last")]


# --- counting and compacting


def test_input_tokens_are_counted_without_asking_the_model(laptop: Laptop, client: OpenAI, create: Any) -> None:
    laptop.upstream.say("A long answer, to be counted with the rest.")
    made = create(input="Hello.")
    tokens = partial(client.responses.input_tokens.count, model="scripted")
    alone = tokens(input="And now?").input_tokens
    assert 0 < alone < tokens(input="And now? " * 50).input_tokens
    assert alone < tokens(input="And now?", previous_response_id=made.id).input_tokens
    assert alone < tokens(input="And now?", instructions="Be brief, be clear, be kind.").input_tokens
    conversation = client.conversations.create(items=[said("What was said before.")])
    assert alone < tokens(input="And now?", conversation=conversation.id).input_tokens
    assert [request.path for request in laptop.upstream.requests].count("/v1/chat/completions") == 1


def test_a_compacted_conversation_goes_on_from_its_summary(laptop: Laptop, client: OpenAI, create: Any) -> None:
    laptop.upstream.say("It is the ninth wave.")
    made = create(input="Which wave?")
    laptop.upstream.say("SUMMARY: the user asked for a wave, it is the ninth.")
    compacted = client.responses.compact(model="scripted", previous_response_id=made.id, input="Tell me more.")
    output: Any = [item.to_dict(warnings=False) for item in compacted.output]
    assert [item["type"] for item in output] == ["message", "message", "compaction"]
    assert "ninth" not in json.dumps(output) and compacted.usage.total_tokens == 11
    laptop.upstream.say("Gladly.")
    assert create(input=[*output, said("Go on.")]).output_text == "Gladly."
    (summary_role, summary), *rest = told(laptop)
    assert summary_role == "system" and "SUMMARY: the user asked for a wave" in summary
    assert rest == [("user", "Go on.")]
    forged = {**output[-1], "encrypted_content": "nothing"}
    with pytest.raises(BadRequestError) as refused:
        create(input=[forged, said("Go on.")])
    assert refused.value.code == "invalid_encrypted_content"


def test_a_context_over_its_threshold_is_compacted_before_the_model_is_asked(
    laptop: Laptop, client: OpenAI, create: Any
) -> None:
    laptop.upstream.say("Waves come and go.")
    long = create(input="Tell me of waves. " * 500)
    laptop.upstream.say("SUMMARY of waves.")
    laptop.upstream.say("Seven.")
    limit = [{"type": "compaction", "compact_threshold": 1000}]
    made = create(input="How many?", previous_response_id=long.id, context_management=limit)
    assert kinds(made) == ["compaction", "message"] and made.output_text == "Seven."
    laptop.upstream.say("Thousands.")
    create(input="More?", previous_response_id=made.id)
    (_, summary), *rest = told(laptop)
    assert "SUMMARY of waves." in summary
    assert rest == [("user", "How many?"), ("assistant", "Seven."), ("user", "More?")]


# --- MCP


def served(server: McpServer, **rest: Any) -> dict[str, Any]:
    return {"type": "mcp", "server_label": "test", "server_url": server.url, **rest}


def answered(item: Any, approve: bool, reason: str | None = None) -> dict[str, Any]:
    said = {"type": "mcp_approval_response", "approval_request_id": item.id, "approve": approve}
    return said if reason is None else {**said, "reason": reason}


def test_an_approved_call_runs_and_a_denied_one_is_told_to_the_model(
    laptop: Laptop, client: OpenAI, create: Any, server: McpServer
) -> None:
    ask = partial(create, tools=[served(server, require_approval="always")])
    laptop.upstream.call(("echo", {"text": "hi"}))
    asking = ask(input="Echo hi.")
    assert kinds(asking) == ["mcp_list_tools", "mcp_approval_request"] and asking.status == "completed"
    request = asking.output[1]
    assert (request.name, json.loads(request.arguments), request.server_label) == ("echo", {"text": "hi"}, "test")
    assert "tools/call" not in server.methods

    laptop.upstream.say("It said hi.")
    approved = ask(previous_response_id=asking.id, input=[answered(request, True)])
    assert kinds(approved) == ["mcp_call", "message"]
    ran = approved.output[0]
    assert (ran.name, ran.approval_request_id, ran.status) == ("echo", request.id, "completed")
    assert json.loads(ran.output) == {"text": "hi"} and ran.error is None
    assert told(laptop)[-1] == ("tool", ran.output)
    assert server.methods.count("tools/list") == 1 and server.methods.count("tools/call") == 1

    laptop.upstream.say("As you wish.")
    denied = ask(previous_response_id=asking.id, input=[answered(request, False, "far too risky")])
    assert kinds(denied) == ["message"]
    assert "far too risky" in json.dumps(told(laptop)) and server.methods.count("tools/call") == 1

    laptop.upstream.say("Never mind.")
    assert kinds(ask(previous_response_id=asking.id, input="Forget it.")) == ["message"]
    assert [content for role, content in told(laptop) if role == "tool" and "not approve" in content]
    with pytest.raises(BadRequestError):
        create(previous_response_id=asking.id, input=[answered(request, True)])
    with pytest.raises(BadRequestError):
        unknown = {"type": "mcp_approval_response", "approval_request_id": "mcpr_unknown", "approve": True}
        ask(previous_response_id=asking.id, input=[unknown])


def test_filters_say_which_tools_are_seen_and_which_are_asked_for(
    laptop: Laptop, create: Any, server: McpServer
) -> None:
    filters = {"never": {"tool_names": ["echo"]}, "always": {"tool_names": ["fail"]}}
    tool = served(server, require_approval=filters, allowed_tools=["echo", "fail", "weather"])
    laptop.upstream.call(("echo", {"n": 1}), ("fail", {"why": "mood"}))
    asking = create(input="Try.", tools=[tool])
    assert [each.name for each in asking.output[0].tools] == ["echo", "weather", "fail"]
    assert sorted(each["name"] for each in offered(laptop)) == ["echo", "fail", "weather"]
    assert kinds(asking) == ["mcp_list_tools", "mcp_call", "mcp_approval_request"]
    laptop.upstream.say("It failed.")
    failed = create(previous_response_id=asking.id, input=[answered(asking.output[2], True)], tools=[tool])
    assert kinds(failed) == ["mcp_call", "message"] and failed.output[0].status == "failed"
    assert failed.output[0].error.type == "mcp_tool_execution_error" and "no good: mood" in told(laptop)[-1][1]

    laptop.upstream.call(("weather", {"where": {"city": "Oslo"}}), ("lines", {}), ("echo", {"n": 2}))
    reading = served(server, require_approval={"never": {"read_only": True}}, allowed_tools=["weather", "echo"])
    mixed = create(input="Read.", tools=[reading])
    assert [(item.type, item.name) for item in mixed.output[1:]] == [
        ("mcp_call", "weather"),
        ("mcp_approval_request", "echo"),
    ]


def test_a_tool_server_that_cannot_be_reached_is_told_to_the_model(
    laptop: Laptop, create: Any, server: McpServer
) -> None:
    server.refusals = {"server/discover": Refusal(503), "initialize": Refusal(503)}
    tool = served(server, require_approval="never")
    laptop.upstream.say("I have no tools.")
    made = create(input="Go.", tools=[tool])
    assert kinds(made) == ["mcp_list_tools", "message"] and "503" in made.output[0].error
    assert told(laptop)[-1][0] == "system" and "503" in told(laptop)[-1][1]
    for stream in (False, True):
        with pytest.raises(APIStatusError) as failed:
            create(input="Go.", tools=[tool], tool_choice={"type": "mcp", "server_label": "test"}, stream=stream)
        assert (failed.value.status_code, failed.value.code) == (424, "mcp_server_unavailable")
    with pytest.raises(BadRequestError):
        create(input="Go.", tools=[{**tool, "server_url": "https://10.0.0.1/mcp"}])


def test_hosted_calls_stop_at_max_tool_calls(laptop: Laptop, create: Any, server: McpServer) -> None:
    def insatiable(request: Received) -> Answer:
        return call(("echo", {"n": 1}), ("lines", {})) if request.body.get("tools") else say("Enough.")

    laptop.upstream.answer = insatiable
    made = create(input="Go.", tools=[served(server, require_approval="never")], max_tool_calls=1)
    assert kinds(made) == ["mcp_list_tools", "mcp_call", "message"] and made.output_text == "Enough."
    assert server.methods.count("tools/call") == 1 and made.max_tool_calls == 1


def test_secrets_of_a_tool_server_reach_it_and_nobody_else(
    laptop: Laptop, client: OpenAI, create: Any, server: McpServer
) -> None:
    secrets = ["Zr1-header-secret", "Zr1-bearer-secret", "Zr1-query-secret"]
    tool = served(server, require_approval="never", headers={"X-Key": secrets[0]}, authorization=secrets[1])
    tool["server_url"] += f"?key={secrets[2]}"
    laptop.upstream.call(("wait", {}))
    laptop.upstream.say("Waited.")
    made = create(input="Wait.", tools=[tool], background=True)
    server.reached.join()
    found = [path for path in files(laptop.folder) if any(secret.encode() in path.read_bytes() for secret in secrets)]
    server.opened.set()
    done = followed(client, made.id)
    assert done.output_text == "Waited." and found == []
    for method in ("tools/list", "tools/call"):
        headers = server.headers_of(method)
        assert (headers["x-key"], headers["authorization"]) == (secrets[0], f"Bearer {secrets[1]}")
    shown = json.dumps(
        [
            made.to_dict(),
            done.to_dict(),
            bare(client.responses.retrieve(made.id, stream=True)),
            [item.to_dict() for item in client.responses.input_items.list(made.id)],
        ]
    )
    assert "Zr1" not in shown and "Zr1" not in json.dumps(laptop.upstream.bodies)
    assert not [path for path in files(laptop.folder) if b"Zr1-" in path.read_bytes()]


def files(folder: Path) -> list[Path]:
    """Everything the laptop has written, its log among it."""
    return [path for path in folder.rglob("*") if path.is_file()]


# --- tools of the client, and reasoning


def test_a_custom_tool_takes_free_text_and_streams_it(laptop: Laptop, client: OpenAI, create: Any) -> None:
    statement = 'SELECT "ø",\n\t1;\\'
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /SELECT .+/"}
    tools = [{"type": "custom", "name": "sql", "description": "Runs SQL.", "format": grammar}]
    laptop.upstream.add(call(("sql", json.dumps({"input": statement})), size=3))
    with client.responses.stream(model="scripted", input="Query.", tools=tools) as stream:  # type: ignore[arg-type]
        events: list[Any] = list(stream)
        final = stream.get_final_response()
    (item,) = final.output
    assert item.type == "custom_tool_call" and (item.name, item.input) == ("sql", statement)
    deltas = [event.delta for event in events if event.type == "response.custom_tool_call_input.delta"]
    assert "".join(deltas) == statement and len(deltas) > 1
    (function,) = offered(laptop)
    assert function["name"] == "sql" and "SELECT .+" in function["description"]
    assert list(function["parameters"]["properties"]) == ["input"]
    laptop.upstream.say("One row.")
    output = {"type": "custom_tool_call_output", "call_id": item.call_id, "output": "ø, 1"}
    assert create(previous_response_id=final.id, input=[output], tools=tools).output_text == "One row."
    assert told(laptop)[-1] == ("tool", "ø, 1")


def test_a_call_to_a_tool_of_a_namespace_comes_back_with_it(laptop: Laptop, create: Any) -> None:
    def lookup(of: str) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {of: {"type": "string"}}, "required": [of]}
        return {"type": "function", "name": "lookup", "description": f"Looks up a {of}.", "parameters": parameters}

    tools = [
        {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [lookup("customer")]},
        {"type": "namespace", "name": "erp", "description": "Orders.", "tools": [lookup("order")]},
    ]

    def calls_the_second(request: Received) -> Answer:
        names = [tool["function"]["name"] for tool in request.body["tools"]]
        answers = [message for message in request.body["messages"] if message["role"] == "tool"]
        return say(answers[0]["content"]) if answers else call((names[1], {"order": "7"}))

    laptop.upstream.answer = calls_the_second
    asked = create(input="Order 7?", tools=tools)
    (item,) = asked.output
    assert (item.type, item.name, item.namespace, item.arguments) == (
        "function_call",
        "lookup",
        "erp",
        '{"order": "7"}',
    )
    output = {"type": "function_call_output", "call_id": item.call_id, "output": "shipped"}
    history = [said("Order 7?"), item.to_dict(), output]
    assert create(input=history, tools=tools).output_text == "shipped"
    assert create(input=[output], tools=tools, previous_response_id=asked.id).output_text == "shipped"
    customers, orders = (function["name"] for function in offered(laptop))
    called = laptop.upstream.bodies[-1]["messages"][1]["tool_calls"][0]["function"]["name"]
    assert called == orders != customers


def test_reasoning_is_summed_up_and_goes_round_sealed(laptop: Laptop, create: Any) -> None:
    laptop.upstream.say("Four.", reasoning=["Two and ", "two."])
    ask = partial(create, store=False, include=["reasoning.encrypted_content"])
    made = ask(input="2+2?", reasoning={"effort": "low", "summary": "auto"})
    thought = made.output[0]
    assert kinds(made) == ["reasoning", "message"] and thought.summary[0].text == "Two and two."
    assert thought.encrypted_content and "Two and" not in thought.encrypted_content
    assert laptop.upstream.bodies[-1]["reasoning_effort"] == "low"
    laptop.upstream.say("Eight.")
    history = [said("2+2?"), *(item.to_dict() for item in made.output), said("Twice?")]
    assert ask(input=history).output_text == "Eight."
    assert told(laptop) == [("user", "2+2?"), ("assistant", "Four."), ("user", "Twice?")]
    laptop.upstream.say("Plain.", reasoning=["Nothing sealed."])
    assert create(input="Again?").output[0].encrypted_content is None
