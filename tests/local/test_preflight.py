"""Settings that cannot work end `make dev` with one sentence, before anything starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from turnloom.local.data import Unusable
from turnloom.local.preflight import check_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"PORT": str(port), "TURNLOOM_DATA_DIR": str(tmp_path / "data")}


@pytest.fixture
def used_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


def test_settings_that_work_give_an_address_and_a_data_folder(env: dict[str, str]) -> None:
    assert check_settings({**env, "HOST": ""}) == ("127.0.0.1", int(env["PORT"]))
    assert Path(env["TURNLOOM_DATA_DIR"]).is_dir()


@pytest.mark.parametrize("port", ["abc", "0", "-1", "65536", "80.5", "٣"])
def test_a_port_that_is_no_port_is_refused(env: dict[str, str], port: str) -> None:
    with pytest.raises(Unusable, match=f"PORT is '{port}'.*1 to 65535"):
        check_settings({**env, "PORT": port})


def test_a_port_in_use_is_refused(env: dict[str, str], used_port: str) -> None:
    with pytest.raises(Unusable, match=f"Port {used_port} on 127.0.0.1 is in use"):
        check_settings({**env, "PORT": used_port})


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1", ".."])
def test_a_host_that_is_not_this_machines_is_refused(env: dict[str, str], host: str) -> None:
    with pytest.raises(Unusable, match=host):
        check_settings({**env, "HOST": host})


def test_a_model_file_that_cannot_be_used_is_refused_unless_an_endpoint_is_named(
    env: dict[str, str], tmp_path: Path
) -> None:
    missing, text = tmp_path / "missing.gguf", tmp_path / "text.gguf"
    text.write_text("no model")
    for path in (missing, text, tmp_path):
        with pytest.raises(Unusable, match=f"TURNLOOM_GGUF names .*{path}"):
            check_settings({**env, "TURNLOOM_GGUF": str(path)})
    assert check_settings({**env, "TURNLOOM_GGUF": str(missing), "OPENAI_API_KEY": "key"})


def test_the_supervisor_ends_with_one_sentence(env: dict[str, str]) -> None:
    settings = {**os.environ, "PYTHONPATH": str(ROOT / "lib"), **env, "PORT": "abc"}
    command = [sys.executable, "-m", "turnloom.local"]
    ended = subprocess.run(command, env=settings, capture_output=True, check=False, text=True)
    assert ended.returncode == 1
    assert ended.stderr == "" and ended.stdout == "PORT is 'abc'; it must be a number from 1 to 65535.\n"
