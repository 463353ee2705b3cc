"""Task of the state machine: end a turn, or rest it until the client answers."""

from typing import Any

from turnloom import tasks


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    return tasks.step(event, event["next"])
