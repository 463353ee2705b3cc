"""The tasks of the state machine as Lambda handlers: state in, state out, on one event loop for the whole process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from turnloom.bootstrap import services
from turnloom.engine import stepped
from turnloom.engine.takeover import sweep
from turnloom.usecases.disposal import dispose_due

T = TypeVar("T")
State = Mapping[str, Any]

_starting = threading.Lock()
_loops: list[asyncio.AbstractEventLoop] = []


def step(state: State, kind: str) -> dict[str, Any]:
    """Do the next action if it is of this kind."""
    return on_loop(stepped.step(services().engine, state, kind))


def call_tool(state: State) -> None:
    """Run the call named in `state["call"]`."""
    return on_loop(stepped.call_tool(services().engine, state, str(state["call"])))


def fail(state: State) -> None:
    """End a turn that the state machine gave up on."""
    return on_loop(stepped.fail(services().engine, state, "The turn failed because of an internal error."))


def sweep_up() -> dict[str, int]:
    """Wake turns whose driver was lost, and finish removals that were cut off."""
    return on_loop(_sweep_up())


async def _sweep_up() -> dict[str, int]:
    made = services()
    return {"woken": await sweep(made.engine), "removed": await dispose_due(made)}


def on_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run on the process's loop, from any thread: a loop of its own for each call would orphan pooled connections."""
    return asyncio.run_coroutine_threadsafe(work, _loop()).result()


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        if not _loops:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="turnloom-loop", daemon=True).start()
            _loops.append(loop)
    return _loops[0]
