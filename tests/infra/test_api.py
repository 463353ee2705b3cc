"""The edge of the deployment: what API Gateway says by itself, whom it lets read, how much it takes, what it logs."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any

import pytest

from turnloom.wire.body import MAX_BODY_BYTES
from turnloom.wire.problems import agents_envelope, responses_envelope

# What API Gateway refuses by itself: the domain's word for it, the headers that say whether to try again.
TOLD = {
    "UNAUTHORIZED": ("unauthenticated", {"www-authenticate": "'Bearer'"}),
    "AUTHORIZER_FAILURE": ("authorizer_unavailable", {"retry-after": "'5'"}),
    "AUTHORIZER_CONFIGURATION_ERROR": ("authorizer_unavailable", {"retry-after": "'5'"}),
    "RESOURCE_NOT_FOUND": ("route_not_found", {}),
    "MISSING_AUTHENTICATION_TOKEN": ("route_not_found", {}),
    "INVALID_SIGNATURE": ("route_not_found", {}),
    "EXPIRED_TOKEN": ("route_not_found", {}),
    "REQUEST_TOO_LARGE": ("payload_too_large", {}),
    "THROTTLED": ("rate_limited", {"retry-after": "'1'"}),
    "QUOTA_EXCEEDED": ("insufficient_quota", {"x-should-retry": "'false'"}),
}
# What no function says, so that problems.py has no word for it.
ALONE = {
    "DEFAULT_4XX": (None, {}),
    "DEFAULT_5XX": (None, {}),
    "ACCESS_DENIED": (403, {}),
    "INTEGRATION_TIMEOUT": (504, {"x-should-retry": "'false'"}),
}
ANYONE = {"Fn::If": ["HasCors", "'*'", {"Ref": "AWS::NoValue"}]}


@pytest.fixture(scope="module")
def answers(resources: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = resources["AWS::ApiGateway::RestApi"]["Api"]["Body"][
        "x-amazon-apigateway-gateway-responses"
    ]
    return found


@pytest.fixture(scope="module")
def stage(resources: dict[str, Any]) -> dict[str, Any]:
    [found] = resources["AWS::ApiGateway::Stage"].values()
    return dict(found)


def body(answer: dict[str, Any]) -> dict[str, Any]:
    """What a client reads. API Gateway puts a JSON text, quotes and all, in the place of messageString."""
    [(kind, template)] = answer["responseTemplates"].items()
    assert kind == "application/json"
    told: dict[str, Any] = json.loads(template.replace("$context.error.messageString", '"Forbidden"'))
    return told


def headers(answer: dict[str, Any]) -> dict[str, Any]:
    found = {
        name.removeprefix("gatewayresponse.header."): value for name, value in answer["responseParameters"].items()
    }
    return {name.lower(): value for name, value in found.items()}


# --- what it refuses


def test_every_refusal_is_accounted_for_here(answers: dict[str, Any]) -> None:
    assert set(answers) == {*TOLD, *ALONE}


@pytest.mark.parametrize("kind", TOLD)
def test_a_refusal_of_the_gateway_reads_as_the_functions_own_in_both_apis(kind: str, answers: dict[str, Any]) -> None:
    code, _ = TOLD[kind]
    told = body(answers[kind])
    agents = agents_envelope(code, told["detail"])
    responses = responses_envelope(code, told["detail"], None, alias=True)
    assert answers[kind]["statusCode"] == str(agents["status"])
    # The phrase of 413 is another one in Python 3.13.
    assert {**told, "title": agents["title"]} == {
        **agents,
        "error": {**responses["error"], "code": responses["error"]["code"] or code},
    }


@pytest.mark.parametrize("kind", [*TOLD, *ALONE])
def test_a_refusal_has_all_that_either_client_reads(kind: str, answers: dict[str, Any]) -> None:
    told = body(answers[kind])
    assert told["detail"] == told["error"]["message"] != ""
    assert set(told["error"]) == {"message", "type", "param", "code"}
    status = answers[kind].get("statusCode")
    # A default leaves the status as it is, so it cannot name it.
    assert told.get("status") == (int(status) if status else None)
    assert bool(told.get("title")) == bool(status)


@pytest.mark.parametrize("kind", ALONE)
def test_a_refusal_of_its_own_puts_the_blame_where_its_status_does(kind: str, answers: dict[str, Any]) -> None:
    status, _ = ALONE[kind]
    ours = kind == "DEFAULT_5XX" or (status or 0) >= HTTPStatus.INTERNAL_SERVER_ERROR
    assert answers[kind].get("statusCode") == (str(status) if status else None)
    assert body(answers[kind])["error"]["type"] == ("server_error" if ours else "invalid_request_error")


@pytest.mark.parametrize(("kind", "hints"), [(kind, hints) for kind, (_, hints) in {**TOLD, **ALONE}.items()])
def test_a_refusal_names_the_request_and_whether_to_try_again(
    kind: str, hints: dict[str, str], answers: dict[str, Any]
) -> None:
    shown = headers(answers[kind])
    shared = {"access-control-allow-origin": ANYONE, "access-control-expose-headers": ANYONE}
    assert shown == {"x-request-id": "context.requestId", **shared, **hints}


def test_a_body_that_is_too_large_is_told_the_limit_that_the_functions_have(answers: dict[str, Any]) -> None:
    assert f"{MAX_BODY_BYTES // 1024**2} MB" in body(answers["REQUEST_TOO_LARGE"])["detail"]


# --- web pages


def test_every_path_answers_preflights_without_asking_who_is_there(resources: dict[str, Any]) -> None:
    for path, methods in resources["AWS::ApiGateway::RestApi"]["Api"]["Body"]["paths"].items():
        preflight = methods["options"]
        assert not preflight.get("security"), path
        assert preflight["x-amazon-apigateway-integration"]["type"] == "mock", path


def test_a_preflight_allows_what_the_clients_in_a_browser_send(resources: dict[str, Any]) -> None:
    for path, methods in resources["AWS::ApiGateway::RestApi"]["Api"]["Body"]["paths"].items():
        [answer] = methods["options"]["x-amazon-apigateway-integration"]["responses"].values()
        given = {name.rpartition(".")[2]: value for name, value in answer["responseParameters"].items()}
        assert given["Access-Control-Allow-Origin"] == ANYONE
        # Browsers take the star for all headers but this one.
        assert given["Access-Control-Allow-Headers"] == "'*,Authorization'"
        served = {method.upper() for method in methods}
        assert served <= set(given["Access-Control-Allow-Methods"].strip("'").split(",")), path


def test_the_functions_know_whose_pages_may_read_them(resources: dict[str, Any]) -> None:
    for name, properties in resources["AWS::Lambda::Function"].items():
        assert properties["Environment"]["Variables"]["TURNLOOM_CORS_ORIGINS"] == {"Ref": "CorsOrigins"}, name


@pytest.mark.parametrize(
    ("origins", "fits"),
    [
        ("", True),
        ("*", True),
        ("https://a.example", True),
        ("https://a.example,http://localhost:3000", True),
        ("https://a.example, https://b.example", False),
        ("a.example", False),
        ("https://a.example,", False),
    ],
)
def test_origins_are_none_all_or_a_list(origins: str, fits: bool, translated: dict[str, Any]) -> None:
    parameter = translated["Parameters"]["CorsOrigins"]
    assert parameter["Default"] == ""
    assert bool(re.fullmatch(parameter["AllowedPattern"], origins)) == fits


# --- how much it takes, and what it notes


def test_all_callers_together_are_throttled_as_the_parameters_say(
    stage: dict[str, Any], translated: dict[str, Any]
) -> None:
    [settings] = stage["MethodSettings"]
    assert (settings["HttpMethod"], settings["ResourcePath"]) == ("*", "/*")
    assert settings["ThrottlingRateLimit"] == {"Ref": "RateLimit"}
    assert settings["ThrottlingBurstLimit"] == {"Ref": "BurstLimit"}
    assert all(translated["Parameters"][name]["MinValue"] == 1 for name in ("RateLimit", "BurstLimit"))


def test_a_usage_plan_covers_the_stage(resources: dict[str, Any]) -> None:
    [plan] = resources["AWS::ApiGateway::UsagePlan"].values()
    [name] = resources["AWS::ApiGateway::Stage"]
    assert plan["ApiStages"] == [{"ApiId": {"Ref": "Api"}, "Stage": {"Ref": name}}]
    assert plan["Throttle"] == {"RateLimit": {"Ref": "RateLimit"}, "BurstLimit": {"Ref": "BurstLimit"}}


def test_what_is_asked_and_answered_is_in_no_log_of_the_gateway(stage: dict[str, Any]) -> None:
    [settings] = stage["MethodSettings"]
    assert (settings["LoggingLevel"], settings["DataTraceEnabled"]) == ("OFF", False)
    noted = set(json.loads(stage["AccessLogSetting"]["Format"]).values())
    # These would show ids, queries, bodies, or headers: the credential too, where one was taken for a signature.
    telling = re.compile(r"path$|querystring|header|body|messageString|error\.message", re.IGNORECASE)
    assert not [name for name in noted - {"$context.resourcePath"} if telling.search(name)]


def test_a_line_of_the_log_says_who_asked_what_how_it_ended_and_how_long_it_took(stage: dict[str, Any]) -> None:
    noted = json.loads(stage["AccessLogSetting"]["Format"])
    assert all(value.startswith("$context.") for value in noted.values())
    assert {"requestId", "owner", "method", "route", "status", "latency", "integrationError", "gatewayError"} <= set(
        noted
    )


def test_the_log_has_a_role_before_the_api_needs_it_unless_the_account_has_one(translated: dict[str, Any]) -> None:
    account = translated["Resources"]["GatewayLogs"]
    role = translated["Resources"]["GatewayLogsRole"]
    assert account["Condition"] == role["Condition"] == "CreatesGatewayLogRole"
    # Others in the account may write by it when this stack goes.
    assert account["DeletionPolicy"] == role["DeletionPolicy"] == "Retain"
    assert "${GatewayLogs}" in json.dumps(translated["Resources"]["Api"]["Properties"]["Description"])


# --- its name


def test_a_domain_is_only_made_where_one_is_given(translated: dict[str, Any]) -> None:
    conditions = {
        name: translated["Resources"][name]["Condition"] for name in ("Domain", "DomainMapping", "DomainRecord")
    }
    assert conditions == {"Domain": "HasDomain", "DomainMapping": "HasDomain", "DomainRecord": "HasHostedZone"}
    assert {translated["Parameters"][name]["Default"] for name in ("DomainName", "CertificateArn", "HostedZoneId")} == {
        ""
    }


def test_the_domain_leads_to_the_stage(resources: dict[str, Any], translated: dict[str, Any]) -> None:
    mapping = resources["AWS::ApiGateway::BasePathMapping"]["DomainMapping"]
    [name] = resources["AWS::ApiGateway::Stage"]
    assert (mapping["RestApiId"], mapping["Stage"]) == ({"Ref": "Api"}, {"Ref": name})
    assert "BasePath" not in mapping
    assert translated["Outputs"]["DomainTarget"]["Value"] == {"Fn::GetAtt": ["Domain", "RegionalDomainName"]}
    domain = resources["AWS::ApiGateway::DomainName"]["Domain"]
    assert domain["EndpointConfiguration"] == {"Types": ["REGIONAL"]}
    assert resources["AWS::ApiGateway::RestApi"]["Api"]["EndpointConfiguration"] == {"Types": ["REGIONAL"]}


# --- the sweeper's clock


def test_a_sweep_is_not_repeated_since_the_next_one_does_its_work(resources: dict[str, Any]) -> None:
    [settings] = resources["AWS::Lambda::EventInvokeConfig"].values()
    assert settings["FunctionName"] == {"Ref": "TurnSweep"}
    assert (settings["MaximumRetryAttempts"], settings["MaximumEventAgeInSeconds"]) == (0, 60)
