"""Buffered functions as built, under the Lambda Runtime Interface Emulator, against tables on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.build.built import BUFFERED, emulated, samples
from tests.build.cloud import Cloud
from tests.samples import outcome
from tests.upstream import say
from turnloom.local.template import Function


@pytest.mark.parametrize("function", BUFFERED, ids=lambda function: function.folder)
def test_a_buffered_function_answers_its_sample_events(function: Function, cloud: Cloud, tmp_path: Path) -> None:
    with emulated(function, cloud.env, tmp_path / "log") as emulator:
        for sample in samples(function):
            cloud.empty()
            cloud.furnish(sample)
            cloud.upstream.answer = lambda request: say("Hello", " there")
            result = emulator.invoke(json.loads(sample.read_text()))
            assert outcome(result) == sample.stem.split("-")[0], (sample.name, result)
