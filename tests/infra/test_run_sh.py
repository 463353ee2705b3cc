"""run.sh, the one place that knows Lambda Web Adapter."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from turnloom.local import template
from turnloom.local.template import ROOT

SCRIPTS = [ROOT / "functions" / found.folder / "run.sh" for found in template.functions() if found.streams]

APP = """
import logging
import sys

from turnloom.adapters.logs import structured
from turnloom.adapters.meter import EmbeddedMeter
from turnloom.domain.event import TurnCompleted

structured("stack", "INFO", lambda: {})


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    EmbeddedMeter("stack").saw(TurnCompleted(1), api="agents")
    logging.getLogger("turnloom.test").info("A turn ended.")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": repr((scope["server"], sys.path)).encode()})
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The app, started by run.sh in its folder with what Lambda sets and nothing else, and its address."""
    (folder / "handler.py").write_text(APP)
    port = free_port()
    env = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}/usr/bin:/bin",
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        "AWS_LAMBDA_FUNCTION_NAME": "stack-CreateAgentTurn",
        "AWS_REGION": template.REGION,
        "AWS_LWA_PORT": str(port),
        "AWS_LWA_INVOKE_MODE": "response_stream",
        "LAMBDA_TASK_ROOT": str(folder),
        "LAMBDA_RUNTIME_DIR": "/var/runtime",
    }
    process = subprocess.Popen([SCRIPTS[0]], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process, f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.communicate(timeout=10)


@pytest.fixture
def answer(tmp_path: Path) -> Iterator[str]:
    with started(tmp_path) as (process, url):
        yield _asked(url, process)


def _asked(url: str, process: subprocess.Popen[bytes]) -> str:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url) as answer:
                return str(answer.read().decode())
        except OSError:
            time.sleep(0.05)
    raise AssertionError("run.sh ended before it served")


def test_every_streaming_function_has_the_same_script_and_may_run_it() -> None:
    assert len(SCRIPTS) == 5
    assert len({script.read_text() for script in SCRIPTS}) == 1
    assert all(os.access(script, os.X_OK) for script in SCRIPTS)


def test_no_other_function_has_one() -> None:
    assert sorted((ROOT / "functions").glob("*/run.sh")) == sorted(SCRIPTS)


def test_the_script_serves_the_app_of_its_folder_on_loopback_with_the_layer_in_reach(answer: str) -> None:
    assert "('127.0.0.1'," in answer
    assert "'/opt/python'" in answer
    assert "'/var/runtime'" in answer


def test_metric_and_log_lines_are_written_before_the_process_ends(tmp_path: Path) -> None:
    with started(tmp_path) as (process, url):
        _asked(url, process)
        assert process.stdout is not None and process.stderr is not None
        [metric] = _lines_with(process.stdout, "TurnsCompleted")
        [line] = _lines_with(process.stderr, "A turn ended.")
        assert process.poll() is None
    assert json.loads(metric)["TurnsCompleted"] == [1.0] and json.loads(line)["service"] == "stack"


def _lines_with(pipe: IO[bytes], text: str) -> list[str]:
    """The lines with this text in it, as soon as a whole one has come through the pipe."""
    content = b""
    while text.encode() not in content or not content.endswith(b"\n"):
        assert select.select([pipe], [], [], 10)[0], f"{text!r} was not written, only {content!r}"
        content += os.read(pipe.fileno(), 65536)
    return [line for line in content.decode().splitlines() if text in line]
