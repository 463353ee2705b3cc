"""Text that a client is given sealed, to bring it back later."""

from __future__ import annotations

from collections.abc import Callable

from turnloom.ports import Unreadable
from turnloom.usecases.services import Services

Seal = Callable[[str], str]


def sealer(services: Services, owner: str) -> Seal:
    """Seals texts that only this owner can use, and nobody read; the same text always the same way."""
    return lambda text: services.vault.seal(text.encode(), _context(owner))


def opened(services: Services, owner: str, sealed: str) -> str | None:
    """The text that was sealed for this owner; None if it was not."""
    try:
        return services.vault.unseal(sealed, _context(owner)).decode()
    except Unreadable:
        return None


def _context(owner: str) -> str:
    """Apart from the credentials of running turns, which nobody is ever given."""
    return f"items:{owner}"
