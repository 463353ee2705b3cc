"""Streaming functions as built, each started by its run.sh and called as Lambda Web Adapter calls it: over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.build.built import STREAMING, adapted, samples
from tests.build.cloud import Cloud
from tests.upstream import Gate, say
from turnloom.local.template import Function

BY_FOLDER = {function.folder: function for function in STREAMING}
MODEL_STREAMS = {
    "create_agent_turn": "200-as-stream",
    "resume_agent_turn": "200-with-the-tools-result",
    "create_openai_response": "200-as-stream",
}


def sample_of(folder: str, name: str) -> Path:
    return next(path for path in samples(BY_FOLDER[folder]) if path.stem == name)


def asked(client: httpx2.Client, sample: Path, **changes: Any) -> AbstractContextManager[httpx2.Response]:
    """Send what the adapter makes of the event: the request itself, and what API Gateway knows of it in a header."""
    event: dict[str, Any] = json.loads(sample.read_text()) | changes
    headers = {**event["headers"], "x-amzn-request-context": json.dumps(event["requestContext"])}
    return client.stream(
        event["httpMethod"],
        event["path"],
        params=event["multiValueQueryStringParameters"],
        headers=headers,
        content=event["body"],
    )


def read_to(lines: Iterator[str], text: str) -> str:
    """The next line that has this text in it."""
    return next(line for line in lines if text in line)


@pytest.mark.parametrize("function", STREAMING, ids=lambda function: function.folder)
def test_a_streaming_function_answers_its_sample_events(function: Function, cloud: Cloud, tmp_path: Path) -> None:
    with adapted(function, cloud.env, tmp_path / "log") as client:
        for sample in samples(function):
            cloud.empty()
            cloud.furnish(sample)
            cloud.upstream.answer = lambda request: say("Hello", " there")
            with asked(client, sample) as answer:
                answer.read()
            assert str(answer.status_code) == sample.stem.split("-")[0], (sample.name, answer.text)


@pytest.mark.parametrize(("folder", "name"), MODEL_STREAMS.items())
def test_frames_arrive_before_the_upstream_has_ended(folder: str, name: str, cloud: Cloud, tmp_path: Path) -> None:
    sample, gate = sample_of(folder, name), Gate()
    cloud.furnish(sample)
    cloud.upstream.say("Once", gate, " upon")
    with adapted(BY_FOLDER[folder], cloud.env, tmp_path / "log") as client, asked(client, sample) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        read_to(lines, "Once")
        gate.open()
        read_to(lines, " upon")
        read_to(lines, "completed")


def test_one_function_streams_what_another_is_still_driving(cloud: Cloud, tmp_path: Path) -> None:
    gate = Gate()
    cloud.upstream.say("Once", gate, " upon")
    creator, reader = BY_FOLDER["create_openai_response"], BY_FOLDER["get_openai_response"]
    with (
        adapted(creator, cloud.env, tmp_path / "creator") as creating,
        adapted(reader, cloud.env, tmp_path / "reader") as reading,
        asked(creating, sample_of("create_openai_response", "200-as-stream")) as created,
    ):
        first = json.loads(read_to(created.iter_lines(), '"response.created"').removeprefix("data: "))
        path = f"/v1/responses/{first['response']['id']}"
        with asked(reading, sample_of("get_openai_response", "200-as-stream"), path=path) as followed:
            lines = followed.iter_lines()
            read_to(lines, "Once")
            gate.open()
            read_to(lines, " upon")
            read_to(lines, "[DONE]")


def test_metrics_are_written_while_the_function_runs(cloud: Cloud, tmp_path: Path) -> None:
    sample, log = sample_of("create_openai_response", "200-as-stream"), tmp_path / "log"
    cloud.furnish(sample)
    cloud.upstream.say("Hello", " there")
    with adapted(BY_FOLDER["create_openai_response"], cloud.env, log) as client:
        with asked(client, sample) as answer:
            answer.read()
        assert "TurnsCompleted" in log.read_text() and "FirstToken" in log.read_text()
