"""The authorizer's answer to API Gateway, and how a function learns from it whose request it has."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mangum import Mangum
from starlette.testclient import TestClient

from tests.conftest import House
from turnloom import gate
from turnloom.adapters.sqlite import SqliteDatabase
from turnloom.domain.agent import Agent
from turnloom.domain.errors import UpstreamBroken
from turnloom.loop import on_loop
from turnloom.store.api_keys import ApiKeys
from turnloom.testing import CountingEntropy, FrozenClock
from turnloom.usecases.authorization import Authorization, Trust, create_key
from turnloom.usecases.trail import mark_of
from turnloom.wire.agents_api.routes import agents_app
from turnloom.wire.authorizer import REFUSAL, Unauthorized, Unavailable, policy
from turnloom.wire.responses_api.routes import responses_app

STAGE = "arn:aws:execute-api:us-east-1:123456789012:api1/live"
NOW = 1_750_000_000
AGENT = "01977420-dc00-7000-8000-00000000000a"


def event(**headers: str) -> dict[str, Any]:
    return {
        "type": "REQUEST",
        "methodArn": f"{STAGE}/GET/v1/models/a/b",
        "headers": headers,
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
    }


class Keyring:
    """An authorization by keys, over a table of its own."""

    def __init__(self, folder: Path) -> None:
        self.keys = ApiKeys(SqliteDatabase(folder / "keys.db").table("keys"))
        self.authorization = Authorization(self.keys)

    async def create(self, owner: str = "me", **rest: Any) -> str:
        return await create_key(self.keys, FrozenClock(NOW * 1_000_000), CountingEntropy(), owner, **rest)


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path)


# --- what it tells API Gateway


async def test_it_gives_leave_for_every_route_as_its_answer_is_kept_for_all(ring: Keyring) -> None:
    told = await policy(ring.authorization, event(Authorization=f"Bearer {await ring.create()}"))
    [statement] = told["policyDocument"]["Statement"]
    assert statement == {"Effect": "Allow", "Action": "execute-api:Invoke", "Resource": f"{STAGE}/*"}
    assert told["context"] == {"owner": "me"}


async def test_it_tells_until_when_a_credential_is_good_in_the_texts_that_a_context_can_hold(ring: Keyring) -> None:
    key = await ring.create(days=36_500)
    told = await policy(ring.authorization, event(authorization=f"Bearer {key}"))
    assert told["context"] == {"owner": "me", "expires": str(NOW + 36_500 * 24 * 3600)}


async def test_the_principal_which_the_access_log_shows_is_a_mark_of_the_owner(ring: Keyring) -> None:
    told = await policy(ring.authorization, event(Authorization=f"Bearer {await ring.create('zoe@example.com')}"))
    assert told["principalId"] == mark_of("zoe@example.com")
    assert re.fullmatch("[0-9a-f]{16}", told["principalId"])


async def test_a_refusal_is_the_one_text_that_becomes_a_401(ring: Keyring) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": await ring.create()}):
        with pytest.raises(Unauthorized, match=r"^Unauthorized$"):
            await policy(ring.authorization, event(**headers))


async def test_of_two_credentials_none_is_taken(ring: Keyring) -> None:
    key = f"Bearer {await ring.create()}"
    asked = event(Authorization=key)
    asked["multiValueHeaders"] = {"Authorization": ["Bearer other", key]}
    with pytest.raises(Unauthorized):
        await policy(ring.authorization, asked)
    asked["multiValueHeaders"] = {"Authorization": [key], "authorization": [key]}
    with pytest.raises(Unauthorized):
        await policy(ring.authorization, asked)


class Unreachable:
    """Tokens of an issuer whose keys cannot be had."""

    async def claims(self, token: str) -> dict[str, Any]:
        raise UpstreamBroken("The keys cannot be had now.", code="authorizer_unavailable")


async def test_credential_that_cannot_be_checked_is_not_refused_and_costs_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    authorization = Authorization(trust=Trust(Unreachable(), "https://id.example"))
    with pytest.raises(Unavailable, match=r"^Unavailable$"):
        await policy(authorization, event(Authorization="Bearer a.b.c"))
    [line] = caplog.records
    assert line.exc_info is None and "\n" not in line.getMessage()


# --- by which settings


def test_a_deployment_that_does_not_say_whom_to_trust_trusts_nobody(tmp_path: Path) -> None:
    folder = {"TURNLOOM_DATA_DIR": str(tmp_path)}
    tokens = {"TURNLOOM_JWT_ISSUER": "https://id.example", "TURNLOOM_JWT_AUDIENCE": "turnloom"}
    unclear: list[dict[str, str]] = [{}, {"TURNLOOM_AUTH": ""}, {"TURNLOOM_AUTH": "None"}, {"TURNLOOM_AUTH": "jwt"}]
    unclear += [{"TURNLOOM_AUTH": "both", name: value} for name, value in tokens.items()]
    for env in unclear:
        with pytest.raises(ValueError):
            gate.build(folder | env)


@pytest.mark.parametrize(
    ("mode", "taken"), [("none", {"open"}), ("keys", {"keys"}), ("jwt", {"trust"}), ("both", {"keys", "trust"})]
)
def test_what_is_taken_is_what_the_setting_says(mode: str, taken: set[str], tmp_path: Path) -> None:
    env = {"TURNLOOM_JWT_ISSUER": "https://id.example", "TURNLOOM_JWT_AUDIENCE": "turnloom"}
    made = gate.build({"TURNLOOM_DATA_DIR": str(tmp_path), "TURNLOOM_AUTH": mode, **env})
    assert {name for name in ("open", "keys", "trust") if getattr(made, name)} == taken


def test_the_claim_that_names_the_owner_is_a_setting(tmp_path: Path) -> None:
    env = {"TURNLOOM_JWT_ISSUER": "https://id.example", "TURNLOOM_JWT_AUDIENCE": "turnloom", "TURNLOOM_AUTH": "jwt"}
    claims = [gate.build(env | more).trust for more in ({}, {"TURNLOOM_JWT_OWNER_CLAIM": "org"})]
    assert [trust and trust.claim for trust in claims] == ["sub", "org"]


def test_the_authorizer_logs_from_the_level_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = logging.getLogger("turnloom")
    monkeypatch.setattr(ours, "level", ours.level)
    settings = {"TURNLOOM_AUTH": "keys", "TURNLOOM_DATA_DIR": str(tmp_path), "TURNLOOM_LOG_LEVEL": "WARNING"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    gate.authorization.cache_clear()
    gate.authorization()
    gate.authorization.cache_clear()
    assert ours.level == logging.WARNING


def test_authorizer_waits_for_no_other_work_of_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TURNLOOM_AUTH": "keys", "TURNLOOM_DATA_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    gate.authorization.cache_clear()
    blocked, release = threading.Event(), threading.Event()

    async def block() -> None:
        blocked.set()
        release.wait(30)

    other = threading.Thread(target=lambda: on_loop(block()))
    other.start()
    try:
        assert blocked.wait(10)
        with pytest.raises(Unauthorized):
            gate.admit(event(Authorization="Bearer wrong"))
        assert other.is_alive()
    finally:
        release.set()
        other.join()
        gate.authorization.cache_clear()


# --- whose request a function has

Starts = Callable[..., Any]


@pytest.fixture
async def starts(house: House, monkeypatch: pytest.MonkeyPatch) -> Starts:
    """Starts `get_agent` in an environment; there is an agent of alice's, one of Zoë's, and one of nobody's."""
    for owner in ("alice", "Zoë", "default"):
        await house.services.agents.put(owner, Agent(AGENT, {"instructions": owner}, NOW * 1_000_000))

    def start(**env: str) -> Any:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        return agents_app("get_agent", lambda: house.services)

    return start


def through_mangum(app: Any, authorizer: dict[str, Any] | None, **headers: str) -> tuple[int, Any]:
    """What the function answers API Gateway, whose authorizer has said this."""
    context: dict[str, Any] = {"identity": {}, "stage": "live"}
    path = f"/v1/agents/{AGENT}"
    asked = {
        "resource": path,
        "path": path,
        "httpMethod": "GET",
        "headers": headers,
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "requestContext": context if authorizer is None else {**context, "authorizer": authorizer},
        "body": None,
        "isBase64Encoded": False,
    }
    answer: Any = Mangum(app, lifespan="off")(asked, None)  # type: ignore[arg-type]
    return answer["statusCode"], json.loads(answer["body"])


def over_http(app: Any, context: Any = None) -> tuple[int, Any]:
    """What the function answers over HTTP, with this request context in the header that the web adapter writes."""
    written = {} if context is None else {"x-amzn-request-context": json.dumps(context, ensure_ascii=False).encode()}
    answer = TestClient(app).get(f"/v1/agents/{AGENT}", headers=written)  # type: ignore[arg-type]
    return answer.status_code, answer.json()


def owner_in(answer: tuple[int, Any]) -> str:
    assert answer[0] == 200, answer
    return str(answer[1]["agent_config"]["instructions"])


def test_the_owner_is_whom_the_authorizer_names(starts: Starts) -> None:
    app = starts(TURNLOOM_AUTH="keys")
    for owner in ("alice", "Zoë"):
        assert owner_in(through_mangum(app, {"principalId": "x", "owner": owner})) == owner


def test_a_function_that_streams_learns_it_from_the_web_adapter(starts: Starts) -> None:
    app = starts(TURNLOOM_AUTH="keys", AWS_LWA_PORT="8080")
    for owner in ("alice", "Zoë"):
        assert owner_in(over_http(app, {"authorizer": {"owner": owner}})) == owner


def test_the_same_function_called_without_the_adapter_hears_the_event_alone(starts: Starts) -> None:
    app = starts(TURNLOOM_AUTH="keys", AWS_LWA_PORT="8080")
    assert owner_in(through_mangum(app, {"owner": "alice"})) == "alice"
    forged = {"x-amzn-request-context": json.dumps({"authorizer": {"owner": "alice"}})}
    assert through_mangum(app, {}, **forged)[0] == 401


@pytest.mark.parametrize("mode", ["keys", "none"])
def test_where_no_web_adapter_writes_the_header_a_client_does_and_is_not_heard(mode: str, starts: Starts) -> None:
    forged = {"authorizer": {"owner": "alice"}}
    app = starts(TURNLOOM_AUTH=mode)
    if mode == "none":
        assert owner_in(over_http(app, forged)) == "default"
    else:
        assert over_http(app, forged)[0] == 401
    header = {"x-amzn-request-context": json.dumps(forged)}
    assert through_mangum(app, {"owner": "bob"}, **header)[0] == 404


@pytest.mark.parametrize("said", [None, {}, {"owner": ""}, {"principalId": "alice"}])
def test_where_a_credential_is_asked_for_nobody_is_not_somebody(said: dict[str, str] | None, starts: Starts) -> None:
    app = starts(TURNLOOM_AUTH="keys")
    status, body = through_mangum(app, said)
    assert (status, body["detail"], body["error"]["code"]) == (401, REFUSAL, "unauthenticated")
    adapted = starts(AWS_LWA_PORT="8080")
    assert over_http(adapted, {"authorizer": said})[0] == over_http(adapted)[0] == 401


def test_where_none_is_asked_for_everybody_is_one_owner(starts: Starts) -> None:
    assert owner_in(through_mangum(starts(), None)) == "default"
    assert owner_in(through_mangum(starts(TURNLOOM_AUTH="none"), {"owner": "default"})) == "default"
    assert owner_in(over_http(starts(AWS_LWA_PORT="8080"), {})) == "default"


def test_a_deployment_that_does_not_say_whom_it_lets_in_lets_nobody_in(starts: Starts) -> None:
    assert through_mangum(starts(TURNLOOM_TABLES_PREFIX="stack-"), None)[0] == 401


def test_an_answer_that_is_kept_does_not_outlive_its_credential(starts: Starts, house: House) -> None:
    app = starts(TURNLOOM_AUTH="jwt")
    ends = house.clock.time // 1_000_000 + 60
    said = {"owner": "alice", "expires": str(ends)}
    assert owner_in(through_mangum(app, said)) == "alice"
    house.clock.advance(60)
    assert through_mangum(app, said)[0] == 401
    assert owner_in(through_mangum(app, {"owner": "alice"})) == "alice"


def test_the_responses_api_says_401_in_its_own_words(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNLOOM_AUTH", "keys")
    answer = TestClient(responses_app("list_openai_responses", lambda: house.services)).get("/v1/responses")
    error = {"message": REFUSAL, "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
    assert (answer.status_code, answer.json()) == (401, {"error": error})
