"""Task of the state machine: read the documents and list the tool servers of a turn."""

from typing import Any

from turnloom import tasks


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    return tasks.step(event, "gather")
