"""How a model endpoint ends its answer, and what clients of both APIs get, over real HTTP on either side."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import build_house
from tests.server import LoopbackServer
from tests.upstream import Answer, BreakOff, Gate, Part, Received, ScriptedUpstream, delta, say, send
from tests.wire.apps import both_apis
from tests.wire.conftest import Agents
from tests.wire.responses_stream_checker import check_response, check_stream
from turnloom.adapters.openai_model import OpenAIModel

HELLO, STOP, HALF = delta(content="Hello"), delta("stop"), delta(content="Half an")
DONE = "data: [DONE]\n\n"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"tools": [{"type": "function", "name": "get_weather", "parameters": CITY}]}
CITY_PARAMETER = {"name": "city", "parameter_type": "string", "description": "c", "required": True}
AGENT_WEATHER = {"client_tools": [{"name": "get_weather", "description": "d", "parameters": [CITY_PARAMETER]}]}
GOOD_SERVER = {"type": "mcp", "server_label": "s", "server_url": "https://s.test", "require_approval": "never"}
SUCCESS = ["stop", "eos", "end_turn", "stop_sequence", "COMPLETE", "tool_calls", "tool_use", "function_call", "Stop"]
LENGTH = ["length", "MAX_TOKENS", "max_tokens", "model_length", "LENGTH"]
FILTER = ["content_filter", "content_filtered", "content_filter: PROHIBITED_CONTENT", "SAFETY", "RECITATION"]
FILTER += ["sensitive", "refusal", "safety", "Content_Filter: x"]
FAILURE = ["error", "network_error", "abort", "malformed_function_call", "whatever", "ERROR"]
TOKENS, FILTERED = {"reason": "max_output_tokens"}, {"reason": "content_filter"}


def fragment(arguments: str, name: str = "get_weather", *, index: int = 0, reason: str | None = None) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    call = {"index": index, "id": f"c{index + 1}", "type": "function", "function": function}
    return delta(reason, tool_calls=[call])


def in_one_piece(reason: str, **message: Any) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": reason}
    return send(json.dumps({"choices": [choice]}), content_type="application/json")


@dataclass
class ResponseOutcome:
    """A response in one piece, as its stream ends on the llama-stack path, and as they are read again: all the same."""

    status: str | int
    error: dict[str, Any] | None
    details: dict[str, Any] | None = None
    items: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass
class TurnOutcome:
    """A turn in one piece, as its stream ends, and as they are read again: all the same."""

    status: str
    reason: str | None
    text: str
    stop_reason: str
    calls: list[dict[str, Any]]
    error: dict[str, Any] | None


@dataclass
class Client(Agents):
    """A client of both APIs, and the endpoint behind them, which greets in answer to the result of a tool."""

    upstream: ScriptedUpstream

    def script(self, *parts: Part) -> None:
        """Let the endpoint send these parts in answer to everything else."""
        self.replay(send(*parts, DONE))

    def replay(self, answer: Answer) -> None:
        def reply(request: Received) -> Answer:
            has_result = any(message["role"] == "tool" for message in request.body["messages"])
            return say("Hello") if has_result else answer

        self.upstream.answer = reply

    def respond(self, **body: Any) -> ResponseOutcome:
        request = {"model": "m", "input": "hi", **body}
        whole = self.http.post("/v1/responses", json=request)
        stream = self.http.post("/v1/openai/v1/responses", json={**request, "stream": True})
        assert whole.status_code == stream.status_code
        if whole.status_code != 200:
            assert whole.json()["error"]["code"] == stream.json()["error"]["code"]
            return ResponseOutcome(whole.status_code, whole.json()["error"])
        check_response(whole.json())
        events = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: {")]
        documents = [whole.json(), events[-1]["response"]]
        documents += [self.http.get(f"/v1/responses/{document['id']}").json() for document in documents]
        check_stream(self.http.get(f"/v1/responses/{documents[0]['id']}?stream=true").content)
        outcome, *others = [_response_outcome(document) for document in documents]
        assert others == [outcome] * 3
        return outcome

    def run_turn(self, **config: Any) -> TurnOutcome:
        whole, streamed = self._run_turn(stream=False, **config), self._run_turn(stream=True, **config)
        if whole.error is not None and streamed.error is not None:
            assert streamed.error["message"].endswith(whole.error["message"])
            whole.error = streamed.error
        assert whole == streamed
        return streamed

    def _run_turn(self, *, stream: bool, **config: Any) -> TurnOutcome:
        session = self.talk(**config)
        answer = self.turn(session, "hi", stream=stream)
        last = json.loads(answer.text.split("data: ")[-1])
        [stored] = self.http.get(session).json()["turns"]
        if "error" in last:
            assert last["error"]["turn_id"] == stored["turn_id"]
            return _turn_outcome(stored, last["error"])
        assert stored == (last["event"]["payload"]["turn"] if stream else last)
        return _turn_outcome(stored, None)


def _response_outcome(document: dict[str, Any]) -> ResponseOutcome:
    items = [_item(item) for item in document["output"]]
    return ResponseOutcome(document["status"], document["error"], document["incomplete_details"], items)


def _item(item: dict[str, Any]) -> tuple[str, str, str]:
    text = "".join(part["text"] for part in item.get("content") or ())
    return item["type"], item.get("status", ""), text or item.get("arguments", "")


def _turn_outcome(stored: dict[str, Any], error: dict[str, Any] | None) -> TurnOutcome:
    output = stored["output_message"]
    return TurnOutcome(
        stored["status"],
        stored["status_reason"],
        output["content"],
        output["stop_reason"],
        [call["arguments"] for call in output["tool_calls"]],
        error,
    )


@pytest.fixture(scope="module")
def endpoint() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


@contextmanager
def client_of(folder: Path, endpoint: ScriptedUpstream, read_seconds: float = 20.0) -> Iterator[Client]:
    house = build_house(folder, good=lambda: "fine")
    model = OpenAIModel(endpoint.url, "key", backoff=0, timeout=read_seconds)
    engine = replace(house.engine, world=replace(house.engine.world, model=model))
    house.orchestrator.engine = engine
    services = replace(house.services, engine=engine)
    with LoopbackServer(both_apis(services)) as server, httpx.Client(base_url=server.url, timeout=20) as http:
        yield Client(house, server.url, http, endpoint)


@pytest.fixture(scope="module")
def lasting_client(tmp_path_factory: pytest.TempPathFactory, endpoint: ScriptedUpstream) -> Iterator[Client]:
    with client_of(tmp_path_factory.mktemp("house"), endpoint) as client:
        yield client


@pytest.fixture
def client(lasting_client: Client) -> Client:
    lasting_client.upstream.forget()
    lasting_client.house.tools.ran.clear()
    return lasting_client


def check_failed(response: ResponseOutcome, turn: TurnOutcome, words: str) -> None:
    """Both APIs report a failure of the endpoint, in these words."""
    assert response.status == "failed" and response.error is not None and turn.error is not None
    assert response.error["code"] == "server_error" and words in response.error["message"]
    assert turn.error["code"] == "upstream_error" and words in turn.error["message"]
    assert turn.error["message"].startswith("502: ")
    assert (turn.status, turn.reason, turn.stop_reason) == ("failed", "upstream_error", "end_of_message")
    assert turn.calls == []


# --- W1: finish reasons


@pytest.mark.parametrize("word", SUCCESS)
def test_a_word_of_success_completes(client: Client, word: str) -> None:
    client.script(HALF, delta(word))
    assert client.respond() == ResponseOutcome("completed", None, None, [("message", "completed", "Half an")])
    assert client.run_turn() == TurnOutcome("completed", None, "Half an", "end_of_turn", [], None)


@pytest.mark.parametrize("word", ["stop", "tool_calls", "tool_use", "function_call", "COMPLETE"])
def test_a_call_that_ends_in_success_is_handed_out(client: Client, word: str) -> None:
    client.script(fragment('{"city":"Oslo"}'), delta(word))
    assert client.respond(**WEATHER).items == [("function_call", "completed", '{"city":"Oslo"}')]
    turn = client.run_turn(**AGENT_WEATHER)
    assert (turn.status, turn.calls) == ("awaiting_input", [{"city": "Oslo"}])


@pytest.mark.parametrize("word", LENGTH)
def test_a_word_for_a_limit_ends_incomplete(client: Client, word: str) -> None:
    client.script(HALF, delta(word))
    assert client.respond() == ResponseOutcome("incomplete", None, TOKENS, [("message", "incomplete", "Half an")])
    assert client.run_turn() == TurnOutcome("completed", "out_of_tokens", "Half an", "out_of_tokens", [], None)


@pytest.mark.parametrize("word", FILTER)
def test_a_word_for_a_filter_ends_incomplete(client: Client, word: str) -> None:
    client.script(HALF, delta(word))
    assert client.respond() == ResponseOutcome("incomplete", None, FILTERED, [("message", "incomplete", "Half an")])
    assert client.run_turn() == TurnOutcome("completed", "content_filter", "Half an", "end_of_turn", [], None)


@pytest.mark.parametrize("word", FAILURE)
def test_any_other_word_fails_and_is_named(client: Client, word: str) -> None:
    client.script(HALF, delta(word))
    response, turn = client.respond(), client.run_turn()
    check_failed(response, turn, word)
    assert response.items == [("message", "incomplete", "Half an")] and turn.text == "Half an"


def test_an_endpoint_that_fails_with_nothing_said_is_asked_three_times(client: Client) -> None:
    client.script(delta("abort"))
    response = client.respond()
    assert response.status == 502 and response.error is not None and "abort" in response.error["message"]
    assert response.error["code"] == "upstream_error" and len(client.upstream.requests) == 3 * 2
    assert client.run_turn().reason == "upstream_error"


def test_half_a_call_that_was_aborted_is_not_handed_out(client: Client) -> None:
    client.script(fragment('{"city":"Os'), delta("abort"))
    response = client.respond(**WEATHER)
    client.upstream.requests.clear()
    turn = client.run_turn(**AGENT_WEATHER)
    check_failed(response, turn, "abort")
    assert response.items == [("function_call", "incomplete", '{"city":"Os')]
    assert len(client.upstream.requests) == 2, "one in each of two turns"


@pytest.mark.parametrize("word", ["abort", "SAFETY", "length"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_call_of_an_answer_without_success_is_not_run(client: Client, word: str, whole: bool) -> None:
    function = {"name": "good", "arguments": "{}"}
    call = {"index": 0, "id": "c1", "type": "function", "function": function}
    piece = in_one_piece(word, tool_calls=[call])
    client.replay(piece if whole else send(fragment("{}", "good", reason=word), DONE))
    assert client.respond(tools=[GOOD_SERVER]).status in ("failed", "incomplete", 502)
    assert client.run_turn(toolgroups=["test::tools"]).calls == []
    assert client.house.tools.ran == []


def test_a_call_that_ends_in_success_is_run(client: Client) -> None:
    client.script(fragment("{}", "good", reason="tool_calls"))
    assert client.respond(tools=[GOOD_SERVER]).items[-1] == ("message", "completed", "Hello")
    assert client.run_turn(toolgroups=["test::tools"]).text == "Hello"
    assert [name for name, *_ in client.house.tools.ran] == ["good"] * 4


# --- W2: errors inside of a choice

DIED = {"code": 502, "message": "Provider died"}
BUSY = {"code": 429, "message": "busy"}


def with_error(error: dict[str, Any], place: str, reason: str | None) -> dict[str, Any]:
    """A chunk that has an error in it: at its top, in its choice, or in its delta."""
    chunk = delta(reason)
    {"chunk": chunk, "choice": chunk["choices"][0], "delta": chunk["choices"][0]["delta"]}[place]["error"] = error
    return chunk


@pytest.mark.parametrize("place", ["chunk", "choice", "delta"])
@pytest.mark.parametrize("reason", ["error", "stop", None])
def test_an_error_in_a_chunk_fails_in_its_words(client: Client, place: str, reason: str | None) -> None:
    client.script(HALF, with_error(DIED, place, reason))
    response, turn = client.respond(), client.run_turn()
    check_failed(response, turn, "Provider died")
    assert response.items == [("message", "incomplete", "Half an")] and turn.text == "Half an"


@pytest.mark.parametrize("place", ["chunk", "choice", "delta"])
def test_an_error_in_the_first_chunk_means_what_its_status_means(client: Client, place: str) -> None:
    client.script(with_error(BUSY, place, "error"))
    response = client.respond()
    assert response.status == 429 and response.error is not None
    assert (response.error["code"], response.error["message"]) == ("rate_limit_exceeded", "busy")
    turn = client.run_turn()
    assert turn.error is not None and len(client.upstream.requests) == 3 * 4, "each of four requests is tried thrice"
    assert (turn.status, turn.reason, turn.error["code"]) == ("failed", "rate_limited", "rate_limited")
    assert turn.error["message"] == "429: busy"


# --- W3: finish reasons before the end

EMPTY_STOP, PART_ONE = delta("stop", role="assistant", content=""), delta("null", content="part one ")


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([EMPTY_STOP, delta(content="The answer"), STOP], "The answer"),
        ([PART_ONE, delta(content="part two"), STOP], "part one part two"),
        ([delta("", content="part one "), delta(content="part two"), STOP], "part one part two"),
        ([HELLO, STOP, BreakOff()], "Hello"),
    ],
    ids=["empty stop", "null as a word", "no word", "cut off behind the end"],
)
def test_the_last_finish_reason_counts(client: Client, parts: list[Part], text: str) -> None:
    client.script(*parts)
    assert client.respond() == ResponseOutcome("completed", None, None, [("message", "completed", text)])
    assert client.run_turn() == TurnOutcome("completed", None, text, "end_of_turn", [], None)


def test_an_answer_that_breaks_off_behind_no_finish_reason_fails(client: Client) -> None:
    client.script(PART_ONE, BreakOff())
    response, turn = client.respond(), client.run_turn()
    check_failed(response, turn, "")
    assert response.items == [("message", "incomplete", "part one ")] and turn.text == "part one "


def test_calls_may_each_bring_a_finish_reason(client: Client) -> None:
    first, second = '{"city":"A"}', '{"city":"B"}'
    client.script(*(fragment(city, index=index, reason="tool_calls") for index, city in enumerate((first, second))))
    made = [("function_call", "completed", city) for city in (first, second)]
    assert client.respond(**WEATHER) == ResponseOutcome("completed", None, None, made)
    turn = client.run_turn(**AGENT_WEATHER)
    assert (turn.status, turn.calls) == ("awaiting_input", [{"city": "A"}, {"city": "B"}])


def test_silence_behind_the_end_completes_when_reading_times_out(tmp_path: Path, endpoint: ScriptedUpstream) -> None:
    endpoint.forget()
    endpoint.answer = lambda request: send(HELLO, STOP, Gate())
    with client_of(tmp_path, endpoint, read_seconds=0.2) as client:
        assert client.respond() == ResponseOutcome("completed", None, None, [("message", "completed", "Hello")])
        assert client.run_turn() == TurnOutcome("completed", None, "Hello", "end_of_turn", [], None)
