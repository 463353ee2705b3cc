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
from turnloom.local.data import Unusable, prepare
from turnloom.local.hosts import is_loopback
from turnloom.local.template import REGION, STATE_MACHINE_ARN

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
    host, port = env.get("HOST", "127.0.0.1"), int(env.get("PORT", "8321"))
    if _taken(host, port):
        print(f"Port {port} on {host} is in use; is Turnloom running already? Choose another: PORT=8322 make dev")
        return 1
    env.setdefault("TURNLOOM_DATA_DIR", str(Path(".turnloom").resolve()))
    try:
        prepare(Path(env["TURNLOOM_DATA_DIR"]))
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
    parts: list[Part] = []
    env[SECRET] = secrets.token_urlsafe(32)
    if not env.get("OPENAI_BASE_URL") and not env.get("OPENAI_API_KEY"):
        model_port = _free_port()
        arguments = ["--port", str(model_port), "--data-dir", env["TURNLOOM_DATA_DIR"]]
        parts.append(Part("model", "turnloom.local.model", arguments, f"http://127.0.0.1:{model_port}/health"))
        env["OPENAI_BASE_URL"] = f"http://127.0.0.1:{model_port}/v1"
        env["OPENAI_API_KEY"] = env[SECRET]
        env["TURNLOOM_EMBEDDED"] = "1"
    engine_port = _free_port()
    env["AWS_ENDPOINT_URL_STEPFUNCTIONS"] = f"http://127.0.0.1:{engine_port}"
    env["TURNLOOM_STATE_MACHINE_ARN"] = STATE_MACHINE_ARN
    for name, value in (("ACCESS_KEY_ID", "local"), ("SECRET_ACCESS_KEY", "local"), ("DEFAULT_REGION", REGION)):
        env.setdefault(f"AWS_{name}", value)
    parts.append(
        Part("engine", "turnloom.local.engine", ["--port", str(engine_port)], f"http://127.0.0.1:{engine_port}/health")
    )
    gateway = ["--host", host, "--port", str(port)]
    for part in parts:
        gateway += ["--part", f"{part.name}={part.health}"]
    parts.append(Part("gateway", "turnloom.local.gateway", gateway, f"http://{_reachable(host)}:{port}/v1/health"))
    return parts


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
    address = f"http://{_reachable(host)}:{port}"
    model = env.get("TURNLOOM_MODEL") or _first_model(env) or "<model>"
    embedded = "TURNLOOM_EMBEDDED" in env
    demo = "" if env.get("TURNLOOM_GGUF") else " demo model; tool choice is a heuristic"
    note = f" (embedded{demo})" if embedded else f" at {env.get('OPENAI_BASE_URL')}"
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


def _first_model(env: dict[str, str]) -> str | None:
    base = env.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    headers = {"authorization": f"Bearer {env.get('OPENAI_API_KEY') or 'none'}"}
    try:
        request = urllib.request.Request(f"{base.rstrip('/')}/models", headers=headers)
        with urllib.request.urlopen(request, timeout=3) as answer:
            return str(json.load(answer)["data"][0]["id"])
    except (OSError, ValueError, LookupError):
        return None


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=0.5):
            return True
    except OSError:
        return False


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104


def _taken(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
