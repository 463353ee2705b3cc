"""Task of the state machine: run one server-side tool call."""

from typing import Any

from turnloom import tasks


def handler(event: dict[str, Any], context: object) -> None:
    return tasks.call_tool(event)
