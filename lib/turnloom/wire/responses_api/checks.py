"""How bodies of the Responses API are checked: the first thing that is wrong is named by its path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NoReturn
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from turnloom.domain.errors import InvalidRequest

Name = Annotated[str, Field(min_length=1)]


class Shape(BaseModel):
    """What the value at one place must look like; keys that it does not list may be anything."""

    model_config = ConfigDict(extra="ignore", strict=True)


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
