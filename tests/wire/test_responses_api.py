"""The Responses API through the official client, on both of its paths."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.wire.conftest import Agents
from tests.wire.responses_stream_checker import check_response, check_stream
from turnloom.domain.errors import UpstreamBroken, UpstreamLimited, UpstreamRejected, UpstreamTimeout
from turnloom.domain.message import AssistantMessage, SystemMessage, ToolMessage, UserMessage
from turnloom.ports import FetchedFile, TextChunk
from turnloom.testing import InlineDocuments

WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


@pytest.fixture
def client(api: Agents) -> OpenAI:
    return OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def alias(api: Agents) -> OpenAI:
    return OpenAI(base_url=f"{api.url}/v1/openai/v1", api_key="none", max_retries=0)


def raw_stream(api: Agents, *, path: str = "/v1", **body: Any) -> bytes:
    answer = api.http.post(f"{path}/responses", json={"model": "m", "input": "Go.", "stream": True, **body})
    assert answer.status_code == 200, answer.text
    return answer.content


# --- creating


def test_a_plain_response_is_the_same_created_and_retrieved(api: Agents, client: OpenAI) -> None:
    api.house.model.says("Hel", "lo")
    made = client.responses.create(model="m", input="Go.", metadata={"a": "b"}, instructions="Be kind.")
    assert (made.output_text, made.status, made.metadata) == ("Hello", "completed", {"a": "b"})
    check_response(api.http.get(f"/v1/responses/{made.id}").json())
    assert client.responses.retrieve(made.id).to_dict() == made.to_dict()
    assert api.house.model.requests[0].messages == (SystemMessage("Be kind."), UserMessage("Go."))


def test_a_stream_has_every_event_in_order_and_ends_as_its_path_wants(api: Agents) -> None:
    for _ in range(2):
        api.house.model.says("Hel", "lo")
    raw = raw_stream(api)
    assert [event["type"].removeprefix("response.") for event in check_stream(raw)] == [
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
    assert raw.endswith(b"data: [DONE]\n\n")
    other = raw_stream(api, path="/v1/openai/v1")
    assert b"[DONE]" not in other
    check_stream(other, alias=True)


def test_the_stream_helper_gets_its_final_response(api: Agents, client: OpenAI) -> None:
    api.house.model.calls(("weather", {"city": "Paris"}), text="Let me see.")
    with client.responses.stream(model="m", input="Weather?", tools=[WEATHER]) as stream:  # type: ignore[list-item]
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["message", "function_call"]
    stored = client.responses.retrieve(final.id).output
    assert [(item.type, item.id) for item in stored] == [(item.type, item.id) for item in final.output]


def test_a_function_call_goes_round_through_previous_response_id(api: Agents, client: OpenAI) -> None:
    api.house.model.calls(("weather", {"city": "Paris"}))
    api.house.model.says("Sunny.")
    asked = client.responses.create(model="m", input="Weather?", tools=[WEATHER])  # type: ignore[list-item]
    call = asked.output[0]
    assert call.type == "function_call" and call.arguments == '{"city": "Paris"}'
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    done = client.responses.create(model="m", previous_response_id=asked.id, input=[output])  # type: ignore[list-item]
    assert done.output_text == "Sunny."
    seen = api.house.model.requests[-1].messages
    assert isinstance(seen[1], AssistantMessage) and seen[2] == ToolMessage(call.call_id, "sun", "weather")
    listed = client.responses.input_items.list(done.id)
    assert [item.type for item in listed] == ["function_call_output", "function_call", "message"]


def test_a_call_without_its_output_is_refused_before_anything_is_paid_for(api: Agents, client: OpenAI) -> None:
    api.house.model.calls(("weather", {}))
    asked = client.responses.create(model="m", input="Weather?", tools=[WEATHER])  # type: ignore[list-item]
    with pytest.raises(openai.BadRequestError, match="No tool output found"):
        client.responses.create(model="m", previous_response_id=asked.id, input="Well?")
    output = {"type": "function_call_output", "call_id": "call_other", "output": "sun"}
    with pytest.raises(openai.BadRequestError, match="No tool call found"):
        client.responses.create(model="m", input=[output])  # type: ignore[list-item]
    assert len(api.house.model.requests) == 1


def test_limits_are_told_as_incomplete(api: Agents, client: OpenAI) -> None:
    api.house.model.says("and so", finish="length")
    made = client.responses.create(model="m", input="Go.", max_output_tokens=5)
    assert made.status == "incomplete" and made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    assert api.house.model.requests[0].max_tokens == 5


def test_parameters_reach_the_model(api: Agents, client: OpenAI) -> None:
    api.house.model.says("{}")
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    text: Any = {"format": {"type": "json_schema", "name": "thing", "schema": schema, "strict": True}}
    made = client.responses.create(model="m", input="Go.", temperature=0.3, top_p=0.5, text=text)
    request = api.house.model.requests[0]
    assert (request.sampling["temperature"], request.sampling["top_p"]) == (0.3, 0.5)
    assert request.response_format is not None and request.response_format["json_schema"]["schema"] == schema
    assert made.text is not None and made.text.to_dict()["format"]["schema"] == schema


# --- chains


def test_a_chain_is_seen_whole_and_a_fork_sees_its_own_past_alone(api: Agents, client: OpenAI) -> None:
    parent = None
    chain = []
    for number in range(4):
        api.house.model.says(f"answer {number}")
        parent = client.responses.create(model="m", input=f"question {number}", previous_response_id=parent).id
        chain.append(parent)
    for name in ("left", "right"):
        api.house.model.says(name)
        client.responses.create(model="m", input=name, previous_response_id=chain[1])
        seen = [m.content for m in api.house.model.requests[-1].messages if isinstance(m, UserMessage)]
        assert seen == ["question 0", "question 1", name]
    api.house.model.says("end")
    last = client.responses.create(model="m", input="question 4", previous_response_id=chain[3])
    seen = [m.content for m in api.house.model.requests[-1].messages if isinstance(m, UserMessage)]
    assert seen == [f"question {n}" for n in range(5)]
    items = list(client.responses.input_items.list(last.id, order="asc", limit=4))
    assert len(items) == 9 and len({item.id for item in items}) == 9


def test_instructions_are_not_inherited(api: Agents, client: OpenAI) -> None:
    api.house.model.says("one")
    api.house.model.says("two")
    first = client.responses.create(model="m", input="Go.", instructions="Rhyme.")
    client.responses.create(model="m", input="On.", previous_response_id=first.id)
    assert not any(isinstance(m, SystemMessage) for m in api.house.model.requests[-1].messages)


def test_a_deleted_ancestor_fails_loudly(api: Agents, client: OpenAI) -> None:
    for text in ("one", "two", "three"):
        api.house.model.says(text)
    first = client.responses.create(model="m", input="1")
    second = client.responses.create(model="m", input="2", previous_response_id=first.id)
    client.responses.delete(first.id)
    assert client.responses.retrieve(second.id).output_text == "two"
    with pytest.raises(openai.BadRequestError, match=first.id) as caught:
        client.responses.create(model="m", input="3", previous_response_id=second.id)
    assert caught.value.code == "previous_response_not_found"


def test_what_is_not_stored_leaves_nothing_behind(api: Agents, client: OpenAI) -> None:
    api.house.model.says("Hello")
    made = client.responses.create(model="m", input="Go.", store=False)
    assert made.output_text == "Hello" and made.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    assert api.http.get("/v1/responses").json()["data"] == []


# --- reading again


def test_a_stream_can_be_read_again_from_any_number(api: Agents, client: OpenAI) -> None:
    api.house.model.says("a", "b", "c")
    events = check_stream(raw_stream(api, stream_options={"include_obfuscation": False}))
    identifier = events[0]["response"]["id"]
    for after in (None, 0, 5, events[-1]["sequence_number"]):
        query = "" if after is None else f"&starting_after={after}"
        path = f"/v1/responses/{identifier}?stream=true&include_obfuscation=false{query}"
        text = api.http.get(path).text
        told = [line for line in text.split("\n") if line.startswith("data: {")]
        assert len(told) == len(events) - (0 if after is None else after + 1)
        assert text.endswith("data: [DONE]\n\n")
    assert (
        check_stream(api.http.get(f"/v1/responses/{identifier}?stream=true&include_obfuscation=false").content)
        == events
    )


def test_lists_page_without_gap_or_repeat(api: Agents, client: OpenAI) -> None:
    made = []
    for number in range(7):
        api.house.model.says("x")
        made.append(client.responses.create(model="odd" if number % 2 else "even", input=str(number)).id)
    found: list[str] = []
    after = ""
    while True:
        page = api.http.get(f"/v1/responses?order=asc&limit=2{after}").json()
        found += [response["id"] for response in page["data"]]
        assert [page["first_id"], page["last_id"]] == [page["data"][0]["id"], page["data"][-1]["id"]]
        after = f"&after={page['last_id']}"
        if not page["has_more"]:
            break
    assert found == sorted(made)
    odd = api.http.get("/v1/responses?model=odd").json()
    assert len(odd["data"]) == 3 and odd["data"][0]["input"][0]["type"] == "message"
    for query in ("limit=0", "limit=101", "order=up", "after=resp_x"):
        assert api.http.get(f"/v1/responses?{query}").status_code == 400, query


# --- failures


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (UpstreamBroken("down"), 502, "upstream_error"),
        (UpstreamTimeout("late"), 504, "upstream_timeout"),
        (UpstreamLimited("slow down", extra={"retry_after": 7}), 429, "rate_limit_exceeded"),
        (UpstreamRejected("too long", code="context_length_exceeded"), 400, "context_length_exceeded"),
        (UpstreamRejected("no", code="model_not_found"), 400, "model_not_found"),
        (UpstreamRejected("who?", code="upstream_authentication_error"), 502, "upstream_authentication_error"),
        (RuntimeError("secret detail"), 500, "server_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_upstream_that_refuses_is_an_http_error_also_for_a_stream(
    api: Agents, failure: Exception, status: int, code: str, stream: bool
) -> None:
    api.house.model.answers(failure)
    answer = api.http.post("/v1/responses", json={"model": "m", "input": "Go.", "stream": stream})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"} and "secret" not in answer.text
    assert answer.headers["x-request-id"]


def test_a_stream_that_breaks_off_closes_what_it_opened_and_fails(api: Agents, client: OpenAI) -> None:
    api.house.model.answers(TextChunk("Hel"), UpstreamBroken("gone"))
    events = check_stream(raw_stream(api))
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"
    stored = client.responses.retrieve(events[0]["response"]["id"])
    assert stored.status == "failed" and stored.output_text == "Hel"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "x"}, "model"),
        ({"model": "m"}, "input"),
        ({"model": "m", "input": 7}, "input"),
        ({"model": "m", "input": "x", "temperature": 3}, "temperature"),
        ({"model": "m", "input": "x", "tools": [{"type": "function"}]}, "tools[0].name"),
        ({"model": "m", "input": "x", "previous_response_id": "resp_nope"}, "previous_response_id"),
        ({"model": "m", "input": "x", "metadata": {"k": 1}}, "metadata.k"),
        ({"model": "m", "input": "x", "background": True, "store": False}, "background"),
    ],
)
def test_a_bad_body_is_told_which_parameter_is_at_fault(api: Agents, body: Any, param: str) -> None:
    answer = api.http.post("/v1/responses", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff"])
def test_what_is_no_json_object_is_a_400(api: Agents, content: bytes) -> None:
    answer = api.http.post("/v1/responses", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["code"] is None


def test_unknown_ids_are_404_and_400_on_the_llama_stack_path(client: OpenAI, alias: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_unknown")
    with pytest.raises(openai.BadRequestError, match="not found"):
        alias.responses.retrieve("resp_unknown")


def test_unknown_parameters_and_tools_are_tolerated(api: Agents) -> None:
    api.house.model.says("ok")
    body = {"model": "m", "input": "x", "client_metadata": {"a": 1}, "tools": [{"type": "shell", "name": "n"}]}
    answer = api.http.post("/v1/responses", json=body)
    assert answer.status_code == 200 and answer.json()["tools"] == [{"type": "shell", "name": "n"}]


def test_tools_that_come_as_an_item_are_offered_and_keep_their_namespace(api: Agents) -> None:
    api.house.model.calls(("functions__exec", {"input": "ls"}))
    inner = {"type": "custom", "name": "exec", "description": "Runs a command."}
    tools = {
        "type": "additional_tools",
        "role": "developer",
        "tools": [{"type": "namespace", "name": "functions", "tools": [inner]}],
    }
    body = {"model": "m", "input": [tools, {"role": "user", "content": "What is here?"}], "store": False}
    answer = api.http.post("/v1/responses", json=body).json()
    [call] = answer["output"]
    assert (call["type"], call["namespace"], call["name"], call["input"]) == (
        "custom_tool_call",
        "functions",
        "exec",
        "ls",
    )
    [offered] = api.house.model.requests[0].tools
    assert (offered.name, offered.kind) == ("functions__exec", "custom")
    body["input"] = [{"type": "additional_tools", "tools": [7]}]
    refused = api.http.post("/v1/responses", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input[0].tools[0]")


def test_the_address_of_a_server_that_comes_as_an_item_is_not_shown_and_must_be_allowed(api: Agents) -> None:
    server = {
        "type": "mcp",
        "server_label": "s",
        "server_url": "https://tools.example/secret?key=1",
        "headers": {"k": "v"},
    }
    item = {"type": "additional_tools", "tools": [server]}
    api.house.model.says("Hello.")
    body: Any = {"model": "m", "input": [item, {"role": "user", "content": "Hi."}]}
    made = api.http.post("/v1/responses", json=body).json()
    listed = api.http.get(f"/v1/responses/{made['id']}/input_items").text
    assert "secret" not in listed and "https://tools.example/<redacted>" in listed and '"k"' not in listed
    assert "secret" not in api.http.get("/v1/responses").text
    api.house.tools.forbidden = "https://tools.example/secret?key=1"
    refused = api.http.post("/v1/responses", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input[0].tools[0].server_url")


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_inside_a_namespace_is_kept_by_its_label_alone(api: Agents, stream: bool) -> None:
    inner = {"type": "mcp", "server_label": "s", "server_url": "https://tools.example/secret", "headers": {"k": "v"}}
    tools = [{"type": "namespace", "name": "n", "tools": [inner]}]
    api.house.model.says("Hello.")
    told = api.http.post("/v1/responses", json={"model": "m", "input": "Hi.", "tools": tools, "stream": stream})
    assert told.status_code == 200 and "secret" not in told.text
    [listed] = api.http.get("/v1/responses").json()["data"]
    assert listed["status"] == "completed" and listed["tools"][0]["tools"] == [{"type": "mcp", "server_label": "s"}]


def test_a_pdf_is_listed_as_it_was_sent_and_can_be_sent_again(api: Agents) -> None:
    data = "data:application/pdf;base64," + base64.b64encode(b"%PDF-1.4 what it says").decode()
    part = {"type": "input_file", "filename": "a.pdf", "file_data": data}
    for _ in range(2):
        api.house.model.says("Read.")
    made = api.http.post("/v1/responses", json={"model": "m", "input": [{"role": "user", "content": [part]}]}).json()
    listed = api.http.get(f"/v1/responses/{made['id']}/input_items").json()["data"]
    assert listed[0]["content"] == [part]
    again = api.http.post("/v1/responses", json={"model": "m", "input": listed})
    assert again.status_code == 200, again.text
    first, second = api.house.model.requests
    assert first.messages == second.messages


def test_a_file_is_listed_by_its_address_and_can_be_sent_or_named_again(api: Agents) -> None:
    documents = api.house.engine.world.retriever
    assert isinstance(documents, InlineDocuments)
    place = "https://files.example/a.pdf"
    documents.files[place] = FetchedFile(b"%PDF-what it says", "application/pdf", "a.pdf")
    part = {"type": "input_file", "filename": "a.pdf", "file_url": place}
    for _ in range(3):
        api.house.model.says("Read.")
    made = api.http.post("/v1/responses", json={"model": "m", "input": [{"role": "user", "content": [part]}]}).json()
    listed = api.http.get(f"/v1/responses/{made['id']}/input_items").json()["data"]
    assert listed[0]["content"] == [part]
    for items in (listed, [{"type": "item_reference", "id": listed[0]["id"]}]):
        again = api.http.post("/v1/responses", json={"model": "m", "input": items})
        assert again.status_code == 200, again.text
    first, second, third = api.house.model.requests
    assert first.messages == second.messages == third.messages
    assert documents.fetched == [place, place], "what a reference names has been fetched before"


def test_a_reference_to_tools_that_came_as_an_item_offers_no_server_whose_address_was_a_secret(api: Agents) -> None:
    secret, public = "https://tools.example/secret", "https://public.example"
    servers = [
        {"type": "mcp", "server_label": url[8], "server_url": url, "require_approval": "never"}
        for url in (secret, public)
    ]
    user = {"role": "user", "content": "Hi."}
    tools: dict[str, Any] = {"type": "additional_tools", "tools": servers}
    for _ in range(2):
        api.house.model.says("Hello.")
        made = api.http.post("/v1/responses", json={"model": "m", "input": [user, tools]}).json()
        newest = api.http.get(f"/v1/responses/{made['id']}/input_items").json()["data"][0]
        assert newest["tools"][0]["server_url"] == "https://tools.example/<redacted>"
        tools = {"type": "item_reference", "id": newest["id"]}
    asked_at = [
        {tool.source.endpoint for tool in asked.tools if tool.source is not None} for asked in api.house.model.requests
    ]
    assert asked_at == [{secret, public}, {public}]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/openai/v1/responses"])
def test_a_tool_server_gets_the_headers_of_the_provider_data(api: Agents, path: str) -> None:
    api.house.tools.functions = {"look": lambda: "seen"}
    url, secrets = "https://tools.example/mcp", {"Authorization": "Bearer zz-secret-1"}
    server = {"type": "mcp", "server_label": "s", "server_url": url, "require_approval": "never"}
    api.house.model.calls(("look", {}))
    api.house.model.says("Done.")
    made = api.http.post(
        path,
        json={"model": "m", "input": "Go.", "tools": [server]},
        headers={"x-llamastack-provider-data": json.dumps({"mcp_headers": {url: secrets}})},
    )
    [(_, _, scope)] = api.house.tools.ran
    assert scope.provider_data == {"mcp_headers": {url: secrets}}
    stored = api.http.get(f"/v1/responses/{made.json()['id']}?stream=true").text
    assert "zz-secret" not in made.text + stored


@pytest.mark.parametrize(
    "headers",
    [{"connection": "Upgrade", "upgrade": "websocket"}, {"sec-websocket-version": "13", "sec-websocket-key": "a"}],
)
def test_a_websocket_handshake_is_answered_by_a_clear_refusal(api: Agents, headers: dict[str, str]) -> None:
    answer = api.http.get("/v1/responses", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (426, "websocket_not_supported")


def test_a_client_that_drops_its_stream_loses_nothing(api: Agents, client: OpenAI) -> None:
    gate = asyncio.Event()
    api.house.model.answers(TextChunk("Hel"), gate, TextChunk("lo"), *_end())
    stream = client.responses.create(model="m", input="Go.", stream=True)
    identifier = next(iter(stream)).response.id  # type: ignore[union-attr]
    stream.close()
    while not hasattr(gate, "_loop") or gate._loop is None:  # type: ignore[attr-defined]
        pass
    gate._loop.call_soon_threadsafe(gate.set)  # type: ignore[attr-defined]
    told = check_stream(api.http.get(f"/v1/responses/{identifier}?stream=true").content)
    assert told[-1]["response"]["output"][0]["content"][0]["text"] == "Hello"


def _end() -> list[Any]:
    from turnloom.ports import Finished
    from turnloom.testing import USAGE

    return [Finished("stop", USAGE)]


def test_an_item_reference_is_the_item_itself(api: Agents, client: OpenAI) -> None:
    api.house.model.says("Hello.")
    api.house.model.says("Again.")
    made = client.responses.create(model="m", input="Hi.")
    reference: Any = [{"type": "item_reference", "id": made.output[0].id}, {"role": "user", "content": "Go."}]
    client.responses.create(model="m", input=reference)
    assert api.house.model.requests[-1].messages == (AssistantMessage("Hello."), UserMessage("Go."))
    unknown: Any = [{"type": "item_reference", "id": "msg_unknown"}]
    with pytest.raises(openai.NotFoundError, match="msg_unknown"):
        client.responses.create(model="m", input=unknown)


def test_an_item_whose_id_the_client_chose_can_be_named_where_it_is_in_the_context(api: Agents, client: OpenAI) -> None:
    for text in ("Hello.", "Again.", "Once more."):
        api.house.model.says(text)
    mine: Any = [{"role": "user", "content": "Hi.", "id": "msg_mine", "type": "message"}]
    first = client.responses.create(model="m", input=mine)
    second = client.responses.create(model="m", input="Go.", previous_response_id=first.id)
    assert "msg_mine" in [item.id for item in client.responses.input_items.list(second.id)]
    reference: Any = [{"type": "item_reference", "id": "msg_mine"}]
    client.responses.create(model="m", input=reference, previous_response_id=second.id)
    assert api.house.model.requests[-1].messages[-1] == UserMessage("Hi.")
    client.responses.delete(first.id)
    for name, hinted in (("msg_mine", True), (first.output[0].id, False)):
        reference = [{"type": "item_reference", "id": name}]
        with pytest.raises(openai.NotFoundError, match=f"Item '{name}' not found") as raised:
            client.responses.create(model="m", input=reference)
        assert ("previous_response_id" in raised.value.message) is hinted


def test_logprobs_that_came_unasked_are_shown_to_who_asks_later(api: Agents, client: OpenAI) -> None:
    token = {"token": "Hi", "logprob": -0.5, "bytes": None, "top_logprobs": []}
    api.house.model.answers(TextChunk("Hi", "text", (token,)), *_end())
    made = client.responses.create(model="m", input="Go.")
    later = client.responses.retrieve(made.id, include=["message.output_text.logprobs"])
    told = [shown.output[0].content[0].logprobs for shown in (made, later)]  # type: ignore[union-attr]
    assert (told[0], told[1][0].token) == ([], "Hi")  # type: ignore[index]


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "m", "input": [{"type": "foo", "id": [1]}]}',
        b'{"model": "m", "input": [{"type": "computer_call", "call_id": ["x"]}]}',
        b'{"model": "m", "input": "x", "tools": [{"type": "foo", "a": 1e999}]}',
        b'{"model": "m", "input": "x", "tools": [{"type": "mcp", "server_label": "s", "server_url": "http://[::1"}]}',
    ],
)
def test_what_cannot_be_stored_or_sent_on_is_refused(api: Agents, body: bytes) -> None:
    answer = api.http.post("/v1/responses", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert api.http.get("/v1/responses").json()["data"] == []


def test_a_flag_that_is_none_is_told_by_its_name(api: Agents) -> None:
    answer = api.http.get("/v1/responses/resp_x?stream=maybe")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")


def test_a_request_sent_again_is_found_though_what_it_named_is_gone(api: Agents, client: OpenAI) -> None:
    api.house.model.says("Hello.")
    api.house.model.says("Again.")
    first = client.responses.create(model="m", input="Hi.")
    body: Any = {"model": "m", "input": [{"type": "item_reference", "id": first.output[0].id}]}
    key = {"idempotency-key": "k"}
    made = api.http.post("/v1/responses", json=body, headers=key).json()
    client.responses.delete(first.id)
    again = api.http.post("/v1/responses", json=body, headers=key)
    assert again.status_code == 200 and again.json() == made


def test_a_key_stands_for_a_request_on_one_path(api: Agents) -> None:
    api.house.model.says("Hello.")
    body, key = {"model": "m", "input": "Hi."}, {"idempotency-key": "k"}
    assert api.http.post("/v1/responses", json=body, headers=key).status_code == 200
    other = api.http.post("/v1/openai/v1/responses", json=body, headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")


def test_a_response_that_was_begun_with_a_key_can_be_told_either_way(api: Agents) -> None:
    api.house.model.says("Hello.")
    body, key = {"model": "m", "input": "Hi."}, {"idempotency-key": "k"}
    made = api.http.post("/v1/responses", json=body, headers=key).json()
    streamed = check_stream(api.http.post("/v1/responses", json={**body, "stream": True}, headers=key).content)
    assert streamed[-1]["response"] == made and len(api.house.model.requests) == 1


ORPHAN = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}


@pytest.mark.parametrize("items", [[ORPHAN], [{**ORPHAN, "type": "function_call", "name": "f", "arguments": "{}"}]])
def test_what_cannot_be_asked_cannot_be_counted(api: Agents, items: list[Any]) -> None:
    body = {"model": "m", "input": items}
    created, counted = (api.http.post(path, json=body) for path in ("/v1/responses", "/v1/responses/input_tokens"))
    assert (counted.status_code, counted.json()) == (400, created.json())
