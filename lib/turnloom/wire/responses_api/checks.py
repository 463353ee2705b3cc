"""How bodies of the Responses API are checked: the first thing that is wrong is named by its path."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NoReturn
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import JSON

MOST_LEVELS = 100
"""How deep a body may be nested; what reads it later calls itself once or twice per level."""

Name = Annotated[str, Field(min_length=1)]


class Shape(BaseModel):
    """What the value at one place must look like; keys that it does not list may be anything."""

    model_config = ConfigDict(extra="ignore", strict=True)


def json_object(body: bytes) -> dict[str, Any]:
    """The object that the body holds. Raises InvalidRequest.

    What other programs could not read is refused too: NaN, halves of surrogate pairs, endless nesting.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_no_json, parse_float=_finite)
        if b"\\ud" in body.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise InvalidRequest("The body of the request is not valid JSON.") from None
    if not isinstance(value, dict):
        raise InvalidRequest("The body of the request must be a JSON object.")
    if _is_too_deep(value):
        raise InvalidRequest(f"The body of the request is nested more than {MOST_LEVELS} levels deep.")
    return value


def without_nulls(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that are given; null means not given."""
    return {key: value for key, value in given.items() if value is not None}


def only(keys: tuple[str, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """Of these keys, those that are given."""
    return {key: given[key] for key in keys if given.get(key) is not None}


def is_web_address(text: str) -> bool:
    """Whether the text is an address of the web, with a host; whether it may be asked for is not looked at."""
    try:
        parts = urlsplit(text)
        return text.isprintable() and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def check(shape: type[Shape], given: Mapping[str, Any], path: str) -> None:
    """Raise InvalidRequest for the first thing that is wrong with the value at `path`."""
    try:
        shape.model_validate(without_nulls(given))
    except ValidationError as error:
        _raise_first(error.errors(include_url=False)[0], path)


def missing(param: str) -> NoReturn:
    message = f"Missing required parameter: '{param}'."
    raise InvalidRequest(message, code="missing_required_parameter", param=param)


def wrong_type(param: str, wanted: str) -> NoReturn:
    raise InvalidRequest(f"Invalid type for '{param}': expected {wanted}.", code="invalid_type", param=param)


def wrong_value(param: str, message: str) -> NoReturn:
    raise InvalidRequest(message, code="invalid_value", param=param)


def unsupported(param: str, message: str) -> NoReturn:
    raise InvalidRequest(message, code="unsupported_parameter", param=param)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_json(text)


def _no_json(constant: str) -> NoReturn:
    raise ValueError(constant)


def _is_too_deep(value: JSON) -> bool:
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [child for each in level for child in _children(each) if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _children(value: dict[str, JSON] | list[JSON]) -> Iterable[JSON]:
    return value.values() if isinstance(value, dict) else value


def _raise_first(error: ErrorDetails, path: str) -> NoReturn:
    param = _path(path, error["loc"])
    if error["type"] == "missing":
        missing(param)
    no_text = error["type"] == "literal_error" and not isinstance(error["input"], str)
    code = "invalid_type" if no_text or error["type"].endswith(("_type", "_parsing")) else "invalid_value"
    what = code.removeprefix("invalid_")
    raise InvalidRequest(f"Invalid {what} for '{param}': {error['msg']}.", code=code, param=param)


def _path(path: str, places: tuple[int | str, ...]) -> str:
    for place in places:
        if place == "[key]":
            continue
        path = f"{path}[{place}]" if isinstance(place, int) else f"{path}.{place}".removeprefix(".")
    return path
