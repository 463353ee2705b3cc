"""Hostile model endpoints behind every route that meets one: answers in their envelopes, bounds kept, no API key."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from tests.conftest import House, build_house
from tests.heartbeat import Heartbeat
from tests.hostile_mcp import HostileServer
from tests.hostile_upstream import HOSTILE
from tests.wire.apps import both_apis
from tests.wire.responses_stream_checker import check_response, check_stream
from tests.wire.test_neighbours import neighbours
from turnloom.adapters.openai_model import OpenAIModel
from turnloom.adapters.openai_model import answer as reading
from turnloom.adapters.openai_model.tokenizer import Tokenizer
from turnloom.engine import perform
from turnloom.engine.answer import AnswerReader

KEY = "sk-abcdefgh-12345-ijklmnop-67890"
LONGEST_BLOCK = 0.5
MOST_GROWTH = 100 * 1024 * 1024
MOST_CHARACTERS = 256 * 1024
SECONDS = 0.1
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": False}
CLIENT_TOOL = {"name": "get_weather", "description": "Weather.", "parameters": None}
TURN = {"messages": [{"role": "user", "content": "Go."}]}


@pytest.fixture(scope="module")
def hostile() -> Iterator[HostileServer]:
    with HostileServer("tests.hostile_upstream") as server:
        yield server


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits at which the client of the test, who reads every answer a dozen times, does not take long either."""
    monkeypatch.setattr(reading, "_SILENT_SECONDS", SECONDS)
    monkeypatch.setattr(reading, "_MOST_LOGPROB_CHARACTERS", MOST_CHARACTERS // 2)
    monkeypatch.setattr(perform, "AnswerReader", partial(AnswerReader, most_characters=MOST_CHARACTERS))
    monkeypatch.setitem(Tokenizer.__init__.__kwdefaults__, "timeout", SECONDS)


@pytest.fixture
def home(tmp_path: Path) -> House:
    return build_house(tmp_path)


@pytest.fixture
async def http(home: House, hostile: HostileServer, behaviour: str) -> AsyncIterator[httpx.AsyncClient]:
    model = OpenAIModel(hostile.url(behaviour, "v1"), KEY, retries=0, timeout=SECONDS)
    engine = home.services.engine
    engine = replace(engine, world=replace(engine.world, model=model))
    home.orchestrator.engine = engine
    services = replace(home.services, engine=engine)
    app = Starlette(routes=[*both_apis(services).routes, *neighbours(services).routes])
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=20) as client:
        yield client
    await model.aclose()


def reveals(text: str) -> bool:
    """Whether the text has a piece of the key that could be of use."""
    return any(KEY[at : at + 8] in text for at in range(len(KEY) - 7))


class Caller:
    """A client of both APIs that checks every answer for its form, and keeps its text."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.texts: list[str] = []

    async def request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """An answer that is one of the API's own, and no failure of ours."""
        answer = await self.http.request(method, path, json=body)
        text = answer.content.decode()
        self.texts.append(text)
        assert answer.status_code in (200, 204, 400, 404, 429, 502, 504), f"{path}: {answer.status_code} {text[:500]}"
        assert "internal_error" not in text
        if text and not text.startswith(("data:", "event:", ":")):
            value = strict_json(text)
            assert answer.is_success or value["error"]["message"], text[:500]
        return answer

    async def respond(self, **body: Any) -> httpx.Response:
        include = ["message.output_text.logprobs", "reasoning.encrypted_content"]
        request = {"model": "m", "input": "Go.", "tools": [FUNCTION], "include": include, **body}
        return await self.request("POST", "/v1/responses", request)

    async def get(self, path: str) -> Any:
        answer = await self.request("GET", path)
        assert answer.status_code == 200, answer.text[:500]
        return answer.json()


def strict_json(text: str) -> Any:
    """The value, if it is JSON to every reader: no NaN, no half of a surrogate pair."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    value = json.loads(text, parse_constant=refuse)
    json.dumps(value, ensure_ascii=False).encode()
    return value


async def create_responses(caller: Caller, home: House) -> None:
    whole = await caller.respond()
    if whole.status_code == 200:
        check_response(whole.json())
    stream = await caller.respond(stream=True)
    if stream.status_code == 200:
        check_stream(stream.content)
    background = (await caller.respond(background=True)).json()
    await home.orchestrator.finished()
    assert home.orchestrator.errors == []
    check_response(await caller.get(f"/v1/responses/{background['id']}"))


async def read_and_delete_responses(caller: Caller) -> None:
    """What is stored can be read, chained and deleted."""
    responses = (await caller.get("/v1/responses"))["data"]
    for response in responses:
        path = f"/v1/responses/{response['id']}"
        check_response(await caller.get(path))
        await caller.get(f"{path}/input_items")
        await caller.request("GET", f"{path}?stream=true")
    for response in responses[:1]:
        calls = [item["call_id"] for item in response["output"] if item["type"] == "function_call"]
        results = [{"type": "function_call_output", "call_id": call, "output": "Fine."} for call in calls]
        child = await caller.respond(previous_response_id=response["id"], input=results or "Go on.")
        if child.status_code == 200:
            await caller.get(f"/v1/responses/{child.json()['id']}/input_items")
    # A page holds less than its limit where the responses are large.
    while responses := (await caller.get("/v1/responses"))["data"]:
        for response in responses:
            assert (await caller.request("DELETE", f"/v1/responses/{response['id']}")).status_code == 200


async def session_of(caller: Caller) -> str:
    """The path of a session of a new agent."""
    config = {"model": "m", "instructions": "Be brief.", "client_tools": [CLIENT_TOOL]}
    agent = (await caller.request("POST", "/v1/agents", {"agent_config": config})).json()["agent_id"]
    path = f"/v1/agents/{agent}/session"
    return f"{path}/{(await caller.request('POST', path, {'session_name': 's'})).json()['session_id']}"


async def run_turns(caller: Caller) -> None:
    for stream in (False, True):
        path = await session_of(caller)
        turn = await caller.request("POST", f"{path}/turn", {**TURN, "stream": stream})
        if stream:
            check_frames(turn.text)
        await caller.get(path)
        assert (await caller.request("DELETE", path)).status_code == 204


def check_frames(text: str) -> None:
    frames = [strict_json(frame.removeprefix("data: ")) for frame in text.split("\n\n") if frame.startswith("data: ")]
    ends = ("turn_complete", "turn_awaiting_input")
    last = frames[-1]
    assert "error" in last or last["event"]["payload"]["event_type"] in ends, last


async def ask_for_models(caller: Caller) -> None:
    for path in ("/v1/models", "/v1/openai/v1/models", "/v1/providers"):
        await caller.request("GET", path)
    await caller.request("POST", "/v1/responses/compact", {"model": "m", "input": "Go."})
    await caller.request("POST", "/v1/responses/input_tokens", {"model": "m", "input": "Go."})


@pytest.mark.parametrize("behaviour", HOSTILE)
async def test_no_route_suffers_from_a_hostile_endpoint(
    http: httpx.AsyncClient, home: House, caplog: pytest.LogCaptureFixture
) -> None:
    caller = Caller(http)
    with caplog.at_level(logging.INFO):
        async with asyncio.timeout(30), Heartbeat() as heart:
            await create_responses(caller, home)
            await read_and_delete_responses(caller)
            await run_turns(caller)
            await ask_for_models(caller)
    assert not reveals("".join(caller.texts) + caplog.text)
    assert [record for record in caplog.records if record.exc_info] == []
    assert heart.longest < LONGEST_BLOCK
    assert heart.growth < MOST_GROWTH


@pytest.mark.parametrize("behaviour", ["half_surrogates_in_a_call"])
async def test_arguments_with_half_of_a_surrogate_pair_are_whole_everywhere(http: httpx.AsyncClient) -> None:
    arguments = {"city": "half \ufffd", "\ufffd": "\ufffd"}
    caller = Caller(http)
    response = (await caller.respond()).json()
    path = f"/v1/responses/{response['id']}"
    (call,) = response["output"]
    assert call["name"] == "get_weather" and json.loads(call["arguments"]) == arguments
    assert (await caller.get(path))["output"] == [call]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Fine."}
    child = (await caller.respond(previous_response_id=response["id"], input=[result])).json()
    assert child["status"] == "completed"
    items = (await caller.get(f"/v1/responses/{child['id']}/input_items"))["data"]
    assert call["arguments"] in [item.get("arguments") for item in items]
    turn = (await caller.request("POST", f"{await session_of(caller)}/turn", TURN)).json()
    assert turn["output_message"]["tool_calls"][0]["arguments"] == arguments
