"""The laptop's gateway: the template's routes in an order that serves each of them, and what is said of all others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.responses import Response
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from tests.server import LoopbackServer
from turnloom import bootstrap
from turnloom.local import template
from turnloom.local.gateway import LocalNames, Readiness, gateway
from turnloom.local.hosts import is_loopback


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder: Path = tmp_path_factory.mktemp("laptop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TURNLOOM_DATA_DIR", str(folder))
        bootstrap.services.cache_clear()
        # Not entered: that would start the sweeper.
        yield TestClient(gateway())
        bootstrap.services.cache_clear()


@pytest.mark.parametrize("path", ["/v1/responses/a/b", "/v1/conversations/a/b", "/v1/openai/v1/responses/a/b"])
def test_a_route_that_does_not_exist_is_told_as_the_responses_api_tells_it(client: TestClient, path: str) -> None:
    answer = client.put(path)
    error = answer.json()["error"]
    assert (answer.status_code, set(error)) == (404, {"message", "type", "param", "code"})
    assert path in error["message"] and answer.headers["x-request-id"]
    assert ("detail" in answer.json()) == path.startswith("/v1/openai/")


def test_elsewhere_it_is_told_as_the_agents_api_tells_it(client: TestClient) -> None:
    answer = client.put("/v1/agents")
    assert answer.status_code == answer.json()["status"] == 404
    assert "/v1/agents" in answer.json()["detail"]


def test_every_route_of_the_template_is_served_by_its_own_function(client: TestClient) -> None:
    """An app knows its own routes alone: one that is asked for another's says that there is no such route."""
    for function in template.functions():
        for method, path in function.routes:
            asked = path.replace("+}", "}").replace("{", "x-").replace("}", "")
            answer = client.request(method, asked, content=b"[" if method == "POST" else None)
            assert f"{method} {asked}" not in answer.text, (function.folder, method, path)


def test_another_spelling_of_a_path_is_another_path(client: TestClient) -> None:
    answer = client.get("/v1/agents/", follow_redirects=False)
    assert answer.status_code == 404 and answer.headers["x-request-id"]


@pytest.mark.parametrize("host", ["rebound.example", "rebound.example:8321", "localhost.example", "127.0.0.1.example"])
def test_another_machines_name_is_refused_where_nobody_needs_a_credential(client: TestClient, host: str) -> None:
    answer = TestClient(LocalNames(client.app)).get("/v1/agents", headers={"host": host})
    assert answer.status_code == answer.json()["status"] == 403
    assert "names of this machine" in answer.json()["detail"]


@pytest.mark.parametrize("host", ["localhost:8321", "127.0.0.1:8321", "[::1]:8321", "app.localhost", "192.0.2.1"])
def test_an_address_or_a_name_that_nobody_can_register_is_this_machines_own(client: TestClient, host: str) -> None:
    assert TestClient(LocalNames(client.app)).get("/v1/agents", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "x"])
def test_a_page_of_another_origin_is_refused_where_nobody_needs_a_credential(client: TestClient, origin: str) -> None:
    headers = {"host": "localhost:8321", "origin": origin, "content-type": "text/plain"}
    answer = TestClient(LocalNames(client.app)).post("/v1/responses", content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "unknown_origin")


@pytest.mark.parametrize(
    ("origin", "origins"),
    [
        ("http://localhost:3000", ""),
        ("http://127.0.0.1:8321", ""),
        ("https://app.example", "https://app.example/, https://b.example"),
        ("https://app.example", "*"),
    ],
)
def test_a_page_of_this_machine_or_of_a_named_origin_is_served(client: TestClient, origin: str, origins: str) -> None:
    headers = {"host": "localhost:8321", "origin": origin}
    assert TestClient(LocalNames(client.app, origins)).get("/v1/agents", headers=headers).status_code == 200


def test_health_waits_for_the_other_parts(client: TestClient) -> None:
    async def up(scope: Scope, receive: Receive, send: Send) -> None:
        await Response()(scope, receive, send)

    with LoopbackServer(up) as engine:
        assert TestClient(Readiness(client.app, {"engine": engine.url})).get("/v1/health").status_code == 200
    waiting = TestClient(Readiness(client.app, {"engine": engine.url}))
    answer = waiting.get("/v1/health")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert "engine" in answer.json()["detail"]
    assert waiting.get("/v1/version").status_code == 200


def test_only_this_machine_reaches_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.0.2.1", "laptop.example")))
