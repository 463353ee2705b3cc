"""What all request bodies have in common."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

from turnloom.domain.errors import InvalidRequest, TooLarge, UnsupportedEncoding
from turnloom.domain.message import JSON
from turnloom.domain.portable_json import MOST_LEVELS, finite
from turnloom.domain.surrogates import repair_json

JSONObject = dict[str, Any]

MAX_BODY_BYTES = 6 * 1024 * 1024
"""What Lambda takes. There the body is part of an event, so a little less fits; the gateway says the same 413."""

_ZLIB_FORMATS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""The content codings that are decoded, each with zlib's number for its format (RFC 9110, section 8.4.1)."""

MOST_VALUES = 250_000
"""How many values a body may hold: each of them is looked at several times on the event loop."""


class Body(BaseModel):
    """A JSON object whose unknown fields are ignored: newer clients may send more."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


def decode_body(body: bytes, content_encoding: str) -> bytes:
    """The body without its content codings.

    Raises UnsupportedEncoding for a coding that is not decoded, InvalidRequest for one whose data is broken, TooLarge
    as soon as more than `MAX_BODY_BYTES` come out of it.
    """
    codings = [coding.strip().lower() for coding in content_encoding.split(",")]
    for coding in reversed(codings):
        if coding not in ("", "identity"):
            body = _decode(body, coding)
    return body


def _decode(body: bytes, coding: str) -> bytes:
    if coding not in _ZLIB_FORMATS:
        supported = ", ".join(_ZLIB_FORMATS)
        raise UnsupportedEncoding(f"The content-encoding '{coding}' is not supported; {supported} are.")
    decoder = zlib.decompressobj(_ZLIB_FORMATS[coding])
    try:
        content = decoder.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error:
        raise InvalidRequest(f"The body of the request is not valid {coding} data.") from None
    if len(content) > MAX_BODY_BYTES:
        raise TooLarge(f"The request body is larger than {MAX_BODY_BYTES} bytes when it is decoded")
    if not decoder.eof or decoder.unused_data:
        raise InvalidRequest(f"The body of the request is not valid {coding} data.")
    return content


def json_object(body: bytes, where: str = "The body of the request") -> JSONObject:
    """The object that the body, or the part of the request that `where` names, holds. Raises InvalidRequest.

    A byte order mark is skipped, and halves of surrogate pairs become U+FFFD. What other programs could not read is
    refused: NaN, endless nesting. So is what would keep the event loop busy: more than `MOST_VALUES` values.
    """
    if body.count(b"[") + body.count(b"{") > 2 * MOST_VALUES:
        # Reading so many takes long already. In texts, which may hold brackets too, there are never so many.
        raise _too_many_values(where)
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidRequest(f"{where} is not valid JSON: it is not encoded in UTF-8.") from None
    try:
        value = json.loads(repair_json(text), parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{where} is not valid JSON.") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} must be a JSON object.")
    _check_size(value, where)
    return value


def _too_many_values(where: str) -> InvalidRequest:
    return InvalidRequest(f"{where} holds more than {MOST_VALUES} values.")


def _check_size(value: JSON, where: str) -> None:
    """Raise InvalidRequest for a value that is nested too deep, or holds too many others."""
    level, count = [value], 0
    for _ in range(MOST_LEVELS):
        count += sum(map(len, level))
        if count > MOST_VALUES:
            raise _too_many_values(where)
        level = [child for each in level for child in _children(each) if isinstance(child, dict | list)]
        if not level:
            return
    raise InvalidRequest(f"{where} is nested more than {MOST_LEVELS} levels deep.")


def _children(value: dict[str, JSON] | list[JSON]) -> Iterable[JSON]:
    return value.values() if isinstance(value, dict) else value
