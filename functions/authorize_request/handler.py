"""Before every route: whose request it is, by the key or token that it brings."""

from typing import Any

from turnloom import gate


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    return gate.admit(event)
