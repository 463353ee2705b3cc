"""Measures Turnloom's own time and bytes against an upstream that answers at once.

    make dev's parts, on free loopback ports, with a data folder of their own; nothing else may be running.
    .venv/bin/python benchmarks/run.py [--requests 200] [--store sqlite]

Prints one line a figure: medians in milliseconds, ratios, bytes. The upstream's own answer time, measured from here
without Turnloom in between, is printed first and subtracted where "own time" is said.
"""

from __future__ import annotations

import argparse
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).parents[1]
QUESTION = "Tell me something about the sea, please. "
INPUT = (QUESTION * 6)[:230]
CLIENTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200, help="requests for each figure")
    count = parser.parse_args().requests
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(fake_upstream())
        turnloom = stack.enter_context(running(upstream, folder))
        http = stack.enter_context(httpx2.Client(timeout=60))
        bare = measure(lambda: ask_upstream(http, upstream), count)
        bare_stream = measure(lambda: first_token_of_upstream(http, upstream), count)
        show("upstream alone, whole answer / first token", f"{bare:.2f} / {bare_stream:.2f} ms")
        responses(http, turnloom, count, bare, bare_stream)
        turns(http, turnloom, count, bare)
        chain(http, turnloom)
        throughput(turnloom, max(count, 400))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        turnloom = stack.enter_context(running(stack.enter_context(fake_upstream()), folder))
        http = stack.enter_context(httpx2.Client(timeout=60))
        stored_bytes(http, turnloom, folder)
    imports()


# --- figures


def responses(http: httpx2.Client, url: str, count: int, bare: float, bare_stream: float) -> None:
    whole = measure(lambda: create(http, url), count)
    show("response, not streamed: whole / own time", f"{whole:.2f} / {whole - bare:.2f} ms")
    first = measure(lambda: first_delta(http, url), count)
    show("response, streamed: first token / own time", f"{first:.2f} / {first - bare_stream:.2f} ms")


def turns(http: httpx2.Client, url: str, count: int, bare: float) -> None:
    session = new_session(http, url)
    times = [timed(lambda: turn(http, session)) for _ in range(max(count, 105))]
    show(
        "agent turn: first ten / own time",
        f"{statistics.median(times[:10]):.2f} / {statistics.median(times[:10]) - bare:.2f} ms",
    )
    sessions = [new_session(http, url) for _ in range(10)]
    first = statistics.median(timed(lambda s=s: turn(http, s)) for s in sessions)  # type: ignore[misc]
    for _ in range(98):
        for path in sessions:
            turn(http, path)
    hundredth = statistics.median(timed(lambda s=s: turn(http, s)) for s in sessions)  # type: ignore[misc]
    show("turn 100 against turn 1 (ten sessions)", f"{hundredth:.2f} / {first:.2f} ms = {hundredth / first:.2f}")


def chain(http: httpx2.Client, url: str) -> None:
    chains: list[list[float]] = []
    for _ in range(5):
        times, parent = [], None
        for _ in range(100):
            started = time.perf_counter()
            parent = create(http, url, previous_response_id=parent)["id"]
            times.append((time.perf_counter() - started) * 1e3)
        chains.append(times)
    first = statistics.median(t for times in chains for t in times[:3])
    hundredth = statistics.median(t for times in chains for t in times[-3:])
    show("response 100 of a chain against 1", f"{hundredth:.2f} / {first:.2f} ms = {hundredth / first:.2f}")


def throughput(url: str, count: int) -> None:
    def client() -> None:
        with httpx2.Client(timeout=60) as http:
            for _ in range(count // CLIENTS):
                create(http, url)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    show(f"responses a second at {CLIENTS} clients", f"{count // CLIENTS * CLIENTS / seconds:.0f}")


def stored_bytes(http: httpx2.Client, url: str, folder: Path) -> None:
    parent = None
    for _ in range(100):
        parent = create(http, url, previous_response_id=parent, input=INPUT)["id"]
    with sqlite3.connect(folder / "turnloom.db") as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix in (".db", ""))
    show("stored bytes of 100 chained 230-byte responses", f"{stored:,}")


def imports() -> None:
    """Import time of each function, in a fresh process with compiled files present: the median of five."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
    for folder in sorted((ROOT / "functions").iterdir()):
        if not (folder / "handler.py").exists():
            continue
        script = (
            f"import time,sys; t=time.perf_counter(); sys.path.insert(0, {str(folder)!r}); import handler; "
            "print((time.perf_counter()-t)*1e3, 'openai' in sys.modules)"
        )
        runs = [
            subprocess.run(
                [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True, cwd=folder
            ).stdout.split()
            for _ in range(5)
        ]
        openai = " (imports openai)" if runs[0][1] == "True" else ""
        show(f"import {folder.name}", f"{statistics.median(float(run[0]) for run in runs):.0f} ms{openai}")


# --- requests


def create(http: httpx2.Client, url: str, **more: Any) -> dict[str, Any]:
    body = {"model": "bench", "input": QUESTION, **{name: value for name, value in more.items() if value is not None}}
    answer = http.post(f"{url}/v1/responses", json=body)
    answer.raise_for_status()
    return dict(answer.json())


def first_delta(http: httpx2.Client, url: str) -> None:
    body = {"model": "bench", "input": QUESTION, "stream": True}
    read_until(http, f"{url}/v1/responses", body, b"output_text.delta")


def new_session(http: httpx2.Client, url: str) -> str:
    config = {"model": "bench", "instructions": "Be brief.", "enable_session_persistence": True}
    agent = http.post(f"{url}/v1/agents", json={"agent_config": config}).json()["agent_id"]
    path = f"{url}/v1/agents/{agent}/session"
    return f"{path}/{http.post(path, json={'session_name': 'bench'}).json()['session_id']}"


def turn(http: httpx2.Client, session: str) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "stream": False}
    http.post(f"{session}/turn", json=body).raise_for_status()


def ask_upstream(http: httpx2.Client, url: str) -> None:
    for _ in read(http, f"{url}/chat/completions", upstream_body()):
        pass


def first_token_of_upstream(http: httpx2.Client, url: str) -> None:
    read_until(http, f"{url}/chat/completions", upstream_body(), b'"content"')


def upstream_body() -> dict[str, Any]:
    return {"model": "bench", "messages": [{"role": "user", "content": QUESTION}], "stream": True}


def read_until(http: httpx2.Client, url: str, body: dict[str, Any], mark: bytes) -> None:
    """Read until the mark has come; the rest of the stream is read outside of the time that counts."""
    seen = b""
    for part in read(http, url, body):
        seen += part
        if mark in seen:
            return
    raise RuntimeError(f"{mark!r} never came")


def read(http: httpx2.Client, url: str, body: dict[str, Any]) -> Iterator[bytes]:
    with http.stream("POST", url, json=body) as answer:
        answer.raise_for_status()
        yield from answer.iter_raw()


# --- measuring


def measure(work: Callable[[], object], count: int) -> float:
    """The median of `count` runs, in milliseconds, after a tenth as many to warm up."""
    for _ in range(max(count // 10, 5)):
        work()
    return statistics.median(timed(work) for _ in range(count))


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def show(figure: str, value: str) -> None:
    print(f"{figure:60} {value}", flush=True)


@contextmanager
def fake_upstream() -> Iterator[str]:
    port = free_port()
    with process([str(ROOT / "benchmarks" / "upstream.py"), "--port", str(port)], {}):
        url = f"http://127.0.0.1:{port}/v1"
        wait_for(f"{url}/models")
        yield url


@contextmanager
def running(upstream: str, folder: Path) -> Iterator[str]:
    port = free_port()
    env = {
        "OPENAI_BASE_URL": upstream,
        "OPENAI_API_KEY": "none",
        "PORT": str(port),
        "TURNLOOM_DATA_DIR": str(folder),
        "PYTHONPATH": str(ROOT / "lib"),
    }
    with process(["-m", "turnloom.local"], env):
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/v1/health")
        yield url


@contextmanager
def process(arguments: list[str], env: dict[str, str]) -> Iterator[None]:
    started = subprocess.Popen(
        [sys.executable, *arguments], env={**os.environ, **env}, stdout=subprocess.DEVNULL, cwd=ROOT
    )
    try:
        yield
    finally:
        started.terminate()
        started.wait(20)


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx2.get(url, timeout=2).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{url} did not come up")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
