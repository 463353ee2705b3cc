"""What an operator sees of turns: metrics in log lines, and log lines that are JSON."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.conftest import House
from tests.engine.test_responses import MCP, ask, refit, serve, served

from turnloom.adapters.logs import structured
from turnloom.adapters.meter import NAMESPACE, EmbeddedMeter
from turnloom.domain.errors import UpstreamBroken
from turnloom.domain.event import Event, TakenOver, TurnStarted
from turnloom.engine.takeover import take_over
from turnloom.ports import Finished, TextChunk
from turnloom.testing import USAGE
from turnloom.usecases.responses import cancel_response


@pytest.fixture
def measured(house: House) -> House:
    house.services = replace(house.services, engine=replace(house.engine, meter=EmbeddedMeter("stack")))
    refit(house)
    return house


def figures(printed: str) -> list[dict[str, Any]]:
    """The lines as CloudWatch reads them: values of each metric, and its dimensions."""
    found = []
    for line in printed.splitlines():
        told = json.loads(line)
        [directive] = told["_aws"]["CloudWatchMetrics"]
        assert directive["Namespace"] == NAMESPACE and told["service"] == "stack"
        [dimensions] = directive["Dimensions"]
        names = [metric["Name"] for metric in directive["Metrics"]]
        found.append({**{name: told[name][0] for name in names}, **{name: told[name] for name in dimensions}})
    return found


async def test_a_turn_with_a_tool_is_counted_with_its_tokens_by_model(measured: House, capsys: Any) -> None:
    serve(measured, {"srv": [served("act")]}, act=lambda: 1 / 0)
    measured.model.calls(("act", {}))
    measured.model.answers(TextChunk("Done."), Finished("stop", USAGE))
    await (await ask(measured, "Hi", tools=[MCP])).settled()
    await measured.orchestrator.finished()
    seen = figures(capsys.readouterr().out)
    calls = [line for line in seen if "ModelCalls" in line]
    assert [line["model"] for line in calls] == ["m", "m"]
    assert calls[-1]["InputTokens"] == USAGE.input_tokens and calls[-1]["OutputTokens"] == USAGE.output_tokens
    assert {"ToolCalls": 1, "ToolFailures": 1, "api": "responses", "service": "stack"} in seen
    assert {"TurnsCompleted": 1, "api": "responses", "service": "stack"} in seen


async def test_the_first_token_is_timed_once_for_a_reader(measured: House, capsys: Any) -> None:
    measured.model.says("Hel", "lo")
    await (await ask(measured, "Hi")).settled()
    [first] = [line for line in figures(capsys.readouterr().out) if "FirstToken" in line]
    assert first["FirstToken"] > 0 and first["api"] == "responses"


async def test_a_failure_is_counted_by_its_code(measured: House, capsys: Any) -> None:
    measured.model.answers(UpstreamBroken("It broke."))
    await (await ask(measured, "Hi")).settled()
    seen = figures(capsys.readouterr().out)
    assert {"FailuresByCode": 1, "code": "upstream_error", "service": "stack"} in seen
    assert sum(line.get("TurnsFailed", 0) for line in seen) == 1


async def test_cancels_and_lost_drivers_are_counted(measured: House, capsys: Any) -> None:
    measured.orchestrator.before = asyncio.Event().wait
    made = await ask(measured, "Hi", background=True)
    measured.orchestrator.abort()
    measured.clock.advance(31)
    await take_over(measured.engine, made.record.place)
    await cancel_response(measured.services, "me", made.record.turn.id)
    seen = figures(capsys.readouterr().out)
    assert {"TurnsTakenOver": 1, "api": "responses", "service": "stack"} in seen
    assert {"TurnsCancelled": 1, "api": "responses", "service": "stack"} in seen


@pytest.mark.parametrize("event", [TurnStarted(1, ()), TakenOver(1), TakenOver(1, lost=True)])
def test_what_is_no_figure_prints_nothing_and_nothing_prints_what_was_said(event: Event, capsys: Any) -> None:
    EmbeddedMeter("stack").saw(event, api="agents")
    assert ("TurnsTakenOver" in capsys.readouterr().out) == (isinstance(event, TakenOver) and event.lost)


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = before
    root.setLevel(level)


def test_log_lines_are_json_with_what_they_name(root: logging.Logger, capsys: Any) -> None:
    structured("stack", "INFO", lambda: {"request_id": "req_1", "turn_id": "resp_2"})
    logging.getLogger("turnloom.test").warning("A turn was lost.", extra={"turn_id": "resp_1"})
    logging.getLogger("turnloom.test").debug("Not told.")
    [line] = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    expected = {"message": "A turn was lost.", "level": "WARNING", "service": "stack"}
    assert expected.items() <= told.items()
    assert (told["turn_id"], told["request_id"]) == ("resp_1", "req_1")
