"""Starting executions: what reaches Step Functions, and what a second start does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError
from moto import mock_aws

from turnloom.adapters.stepfunctions import NAME_LENGTH, StepFunctions, execution_name, stepfunctions_client
from turnloom.ports import NotStarted

ARN = "arn:aws:states:eu-west-1:123456789012:stateMachine:turns"
STATE = {"turn": {"api": "agents", "owner": "default", "thread": "t", "ordinal": 3, "leg": 0}, "next": "gather"}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Step Functions that keeps what it is given and never ends it."""
    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with mock_aws():
        client = boto3.client("stepfunctions", region_name="eu-west-1")
        definition = json.dumps({"StartAt": "Done", "States": {"Done": {"Type": "Succeed"}}})
        role = "arn:aws:iam::123456789012:role/turns"
        client.create_state_machine(name="turns", definition=definition, roleArn=role)
        yield client


def executions(client: Any) -> list[dict[str, Any]]:
    found = client.list_executions(stateMachineArn=ARN)["executions"]
    return [client.describe_execution(executionArn=execution["executionArn"]) for execution in found]


async def test_an_execution_is_started_by_name_with_its_state(client: Any) -> None:
    await StepFunctions(ARN, client).start("turn-0-0", STATE)
    [execution] = executions(client)
    assert execution["name"] == "turn-0-0"
    assert json.loads(execution["input"]) == STATE


async def test_a_second_start_of_the_same_name_changes_nothing(client: Any) -> None:
    orchestrator = StepFunctions(ARN, client)
    await orchestrator.start("turn-0-0", STATE)
    await orchestrator.start("turn-0-0", STATE)
    await orchestrator.start("turn-0-0", {**STATE, "next": "finish"})
    assert [json.loads(execution["input"]) for execution in executions(client)] == [STATE]


async def test_an_execution_runs_from_its_start_to_its_end(client: Any) -> None:
    orchestrator = StepFunctions(ARN, client)
    name = "turn 0"
    assert await orchestrator.status(name) == "absent"
    await orchestrator.start(name, STATE)
    assert await orchestrator.status(name) == "running"
    client.stop_execution(executionArn=executions(client)[0]["executionArn"])
    assert await orchestrator.status(name) == "ended"


async def test_what_cannot_be_found_out_is_taken_to_run(client: Any) -> None:
    client.meta.events.register("before-call.sfn.DescribeExecution", _out_of_reach)
    assert await StepFunctions(ARN, client).status("turn-0-0") == "running"


def _out_of_reach(**_: Any) -> None:
    raise EndpointConnectionError(endpoint_url="https://states")


async def test_a_name_whose_execution_has_ended_is_not_started_again(client: Any) -> None:
    orchestrator = StepFunctions(ARN, client)
    await orchestrator.start("turn-0-0", STATE)
    client.stop_execution(executionArn=executions(client)[0]["executionArn"])
    await orchestrator.start("turn-0-0", STATE)
    assert [execution["status"] for execution in executions(client)] == ["ABORTED"]


async def test_any_other_refusal_is_raised(client: Any) -> None:
    with pytest.raises(NotStarted, match="StateMachineDoesNotExist"):
        await StepFunctions(ARN.replace("turns", "nowhere"), client).start("turn-0-0", STATE)


async def test_its_own_client_works_in_the_region_of_the_state_machine(client: Any) -> None:
    orchestrator = StepFunctions(ARN)
    await asyncio.gather(orchestrator.start("turn-0-0", STATE), orchestrator.start("turn-1-0", STATE))
    assert {execution["name"] for execution in executions(client)} == {"turn-0-0", "turn-1-0"}


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_STEPFUNCTIONS", "AWS_ENDPOINT_URL"])
def test_an_endpoint_in_the_environment_is_honoured(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    assert stepfunctions_client("eu-west-1").meta.endpoint_url == "http://127.0.0.1:1"


@pytest.mark.parametrize("name", ["resp_01-0-0", "a", "x" * NAME_LENGTH])
def test_a_safe_name_stays_as_it_is(name: str) -> None:
    assert execution_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * (NAME_LENGTH + 1), "a/b", "a b", "größe", "a\n", "*", "a" * 300 + "?"])
def test_an_unsafe_or_long_name_becomes_one_that_step_functions_takes(name: str) -> None:
    made = execution_name(name)
    assert 0 < len(made) <= NAME_LENGTH
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert made == execution_name(name)


def test_names_that_differ_only_in_what_is_unsafe_stay_different() -> None:
    names = ["a/b", "a b", "a-b", "x" * 81, "x" * 82]
    assert len({execution_name(name) for name in names}) == len(names)
