"""The laptop as `make dev` starts it: its own processes, its real state machine, a scripted upstream."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from tests.upstream import ScriptedUpstream

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0


@dataclass
class Laptop:
    """A running laptop; `stop` and `start` keep its port and its data."""

    url: str
    upstream: ScriptedUpstream
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.folder / "laptop.log"

    def start(self) -> None:
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "lib"),
            "OPENAI_BASE_URL": self.upstream.url,
            "OPENAI_API_KEY": "none",
            "PORT": self.url.rsplit(":", 1)[1],
            "TURNLOOM_DATA_DIR": str(self.folder),
            **self.settings,
        }
        command = [sys.executable, "-m", "turnloom.local"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self.ready():
            assert self.process is not None and self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, "the laptop did not come up"
            time.sleep(0.1)

    def ready(self) -> bool:
        try:
            healthy = httpx2.get(f"{self.url}/v1/health", timeout=2).status_code == 200
        except httpx2.HTTPError:
            return False
        return healthy and "Ctrl-C stops it" in self.log.read_text()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)

    def kill(self, part: str) -> None:
        """Kill one part as hard as can be, as its own pid."""
        assert self.process is not None
        for pid in children(self.process.pid):
            if f"turnloom.local.{part}" in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)
                return
        raise AssertionError(f"there is no {part} to kill")


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@contextmanager
def laptop_in(folder: Path, **settings: str) -> Iterator[Laptop]:
    """A laptop with its state in this folder, and these variables in its environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ScriptedUpstream("scripted") as upstream:
        running = Laptop(f"http://127.0.0.1:{port}", upstream, folder, settings=settings)
        running.start()
        try:
            yield running
        finally:
            if running.process is not None and running.process.poll() is None:
                running.stop()


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    with laptop_in(tmp_path_factory.mktemp("laptop")) as running:
        yield running
