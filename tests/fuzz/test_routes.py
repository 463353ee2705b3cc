"""Whatever is sent to whichever route: no error of our own, every error in its envelope, what was stored is readable.

TURNLOOM_FUZZ_EXAMPLES sets how many requests are sent.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp

from tests.conftest import build_house
from tests.fuzz.asgi import Answer, Request, call
from tests.fuzz.requests import AGENT, IDS, MESSAGES, USER, requests
from turnloom import bootstrap
from turnloom.local import template
from turnloom.local.gateway import gateway
from turnloom.ports import Finished, TextChunk
from turnloom.testing import USAGE, ScriptedModel

EXAMPLES = int(os.environ.get("TURNLOOM_FUZZ_EXAMPLES", "4000"))
ROUTES = [route for function in template.functions() for route in function.routes]
OWN_FAULTS = {500, 501, 503, 505, 507, 508}


class Faults(logging.Handler):
    """Keeps what is logged as an error, or with a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or record.exc_info:
            self.texts.append(logging.Formatter().format(record))


@dataclass
class Target:
    """The gateway on a loop of its own, and ids of objects that are there."""

    app: ASGIApp
    runner: asyncio.Runner
    faults: Faults
    ids: Mapping[str, str] = field(default_factory=dict)

    def send(self, request: Request) -> Answer:
        return self.runner.run(call(self.app, request))

    def post(self, path: str, body: Any) -> Any:
        headers = [("content-type", "application/json")]
        answer = self.send(Request("POST", path, headers=headers, chunks=[json.dumps(body).encode()]))
        assert answer.status == 200, answer
        return answer.json()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    house = build_house(folder, add=lambda **_: "1")
    model = ScriptedModel(lambda _: [TextChunk("ok"), Finished("stop", USAGE)])
    house.orchestrator.engine = replace(house.engine, world=replace(house.engine.world, model=model))
    services = replace(house.services, engine=house.orchestrator.engine)
    faults = Faults()
    logging.getLogger().addHandler(faults)
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setattr(bootstrap, "services", lambda: services)
        target = Target(gateway(), runner, faults)
        target.ids = _fill(target)
        yield target
    logging.getLogger().removeHandler(faults)


def _fill(target: Target) -> dict[str, str]:
    agent = target.post("/v1/agents", {"agent_config": {**AGENT, "toolgroups": []}})["agent_id"]
    session = target.post(f"/v1/agents/{agent}/session", {"session_name": "s"})["session_id"]
    turn = target.post(f"/v1/agents/{agent}/session/{session}/turn", {"messages": MESSAGES})
    conversation = target.post("/v1/conversations", {"items": [USER]})["id"]
    first = target.post("/v1/responses", {"model": "m", "input": "Hi"})
    second = target.post("/v1/responses", {"model": "m", "input": [USER], "conversation": conversation})
    item, step = second["output"][0]["id"], turn["steps"][0]["step_id"]
    target.post("/v1/models", {"model_id": "scripted", "provider_model_id": "scripted"})
    made = (agent, session, turn["turn_id"], step, conversation, second["id"], item, "scripted", "test::tools", "add")
    return dict(zip(IDS, (*made, first["id"]), strict=True))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="TURNLOOM_FUZZ_EXAMPLES" not in os.environ,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_no_request_meets_an_error_of_our_own(target: Target, data: st.DataObject) -> None:
    request = data.draw(requests(ROUTES)).about(target.ids)
    target.faults.texts.clear()
    answer = target.send(request)
    assert not target.faults.texts, target.faults.texts
    if not request.complete and not answer.status:
        return
    assert answer.status not in OWN_FAULTS, answer
    assert answer.headers.get("x-request-id"), answer
    if request.method == "DELETE" and answer.status < 300:
        target.ids = _fill(target)
    if answer.status >= 400:
        _check_envelope(request, answer)
    elif answer.status == 200 and "json" in answer.headers["content-type"] and request.method == "POST":
        _check_readable(target, request, answer.json())


def _check_envelope(request: Request, answer: Answer) -> None:
    if request.method == "HEAD":
        return
    error = answer.json()["error"]
    assert error["message"] and "code" in error, answer
    if "/responses" in request.path or request.path.startswith("/v1/conversations"):
        assert set(error) == {"message", "type", "param", "code"}, answer


def _check_readable(target: Target, request: Request, body: Any) -> None:
    """What was made can be read again, at once."""
    paths = {
        "/v1/agents": ("/v1/agents/", "agent_id"),
        "/v1/conversations": ("/v1/conversations/", "id"),
        "/v1/responses": ("/v1/responses/", "id"),
        "/v1/openai/v1/responses": ("/v1/openai/v1/responses/", "id"),
        "/v1/models": ("/v1/models/", "identifier"),
    }
    if request.path in paths and body.get("store", True):
        prefix, name = paths[request.path]
        read = target.send(Request("GET", prefix + body[name]))
        assert read.status == 200, (body, read)
        assert not target.faults.texts, target.faults.texts
