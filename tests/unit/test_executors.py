"""Nothing that callers can make slow runs in asyncio's own executor, where each call waits for all others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

LIB = Path(__file__).parents[2] / "lib" / "turnloom"

PERMITTED = {
    "local/preflight.py": "the supervisor resolves its own host before it has an event loop",
    "local/model/weights.py": "the model's process installs its weights once, before it serves",
    "adapters/guard.py": "the system's resolver",
}


def uses(tree: ast.AST) -> Iterator[str]:
    """The calls that run in the executor of the event loop."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=("to_thread" | "getaddrinfo" | "getnameinfo") as name):
                yield name
            case ast.Call(func=ast.Attribute(attr="run_in_executor"), args=[ast.Constant(None), *_]):
                yield "run_in_executor"


def test_nothing_runs_in_the_executor_of_the_event_loop() -> None:
    for path in LIB.rglob("*.py"):
        name = path.relative_to(LIB).as_posix()
        if name not in PERMITTED:
            assert not list(uses(ast.parse(path.read_text()))), f"{name} needs threads of its own: adapters/threads.py"
