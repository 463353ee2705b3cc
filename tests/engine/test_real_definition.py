"""The same conversations through the deployed state machine: the real definition, with the real functions as tasks.

The engine runs in a process of its own with this repository's functions; model and tools are real HTTP on loopback.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tests.conftest import House
from tests.engine.conversations import CONVERSATIONS, FUNCTIONS, Conversation
from tests.engine.test_drivers_agree import OWNER, normal, outcome, play_inline, play_stepped
from tests.server import LoopbackServer
from tests.upstream import Answer, BreakOff, Received, ScriptedUpstream, call, delta, fail, say, send
from turnloom import bootstrap
from turnloom.adapters.stepfunctions import SECRET
from turnloom.domain.errors import UpstreamRejected
from turnloom.local.template import ROOT, STATE_MACHINE_ARN
from turnloom.ports import CallChunk, Finished, TextChunk
from turnloom.testing import SteppedOrchestrator
from turnloom.usecases.callers import Caller
from turnloom.usecases.services import Services
from turnloom.usecases.toolgroups import Registration, register_group


async def run_tool(request: Request) -> Response:
    try:
        return PlainTextResponse(str(FUNCTIONS[request.path_params["name"]](**await request.json())))
    except RuntimeError as failure:
        return JSONResponse({"detail": str(failure)}, 500)


def as_upstream(script: list[Any]) -> Answer:
    """A scripted answer as a chat-completions endpoint gives it."""
    texts = [part.text for part in script if isinstance(part, TextChunk)]
    calls = [(part.name, part.arguments) for part in script if isinstance(part, CallChunk)]
    failure = next((part for part in script if isinstance(part, Exception)), None)
    if isinstance(failure, UpstreamRejected):
        return fail(400, str(failure))
    if failure is not None:
        return send(*(delta(content=text) for text in texts), BreakOff())
    [finished] = [part for part in script if isinstance(part, Finished)]
    if calls:
        return call(*calls, text="".join(texts))
    return say(*texts, reason=finished.reason)


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, upstream: ScriptedUpstream) -> Iterator[Services]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "lib"),
        "OPENAI_BASE_URL": upstream.url,
        "TURNLOOM_DATA_DIR": str(tmp_path_factory.mktemp("engine")),
        "TURNLOOM_STATE_MACHINE_ARN": STATE_MACHINE_ARN,
        "AWS_ENDPOINT_URL_STEPFUNCTIONS": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        SECRET: "open sesame",
    }
    engine = subprocess.Popen([sys.executable, "-m", "turnloom.local.engine", "--port", str(port)], env=env)
    with pytest.MonkeyPatch.context() as environment:
        for name in ("AWS_ENDPOINT_URL_STEPFUNCTIONS", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", SECRET):
            environment.setenv(name, env[name])
        try:
            await_health(f"http://127.0.0.1:{port}/health")
            with LoopbackServer(Starlette(routes=[Route("/{name}", run_tool, methods=["POST"])])) as tools:
                made = bootstrap.build(env)
                asyncio.run(register_tools(made, tools.url))
                yield made
        finally:
            engine.terminate()
            engine.wait(20)


def await_health(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the engine did not come up")


async def register_tools(services: Services, url: str) -> None:
    described = [{"name": name, "uri": f"{url}/{name}", "parameters": {"type": "object"}} for name in FUNCTIONS]
    asked = Registration("test::tools", "http", None, {"tools": described})
    await register_group(services, Caller(OWNER), asked)


@pytest.fixture
async def house(services: Services) -> AsyncIterator[House]:
    orchestrator = SteppedOrchestrator()
    nobody: Any = None
    yield House(services, nobody, nobody, services.clock, orchestrator, nobody)  # type: ignore[arg-type]
    await orchestrator.finished()


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda c: c.name)
async def test_the_state_machine_writes_the_log_that_the_loop_writes(
    conversation: Conversation, house: House, upstream: ScriptedUpstream
) -> None:
    def answer(request: Received) -> Answer:
        spoken = sum(message["role"] == "assistant" for message in request.body["messages"])
        return as_upstream(conversation.answers[spoken])

    upstream.answer = answer
    orchestrated = await play_inline(house, conversation)
    engine = replace(house.engine, orchestrator=house.orchestrator)
    house.orchestrator.engine = engine
    house.services = replace(house.services, engine=engine)
    stepped = await play_stepped(house, conversation)
    assert outcome(orchestrated.turn) == outcome(stepped.turn)
    assert normal(orchestrated) == normal(stepped)
