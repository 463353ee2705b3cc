"""Every minute: wake turns whose driver was lost, finish removals that were cut off."""

from typing import Any

from turnloom import tasks


def handler(event: dict[str, Any], context: object) -> dict[str, int]:
    return tasks.sweep_up()
