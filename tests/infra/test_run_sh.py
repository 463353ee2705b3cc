"""run.sh, the one place that knows Lambda Web Adapter."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from turnloom.local import template
from turnloom.local.template import ROOT

SCRIPTS = [ROOT / "functions" / found.folder / "run.sh" for found in template.functions() if found.streams]

APP = """
import sys


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": repr((scope["server"], sys.path)).encode()})
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def answer(tmp_path: Path) -> Iterator[str]:
    """What an app answers that run.sh has started in its folder, as Lambda would start it."""
    (tmp_path / "handler.py").write_text(APP)
    port = free_port()
    env = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AWS_LWA_PORT": str(port),
        "LAMBDA_RUNTIME_DIR": "/var/runtime",
    }
    process = subprocess.Popen([SCRIPTS[0]], cwd=tmp_path, env=env)
    try:
        yield _asked(f"http://127.0.0.1:{port}/", process)
    finally:
        process.terminate()
        process.wait(10)


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
