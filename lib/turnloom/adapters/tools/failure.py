"""How a runner reports that a tool failed, and which secrets its server was sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from turnloom.adapters.masking import secrets_in
from turnloom.domain.message import ToolSource
from turnloom.domain.redaction import is_secret_name, query_of, secret_args, tokens_in_path
from turnloom.ports import ToolError

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"([\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?)?")

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


def secrets_of(source: ToolSource, headers: Mapping[str, str], *, named: bool = False) -> list[str]:
    """What a tool's server is sent that may be secret, for `mask`: of headers, of its address, and secret args.

    With `named`, only what goes by the name of a secret: the result of a tool that worked may well speak of the rest.
    """
    return [
        *secrets_in({name: value for name, value in headers.items() if not named or is_secret_name(name)}),
        *(
            value
            for name, value in query_of(source.endpoint or "")
            if is_secret_name(name) or not (named or " " in value)
        ),
        *tokens_in_path(source.endpoint or ""),
        *secret_args(source.args),
    ]
