"""Task of the state machine: let the shields judge."""

from typing import Any

from turnloom import tasks


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    return tasks.step(event, "run_shields")
