"""Task of the state machine: ask the model."""

from typing import Any

from turnloom import tasks


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    return tasks.step(event, "call_model")
