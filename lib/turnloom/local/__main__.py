"""`make dev`: everything of Turnloom on this machine, in three processes that end together.

    gateway   the API, on HOST:PORT                       engine   the state machine, on a free loopback port
    model     the embedded model, when no upstream is set

State is kept in TURNLOOM_DATA_DIR (default .turnloom). A part that dies is started again; what it was doing goes on.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from turnloom.adapters.stepfunctions import SECRET
from turnloom.local.data import Unusable
from turnloom.local.hosts import is_loopback
from turnloom.local.preflight import check_settings, is_embedded
from turnloom.local.template import REGION, STATE_MACHINE_ARN
from turnloom.local.upstream_check import address_of, check_upstream

OLLAMA = "http://127.0.0.1:11434"


@dataclass
class Part:
    """A process of the laptop: how to start it, and where it says that it is ready."""

    name: str
    module: str
    arguments: list[str]
    health: str
    process: subprocess.Popen[bytes] | None = None
    starts: list[float] = field(default_factory=list)

    def start(self, env: dict[str, str]) -> None:
        command = [sys.executable, "-m", "turnloom.local.child", self.module, *self.arguments]
        # Not in our process group: a Ctrl-C goes to the supervisor, who ends its parts in order.
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, env=env, start_new_session=True)
        self.starts.append(time.monotonic())

    @property
    def dead(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def state(self) -> tuple[bool, str]:
        """Whether its health route says that it is up, and if not what it is at; RuntimeError when it has given up."""
        try:
            with urllib.request.urlopen(self.health, timeout=2):
                return True, ""
        except urllib.error.HTTPError as refusal:
            said = json.loads(refusal.read() or b"{}")
            if said.get("phase") == "failed":
                raise RuntimeError(f"The {self.name} failed: {said.get('reason', 'see the lines above')}") from None
            return False, str(said.get("phase", ""))
        except (OSError, ValueError):
            return False, ""

    def stop(self) -> None:
        if self.process is None or self.dead:
            return
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Stopped(Exception):
    """Someone asked for the end."""


def main() -> int:
    """Start all parts, say where they are, watch over them until Ctrl-C."""
    env = dict(os.environ)
    env.setdefault("TURNLOOM_DATA_DIR", str(Path(".turnloom").resolve()))
    try:
        host, port = check_settings(env)
    except Unusable as failure:
        print(failure)
        return 1
    parts = _parts(env, host, port)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        for part in parts:
            part.start(env)
        for part in parts:
            _wait(part, env)
        _welcome(env, host, port)
        _watch(parts, env)
    except Stopped:
        print("\nStopping Turnloom ...")
    except RuntimeError as failure:
        print(failure)
        return 1
    finally:
        for part in parts:
            part.stop()
    print("Stopped. Your sessions are kept in", env["TURNLOOM_DATA_DIR"])
    return 0


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise Stopped


def _parts(env: dict[str, str], host: str, port: int) -> list[Part]:
    """The parts in the order of their start, the one that takes longest first; `env` gets to say where they are."""
    env[SECRET] = secrets.token_urlsafe(32)
    parts = [_engine(env)]
    if is_embedded(env):
        parts.append(_model(env))
    gateway = ["--host", host, "--port", str(port)]
    for part in parts:
        gateway += ["--part", f"{part.name}={part.health}"]
    return [*parts, Part("gateway", "turnloom.local.gateway", gateway, f"{_url(host, port)}/v1/health")]


def _engine(env: dict[str, str]) -> Part:
    port = _free_port()
    env["AWS_ENDPOINT_URL_STEPFUNCTIONS"] = f"http://127.0.0.1:{port}"
    env["TURNLOOM_STATE_MACHINE_ARN"] = STATE_MACHINE_ARN
    for name, value in (("ACCESS_KEY_ID", "local"), ("SECRET_ACCESS_KEY", "local"), ("DEFAULT_REGION", REGION)):
        env.setdefault(f"AWS_{name}", value)
    return Part("engine", "turnloom.local.engine", ["--port", str(port)], f"http://127.0.0.1:{port}/health")


def _model(env: dict[str, str]) -> Part:
    port = _free_port()
    env["OPENAI_BASE_URL"] = f"http://127.0.0.1:{port}/v1"
    env["OPENAI_API_KEY"] = env[SECRET]
    env["TURNLOOM_EMBEDDED"] = "1"
    arguments = ["--port", str(port), "--data-dir", env["TURNLOOM_DATA_DIR"]]
    return Part("model", "turnloom.local.model", arguments, f"http://127.0.0.1:{port}/health")


def _wait(part: Part, env: dict[str, str]) -> None:
    told = ""
    while True:
        ready, phase = part.state()
        if ready:
            return
        if phase and phase != told:
            print(f"  {part.name}: {phase}", end="\r" if sys.stdout.isatty() else "\n", flush=True)
            told = phase
        _revive(part, env)
        time.sleep(0.1)


def _watch(parts: list[Part], env: dict[str, str]) -> None:
    while True:
        time.sleep(0.5)
        for part in parts:
            _revive(part, env)


def _revive(part: Part, env: dict[str, str]) -> None:
    """Start a part that has died again, but not for ever."""
    if not part.dead:
        return
    if sum(time.monotonic() - start < 60 for start in part.starts) >= 4:
        raise RuntimeError(f"The {part.name} keeps dying; see the lines above.")
    print(f"The {part.name} died; starting it again. Turns that were running go on.", flush=True)
    part.start(env)


def _welcome(env: dict[str, str], host: str, port: int) -> None:
    address = _url(host, port)
    upstream = check_upstream(env)
    if upstream.problem:
        print(f"\n{upstream.problem}")
    model = env.get("TURNLOOM_MODEL") or upstream.model or "<model>"
    embedded = "TURNLOOM_EMBEDDED" in env
    demo = "" if env.get("TURNLOOM_GGUF") else " demo model; tool choice is a heuristic"
    note = f" (embedded{demo})" if embedded else f" at {address_of(env)}"
    print(f"\nTurnloom is at {address}")
    print(f"  model     {model}{note}")
    print(f"  state     {env['TURNLOOM_DATA_DIR']}")
    auth = env.get("TURNLOOM_AUTH", "none")
    key = "none" if auth == "none" else "..."
    given = "" if auth == "none" else f", api_key='{key}'"
    print(f"  Agents    LlamaStackClient(base_url='{address}'{given})")
    print(f"  Responses OpenAI(base_url='{address}/v1', api_key='{key}')")
    if auth == "none" and not is_loopback(host):
        print("  Anyone    who reaches this address may use it: TURNLOOM_AUTH=keys make dev asks for keys")
    if auth in ("keys", "both"):
        print('  A key     make keys ARGS="create --owner me"')
    if embedded and _answers(f"{OLLAMA}/api/tags"):
        print(f"  An Ollama is running here: OPENAI_BASE_URL={OLLAMA}/v1 make dev would use it.")
    body = json.dumps({"model": model, "input": "Say hello."})
    bearer = "" if auth == "none" else '-H "authorization: Bearer $KEY" '
    print(f"\nTry:\n  curl {address}/v1/responses {bearer}-H 'content-type: application/json' -d '{body}'")
    print("\nCtrl-C stops it.", flush=True)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=0.5):
            return True
    except OSError:
        return False


def _url(host: str, port: int) -> str:
    """The address at which this machine reaches what listens on the host."""
    name = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
