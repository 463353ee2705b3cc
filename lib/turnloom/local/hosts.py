"""Names and addresses of this machine."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches a server that listens there."""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def is_own_name(header: str) -> bool:
    """Whether a Host header, with or without a port, is an address or a name that nobody can register.

    So is none: browsers always send one.
    """
    try:
        name = (urlsplit(f"//{header}").hostname or "").removesuffix(".")
    except ValueError:
        return False
    with suppress(ValueError):
        return bool(ip_address(name))
    return name in ("", "localhost", "host.docker.internal") or name.endswith(".localhost")
