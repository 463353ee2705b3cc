"""The definition of the state machine, held to the loop and to the template."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from turnloom.domain.action import KINDS
from turnloom.engine.stepped import TOOL_LEASE_SECONDS, TurnMoved
from turnloom.local import template
from turnloom.local.template import ROOT

SOURCE = (ROOT / "infra" / "turn.asl.json").read_text()
DEFINITION = json.loads(SOURCE)
States = Mapping[str, Mapping[str, Any]]


def machines(definition: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The state machine, and those inside its Map states."""
    yield definition
    for state in definition["States"].values():
        if state["Type"] == "Map":
            yield from machines(state["ItemProcessor"])


def tasks() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for machine in machines(DEFINITION):
        yield from ((name, state) for name, state in machine["States"].items() if state["Type"] == "Task")


def successors(state: Mapping[str, Any]) -> set[str]:
    steps = [state, *state.get("Choices", ()), *state.get("Catch", ())]
    return {step["Next"] for step in steps if "Next" in step} | ({state["Default"]} if "Default" in state else set())


def test_the_branches_are_the_kinds_of_action_and_done() -> None:
    branches = {choice["StringEquals"]: choice["Next"] for choice in DEFINITION["States"]["Decide"]["Choices"]}
    assert sorted(branches) == sorted([*KINDS, "done"])
    assert {choice["Variable"] for choice in DEFINITION["States"]["Decide"]["Choices"]} == {"$.next"}


def test_every_state_is_reached_and_leads_somewhere() -> None:
    for machine in machines(DEFINITION):
        states: States = machine["States"]
        reached, ahead = set(), {machine["StartAt"]}
        while ahead:
            reached |= ahead
            ahead = {name for here in ahead for name in successors(states[here])} - reached
        assert reached == set(states)
        for name, state in states.items():
            ends = state["Type"] in ("Succeed", "Fail") or state.get("End") is True
            assert ends != bool({"Next", "Choices"} & set(state)), name


def test_every_function_that_it_calls_is_given_by_the_template(resources: dict[str, Any]) -> None:
    [machine] = resources["AWS::StepFunctions::StateMachine"].values()
    given = machine["DefinitionSubstitutions"]
    assert set(re.findall(r"\$\{(\w+)\}", SOURCE)) == set(given)
    for name, value in given.items():
        function = name.removesuffix("FunctionArn")
        assert value == {"Fn::GetAtt": [function, "Arn"]}
        assert function in resources["AWS::Lambda::Function"]


def test_it_may_invoke_the_functions_that_it_calls_and_no_others(resources: dict[str, Any]) -> None:
    calling, logging = policies(resources)
    allowed = {arn["Fn::GetAtt"][0] for arn in calling["Resource"]}
    called = {name.removesuffix("FunctionArn") for name in re.findall(r"\$\{(\w+)\}", SOURCE)}
    assert (calling["Action"], allowed) == ("lambda:InvokeFunction", called)
    assert all(action.startswith("logs:") for action in logging["Action"])


def test_it_logs_and_traces_what_failed_without_the_data_of_executions(resources: dict[str, Any]) -> None:
    [machine] = resources["AWS::StepFunctions::StateMachine"].values()
    logging = machine["LoggingConfiguration"]
    assert (logging["Level"], logging["IncludeExecutionData"]) == ("ERROR", False)
    [destination] = logging["Destinations"]
    group, _ = destination["CloudWatchLogsLogGroup"]["LogGroupArn"]["Fn::GetAtt"]
    assert resources["AWS::Logs::LogGroup"][group]["RetentionInDays"]
    assert "logs:CreateLogDelivery" in policies(resources)[1]["Action"]
    assert machine["TracingConfiguration"] == {"Enabled": True}
    assert any("XrayWriteOnly" in arn for arn in resources["AWS::IAM::Role"]["TurnRole"]["ManagedPolicyArns"])


def policies(resources: dict[str, Any]) -> list[dict[str, Any]]:
    """The statements of the state machine's own role."""
    found = resources["AWS::IAM::Role"]["TurnRole"]["Policies"]
    return [statement for policy in found for statement in policy["PolicyDocument"]["Statement"]]


def test_it_is_a_standard_workflow_and_ends_within_its_time(resources: dict[str, Any]) -> None:
    [machine] = resources["AWS::StepFunctions::StateMachine"].values()
    assert machine["StateMachineType"] == "STANDARD"
    assert 0 < DEFINITION["TimeoutSeconds"] <= 24 * 3600


def test_calls_of_one_answer_run_side_by_side_up_to_a_limit() -> None:
    fans = [state for machine in machines(DEFINITION) for state in machine["States"].values() if state["Type"] == "Map"]
    assert fans and all(state["MaxConcurrency"] >= 2 for state in fans)


def test_every_task_of_the_loop_is_called_from_somewhere() -> None:
    called = set(re.findall(r"\$\{(\w+)FunctionArn\}", SOURCE))
    tasks_of_the_loop = {f.name for f in template.functions() if f.folder.startswith("turn_") and not f.schedule}
    assert called == tasks_of_the_loop


def test_a_task_waits_longer_than_its_function_may_run(resources: dict[str, Any]) -> None:
    for name, state in tasks():
        function = state["Resource"].removeprefix("${").removesuffix("FunctionArn}")
        assert state["TimeoutSeconds"] > resources["AWS::Lambda::Function"][function]["Timeout"], name
        assert state["TimeoutSeconds"] < DEFINITION["TimeoutSeconds"]


def test_a_tool_is_over_before_its_lease_is(resources: dict[str, Any]) -> None:
    assert resources["AWS::Lambda::Function"]["TurnCallTool"]["Timeout"] < TOOL_LEASE_SECONDS


def test_every_task_is_retried_with_jitter_by_class_of_error_and_never_when_its_turn_has_moved() -> None:
    for name, state in tasks():
        moved, *retriers = state["Retry"]
        assert moved == {"ErrorEquals": [TurnMoved.__name__], "MaxAttempts": 0}, name
        throttled, lambdas, others = (set(retrier["ErrorEquals"]) for retrier in retriers)
        assert throttled == {"Lambda.TooManyRequestsException"}, name
        assert {"Lambda.ServiceException", "Lambda.ClientExecutionTimeoutException"} <= lambdas, name
        assert others == {"States.ALL"}, name
        for retrier in retriers:
            assert (retrier["JitterStrategy"], retrier["BackoffRate"]) == ("FULL", 2.0)
            assert retrier["MaxDelaySeconds"] >= retrier["IntervalSeconds"]


def test_a_task_whose_function_is_throttled_waits_for_longer_than_a_model_may_take(resources: dict[str, Any]) -> None:
    """With a limit on the tasks, one of them is done before the next is begun."""
    longest = max(resources["AWS::Lambda::Function"][f.name]["Timeout"] for f in template.functions())
    for name, state in tasks():
        throttled = state["Retry"][1]
        # With full jitter, half of the longest delay is what a pause takes on average.
        assert throttled["MaxAttempts"] * throttled["MaxDelaySeconds"] / 2 > 2 * longest, name


def test_whatever_goes_wrong_is_told_to_the_turn_and_a_moved_turn_is_left_alone() -> None:
    for name, state in DEFINITION["States"].items():
        if state["Type"] not in ("Task", "Map"):
            continue
        caught = {error: catcher["Next"] for catcher in state["Catch"] for error in catcher["ErrorEquals"]}
        expected = {TurnMoved.__name__: "Done", "States.ALL": "FailTurn"}
        if name == "FailTurn":
            del expected["States.ALL"]
        assert caught == expected, name
        assert {catcher["ResultPath"] for catcher in state["Catch"]} == {"$.error"}


def test_what_tools_bring_stays_out_of_the_state() -> None:
    assert DEFINITION["States"]["CallTools"]["ResultPath"] is None
