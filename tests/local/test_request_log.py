"""The laptop's terminal shows requests and why they failed, and nothing that is secret."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from turnloom.adapters.meter import FailureLog
from turnloom.domain.event import ToolCompleted, TurnFailed
from turnloom.local.request_log import RequestLog, TerminalFormatter
from turnloom.wire.problems import agents_envelope, responses_envelope

AGENTS = agents_envelope("upstream_authentication_error", "The key is refused.")
RESPONSES = responses_envelope("model_not_found", "There is no such model.", None, alias=False)

Lines = Callable[[], list[str]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("turnloom.")]


def answering(response: Response) -> TestClient:
    async def answer(_request: Request) -> Response:
        return response

    routes = [Route("/{path:path}", answer, methods=["GET", "POST"])]
    return TestClient(RequestLog(Starlette(routes=routes)))


def test_a_request_is_a_line_without_its_query(lines: Lines) -> None:
    answering(JSONResponse({})).get("/v1/agents?api_key=secret", headers={"authorization": "Bearer secret"})
    [line] = lines()
    assert line.startswith("GET /v1/agents 200 ") and line.endswith(" ms")


@pytest.mark.parametrize(
    ("body", "status", "cause"),
    [
        (AGENTS, 502, "The key is refused."),
        (RESPONSES, 400, "There is no such model."),
        ({"detail": "Old."}, 404, "Old."),
    ],
)
def test_a_request_that_fails_says_why(lines: Lines, body: dict[str, object], status: int, cause: str) -> None:
    answering(JSONResponse(body, status)).post("/v1/responses", json={"input": "secret"})
    [line] = lines()
    assert line.startswith(f"POST /v1/responses {status} ") and line.endswith(f" ms: {cause}")


def test_a_failure_without_an_envelope_is_a_line_too(lines: Lines) -> None:
    answering(PlainTextResponse("secret", 500)).get("/x")
    [line] = lines()
    assert line.startswith("GET /x 500 ") and line.endswith(" ms")


def test_health_checks_are_left_out(lines: Lines) -> None:
    answering(JSONResponse({})).get("/v1/health")
    assert lines() == []


def test_a_path_cannot_steer_the_terminal(lines: Lines) -> None:
    answering(JSONResponse({})).get("/v1/%1b%5B2J%0Aforged")
    assert lines()[0].startswith("GET /v1/%1b%5B2J%0Aforged 404 ")


def test_a_line_is_printable_and_names_the_turn() -> None:
    record = logging.LogRecord("turnloom.x", logging.WARNING, "", 1, "A tool\x1b[2J failed:\n%s", ("no",), None)
    assert TerminalFormatter(lambda: {"turn_id": "resp_1"}).format(record) == "A tool [2J failed: no (turn resp_1)"
    assert TerminalFormatter(dict).format(record) == "A tool [2J failed: no"


def test_failures_of_turns_and_tools_are_logged_with_their_causes(lines: Lines) -> None:
    failures = FailureLog()
    failures.saw(TurnFailed(1, "upstream_error", "It broke off."), api="agents", model="m")
    failures.saw(ToolCompleted(1, "c", "", error={"kind": "tool", "message": "No such city.", "code": 1}), api="agents")
    failures.saw(ToolCompleted(1, "c", "42"), api="agents")
    assert lines() == ["A turn of m failed with upstream_error: It broke off.", "A tool failed: No such city."]
