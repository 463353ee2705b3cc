"""Buffered functions as built, under the Lambda Runtime Interface Emulator, against tables on loopback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.build.built import BUFFERED, emulated, samples
from tests.build.cloud import Cloud
from tests.upstream import say
from turnloom.local.template import Function


def outcome(result: Any) -> str | None:
    """The HTTP status or the next action of a handler's answer, as the names of sample payloads begin with."""
    if result is not None and "statusCode" in result:
        return str(result["statusCode"])
    assert "errorMessage" not in (result or {}), result
    return result and result.get("next")


@pytest.mark.parametrize("function", BUFFERED, ids=lambda function: function.folder)
def test_a_buffered_function_answers_its_sample_events(function: Function, cloud: Cloud, tmp_path: Path) -> None:
    with emulated(function, cloud.env, tmp_path / "log") as emulator:
        for sample in samples(function):
            cloud.empty()
            cloud.furnish(sample)
            cloud.upstream.answer = lambda request: say("Hello", " there")
            expected = sample.stem.split("-")[0]
            result = emulator.invoke(json.loads(sample.read_text()))
            assert outcome(result) == (None if expected == "none" else expected), (sample.name, result)
