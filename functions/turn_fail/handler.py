"""Task of the state machine: end a turn that could not be brought to its end."""

from typing import Any

from turnloom import tasks


def handler(event: dict[str, Any], context: object) -> None:
    return tasks.fail(event)
