"""What an operator looks at: alarms and the dashboard speak of metrics that are really put; data is safe by default."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from benchmarks.cost import ALARM_METRICS, METRICS

from turnloom.adapters.meter import NAMESPACE, EmbeddedMeter
from turnloom.domain.event import InferenceCompleted, TakenOver, ToolCompleted, TurnCancelled, TurnCompleted, TurnFailed
from turnloom.local import template


@pytest.fixture
def put(capsys: pytest.CaptureFixture[str]) -> set[tuple[str, frozenset[str]]]:
    """Every metric that turns bring, with the names of its dimensions."""
    meter = EmbeddedMeter("stack")
    for event in (
        InferenceCompleted(1, "stop"),
        ToolCompleted(1, "call", ""),
        TurnCompleted(1),
        TurnFailed(1, "code", ""),
        TurnCancelled(1),
        TakenOver(1, lost=True),
    ):
        meter.saw(event, api="responses", model="m")
    meter.first_token(1.0, api="responses", model="m")
    found = set()
    for line in capsys.readouterr().out.splitlines():
        [directive] = json.loads(line)["_aws"]["CloudWatchMetrics"]
        dimensions = frozenset(directive["Dimensions"][0])
        found |= {(metric["Name"], dimensions) for metric in directive["Metrics"]}
    return found


def ours(value: Any) -> Iterator[dict[str, Any]]:
    """Every metric of ours that a part of the template speaks of."""
    if isinstance(value, list):
        for part in value:
            yield from ours(part)
    elif isinstance(value, dict):
        if value.get("Namespace") == NAMESPACE:
            yield value
        for part in value.values():
            yield from ours(part)


def test_alarms_watch_metrics_that_turns_put(resources: dict[str, Any], put: set[tuple[str, frozenset[str]]]) -> None:
    watched = list(ours(resources["AWS::CloudWatch::Alarm"]))
    assert watched
    for metric in watched:
        dimensions = frozenset(dimension["Name"] for dimension in metric["Dimensions"])
        assert (metric["MetricName"], dimensions) in put


def test_the_dashboard_shows_metrics_that_turns_put(
    resources: dict[str, Any], put: set[tuple[str, frozenset[str]]]
) -> None:
    body = json.loads(resources["AWS::CloudWatch::Dashboard"]["Dashboard"]["DashboardBody"]["Fn::Sub"][0])
    shown = [metric for widget in body["widgets"] for metric in widget["properties"]["metrics"]]
    direct = {(m[1], frozenset(m[2::2])) for m in shown if m[0] == NAMESPACE}
    searched = {
        (found[2], frozenset(found[1].split(",")))
        for m in shown
        if isinstance(m[0], dict)
        and (found := re.search(r'\{Turnloom,([^}]*)\} MetricName="(\w+)"', m[0]["expression"]))
    }
    assert direct and searched and direct | searched <= put


def test_throttles_are_watched_of_every_task_and_of_the_tables_in_use(resources: dict[str, Any]) -> None:
    watched = resources["AWS::CloudWatch::Alarm"]
    functions = {name["Ref"] for name in dimensions_of(watched["TasksThrottled"])}
    assert functions == {f.name for f in template.functions() if f.folder.startswith("turn_")} - {"TurnSweep"}
    prefix = resources["AWS::Lambda::Function"]["TurnSweep"]["Environment"]["Variables"]["TURNLOOM_TABLES_PREFIX"]
    tables = [name["Fn::Sub"] for name in dimensions_of(watched["TablesThrottled"])]
    assert all(given == {"Prefix": prefix} for _, given in tables)
    assert {text.removeprefix("${Prefix}") for text, _ in tables} == {"responses", "turns", "events"}


def test_an_execution_that_ends_without_success_is_told_of_however_it_ended(resources: dict[str, Any]) -> None:
    metrics = [stat["Metric"]["MetricName"] for stat in stats(resources["AWS::CloudWatch::Alarm"]["TurnsLost"])]
    assert metrics == ["ExecutionsFailed", "ExecutionsTimedOut", "ExecutionsAborted"]


def test_what_alarms_cost_is_counted(resources: dict[str, Any]) -> None:
    """CloudWatch wants so much for each metric that an alarm watches."""
    assert sum(len(list(stats(a))) or 1 for a in resources["AWS::CloudWatch::Alarm"].values()) == ALARM_METRICS


def test_what_metrics_cost_is_counted(put: set[tuple[str, frozenset[str]]]) -> None:
    """Of those of an API there are two, as there are two of them."""
    assert sum(2 if "api" in dimensions else 1 for _, dimensions in put) == METRICS


def stats(alarm: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The metrics that an alarm adds up."""
    yield from (metric["MetricStat"] for metric in alarm.get("Metrics", ()) if "MetricStat" in metric)


def dimensions_of(alarm: dict[str, Any]) -> list[Any]:
    return [dimension["Value"] for stat in stats(alarm) for dimension in stat["Metric"]["Dimensions"]]


def test_an_alarm_tells_somebody_if_there_is_somebody_to_tell(resources: dict[str, Any]) -> None:
    for alarm in resources["AWS::CloudWatch::Alarm"].values():
        assert alarm["AlarmActions"]["Fn::If"][0] == "HasAlarmTopic" and alarm["TreatMissingData"] == "notBreaching"


def test_tables_can_be_restored_and_are_not_deleted_by_mistake(resources: dict[str, Any]) -> None:
    for table in resources["AWS::DynamoDB::Table"].values():
        assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
        assert table["DeletionProtectionEnabled"] == {"Fn::If": ["KeepsData", True, False]}


def test_all_that_is_kept_is_encrypted_with_the_customers_key_if_there_is_one(resources: dict[str, Any]) -> None:
    kept = ("AWS::DynamoDB::Table", "AWS::S3::Bucket", "AWS::SecretsManager::Secret", "AWS::Logs::LogGroup")
    for kind in kept:
        for name, properties in resources[kind].items():
            assert '"HasKey"' in json.dumps(properties), name


def test_the_tasks_of_the_state_machine_can_be_limited_together(resources: dict[str, Any]) -> None:
    tasks = [f.name for f in template.functions() if f.folder.startswith("turn_") and f.folder != "turn_sweep"]
    assert tasks
    for name in tasks:
        limit = resources["AWS::Lambda::Function"][name]["ReservedConcurrentExecutions"]
        assert limit["Fn::If"][0] == "HasTaskConcurrency"


def test_no_log_is_kept_for_ever(resources: dict[str, Any]) -> None:
    for properties in resources["AWS::Logs::LogGroup"].values():
        assert properties["RetentionInDays"] == {"Ref": "LogDays"}
