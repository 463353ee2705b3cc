"""The tasks of the state machine as Lambda handlers: state in, state out."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from turnloom.bootstrap import services
from turnloom.engine import stepped
from turnloom.engine.takeover import sweep
from turnloom.loop import on_loop
from turnloom.usecases.disposal import dispose_due
from turnloom.usecases.trail import begin, mark_of

logger = logging.getLogger(__name__)

State = Mapping[str, Any]

SWEEP_EVERY_SECONDS, LEAST_REMOVAL_SECONDS = 55.0, 10.0
"""A sweep ends before the next one begins; however long it looked for lost drivers, removals have some time."""


def step(state: State, kind: str) -> dict[str, Any]:
    """Do the next action if it is of this kind."""
    with _told(state, kind):
        return on_loop(stepped.step(services().engine, state, kind))


def call_tool(state: State) -> None:
    """Run the call named in `state["call"]`."""
    with _told(state, "call_tool"):
        on_loop(stepped.call_tool(services().engine, state, str(state["call"])))


def fail(state: State) -> None:
    """End a turn that the state machine gave up on."""
    with _told(state, "fail"):
        on_loop(stepped.fail(services().engine, state, "The turn failed because of an internal error."))


def sweep_up() -> dict[str, int]:
    """Wake turns whose driver was lost, then go on with removals until the next sweep is due."""
    return on_loop(_sweep_up())


async def _sweep_up() -> dict[str, int]:
    made, began = services(), time.monotonic()
    woken = 0
    try:
        woken = await sweep(made.engine)
    finally:
        left = SWEEP_EVERY_SECONDS - (time.monotonic() - began)
        removed = await dispose_due(made, max(left, LEAST_REMOVAL_SECONDS))
    return {"woken": woken, "removed": removed}


@contextmanager
def _told(state: State, task: str) -> Iterator[None]:
    """A line for the task, and whatever is logged on the way has the turn's id: also what breaks it.

    Lambda tells of that too, but by a line of its own that knows of no turn.
    """
    turn = state["turn"]
    # Settings of the log come with the services; an execution that was begun by an earlier version has no id.
    services()
    begin(turn_id=turn.get("id", ""), owner=mark_of(turn["owner"]))
    try:
        yield
    except stepped.TurnMoved:
        logger.info("task", extra={"task": task, "moved": True})
        raise
    except Exception:
        logger.exception("a task broke down", extra={"task": task})
        raise
    logger.info("task", extra={"task": task})
