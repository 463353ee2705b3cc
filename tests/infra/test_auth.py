"""Who is let in: by the template in the cloud, and by the gateway on a laptop."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.infra.test_api import body, headers
from turnloom import bootstrap, gate
from turnloom.adapters.clock import SystemClock, random_bits
from turnloom.gate import MODES
from turnloom.local import template
from turnloom.local.gateway import gateway
from turnloom.usecases.authorization import create_key
from turnloom.wire.authorizer import REFUSAL, RETRY_AFTER, UNAVAILABLE

NO_CREDENTIAL = {("/v1/health", "get")}


# --- the template


def test_every_route_asks_the_authorizer_but_the_one_that_says_nothing(resources: dict[str, Any]) -> None:
    for path, methods in resources["AWS::ApiGateway::RestApi"]["Api"]["Body"]["paths"].items():
        for method, operation in methods.items():
            if method != "options":
                asks = operation.get("security") == [{"Bearer": []}]
                assert asks == ((path, method) not in NO_CREDENTIAL), (method, path)


def test_answers_of_the_authorizer_are_kept_by_the_credential_unless_all_is_open(resources: dict[str, Any]) -> None:
    [scheme] = resources["AWS::ApiGateway::RestApi"]["Api"]["Body"]["components"]["securitySchemes"].values()
    authorizer = scheme["x-amazon-apigateway-authorizer"]
    assert authorizer["type"] == "request"
    assert authorizer["identitySource"] == "method.request.header.Authorization"
    # 300 is the default, which the transform has put in the parameter's place.
    assert authorizer["authorizerResultTtlInSeconds"] == {"Fn::If": ["LetsEverybodyIn", 0, "300"]}
    assert "AuthorizeRequest" in json.dumps(authorizer["authorizerUri"])


def test_the_api_may_call_the_authorizer(resources: dict[str, Any]) -> None:
    allowed = [json.dumps(permission) for permission in resources["AWS::Lambda::Permission"].values()]
    assert any("AuthorizeRequest" in text and "authorizers/*" in text for text in allowed)


def test_nothing_is_open_unless_that_is_asked_for(translated: dict[str, Any]) -> None:
    parameter = translated["Parameters"]["Auth"]
    assert parameter["Default"] == "keys"
    assert set(parameter["AllowedValues"]) == set(MODES)
    assert translated["Conditions"]["LetsEverybodyIn"] == {"Fn::Equals": [{"Ref": "Auth"}, "none"]}


def test_every_function_knows_whether_it_may_go_without_an_owner(resources: dict[str, Any]) -> None:
    for name, properties in resources["AWS::Lambda::Function"].items():
        assert properties["Environment"]["Variables"]["TURNLOOM_AUTH"] == {"Ref": "Auth"}, name


def test_tokens_are_not_taken_without_an_issuer_and_an_audience(translated: dict[str, Any]) -> None:
    rule = translated["Rules"]["TokensNeedAnIssuer"]
    assert json.dumps(rule["RuleCondition"]).count('"Ref": "Auth"') == 2
    [assertion] = rule["Assertions"]
    assert set(re.findall(r'"Ref": "(\w+)"', json.dumps(assertion))) == {"JwtIssuer", "JwtAudience"}


@pytest.mark.parametrize(
    ("issuer", "fits"),
    [("", True), ("https://id.example/", True), ("http://id.example", False), ("https://id.example|x", False)],
)
def test_an_issuer_is_an_address_that_ends_before_the_claim_begins(
    issuer: str, fits: bool, translated: dict[str, Any]
) -> None:
    assert bool(re.fullmatch(translated["Parameters"]["JwtIssuer"]["AllowedPattern"], issuer)) == fits


def test_the_settings_of_tokens_reach_the_authorizer_alone(resources: dict[str, Any]) -> None:
    settings = {
        "TURNLOOM_JWT_ISSUER": {"Ref": "JwtIssuer"},
        "TURNLOOM_JWT_AUDIENCE": {"Ref": "JwtAudience"},
        "TURNLOOM_JWT_OWNER_CLAIM": {"Ref": "JwtOwnerClaim"},
        "TURNLOOM_JWT_JWKS_URL": {"Ref": "JwtJwksUrl"},
    }
    for name, properties in resources["AWS::Lambda::Function"].items():
        variables = properties["Environment"]["Variables"]
        found = {key: value for key, value in variables.items() if key.startswith("TURNLOOM_JWT_")}
        assert found == (settings if name == "AuthorizeRequest" else {}), name


def test_keys_are_read_by_the_authorizer_alone_and_written_by_no_function(resources: dict[str, Any]) -> None:
    touching = {
        name for name, p in resources["AWS::IAM::ManagedPolicy"].items() if "table/${Prefix}keys" in json.dumps(p)
    }
    assert touching == {"ReadKeys"}
    [*_, statement] = resources["AWS::IAM::ManagedPolicy"]["ReadKeys"]["PolicyDocument"]["Statement"]
    assert statement["Action"] == "dynamodb:GetItem"
    holders = {name for name, role in resources["AWS::IAM::Role"].items() if "ReadKeys" in json.dumps(role)}
    assert holders == {"AuthorizeRequestRole"}


def test_the_gateway_refuses_in_the_words_of_the_functions(resources: dict[str, Any]) -> None:
    answers = resources["AWS::ApiGateway::RestApi"]["Api"]["Body"]["x-amazon-apigateway-gateway-responses"]
    assert body(answers["UNAUTHORIZED"])["detail"] == REFUSAL
    assert body(answers["AUTHORIZER_FAILURE"])["detail"] == UNAVAILABLE
    assert headers(answers["AUTHORIZER_FAILURE"])["retry-after"] == f"'{RETRY_AFTER}'"


# --- the laptop

Starts = Callable[..., TestClient]


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starts]:
    """Starts the gateway in an environment. It is not entered, as that would start the sweeper."""
    monkeypatch.setenv("TURNLOOM_DATA_DIR", str(tmp_path))

    def start(**env: str) -> TestClient:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        bootstrap.services.cache_clear()
        gate.authorization.cache_clear()
        return TestClient(gateway(), raise_server_exceptions=False)

    yield start
    bootstrap.services.cache_clear()
    gate.authorization.cache_clear()


def bearer(folder: Path, owner: str) -> dict[str, str]:
    keys = gate.api_keys({"TURNLOOM_DATA_DIR": str(folder)})
    return {"authorization": f"Bearer {asyncio.run(create_key(keys, SystemClock(), random_bits, owner))}"}


def test_without_the_setting_a_laptop_asks_for_nothing(starts: Starts) -> None:
    assert starts().get("/v1/agents", headers={"authorization": "Bearer whatever"}).status_code == 200


def test_with_it_every_route_of_the_template_wants_a_credential(starts: Starts) -> None:
    client = starts(TURNLOOM_AUTH="keys")
    for function in template.functions():
        for method, path in function.routes:
            asked = path.replace("+}", "}").replace("{", "x-").replace("}", "")
            refused = client.request(method, asked).status_code == 401
            assert refused == ((path, method.lower()) not in NO_CREDENTIAL), (method, path)


def test_a_credential_leads_to_its_owners_things(starts: Starts, tmp_path: Path) -> None:
    client = starts(TURNLOOM_AUTH="keys")
    mine, theirs = bearer(tmp_path, "Zoë"), bearer(tmp_path, "they")
    config = {"agent_config": {"model": "m", "instructions": ""}}
    made = client.post("/v1/agents", json=config, headers=mine).json()["agent_id"]
    listed = [client.get("/v1/agents", headers=headers).json()["data"] for headers in (mine, theirs)]
    assert [[agent["agent_id"] for agent in found] for found in listed] == [[made], []]


def test_nobody_can_say_who_they_are(starts: Starts, tmp_path: Path) -> None:
    client = starts(TURNLOOM_AUTH="keys")
    forged = {"x-amzn-request-context": json.dumps({"authorizer": {"owner": "me"}})}
    assert client.get("/v1/agents", headers=forged).status_code == 401
    config = {"agent_config": {"model": "m", "instructions": ""}}
    client.post("/v1/agents", json=config, headers=bearer(tmp_path, "me"))
    assert client.get("/v1/agents", headers={**bearer(tmp_path, "they"), **forged}).json()["data"] == []


def test_a_page_that_may_ask_learns_so_without_a_credential_and_reads_the_refusal(starts: Starts) -> None:
    client = starts(TURNLOOM_AUTH="keys", TURNLOOM_CORS_ORIGINS="https://a.example")
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    ours = {"origin": "https://a.example"}
    preflight = client.options("/v1/responses", headers={**ours, **asks})
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, ours["origin"])
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    refused = client.post("/v1/responses", json={}, headers=ours)
    assert (refused.status_code, refused.headers.get_list("access-control-allow-origin")) == (401, [ours["origin"]])
    theirs = client.options("/v1/responses", headers={"origin": "https://b.example", **asks})
    assert "access-control-allow-origin" not in theirs.headers


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/conversations/a", "/v1/openai/v1/responses", "/v1/agents"])
def test_a_refusal_is_told_as_the_api_tells_it(path: str, starts: Starts) -> None:
    answer = starts(TURNLOOM_AUTH="keys").get(path)
    error = {"message": REFUSAL, "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
    agents = {"status": 401, "title": "Unauthorized", "detail": REFUSAL}
    expected: dict[str, Any] = {"error": error}
    if path == "/v1/agents":
        expected = {**agents, "error": {**error, "code": "unauthenticated"}}
    elif path.startswith("/v1/openai/"):
        expected["detail"] = REFUSAL
    assert (answer.status_code, answer.json()) == (401, expected)
    assert answer.headers["www-authenticate"] == "Bearer" and answer.headers["x-request-id"]


def test_a_setting_that_means_nothing_lets_nobody_in(starts: Starts, tmp_path: Path) -> None:
    client = starts(TURNLOOM_AUTH="kees")
    assert client.get("/v1/agents", headers=bearer(tmp_path, "me")).status_code == 503
    assert client.get("/v1/health").status_code == 200


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/conversations/a", "/v1/openai/v1/responses", "/v1/agents"])
def test_laptop_whose_issuer_is_down_says_when_to_try_again(
    path: str, starts: Starts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = {"TURNLOOM_JWT_ISSUER": "http://127.0.0.1:1", "TURNLOOM_JWT_AUDIENCE": "turnloom"}
    client = starts(TURNLOOM_AUTH="both", **issuer)
    head = base64.urlsafe_b64encode(b'{"alg":"ES256","kid":"a"}').decode().rstrip("=")
    answer = client.get(path, headers={"authorization": f"Bearer {head}.e30.AAAA"})
    error = answer.json()["error"]
    assert (answer.status_code, answer.headers["retry-after"]) == (503, str(RETRY_AFTER))
    assert (error["message"], error["type"], error["code"]) == (UNAVAILABLE, "server_error", "authorizer_unavailable")
    assert all(record.exc_info is None for record in caplog.records)
    assert client.get("/v1/agents", headers=bearer(tmp_path, "me")).status_code == 200
    assert client.get("/v1/agents", headers={"authorization": "Bearer a.b.c"}).status_code == 401


def test_where_everybody_is_let_in_on_purpose_a_laptop_asks_for_nothing(starts: Starts) -> None:
    assert starts(TURNLOOM_AUTH="none").get("/v1/agents").status_code == 200


# --- what an owner's tools may reach


@pytest.mark.parametrize(
    ("settings", "host", "status"),
    [
        ({}, "127.0.0.1", 200),
        ({"TURNLOOM_AUTH": "none"}, "localhost", 200),
        ({"TURNLOOM_AUTH": "keys"}, "127.0.0.1", 400),
        ({"TURNLOOM_AUTH": "keys"}, "localhost", 400),
        ({"TURNLOOM_AUTH": "keys"}, "2130706433", 400),
        ({"TURNLOOM_AUTH": "keys"}, "[::1]", 400),
        ({"TURNLOOM_AUTH": "keys", "TURNLOOM_HOSTS": "127.0.0.1"}, "127.0.0.1", 200),
        ({"TURNLOOM_AUTH": "keys", "TURNLOOM_HOSTS": "127.0.0.1"}, "localhost", 400),
        ({"TURNLOOM_AUTH": "keys", "TURNLOOM_HOSTS": "localhost"}, "localhost", 200),
        ({"TURNLOOM_AUTH": "keys", "TURNLOOM_HOSTS": "localhost"}, "127.0.0.1", 400),
    ],
)
def test_owners_reach_loopback_only_where_nobody_is_told_apart_or_the_operator_says_so(
    settings: dict[str, str], host: str, status: int, starts: Starts, tmp_path: Path
) -> None:
    client = starts(**settings)
    tool = {"name": "peek", "uri": f"http://{host}:9/2015-03-31/functions/list_agents/invocations"}
    group = {"toolgroup_id": "mine", "provider_id": "http", "args": {"tools": [tool]}}
    headers = bearer(tmp_path, "me")
    assert client.post("/v1/toolgroups", json=group, headers=headers).status_code == status
    assert len(client.get("/v1/tools?toolgroup_id=mine", headers=headers).json().get("data", [])) == (status == 200)
