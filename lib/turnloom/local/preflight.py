"""Refuses settings that cannot work, each in one sentence, before anything starts."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from turnloom.local.data import Unusable, prepare

PORTS = range(1, 65536)


def check_settings(env: Mapping[str, str]) -> tuple[str, int]:
    """Return the host and the port to listen on, with the data folder prepared. Raises Unusable.

    `env` has TURNLOOM_DATA_DIR.
    """
    host, port = env.get("HOST") or "127.0.0.1", _port(env.get("PORT") or "8321")
    _check_address(host, port)
    if is_embedded(env) and (gguf := env.get("TURNLOOM_GGUF")):
        _check_gguf(Path(gguf))
    prepare(Path(env["TURNLOOM_DATA_DIR"]))
    return host, port


def is_embedded(env: Mapping[str, str]) -> bool:
    """Whether the model runs on this machine, as no endpoint is named."""
    return not env.get("OPENAI_BASE_URL") and not env.get("OPENAI_API_KEY")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) not in PORTS:
        raise Unusable(f"PORT is '{text}'; it must be a number from {PORTS[0]} to {PORTS[-1]}.")
    return int(text)


def _check_address(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise Unusable(f"HOST is '{host}', which is no address that is known here.") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as failure:
            raise Unusable(_bind_failure(failure, host, port)) from None


def _bind_failure(failure: OSError, host: str, port: int) -> str:
    if failure.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use; is Turnloom running already? Choose another: PORT=8322 make dev"
    return f"Turnloom cannot listen on port {port} of {host}: {failure.strerror}."


def _check_gguf(path: Path) -> None:
    if not path.is_file():
        raise Unusable(f"TURNLOOM_GGUF names no file: {path}")
    if not os.access(path, os.R_OK):
        raise Unusable(f"TURNLOOM_GGUF names a file that cannot be read: {path}")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise Unusable(f"TURNLOOM_GGUF names a file that is no GGUF: {path}")
