"""Secrets in what an owner registered or sent: found by the names they go by, and left out of answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from turnloom.domain.message import JSON

MARK = "<redacted>"

_SECRET_NAME = re.compile(
    r"auth(?!or(?!iz))|bearer|cookie|credential|key(?!board|word)|passphrase|passw|pwd|secret|signature|token",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"(?=.*\d)[\w.~%-]{16,}", re.ASCII)


def is_secret_name(name: str) -> bool:
    """Whether a header, argument or query parameter of this name holds a secret, by common usage."""
    return _SECRET_NAME.search(name) is not None


def redacted_args(args: JSON, *, secret: bool = False) -> JSON:
    """The args of a tool group for an answer: headers, and texts under a secret's name, at any depth, are masked."""
    match args:
        case str():
            return MARK if secret else args
        case list():
            return [redacted_args(value, secret=secret) for value in args]
        case Mapping():
            return {name: redacted_args(value, secret=secret or _hides(name, value)) for name, value in args.items()}
        case _:
            return args


def secret_args(args: JSON, *, secret: bool = False) -> Iterator[str]:
    """The texts that `redacted_args` masks."""
    match args:
        case str() if secret:
            yield args
        case list():
            for value in args:
                yield from secret_args(value, secret=secret)
        case Mapping():
            for name, value in args.items():
                yield from secret_args(value, secret=secret or _hides(name, value))


def redacted_url(url: str) -> str:
    """The address of a tool server for an answer: user info and all values of its query are masked.

    The path stays, since it tells one server from another; a secret in it is shown to the owner who registered it.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return MARK
    _, at, host = parts.netloc.rpartition("@")
    netloc = f"{MARK}@{host}" if at else host
    query = "&".join(_masked_pair(pair) for pair in parts.query.split("&")) if parts.query else ""
    return urlunsplit((parts.scheme, netloc, parts.path, query, MARK if parts.fragment else ""))


def public_address(url: str) -> str:
    """The origin of an address that a request brought along, with `/<redacted>` in place of a path or query."""
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return f"{origin}/{MARK}" if parts.path.strip("/") or parts.query else origin


def query_of(url: str) -> list[tuple[str, str]]:
    """Names and values of an address's query."""
    try:
        return parse_qsl(urlsplit(url).query)
    except ValueError:
        return []


def tokens_in_path(url: str) -> list[str]:
    """Segments of an address's path that look like tokens and not like words: long, with a digit."""
    try:
        segments = urlsplit(url).path.split("/")
    except ValueError:
        return []
    return [segment for segment in segments if _TOKEN.fullmatch(segment)]


def _hides(name: str, value: JSON) -> bool:
    return is_secret_name(name) or (name.lower() == "headers" and isinstance(value, Mapping))


def _masked_pair(pair: str) -> str:
    name, sign, _ = pair.partition("=")
    return f"{name}={MARK}" if sign else MARK
