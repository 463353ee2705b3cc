"""What a deployment's log tells of requests: who, what and how it went, and nothing that anybody wrote."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mangum import Mangum
from starlette.testclient import TestClient

from tests.conftest import House
from tests.wire.apps import both_apis
from turnloom.adapters.logs import structured
from turnloom.usecases.response_rules import LOST_SERVER
from turnloom.usecases.trail import mark_of, trail
from turnloom.wire.agents_api.routes import agents_app

SERVER = {"server_label": "s", "server_url": "https://tools.example/secret"}
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """All log lines so far."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    structured("stack", "INFO", trail)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    root.handlers[:] = before
    root.setLevel(level)


def test_a_line_tells_of_a_request_by_ids_alone(house: House, lines: Lines) -> None:
    house.model.says("A secret answer.")
    client = TestClient(both_apis(house.services))
    made = client.post("/v1/responses", json={"model": "m", "input": "A secret question."})
    [line] = lines()
    told = {name: line[name] for name in ("message", "method", "route", "status", "turn_id", "owner", "request_id")}
    assert told == {
        "message": "request",
        "method": "POST",
        "route": "/v1/responses",
        "status": 200,
        "turn_id": made.json()["id"],
        "owner": mark_of("default"),
        "request_id": made.headers["x-request-id"],
    }
    assert line["milliseconds"] >= 0
    assert "secret" not in json.dumps(line)


def test_an_object_that_a_path_names_is_named(house: House, lines: Lines) -> None:
    TestClient(both_apis(house.services)).get("/v1/responses/resp_none")
    [line] = lines()
    assert (line["route"], line["response_id"], line["status"]) == ("/v1/responses/{response_id}", "resp_none", 404)


def test_what_goes_wrong_in_a_turn_is_told_with_the_request_that_began_it(house: House, lines: Lines) -> None:
    house.model.answers(RuntimeError("broken"))
    made = TestClient(both_apis(house.services)).post("/v1/responses", json={"model": "m", "input": "Hi."})
    failure, request = lines()
    assert failure["level"] == "ERROR"
    assert {failure["request_id"], request["request_id"]} == {made.headers["x-request-id"]}
    assert failure["turn_id"] == request["turn_id"]
    assert failure["turn_id"].startswith("resp_")


def test_one_warning_names_the_tools_that_a_response_is_not_offered(house: House, lines: Lines) -> None:
    house.model.says("Hello.")
    inner = [{"type": "function", "name": "f"}, {"type": "computer"}, {"type": "mcp", **SERVER}]
    tools = [
        {"type": "web_search", "filters": {"allowed_domains": ["secret.example"]}},
        {"type": "web_search"},
        {"type": "a secret\nsentence"},
        {"type": "another secret"},
        {"type": "function", "name": "g"},
        {"type": "custom", "name": "c"},
        {"type": "namespace", "name": "n", "tools": inner},
    ]
    item = {"type": "additional_tools", "tools": [{"type": "file_search", "vector_store_ids": ["secret"]}]}
    body = {"model": "m", "input": [item, {"role": "user", "content": "Hi."}], "tools": tools}
    made = TestClient(both_apis(house.services)).post("/v1/responses", json=body).json()
    warning, request = lines()
    named = "(another type), computer, file_search, mcp, web_search"
    assert warning["level"] == "WARNING" and warning["turn_id"] == request["turn_id"] == made["id"]
    assert warning["message"] == f"response {made['id']} is not offered these tools: {named}"
    assert "secret" not in json.dumps(warning)


def test_a_warning_names_a_bounded_number_of_tools(house: House, lines: Lines) -> None:
    house.model.says("Hello.")
    body = {"model": "m", "input": "Hi.", "tools": [{"type": f"tool_{number}"} for number in range(1000)]}
    TestClient(both_apis(house.services)).post("/v1/responses", json=body)
    assert len(lines()[0]["message"]) < 1000


def test_a_server_whose_address_was_a_secret_of_an_earlier_request_is_warned_of(house: House, lines: Lines) -> None:
    client = TestClient(both_apis(house.services))
    item = {"type": "additional_tools", "tools": [{"type": "mcp", **SERVER}]}
    house.model.says("One.")
    house.model.says("Two.")
    first = client.post("/v1/responses", json={"model": "m", "input": [item]}).json()
    body = {"model": "m", "input": "Hi.", "previous_response_id": first["id"]}
    second = client.post("/v1/responses", json=body).json()
    [warning] = [line for line in lines() if line["level"] == "WARNING"]
    assert warning["message"] == f"response {second['id']} is not offered these tools: {LOST_SERVER}"
    assert warning["turn_id"] == second["id"]


def test_a_request_whose_tools_are_all_offered_is_not_warned_of(house: House, lines: Lines) -> None:
    house.model.says("Hello.")
    tools = [{"type": "function", "name": "f"}, {"type": "mcp", **SERVER}]
    TestClient(both_apis(house.services)).post("/v1/responses", json={"model": "m", "input": "Hi.", "tools": tools})
    assert [line["level"] for line in lines()] == ["INFO"]


def test_requests_of_one_process_do_not_share_their_fields(house: House, lines: Lines) -> None:
    handler = Mangum(agents_app("list_agents", lambda: house.services), lifespan="off")
    for owner in ("alice", "bob"):
        handler(_event(owner), None)
    assert [line["owner"] for line in lines()] == [mark_of("alice"), mark_of("bob")]


def test_a_line_has_the_id_that_the_access_log_has(house: House, lines: Lines) -> None:
    Mangum(agents_app("list_agents", lambda: house.services), lifespan="off")(_event("alice"), None)
    [line] = lines()
    assert line["gateway_request_id"] == "of-the-gateway"


def test_a_function_that_streams_learns_that_id_from_the_web_adapter(
    house: House, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_LWA_PORT", "8080")
    client = TestClient(agents_app("list_agents", lambda: house.services))
    client.get("/v1/agents", headers={"x-amzn-request-context": json.dumps(_event("alice")["requestContext"])})
    [line] = lines()
    assert line["gateway_request_id"] == "of-the-gateway"


def _event(owner: str) -> dict[str, Any]:
    context = {"requestId": "of-the-gateway", "authorizer": {"owner": owner}, "identity": {"sourceIp": "192.0.2.1"}}
    return {
        "resource": "/",
        "path": "/v1/agents",
        "httpMethod": "GET",
        "headers": {},
        "multiValueHeaders": {},
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "requestContext": context,
        "body": None,
        "isBase64Encoded": False,
    }
