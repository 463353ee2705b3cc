"""Lines on the laptop's terminal: one for each request, and one for each failure with its cause.

They hold no header, no query, and no body but the message of an error, which its caller got as well.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

CAUSE_CHARACTERS = 300
ERROR_BYTES = 65_536
"""How much of an error's body is read for its message."""


class RequestLog:
    """ASGI middleware: logs method, path, status and milliseconds of a request, and why it failed if it did.

    Health checks that succeed or come too early are left out: they come by the second.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/v1/health":
            await self._app(scope, receive, send)
            return
        status, error, began = 0, b"", time.monotonic()

        async def send_and_watch(message: Message) -> None:
            nonlocal status, error
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status >= 400 and len(error) < ERROR_BYTES:
                error += message.get("body", b"")
            await send(message)

        try:
            await self._app(scope, receive, send_and_watch)
        finally:
            self._log(scope, status, round((time.monotonic() - began) * 1000), _cause(error))

    def _log(self, scope: Scope, status: int, milliseconds: int, cause: str) -> None:
        # The path as it was sent, in which nothing can steer a terminal.
        path = scope.get("raw_path", b"").partition(b"?")[0].decode("ascii", "backslashreplace")
        outcome = str(status) if status else "left"
        level = logging.WARNING if status >= 400 else logging.INFO
        reason = f": {cause}" if cause else ""
        logger.log(level, "%s %s %s %d ms%s", scope["method"], path, outcome, milliseconds, reason)


def log_to_terminal(context: Callable[[], Mapping[str, str]]) -> None:
    """Let requests, and everybody's warnings, write lines to standard error, with the turn's id from the context.

    With TURNLOOM_LOG_LEVEL=WARNING only requests that fail do.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(TerminalFormatter(context))
    logging.getLogger().addHandler(handler)
    logger.setLevel(os.environ.get("TURNLOOM_LOG_LEVEL") or logging.INFO)


class TerminalFormatter(logging.Formatter):
    """The message on one line of printable characters, then the turn's id if there is one."""

    def __init__(self, context: Callable[[], Mapping[str, str]]) -> None:
        super().__init__()
        self._context = context

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = "".join(character if character.isprintable() else " " for character in record.message)
        turn_id = self._context().get("turn_id")
        return f"{line} (turn {turn_id})" if turn_id and turn_id not in line else line


def _cause(error: bytes) -> str:
    """The message of an error in the envelope of either API; empty if there is none."""
    try:
        document = json.loads(error)
    except ValueError:
        return ""
    match document:
        case {"error": {"message": str(message)}} | {"detail": str(message)}:
            return message[:CAUSE_CHARACTERS]
        case _:
            return ""
