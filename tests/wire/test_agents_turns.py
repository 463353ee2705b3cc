"""Turns of the Agents API over HTTP: the order of frames, what is read back, what is refused."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from tests.wire.conftest import Agents, frames, last_turn, order
from turnloom.domain.errors import UpstreamBroken, UpstreamLimited, UpstreamRejected
from turnloom.domain.message import AssistantMessage, SystemMessage, ToolMessage, UserMessage
from turnloom.ports import Finished, TextChunk
from turnloom.testing import USAGE

LOOKUP = {"name": "lookup", "description": "Looks up.", "parameters": None}


def reply(turn: dict[str, Any], content: str = "42") -> list[dict[str, Any]]:
    return [
        {"call_id": call["call_id"], "tool_name": call["tool_name"], "content": content, "metadata": {"from": "me"}}
        for call in turn["output_message"]["tool_calls"]
    ]


def read(api: Agents, session: str, turn_id: str) -> dict[str, Any]:
    found: dict[str, Any] = api.http.get(f"{session}/turn/{turn_id}").json()
    return found


# --- the order of frames


def test_a_plain_turn_streams_its_text_and_reads_back_the_same(api: Agents) -> None:
    api.house.model.says("Hel", "lo")
    session = api.talk()
    found = api.stream(session)
    assert order(found) == "TS ST(inf) PR(inf:text) PR(inf:text) SC(inf) TC"
    turn = last_turn(found)
    assert turn["output_message"] == {
        "role": "assistant",
        "content": "Hello",
        "stop_reason": "end_of_turn",
        "tool_calls": [],
    }
    assert turn == read(api, session, turn["turn_id"])
    assert api.http.get(session).json()["turns"] == [turn]
    assert turn["steps"][0] == found[-2]["event"]["payload"]["step_details"]


def test_without_stream_the_answer_is_the_turn(api: Agents) -> None:
    api.house.model.says("Hello")
    session = api.talk()
    turn = api.turn(session).json()
    assert turn["status"] == "completed" and turn == read(api, session, turn["turn_id"])


def test_server_tools_of_one_message_are_told_grouped_and_in_call_order(api: Agents) -> None:
    slow = asyncio.Event()

    async def echo(text: str) -> str:
        await slow.wait()
        return text

    def add(a: int, b: int) -> int:
        assert api.house.services is not None
        slow.set()
        return a + b

    api.house.tools.functions = {**api.house.tools.functions, "echo": echo, "add": add}
    api.house.model.calls(("echo", {"text": "x"}), ("add", {"a": 1, "b": 2}), text="Well.")
    api.house.model.says("done")
    found = api.stream(api.talk(toolgroups=["test::tools"]))
    assert order(found) == (
        "TS ST(inf) PR(inf:text) PR(inf:tool_call) PR(inf:tool_call) SC(inf)"
        " ST(tool) PR(tool:tool_call) SC(tool) ST(tool) PR(tool:tool_call) SC(tool)"
        " ST(inf) PR(inf:text) SC(inf) TC"
    )
    steps = last_turn(found)["steps"]
    assert [step["step_type"] for step in steps] == ["inference", "tool_execution", "tool_execution", "inference"]
    assert steps[0]["model_response"]["content"] == "Well."
    assert steps[0]["model_response"]["stop_reason"] == "end_of_message"
    assert [step["tool_responses"][0]["content"] for step in steps[1:3]] == ["x", "3"]


def test_a_client_tool_rests_the_turn_and_resume_goes_on_with_it(api: Agents) -> None:
    api.house.model.calls(("lookup", {"key": 1}))
    api.house.model.says("found")
    session = api.talk(client_tools=[LOOKUP])
    first = api.stream(session)
    assert order(first) == "TS ST(inf) PR(inf:tool_call) SC(inf) TA"
    waiting = last_turn(first)
    assert waiting["status"] == "awaiting_input" and waiting["completed_at"] is None
    assert waiting["output_message"]["stop_reason"] == "end_of_message"
    call = waiting["output_message"]["tool_calls"][0]
    assert (call["arguments"], call["arguments_json"]) == ({"key": 1}, '{"key": 1}')
    second = frames(api.resume(session, waiting["turn_id"], reply(waiting), stream=True))
    assert order(second) == "SC(tool) ST(inf) PR(inf:text) SC(inf) TC"
    turn = last_turn(second)
    assert [step["step_type"] for step in turn["steps"]] == ["inference", "tool_execution", "inference"]
    assert len({step["step_id"] for step in turn["steps"]}) == 3
    assert turn["steps"][1]["tool_responses"] == reply(waiting)
    assert turn["turn_id"] == waiting["turn_id"] and turn["started_at"] == waiting["started_at"]


def test_server_and_client_calls_of_one_message_run_and_then_await(api: Agents) -> None:
    api.house.model.calls(("lookup", {}), ("echo", {"text": "s"}))
    api.house.model.says("both")
    session = api.talk(client_tools=[LOOKUP], toolgroups=["test::tools"])
    first = api.stream(session)
    assert order(first) == (
        "TS ST(inf) PR(inf:tool_call) PR(inf:tool_call) SC(inf) ST(tool) PR(tool:tool_call) SC(tool) TA"
    )
    waiting = last_turn(first)
    assert [call["tool_name"] for call in waiting["output_message"]["tool_calls"]] == ["lookup"]
    api.resume(session, waiting["turn_id"], reply(waiting))
    messages = api.house.model.requests[-1].messages
    assert [m.content for m in messages if isinstance(m, ToolMessage)] == ["42", "echo: s"], "call order"


def test_the_iteration_limit_completes_the_turn(api: Agents) -> None:
    for _ in range(2):
        api.house.model.calls(("echo", {"text": "again"}))
    found = api.stream(api.talk(toolgroups=["test::tools"], max_infer_iters=2))
    assert order(found).endswith("SC(tool) ST(inf) PR(inf:tool_call) SC(inf) TC")
    turn = last_turn(found)
    assert turn["status_reason"] == "max_infer_iters"
    assert turn["output_message"]["stop_reason"] == "end_of_turn" and turn["output_message"]["tool_calls"] == []


def test_out_of_tokens_runs_no_call(api: Agents) -> None:
    api.house.model.says("and so", finish="length")
    turn = last_turn(api.stream(api.talk()))
    assert (turn["output_message"]["stop_reason"], turn["status_reason"]) == ("out_of_tokens", "out_of_tokens")


def test_documents_are_a_step_of_their_own_and_reach_the_model(api: Agents) -> None:
    api.house.model.says("read")
    api.house.model.says("still known")
    session = api.talk()
    found = api.stream(session, documents=[{"content": "The sky is green.", "mime_type": "text/plain"}])
    assert order(found).startswith("TS ST(mem) SC(mem) ST(inf)")
    step = last_turn(found)["steps"][0]
    assert (step["vector_db_ids"], step["inserted_context"]) == ("documents", "The sky is green.")
    assert last_turn(found)["input_messages"][0]["content"] == "Go."
    api.stream(session)
    for request in api.house.model.requests:
        assert request.messages[1] == UserMessage("Go.\n\nThe sky is green.")


# --- failures


def test_an_upstream_that_breaks_off_ends_the_stream_with_an_error_and_frees_the_session(api: Agents) -> None:
    api.house.model.breaks_after("Hel")
    api.house.model.says("fine")
    session = api.talk()
    found = api.stream(session)
    assert order(found) == "TS ST(inf) PR(inf:text) ERR"
    error = found[-1]["error"]
    assert error["message"].startswith("502: ") and error["code"] == "upstream_error"
    failed = read(api, session, error["turn_id"])
    assert (failed["status"], failed["status_reason"]) == ("failed", "upstream_error")
    assert failed["output_message"]["content"] == "Hel"
    assert last_turn(api.stream(session))["status"] == "completed"
    assert len(api.house.model.requests[-1].messages) == 2, "a failed turn is left out of later context"


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (UpstreamBroken("down"), 502, "upstream_error"),
        (UpstreamLimited("slow down", extra={"retry_after": 7}), 429, "rate_limited"),
        (UpstreamRejected("no", code="model_not_found"), 404, "model_not_found"),
        (UpstreamRejected("who?", code="upstream_authentication_error"), 502, "upstream_error"),
        (RuntimeError("secret detail"), 500, "internal_error"),
    ],
)
def test_without_stream_a_failed_turn_answers_with_its_status(
    api: Agents, failure: Exception, status: int, code: str
) -> None:
    api.house.model.answers(failure)
    session = api.talk()
    answer = api.turn(session)
    body = answer.json()
    assert (answer.status_code, body["status"], body["error"]["code"]) == (status, status, code)
    assert "secret" not in answer.text and answer.headers["x-should-retry"] == "false"
    assert read(api, session, body["error"]["turn_id"])["status"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [('{"text": ', "not a JSON object"), ("[1]", "not a JSON object")],
)
def test_arguments_that_are_no_object_become_a_tool_response(api: Agents, arguments: str, told: str) -> None:
    api.house.model.calls(("echo", arguments))
    api.house.model.says("sorry")
    found = api.stream(api.talk(toolgroups=["test::tools"]))
    step = last_turn(found)["steps"][1]
    assert told in step["tool_responses"][0]["content"]
    assert step["tool_responses"][0]["metadata"]["error_message"]
    assert step["tool_calls"][0]["arguments"] == arguments
    assert found[2]["event"]["payload"]["delta"] == {
        "type": "tool_call",
        "tool_call": arguments,
        "parse_status": "failed",
    }


@pytest.mark.parametrize("call", [("broken", {}), ("nonsense", {})])
def test_a_failing_or_unknown_tool_does_not_end_the_turn(api: Agents, call: tuple[str, Any]) -> None:
    api.house.model.calls(call)
    api.house.model.says("never mind")
    turn = last_turn(api.stream(api.talk(toolgroups=["test::tools"])))
    assert turn["status"] == "completed"
    assert set(turn["steps"][1]["tool_responses"][0]["metadata"]) == {"error_code", "error_message"}


@pytest.mark.parametrize(
    ("config", "body", "code"),
    [
        ({"toolgroups": ["nowhere"]}, {}, "unknown_toolgroup"),
        ({"toolgroups": ["builtin::websearch"]}, {}, "unknown_toolgroup"),
        ({}, {"toolgroups": [{"name": "builtin::rag/knowledge_search", "args": {}}]}, "unknown_toolgroup"),
        ({}, {"toolgroups": ["test::tools/nothing"]}, "unknown_tool"),
        ({"toolgroups": ["test::tools"], "client_tools": [{"name": "echo"}]}, {}, "duplicate_tool"),
        ({"input_shields": ["guard"]}, {}, "unknown_shield"),
        ({}, {"tool_config": {"tool_choice": "nothing"}}, "unknown_tool"),
        ({}, {"documents": [{"content": {"x": 1}, "mime_type": "text/plain"}]}, "document_rejected"),
        ({}, {"documents": [{"content": "x" * 700_000, "mime_type": "text/plain"}] * 2}, "document_rejected"),
        ({}, {"messages": []}, "invalid_request"),
        ({}, {"messages": [{"role": "assistant", "content": "x"}]}, "invalid_request"),
        ({}, {"messages": "hello"}, "invalid_request"),
    ],
)
def test_what_can_be_known_beforehand_is_an_http_error_and_leaves_nothing_behind(
    api: Agents, config: dict[str, Any], body: dict[str, Any], code: str
) -> None:
    session = api.talk(**config)
    answer = api.turn(session, stream=True, **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == code and answer.json()["detail"]
    assert api.http.get(session).json()["turns"] == []


def test_unknown_ids_are_404_with_their_own_code(api: Agents) -> None:
    api.house.model.says("x")
    session = api.talk()
    turn_id = last_turn(api.stream(session))["turn_id"]
    agent = session.split("/session/")[0]
    nobody = "01977420-dc00-7000-8000-000000000999"
    cases = {
        f"/v1/agents/{nobody}": "agent_not_found",
        f"{agent}/session/{nobody}": "session_not_found",
        f"{session}/turn/{nobody}": "turn_not_found",
        f"{session}/turn/x": "turn_not_found",
        f"{session}/turn/{turn_id}/step/{nobody}": "step_not_found",
        f"/v1/agents/{nobody}/session/{nobody}/turn/x": "agent_not_found",
    }
    for path, code in cases.items():
        answer = api.http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, code), path
        assert len(answer.headers["x-trace-id"]) == 32


# --- one turn at a time


def test_a_second_turn_meets_409_and_the_first_one_is_not_disturbed(api: Agents) -> None:
    gate = asyncio.Event()
    api.house.model.answers(TextChunk("slow"), gate, TextChunk("ly"), Finished("stop", USAGE))
    session = api.talk()
    answers: list[Any] = []
    first = threading.Thread(target=lambda: answers.append(api.stream(session)))
    first.start()
    while not api.house.model.requests:
        pass
    refused = api.turn(session, "me too")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "session_busy")
    assert refused.headers["retry-after"] == "2"
    running = read(api, session, refused.json()["error"]["turn_id"])
    assert (running["status"], running["completed_at"]) == ("in_progress", None)
    assert running["output_message"]["content"] == ""
    _set(api, gate)
    first.join()
    assert last_turn(answers[0])["output_message"]["content"] == "slowly"
    assert len(api.http.get(session).json()["turns"]) == 1


def _set(api: Agents, gate: asyncio.Event) -> None:
    """Open a gate that the server's loop waits at."""
    loop = gate._loop  # type: ignore[attr-defined]
    loop.call_soon_threadsafe(gate.set)


def test_a_turn_that_awaits_input_is_abandoned_by_a_newer_one(api: Agents) -> None:
    api.house.model.calls(("lookup", {}))
    api.house.model.says("new")
    session = api.talk(client_tools=[LOOKUP])
    waiting = last_turn(api.stream(session))
    assert last_turn(api.stream(session))["status"] == "completed"
    assert read(api, session, waiting["turn_id"])["status"] == "abandoned"
    late = api.resume(session, waiting["turn_id"], reply(waiting))
    assert (late.status_code, late.json()["error"]["code"]) == (409, "turn_not_awaiting_input")
    assert late.headers["x-should-retry"] == "false"
    answers = [m for m in api.house.model.requests[-1].messages if isinstance(m, ToolMessage)]
    assert len(answers) == 1 and "no result" in answers[0].content


def test_a_turn_that_is_cancelled_shows_what_was_said_and_its_message_stays_in_the_context(api: Agents) -> None:
    """What was left half said is shown to its reader, not to the model."""
    api.house.model.answers(TextChunk("Hel"), asyncio.Event(), TextChunk("lo"), Finished("stop", USAGE))
    api.house.model.says("Bye.")
    session = api.talk()
    body = {"messages": [{"role": "user", "content": "Go."}], "stream": True}
    with api.http.stream("POST", f"{session}/turn", json=body) as answer:
        told = (json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.startswith("data: "))
        turn_id = next(told)["event"]["payload"]["turn_id"]
        next(frame for frame in told if frame["event"]["payload"]["event_type"] == "step_progress")
        assert api.http.post(f"{session}/turn/{turn_id}/cancel").json()["status"] == "cancelled"
        assert [frame["error"]["code"] for frame in told] == ["turn_cancelled"]
    turn = read(api, session, turn_id)
    assert (turn["status"], turn["steps"]) == ("cancelled", [])
    said = {"role": "assistant", "content": "Hel", "stop_reason": "end_of_message", "tool_calls": []}
    assert turn["output_message"] == said
    assert last_turn(api.stream(session, "Stop."))["status"] == "completed"
    asked = [UserMessage("Go."), UserMessage("Stop.")]
    assert api.house.model.requests[-1].messages == (SystemMessage("Be brief."), *asked)


# --- resuming


def test_tool_responses_must_answer_exactly_the_pending_calls(api: Agents) -> None:
    api.house.model.calls(("lookup", {"n": 1}), ("lookup", {"n": 2}))
    api.house.model.says("ok")
    session = api.talk(client_tools=[LOOKUP])
    waiting = last_turn(api.stream(session))
    one, two = reply(waiting)
    for wrong in ([one], [one, two, {**one, "call_id": "other"}], [one, one, two]):
        answer = api.resume(session, waiting["turn_id"], wrong)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "tool_call_mismatch")
    assert api.resume(session, waiting["turn_id"], [two, one]).json()["status"] == "completed"


def test_the_same_resume_again_attaches_and_runs_nothing_twice(api: Agents) -> None:
    api.house.model.calls(("lookup", {}))
    api.house.model.says("once")
    session = api.talk(client_tools=[LOOKUP])
    waiting = last_turn(api.stream(session))
    first = frames(api.resume(session, waiting["turn_id"], reply(waiting), stream=True))
    again = frames(api.resume(session, waiting["turn_id"], reply(waiting), stream=True))
    assert again == first and len(api.house.model.requests) == 2


def test_an_empty_resume_replays_what_came_after_a_number(api: Agents) -> None:
    api.house.model.calls(("lookup", {}))
    api.house.model.says("a", "b", "c")
    session = api.talk(client_tools=[LOOKUP])
    first = api.stream(session)
    waiting = last_turn(first)
    told = first + frames(api.resume(session, waiting["turn_id"], reply(waiting), stream=True))
    replay = frames(api.resume(session, waiting["turn_id"], [], stream=True))
    assert replay == [frame for frame in told if _awaits(frame) is False]
    seen = told[6]["sequence_number"]
    rest = frames(api.resume(session, waiting["turn_id"], [], stream=True, starting_after=seen))
    assert rest == [frame for frame in told if frame["sequence_number"] > seen]
    assert api.resume(session, waiting["turn_id"], []).json() == last_turn(told)


def _awaits(frame: dict[str, Any]) -> bool:
    return bool(frame["event"]["payload"]["event_type"] == "turn_awaiting_input")


def test_calls_that_the_client_parsed_from_the_text_reopen_the_newest_turn(api: Agents) -> None:
    for text in ("Action: lookup", "answer", "next"):
        api.house.model.says(text)
    session = api.talk()
    turn = last_turn(api.stream(session))
    response = {"call_id": "mine", "tool_name": "lookup", "content": "42", "metadata": {}}
    found = frames(api.resume(session, turn["turn_id"], [response], stream=True))
    assert order(found) == "SC(tool) ST(inf) PR(inf:text) SC(inf) TC"
    assert last_turn(found)["steps"][1]["tool_calls"] == []
    assert UserMessage("Result of lookup: 42") in api.house.model.requests[-1].messages
    assert last_turn(api.stream(session))["output_message"]["content"] == "next"
    assert len(api.http.get(session).json()["turns"]) == 2
    late = api.resume(session, turn["turn_id"], [{**response, "call_id": "again"}])
    assert late.status_code == 409, "only the newest turn can be reopened"


# --- a request that comes twice


def test_a_retried_create_follows_the_turn_it_has_started(api: Agents) -> None:
    api.house.model.says("once")
    session = api.talk()
    body = {"messages": [{"role": "user", "content": "Go."}]}
    first = api.http.post(f"{session}/turn", json=body).json()
    again = api.http.post(f"{session}/turn", json=body, headers={"x-stainless-retry-count": "1"}).json()
    assert again == first and len(api.house.model.requests) == 1


def test_an_idempotency_key_finds_its_turn_however_old(api: Agents) -> None:
    for text in ("one", "two"):
        api.house.model.says(text)
    session = api.talk()
    body = {"messages": [{"role": "user", "content": "Go."}]}
    first = api.http.post(f"{session}/turn", json=body, headers={"idempotency-key": "k"}).json()
    api.turn(session, "another")
    again = api.http.post(f"{session}/turn", json=body, headers={"idempotency-key": "k"}).json()
    assert again == first


# --- what the model gets to see


def test_the_model_sees_earlier_turns_in_order(api: Agents) -> None:
    session = api.talk()
    for number in range(12):
        api.house.model.says(f"answer {number}")
        api.turn(session, f"question {number}")
    messages = api.house.model.requests[-1].messages
    assert messages[0] == SystemMessage("Be brief.")
    assert [m.content for m in messages if isinstance(m, UserMessage)] == [f"question {n}" for n in range(12)]
    assert [m.text for m in messages if isinstance(m, AssistantMessage)] == [f"answer {n}" for n in range(11)]


@pytest.mark.parametrize(
    ("choice", "sent"), [("auto", None), ("required", "required"), ("echo", "echo"), ("none", None)]
)
def test_a_forcing_tool_choice_binds_until_there_is_a_result(api: Agents, choice: str, sent: str | None) -> None:
    if choice != "none":
        api.house.model.calls(("echo", {"text": "x"}))
    api.house.model.says("done")
    api.stream(api.talk(toolgroups=["test::tools"], tool_config={"tool_choice": choice}))
    first, *later = api.house.model.requests
    assert first.tool_choice == sent and [request.tool_choice for request in later] == [None] * len(later)
    assert bool(first.tools) == (choice != "none")


def test_what_a_turn_brings_along_is_kept_on_resume(api: Agents) -> None:
    api.house.model.calls(("lookup", {}))
    api.house.model.says("done")
    session = api.talk(client_tools=[LOOKUP])
    extra = {"toolgroups": [{"name": "test::tools/echo", "args": {"text": "fixed"}}], "tool_config": None}
    waiting = last_turn(api.stream(session, **extra))
    api.resume(session, waiting["turn_id"], reply(waiting))
    assert [[tool.name for tool in r.tools] for r in api.house.model.requests] == [["lookup", "echo"]] * 2


def test_args_of_a_toolgroup_are_laid_over_the_models_own(api: Agents) -> None:
    api.house.model.calls(("echo", {"text": "mine"}))
    api.house.model.says("done")
    api.stream(api.talk(toolgroups=[{"name": "test::tools", "args": {"text": "agent"}}]))
    assert api.house.tools.ran[0][1] == {"text": "agent"}


def test_sampling_and_format_go_upstream_as_asked(api: Agents) -> None:
    api.house.model.says("x")
    sampling = {
        "strategy": {"type": "top_p", "temperature": 0.5, "top_p": 0.9},
        "max_tokens": 100,
        "repetition_penalty": 1.1,
        "stop": ["END"],
    }
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    api.stream(api.talk(sampling_params=sampling, response_format={"type": "json_schema", "json_schema": schema}))
    request = api.house.model.requests[0]
    assert request.sampling == {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 100,
        "repetition_penalty": 1.1,
        "stop": ["END"],
    }
    assert request.response_format == {"type": "json_schema", "json_schema": {"name": "response", "schema": schema}}


# --- ends


def test_deleting_an_agent_leaves_nothing_of_it(api: Agents) -> None:
    api.house.model.says("x")
    session = api.talk()
    api.stream(session)
    agent = session.split("/session/")[0]
    assert [api.http.delete(agent).status_code for _ in range(2)] == [204, 204]
    assert api.http.get(session).status_code == 404
    left = asyncio.run(api.house.services.turns.thread("default", session.rsplit("/", 1)[1]))
    assert left == []
    api.house.clock.advance(3700)
    assert api.http.delete(agent).status_code == 404


@pytest.mark.parametrize("content", [b"NaN", b"1e999"])
def test_a_body_that_could_not_be_stored_is_refused(api: Agents, content: bytes) -> None:
    agent = api.agent()
    body = b'{"session_name": "s", "more": ' + content + b"}"
    answer = api.http.post(f"/v1/agents/{agent}/session", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert api.http.get(f"/v1/agents/{agent}/sessions").json()["data"] == []


def test_headers_for_tool_servers_must_be_headers(api: Agents) -> None:
    session = api.talk()
    deep = '{"x": ' + "[" * 3000 + "]" * 3000 + "}"
    for given in (
        '{"mcp_headers": "x"}',
        '{"mcp_headers": {"http://x": {"a": 1}}}',
        "[]",
        "{",
        deep,
    ):
        headers = {"x-llamastack-provider-data": given}
        answer = api.http.post(
            f"{session}/turn", json={"messages": [{"role": "user", "content": "q"}]}, headers=headers
        )
        assert answer.status_code == 400, given


def test_reading_an_abandoned_turn_ends_with_a_frame_that_says_so(api: Agents) -> None:
    api.house.model.calls(("lookup", {}))
    api.house.model.says("new")
    session = api.talk(client_tools=[LOOKUP])
    waiting = last_turn(api.stream(session))
    api.stream(session)
    told = frames(api.resume(session, waiting["turn_id"], [], stream=True))
    assert told[-1]["error"]["code"] == "turn_abandoned"


def test_an_agent_is_taken_whole_and_what_cannot_be_kept_is_told(api: Agents) -> None:
    instructions = "x" * 1_000_000
    agent = api.agent(instructions=instructions)
    assert api.http.get(f"/v1/agents/{agent}").json()["agent_config"]["instructions"] == instructions
    refused = api.http.post(f"/v1/agents/{agent}/session", json={"session_name": instructions})
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "payload_too_large")
