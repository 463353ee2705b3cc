"""How a runner says that a tool failed, and how nothing secret gets into what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from turnloom.ports import ToolError

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"([\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?)?")
_SECRET_CHARACTERS = 8

Kind = Literal["tool", "protocol", "http", "arguments", "unknown", "timeout"]


class ToolFailed(Exception):
    """A tool did not do what it was asked; `error.message` is for the model."""

    def __init__(self, kind: Kind, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.error = ToolError(kind, message, code)


def illegal_header(headers: Mapping[str, str]) -> str | None:
    """The name of a header that HTTP cannot carry, if there is one.

    To be asked before the headers are used: HTTP libraries quote the value that they stumble over.
    """
    return next(
        (name for name, value in headers.items() if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value))), None
    )


def redacted(text: str, headers: Mapping[str, str]) -> str:
    """The text without header values, nor any longer word of one, for servers that repeat what they were sent."""
    words = {word for value in headers.values() for word in (value, *value.split()) if len(word) >= _SECRET_CHARACTERS}
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, "<redacted>")
    return text
