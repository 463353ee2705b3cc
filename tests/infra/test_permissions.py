"""What a function may do and what its code does: every sample payload runs with no more than its role allows.

A call that the policies in template.yaml do not allow is refused here as AWS would refuse it. The account is moto's.
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from tests.infra.test_template import statements
from tests.samples import EVENTS, furnish, outcome, run, set_stage, start_turn
from tests.upstream import ScriptedUpstream, say
from turnloom import bootstrap, gate
from turnloom.adapters.clock import SystemClock
from turnloom.adapters.dynamodb import create_tables, dynamodb_client
from turnloom.local import template
from turnloom.storage import INDEXES

PREFIX, BUCKET, SEAL = "stack-", "stack-bucket", "stack-seal"
MACHINE = "arn:aws:states:us-east-1:123456789012:stateMachine:stack-turn"
UPSTREAM_SECRET = "stack-upstream"

Grants = set[tuple[str, str]]


class Denied(Exception):
    """The role does not allow the call."""


@dataclass
class Role:
    """What a function may do, as pairs of action and resource."""

    grants: Grants

    def check(self, params: Mapping[str, Any], model: Any, **_: Any) -> None:
        call = (f"{model.service_model.signing_name}:{model.name}", _resource(params))
        if not any(action == call[0] and fnmatch.fnmatch(call[1], resource) for action, resource in self.grants):
            raise Denied(*call)


def _resource(params: Mapping[str, Any]) -> str:
    """What a call is about, in the words of `granted`."""
    if "RequestItems" in params:
        [table] = params["RequestItems"]
        return str(table)
    if "TableName" in params:
        return params["TableName"] + (f"/index/{params['IndexName']}" if "IndexName" in params else "")
    if "Key" in params:
        return f"{params['Bucket']}/{params['Key']}"
    named = ("Bucket", "SecretId", "stateMachineArn", "executionArn")
    return next(str(params[name]) for name in named if name in params)


def granted(resources: dict[str, Any], function: str) -> Grants:
    """The function's grants: tables, bucket, secrets and state machine by the names they have here."""
    role = resources["AWS::IAM::Role"][f"{function}Role"]
    grants: Grants = set()
    for policy in role["ManagedPolicyArns"]:
        if "Ref" not in policy:
            continue
        for statement in statements([resources["AWS::IAM::ManagedPolicy"][policy["Ref"]]]):
            grants |= {(action, named) for action in _many(statement["Action"]) for named in _names(statement)}
    return grants


def _many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _names(statement: dict[str, Any]) -> Iterator[str]:
    for resource in _many(statement["Resource"]):
        text = json.dumps(resource)
        table = re.search(r":table/\$\{Prefix\}([\w/*]+)", text)
        if table is not None:
            yield PREFIX + table[1]
        elif blobs := re.search(r":s3:::\$\{Bucket\}([\w/*]*)", text):
            yield BUCKET + blobs[1]
        elif ":states:" in text:
            yield MACHINE if ":stateMachine:" in text else MACHINE.replace(":stateMachine:", ":execution:") + ":*"
        else:
            yield SEAL if "SealSecret" in text else UPSTREAM_SECRET


@contextmanager
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Role]]:
    """The deployment's tables, bucket and secrets; whoever calls must be allowed to by the roles it yields."""
    environment = {
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "TURNLOOM_TABLES_PREFIX": PREFIX,
        "TURNLOOM_BUCKET": BUCKET,
        "TURNLOOM_SEAL_SECRET": SEAL,
        "TURNLOOM_UPSTREAM_SECRET": UPSTREAM_SECRET,
        "TURNLOOM_STATE_MACHINE_ARN": MACHINE,
        "TURNLOOM_HOSTS": "127.0.0.1",
        "TURNLOOM_AUTH": "keys",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    worn: list[Role] = []

    def check(**call: Any) -> None:
        for role in worn:
            role.check(**call)

    with mock_aws():
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", boto3.Session())
        boto3.DEFAULT_SESSION._session.register("provide-client-params.*.*", check)
        create_tables(dynamodb_client(), {PREFIX + name: indexes for name, indexes in INDEXES.items()})
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        for secret in (SEAL, UPSTREAM_SECRET):
            boto3.client("secretsmanager").create_secret(Name=secret, SecretString=os.urandom(32).hex())
        forget()
        yield worn
        forget()


def forget() -> None:
    """What a function's process keeps."""
    bootstrap.services.cache_clear()
    gate.authorization.cache_clear()


NAMES = {function.folder: function.name for function in template.functions()}


class Deployment:
    """The account with an upstream and the objects that sample payloads name, and its functions in their roles."""

    def __init__(self, resources: dict[str, Any], worn: list[Role]) -> None:
        self.services = bootstrap.services()
        self._resources = resources
        self._worn = worn

    def call(self, function: str, event: Any) -> Any:
        """What the function answers, its role on."""
        forget()
        with self.role(granted(self._resources, NAMES[function])):
            return run(function, event)

    @contextmanager
    def role(self, grants: Grants) -> Iterator[None]:
        self._worn.append(Role(grants))
        yield
        self._worn.clear()


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        upstream.answer = lambda request: say("Hello", " there")
        yield upstream


@pytest.fixture
def deployment(
    resources: dict[str, Any], upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Deployment]:
    with account(monkeypatch) as worn:
        monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
        yield Deployment(resources, worn)


def request(function: str, **changes: Any) -> dict[str, Any]:
    """The first sample payload of the function that succeeds, with another body, path or query."""
    [sample, *_] = sorted(path for path in EVENTS if path.parent.name == function and path.stem[0] == "2")
    event: dict[str, Any] = json.loads(sample.read_text())
    if "body" in changes:
        changes["body"] = json.dumps(changes["body"])
    return event | changes


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_sample_payload_needs_no_more_than_the_role_allows(path: Path, deployment: Deployment) -> None:
    set_stage(deployment.services, path)
    result = deployment.call(path.parent.name, json.loads(path.read_text()))
    assert outcome(result) == path.stem.split("-")[0], result


def test_what_no_row_can_hold_is_written_read_and_deleted_by_the_functions_that_must(deployment: Deployment) -> None:
    body = {"model": "scripted", "input": "x" * 500_000}
    made = deployment.call("create_openai_response", request("create_openai_response", body=body))
    assert made["statusCode"] == 200, made["body"]
    assert boto3.client("s3").list_objects_v2(Bucket=BUCKET)["KeyCount"] == 1
    response_id = json.loads(made["body"])["id"]
    for function in ("get_openai_response", "list_openai_response_input_items", "delete_openai_response"):
        event = request(function)
        event["path"] = re.sub(r"resp_\w+", response_id, event["path"])
        answer = deployment.call(function, event)
        assert answer["statusCode"] == 200, answer["body"]
    assert boto3.client("s3").list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0


def test_an_answer_that_no_row_of_the_log_can_hold_is_logged_by_the_task_and_removed_by_who_deletes(
    deployment: Deployment, upstream: ScriptedUpstream
) -> None:
    upstream.answer = lambda request: say("x" * 500_000)
    [task] = [path for path in EVENTS if path.parent.name == "turn_call_model"]
    set_stage(deployment.services, task)
    assert outcome(deployment.call("turn_call_model", json.loads(task.read_text()))) == "finish"
    [blob] = boto3.client("s3").list_objects_v2(Bucket=BUCKET)["Contents"]
    assert blob["Key"].startswith("log/")
    assert deployment.call("get_agents_session", request("get_agents_session"))["statusCode"] == 200
    assert deployment.call("delete_agents_session", request("delete_agents_session"))["statusCode"] == 204
    assert boto3.client("s3").list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0


def test_an_agent_that_no_row_can_hold_is_kept_read_and_deleted_by_the_functions_that_must(
    deployment: Deployment,
) -> None:
    config = {"model": "scripted", "instructions": "x" * 500_000}
    made = deployment.call("create_agent", request("create_agent", body={"agent_config": config}))
    agent_id = json.loads(made["body"])["agent_id"]
    for function in ("get_agent", "list_agents", "delete_agent"):
        event = request(function)
        event["path"] = re.sub(r"/v1/agents/[^/]+", f"/v1/agents/{agent_id}", event["path"])
        assert deployment.call(function, event)["statusCode"] in (200, 204)
    assert boto3.client("s3").list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0


def test_a_response_that_its_conversation_keeps_is_hidden_by_the_function_that_deletes(deployment: Deployment) -> None:
    held = json.loads(deployment.call("conversations", request("conversations", body={}))["body"])["id"]
    body = {"model": "scripted", "input": "Hi", "conversation": held}
    made = deployment.call("create_openai_response", request("create_openai_response", body=body))
    event = request("delete_openai_response")
    event["path"] = re.sub(r"resp_\w+", json.loads(made["body"])["id"], event["path"])
    answer = deployment.call("delete_openai_response", event)
    assert answer["statusCode"] == 200, answer["body"]


def test_a_key_and_a_credential_are_kept_by_who_creates_a_response(deployment: Deployment) -> None:
    tool = {"type": "mcp", "server_label": "s", "server_url": "http://127.0.0.1:9/mcp", "headers": {"x-key": "secret"}}
    body = {"model": "scripted", "input": "Hi", "tools": [tool], "background": True}
    headers = {"content-type": "application/json", "idempotency-key": "k"}
    event = request("create_openai_response", body=body, headers=headers, multiValueHeaders=None)
    made = deployment.call("create_openai_response", event)
    # The machine itself is not there: to be told so by AWS, the call was allowed.
    assert made["statusCode"] == 200, made["body"]


def test_the_sweeper_goes_on_with_turns_of_both_apis(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(furnish(deployment.services))
    asyncio.run(start_turn(deployment.services))
    later = SystemClock().now() + 3600 * 1_000_000
    monkeypatch.setattr(SystemClock, "now", lambda self: later)
    assert deployment.call("turn_sweep", {})["woken"] == 2


def test_who_is_denied_is_told(deployment: Deployment) -> None:
    dynamodb = dynamodb_client()
    key = {"pk": {"S": "a"}, "sk": {"S": "b"}}
    with deployment.role({("dynamodb:GetItem", PREFIX + "agents")}):
        dynamodb.get_item(TableName=PREFIX + "agents", Key=key)
        with pytest.raises(Denied):
            dynamodb.get_item(TableName=PREFIX + "turns", Key=key)
        with pytest.raises(Denied):
            dynamodb.delete_item(TableName=PREFIX + "agents", Key=key)


def test_who_writes_turns_does_not_touch_the_blobs_of_agents(resources: dict[str, Any]) -> None:
    prefixes = {name.split("/")[1] for action, name in granted(resources, "CreateOpenaiResponse") if "s3:Put" in action}
    assert prefixes == {"kept", "expiring", "log"}
    assert ("s3:PutObject", BUCKET + "/agent/*") in granted(resources, "CreateAgent")


def test_every_role_has_few_enough_policies(resources: dict[str, Any]) -> None:
    """AWS attaches ten managed policies to a role unless it is asked for more."""
    for name, role in resources["AWS::IAM::Role"].items():
        assert len(role.get("ManagedPolicyArns", ())) <= 10, name
