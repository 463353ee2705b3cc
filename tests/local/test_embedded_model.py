"""The embedded model's endpoint: with a scripted engine behind it, and once with the real model."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tests.server import LoopbackServer

from turnloom.adapters.stepfunctions import SECRET
from turnloom.local.model.front import Front, Status
from turnloom.local.model.weights import SMOLLM2

ROOT = Path(__file__).parents[2]
HELLO: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluate arithmetic.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}
SUM: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Calculate 1 + 1"}],
    "tools": [CALCULATOR],
}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}

Rule = Callable[[dict[str, Any]], Any]


def said(content: str) -> Response:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "scripted"}
    return JSONResponse({**head, "choices": [choice], "usage": USAGE})


def refused(status: int, kind: str, message: str = "no") -> Response:
    return JSONResponse({"error": {"code": status, "message": message, "type": kind}}, status)


def chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}
    return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n".encode()


class Engine:
    """Answers as `rule` says (a response, or a coroutine that gives one) and keeps the requests it got."""

    def __init__(self) -> None:
        self.rule: Rule = lambda _: said("Hi")
        self.bodies: list[dict[str, Any]] = []
        self.app = Starlette(routes=[Route("/v1/chat/completions", self._answer, methods=["POST"])])

    async def _answer(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        answer = self.rule(self.bodies[-1])
        response: Response = await answer if asyncio.iscoroutine(answer) else answer
        return response


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def status() -> Status:
    return Status("demo", demo=True, phase="ready")


@pytest.fixture
def url(engine: Engine, status: Status) -> Iterator[str]:
    with serving(engine, status) as url:
        yield url


@contextmanager
def serving(engine: Engine, status: Status, patience: float = 10.0) -> Iterator[str]:
    """The address of a front before this engine."""
    with LoopbackServer(engine.app) as behind, LoopbackServer(Front(status, "sesame", patience).app()) as front:
        status.engine = behind.url
        yield front.url


KEY = {"authorization": "Bearer sesame"}


async def chat(url: str, body: Any) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=20, headers=KEY) as client:
        return await client.post(f"{url}/v1/chat/completions", json=body)


@asynccontextmanager
async def streamed(url: str, body: Any) -> AsyncIterator[AsyncIterator[str]]:
    """The lines of a streamed answer that are not empty, as they come."""
    async with (
        httpx2.AsyncClient(timeout=20, headers=KEY) as client,
        client.stream("POST", f"{url}/v1/chat/completions", json={**body, "stream": True}) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield (line async for line in response.aiter_lines() if line)


# --- talk


async def test_talk_is_answered_by_the_engine(url: str, engine: Engine) -> None:
    answer = await chat(url, {**HELLO, "temperature": 0.5, "response_format": {"type": "json_object"}})
    assert answer.json()["choices"][0]["message"]["content"] == "Hi"
    assert engine.bodies[0]["temperature"] == 0.5
    assert engine.bodies[0]["response_format"] == {"type": "json_object"}
    assert engine.bodies[0]["messages"][-1] == {"role": "user", "content": "Hello"}


async def test_a_stream_passes_through_piece_by_piece(url: str, engine: Engine) -> None:
    go = threading.Event()
    pieces = [chunk("Hel"), chunk("lo", "stop"), b"data: [DONE]\n\n"]

    async def speak() -> AsyncIterator[bytes]:
        yield pieces[0]
        assert await asyncio.to_thread(go.wait, 10)
        for piece in pieces[1:]:
            yield piece

    engine.rule = lambda _: StreamingResponse(speak(), media_type="text/event-stream")
    async with streamed(url, {**HELLO, "stream_options": {"include_usage": True}}) as lines:
        received = [await anext(lines)]
        go.set()
        received += [line async for line in lines]
    assert "".join(f"{line}\n\n" for line in received).encode() == b"".join(pieces)
    assert engine.bodies[0]["stream_options"] == {"include_usage": True}


async def test_a_reader_that_leaves_ends_the_engines_work(url: str, engine: Engine) -> None:
    ended = threading.Event()

    async def speak() -> AsyncIterator[bytes]:
        try:
            while True:
                yield chunk("more ")
                await asyncio.sleep(0)
        finally:
            ended.set()

    engine.rule = lambda _: StreamingResponse(speak(), media_type="text/event-stream")
    async with streamed(url, HELLO) as lines:
        await anext(lines)
    assert await asyncio.to_thread(ended.wait, 10)


async def test_a_stream_that_waits_for_a_busy_engine_is_kept_alive(engine: Engine, status: Status) -> None:
    go = threading.Event()

    async def late() -> Response:
        assert await asyncio.to_thread(go.wait, 10)
        return Response(chunk("Hi", "stop"), media_type="text/event-stream")

    engine.rule = lambda _: late()
    with serving(engine, status, patience=0.01) as url:
        async with streamed(url, HELLO) as lines:
            assert (await anext(lines)).startswith(":")
            go.set()
            rest = [line async for line in lines if not line.startswith(":")]
    assert rest == [chunk("Hi", "stop").decode().strip()]


async def test_an_engine_that_breaks_off_ends_the_stream_with_an_error(url: str, engine: Engine) -> None:
    async def speak() -> AsyncIterator[bytes]:
        yield chunk("Hel")
        raise ConnectionError("scripted")

    engine.rule = lambda _: StreamingResponse(speak(), media_type="text/event-stream")
    async with streamed(url, HELLO) as lines:
        received = [line async for line in lines]
    assert json.loads(received[-1].removeprefix("data: "))["error"]["type"] == "server_error"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_engine_refuses_is_refused_in_its_words(url: str, engine: Engine, stream: bool) -> None:
    engine.rule = lambda _: refused(400, "invalid_request_error", "seed must be a number")
    answer = await chat(url, {**HELLO, "seed": "x", "stream": stream})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "seed must be a number"


async def test_too_long_a_conversation_loses_its_oldest_messages(url: str, engine: Engine) -> None:
    def narrow(body: dict[str, Any]) -> Response:
        fits = len(body["messages"]) <= 4
        return said("Hi") if fits else refused(400, "exceed_context_size_error")

    engine.rule = narrow
    spoken = [{"role": "user", "content": str(number)} for number in range(12)]
    answer = await chat(url, {**HELLO, "messages": [{"role": "system", "content": "Be brief."}, *spoken]})
    assert answer.status_code == 200
    assert [message["content"] for message in engine.bodies[-1]["messages"]] == ["Be brief.", "9", "10", "11"]


async def test_a_single_message_that_is_too_long_is_refused(url: str, engine: Engine) -> None:
    engine.rule = lambda _: refused(400, "exceed_context_size_error", "too long")
    answer = await chat(url, HELLO)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "too long")


@pytest.mark.parametrize(
    "body", ["no object", {}, {**HELLO, "messages": []}, {**HELLO, "messages": ["x"]}, {**SUM, "tool_choice": "x"}]
)
async def test_what_makes_no_sense_never_reaches_the_engine(url: str, engine: Engine, body: Any) -> None:
    answer = await chat(url, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert engine.bodies == []


async def test_a_model_that_is_not_here_is_refused(url: str, engine: Engine) -> None:
    answer = await chat(url, {**HELLO, "model": "gpt-4o"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "gpt-4o" in error["message"] and "demo" in error["message"]
    nameless = await chat(url, {"messages": HELLO["messages"]})
    assert (nameless.status_code, nameless.json()["error"]["param"]) == (400, "model")
    assert engine.bodies == []


# --- tools


async def test_a_tool_call_reaches_the_official_client(url: str, engine: Engine) -> None:
    engine.rule = lambda _: said('{"expression": "1 + 1"}')
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sesame") as client:
        answer = await client.chat.completions.create(**SUM)
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("calculator", {"expression": "1 + 1"})
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.usage is not None and answer.usage.total_tokens == 5
    assert "tools" not in engine.bodies[0]


async def test_a_streamed_tool_call_reaches_the_official_client(url: str, engine: Engine) -> None:
    engine.rule = lambda _: said('{"expression": "1 + 1"}')
    async with (
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sesame") as client,
        client.chat.completions.stream(**SUM, stream_options={"include_usage": True}) as stream,
    ):
        answer = await stream.get_final_completion()
    [call] = answer.choices[0].message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == ("calculator", {"expression": "1 + 1"})
    assert call.id.startswith("call_")
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.usage is not None and answer.usage.total_tokens == 5


async def test_usage_is_streamed_only_to_who_asks_for_it(url: str, engine: Engine) -> None:
    engine.rule = lambda _: said('{"expression": "1 + 1"}')
    async with streamed(url, SUM) as lines:
        received = [line async for line in lines]
    assert received[-1] == "data: [DONE]"
    assert not any("usage" in line for line in received)


async def test_arguments_that_break_the_schema_are_written_anew(url: str, engine: Engine) -> None:
    written = iter(['{"expression": 2}', '{"expression": "2"}'])
    engine.rule = lambda _: said(next(written))
    answer = await chat(url, SUM)
    [call] = answer.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"] == '{"expression": "2"}'


async def test_without_valid_arguments_the_model_talks(url: str, engine: Engine) -> None:
    engine.rule = lambda body: said("[]" if "response_format" in body else "I cannot.")
    answer = await chat(url, SUM)
    assert answer.json()["choices"][0]["message"] == {"role": "assistant", "content": "I cannot."}
    assert len(engine.bodies) == 3


async def test_a_schema_that_the_engine_cannot_read_does_not_fail_the_turn(url: str, engine: Engine) -> None:
    engine.rule = lambda body: refused(400, "invalid_request_error") if "response_format" in body else said("Hm.")
    answer = await chat(url, SUM)
    assert answer.json()["choices"][0]["message"]["content"] == "Hm."


async def test_after_a_result_the_model_answers_with_it(url: str, engine: Engine) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": "{}"}}
    round_trip = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    round_trip += [{"role": "tool", "tool_call_id": "c1", "content": "2"}]
    await chat(url, {**SUM, "messages": [*SUM["messages"], *round_trip]})
    [body] = engine.bodies
    assert body["grammar"] == 'root ::= "The answer is 2."'
    assert not {"tools", "tool_choice"} & body.keys()


async def test_another_model_file_is_given_the_tools_as_they_are(engine: Engine) -> None:
    with serving(engine, Status("own", demo=False, phase="ready")) as url:
        await chat(url, {**SUM, "model": "own", "tool_choice": "required"})
    [body] = engine.bodies
    assert (body["tools"], body["tool_choice"], body["messages"]) == ([CALCULATOR], "required", SUM["messages"])


# --- readiness


async def test_until_the_model_is_ready_its_phase_and_progress_are_told(url: str, status: Status) -> None:
    status.phase, status.fetched, status.total = "fetching", 31, 93
    async with httpx2.AsyncClient(headers=KEY) as client:
        health = await client.get(f"{url}/health")
        models = await client.get(f"{url}/v1/models")
    assert health.status_code == 503
    assert health.json()["phase"] == "fetching"
    assert health.json()["progress"] == {"fetched_bytes": 31, "total_bytes": 93}
    assert [model["id"] for model in models.json()["data"]] == ["demo"]
    answer = await chat(url, HELLO)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_loading")
    assert "retry-after" in answer.headers


async def test_a_model_that_failed_says_why_to_its_supervisor(url: str, status: Status) -> None:
    status.phase, status.reason = "failed", "the line is dead"
    async with httpx2.AsyncClient(headers=KEY) as client:
        health = await client.get(f"{url}/health")
    assert health.status_code == 503
    assert (health.json()["phase"], health.json()["reason"]) == ("failed", "the line is dead")


async def test_a_ready_demo_model_says_what_it_is(url: str) -> None:
    async with httpx2.AsyncClient(headers=KEY) as client:
        health = await client.get(f"{url}/health")
    assert health.status_code == 200
    assert health.json()["note"] == "demo model; tool choice is a heuristic"


async def test_only_who_knows_the_secret_is_served(url: str, engine: Engine) -> None:
    async with httpx2.AsyncClient() as client:
        for headers in (
            {},
            {"authorization": "Bearer"},
            {"authorization": "Bearer sesam"},
            {"authorization": "sesame"},
        ):
            for answer in (
                await client.get(f"{url}/v1/models", headers=headers),
                await client.post(f"{url}/v1/chat/completions", json=HELLO, headers=headers),
            ):
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "no_key")


# --- the process, and the real model


def model_process(port: int, folder: Path, **env: str) -> Any:
    command = [sys.executable, "-m", "turnloom.local.model", "--port", str(port), "--data-dir", str(folder)]
    path = os.pathsep.join(filter(None, ["lib", os.environ.get("PYTHONPATH", "")]))
    return asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, SECRET: "sesame", **env},
        stdout=asyncio.subprocess.PIPE,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_model_file_that_is_not_there_ends_the_process_with_advice(tmp_path: Path) -> None:
    process = await model_process(free_port(), tmp_path, TURNLOOM_GGUF=str(tmp_path / "none.gguf"))
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert "none.gguf" in output.decode()
    assert "OPENAI_BASE_URL" in output.decode()


def data_folder() -> Path | None:
    """The folder that has the real weights already."""
    folders = [Path(os.environ.get("TURNLOOM_DATA_DIR") or ROOT / ".turnloom")]
    return next((folder.resolve() for folder in folders if _has_weights(folder / "models" / SMOLLM2.file)), None)


def _has_weights(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == SMOLLM2.size


@pytest.mark.skipif(data_folder() is None, reason="the weights are not there; `make dev` fetches them into .turnloom")
async def test_the_real_model_speaks_the_protocol() -> None:
    folder, port = data_folder(), free_port()
    assert folder is not None
    process = await model_process(port, folder, TURNLOOM_GGUF="")
    try:
        await asyncio.wait_for(ready(f"http://127.0.0.1:{port}/health"), 120)
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="sesame") as client:
            await speaks(client)
    finally:
        process.terminate()
        await process.wait()


async def ready(health: str) -> None:
    """Come back once the process says that its model is loaded."""
    async with httpx2.AsyncClient(headers=KEY) as client:
        while True:
            try:
                if (await client.get(health)).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            await asyncio.sleep(0.05)


async def speaks(client: openai.AsyncOpenAI) -> None:
    """A streamed talk, a call of a tool, and the answer to its result: their shapes, never their words."""
    [model] = (await client.models.list()).data
    talk: Any = {"model": model.id, "messages": HELLO["messages"], "max_tokens": 8, "stream": True}
    stream = await client.chat.completions.create(**talk, stream_options={"include_usage": True})
    *chunks, last = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert last.choices == [] and 0 < last.usage.completion_tokens <= 8

    wants: Any = {**SUM, "model": model.id}
    asked = (await client.chat.completions.create(**wants)).choices[0]
    assert asked.finish_reason == "tool_calls"
    [call] = asked.message.tool_calls or []
    assert isinstance(json.loads(call.function.arguments)["expression"], str)

    result = {"role": "tool", "tool_call_id": call.id, "content": "2"}
    wants["messages"] = [*wants["messages"], asked.message.model_dump(exclude_none=True), result]
    told = (await client.chat.completions.create(**wants)).choices[0]
    assert told.finish_reason in ("stop", "length") and told.message.content
