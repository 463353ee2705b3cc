"""Who asks, and the secrets that came with the request: kept sealed, and only while the turn is running."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from turnloom.domain.errors import ServerFault
from turnloom.domain.message import JSON
from turnloom.ports import Unreadable
from turnloom.store.turns import Record
from turnloom.usecases.services import Services


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner, and secrets of this request.

    These are `headers` by MCP server address, the client's provider data, and secret `addresses` of MCP servers by
    fingerprint.
    """

    owner: str
    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    provider_data: Mapping[str, JSON] = field(default_factory=dict)
    addresses: Mapping[str, str] = field(default_factory=dict)


def sealed(services: Services, caller: Caller) -> str | None:
    """The caller's secrets for the turn's row; None when there are none."""
    if not (caller.headers or caller.provider_data or caller.addresses):
        return None
    secrets = json.dumps([dict(caller.headers), dict(caller.provider_data), dict(caller.addresses)])
    return services.vault.seal(secrets.encode(), _context(caller.owner))


def unsealed(services: Services, record: Record) -> Caller:
    """The caller of a stored turn, with the secrets that it was sealed with.

    Raises ServerFault when they can be read no more.
    """
    owner = record.place.owner
    if record.secrets is None:
        return Caller(owner)
    try:
        secrets = json.loads(services.vault.unseal(record.secrets, _context(owner)))
    except Unreadable:
        raise ServerFault(
            f"The credentials that '{record.turn.id}' was started with cannot be read any more: "
            "the key of this deployment that they were sealed with was changed."
        ) from None
    return Caller(owner, *secrets)  # a turn of an earlier version has no addresses


def _context(owner: str) -> str:
    return f"secrets:{owner}"
