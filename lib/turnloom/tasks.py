"""The tasks of the state machine as Lambda handlers: state in, state out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turnloom.bootstrap import services
from turnloom.engine import stepped
from turnloom.engine.takeover import sweep
from turnloom.loop import on_loop
from turnloom.usecases.disposal import dispose_due
from turnloom.usecases.trail import begin, mark_of

State = Mapping[str, Any]


def step(state: State, kind: str) -> dict[str, Any]:
    """Do the next action if it is of this kind."""
    _begin(state)
    return on_loop(stepped.step(services().engine, state, kind))


def call_tool(state: State) -> None:
    """Run the call named in `state["call"]`."""
    _begin(state)
    return on_loop(stepped.call_tool(services().engine, state, str(state["call"])))


def fail(state: State) -> None:
    """End a turn that the state machine gave up on."""
    _begin(state)
    return on_loop(stepped.fail(services().engine, state, "The turn failed because of an internal error."))


def sweep_up() -> dict[str, int]:
    """Wake turns whose driver was lost, and finish removals that were cut off."""
    return on_loop(_sweep_up())


async def _sweep_up() -> dict[str, int]:
    made = services()
    return {"woken": await sweep(made.engine), "removed": await dispose_due(made)}


def _begin(state: State) -> None:
    turn = state["turn"]
    # An execution that was begun by an earlier version has no id.
    begin(turn_id=turn.get("id", ""), owner=mark_of(turn["owner"]))
