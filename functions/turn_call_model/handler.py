"""Task of the state machine: ask the model."""

from typing import Any

# Half a second to import: better while the sandbox starts than while a turn waits.
import openai  # noqa: F401

from turnloom import tasks


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    return tasks.step(event, "call_model")
