"""Web pages of other origins: who may read what a function answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from turnloom.usecases.services import Services
from turnloom.wire.agents_api.routes import agents_app
from turnloom.wire.app import share
from turnloom.wire.body import MAX_BODY_BYTES

OURS, ALSO_OURS, THEIRS = "https://a.example", "http://localhost:3000", "https://b.example"
READ = "access-control-allow-origin"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TestClient]:
    """A function's app as it starts in an environment that names these origins."""

    def start(origins: str | None) -> TestClient:
        if origins is not None:
            monkeypatch.setenv("TURNLOOM_CORS_ORIGINS", origins)
        return TestClient(agents_app("create_agent", _broken), raise_server_exceptions=False)

    return start


def _broken() -> Services:
    raise RuntimeError("as told")


@pytest.mark.parametrize("origins", [None, ""])
def test_pages_read_nothing_unless_they_are_let(asked: Callable[..., TestClient], origins: str | None) -> None:
    answer = asked(origins).post("/v1/agents", json=[], headers={"origin": OURS})
    assert READ not in answer.headers


@pytest.mark.parametrize("origin", [OURS, ALSO_OURS])
def test_pages_of_a_listed_origin_read_answers_and_failures_with_their_ids(
    asked: Callable[..., TestClient], origin: str
) -> None:
    answer = asked(f"{OURS}/, {ALSO_OURS}").post("/v1/agents", json={}, headers={"origin": origin})
    assert (answer.status_code, answer.headers[READ]) == (500, origin)
    assert answer.headers["access-control-expose-headers"] == "*" and answer.headers["x-request-id"]
    assert "Origin" in answer.headers["vary"]


def test_pages_of_another_origin_do_not(asked: Callable[..., TestClient]) -> None:
    answer = asked(OURS).post("/v1/agents", json=[], headers={"origin": THEIRS})
    assert READ not in answer.headers


def test_a_star_is_everybody_and_asks_for_no_cookies(asked: Callable[..., TestClient]) -> None:
    answer = asked("*").post("/v1/agents", json=[], headers={"origin": THEIRS})
    assert answer.headers[READ] == "*"
    assert "access-control-allow-credentials" not in answer.headers


def test_a_body_over_the_limit_is_told_as_such_and_can_be_read(asked: Callable[..., TestClient]) -> None:
    answer = asked(OURS).post("/v1/agents", content=b" " * (MAX_BODY_BYTES + 1), headers={"origin": OURS})
    assert (answer.status_code, answer.headers[READ]) == (413, OURS)


def test_a_preflight_lets_a_browser_send_what_the_official_clients_send(asked: Callable[..., TestClient]) -> None:
    client = asked(None)
    share(client.app, OURS)  # type: ignore[arg-type]
    sent = "authorization,content-type,idempotency-key,openai-beta,x-stainless-retry-count"
    wish = {"access-control-request-method": "POST", "access-control-request-headers": sent}
    answer = client.options("/v1/agents", headers={"origin": OURS, **wish})
    assert (answer.status_code, answer.headers[READ]) == (200, OURS)
    assert answer.headers["access-control-allow-headers"] == sent
    refused = client.options("/v1/agents", headers={"origin": THEIRS, **wish})
    assert READ not in refused.headers
