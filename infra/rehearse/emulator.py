"""The emulator of AWS: a process of its own on loopback, with its data in a folder, where policies are in force."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import boto3
import httpx2

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-rehearse" / "bin" / "python"
REGION = "us-east-1"
_PATIENCE = 60.0
_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": REGION}


class Emulator:
    """Runs for as long as the context lasts: `url` is its address, `env` what a program needs to take it for AWS."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.log = folder / "emulator.log"
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.env = _plain(folder) | _KEYS | {"AWS_ENDPOINT_URL": self.url}

    def __enter__(self) -> Emulator:
        command = [str(PYTHON), str(Path(__file__).with_name("launch.py"))]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603
                command, env=self._settings(), cwd=self._folder, stdout=log, stderr=log
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            # The processes that it runs functions in end by themselves when nobody holds their input.
            self._process.kill()
            self._process.wait()

    def client(self, service: str) -> Any:
        """A boto3 client of the emulated account."""
        session: Any = boto3.session.Session("test", "test", region_name=REGION)
        return session.client(service, endpoint_url=self.url)

    def _settings(self) -> dict[str, str]:
        """Its environment, which every function inherits."""
        return _plain(self._folder) | {
            "GATEWAY_PORT": str(self._port),
            "BIND_HOST": "127.0.0.1",
            "AUTH": "true",
            "S3_DATA_DIR": str(self._folder / "s3"),
            "STATE_DIR": str(self._folder / "state"),
        }

    def _wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The emulator did not start:\n{self.log.read_text()}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/_ministack/health", timeout=2).status_code == 200
        except httpx2.HTTPError:
            return False


def _plain(folder: Path) -> dict[str, str]:
    """An environment that knows of no account, no profile and no home: nothing here may reach the real AWS."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(temporary), "LANG": "C.UTF-8"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
