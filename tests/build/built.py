"""What `make build` and lib/Makefile's `native` left in .aws-sam, and how to run a function of it.

The layer that would be deployed is for arm64. `LAYER` is the same for this machine, by the same recipe; `RUNTIME` is
in place of what Lambda's runtime brings, and has a Python in bin/ that finds no packages by itself.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx2

from turnloom.local import template
from turnloom.local.template import ROOT, Function

BUILD = ROOT / ".aws-sam/build"
DEPLOYED = BUILD / "Library/python"
LAYER = ROOT / ".aws-sam/native/python"
RUNTIME = ROOT / ".aws-sam/native/runtime"
PYTHON = RUNTIME / "bin/python"

FUNCTIONS = template.functions()
BUFFERED = [function for function in FUNCTIONS if not function.streams]
STREAMING = [function for function in FUNCTIONS if function.streams]

_RIE = "samcli/local/rapid/aws-lambda-rie-" + {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
_PATIENCE = 20.0
"""How many seconds a part may take to do what it should have done at once."""


def samples(function: Function) -> list[Path]:
    """The function's sample payloads."""
    return sorted(ROOT.glob(f"events/{function.folder}/*.json"))


class Emulator:
    """A buffered function under the Lambda Runtime Interface Emulator, which takes one call at a time."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/2015-03-31/functions/function/invocations"

    def invoke(self, event: object) -> Any:
        """What the handler made of the event, or `errorMessage` and `errorType`."""
        return httpx2.post(self._url, json=event, timeout=_PATIENCE).json()


@contextmanager
def emulated(function: Function, env: Mapping[str, str], log: Path) -> Iterator[Emulator]:
    """Run the function's handler under the emulator; `log` gets what both of them write."""
    [emulator] = ROOT.glob(f".venv-sam/lib/python*/site-packages/{_RIE}")
    port = _free_port()
    addresses = {"runtime-interface-emulator": port, "runtime-api": _free_port()}
    options = [text for name, at in addresses.items() for text in (f"--{name}-address", f"127.0.0.1:{at}")]
    command = [str(emulator), *options, "python", "-m", "awslambdaric", "handler.handler"]
    path = {"PYTHONPATH": f"{LAYER}{os.pathsep}{RUNTIME}"}
    with log.open("wb") as output, _running(command, function, {**env, **path}, port, output):
        yield Emulator(port)


@contextmanager
def adapted(function: Function, env: Mapping[str, str], log: Path) -> Iterator[httpx2.Client]:
    """Run the function's run.sh, as Lambda Web Adapter starts it; `log` gets what it writes."""
    port = _free_port()
    runtime = {
        "AWS_LWA_PORT": str(port),
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "LAMBDA_RUNTIME_DIR": str(RUNTIME),
        "PYTHONPATH": str(LAYER),
    }
    with (
        log.open("wb") as output,
        _running(["./run.sh"], function, {**env, **runtime}, port, output),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=_PATIENCE) as client,
    ):
        yield client


@contextmanager
def _running(
    command: Sequence[str], function: Function, env: Mapping[str, str], port: int, output: IO[bytes]
) -> Iterator[None]:
    # What is built stays as it is: on Lambda it cannot be written to.
    lambdas = {"PATH": os.pathsep.join([str(PYTHON.parent), "/usr/bin", "/bin"]), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, cwd=BUILD / function.name, env={**env, **lambdas}, stdout=output, stderr=subprocess.STDOUT
    )
    try:
        _wait_until_it_listens(process, port)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        finally:
            process.kill()


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(int(_PATIENCE / 0.05)):
        assert process.poll() is None, f"{process.args!r} ended before it listened"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"{process.args!r} does not listen")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
