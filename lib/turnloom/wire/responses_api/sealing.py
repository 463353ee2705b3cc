"""Text that a client is given sealed, to bring it back later."""

from __future__ import annotations

from collections.abc import Callable

from turnloom.usecases.services import Services

Seal = Callable[[str], str]


def sealer(services: Services, owner: str) -> Seal:
    """Seals texts that only this owner can use, and nobody read; the same text always the same way."""
    return lambda text: services.vault.seal(text.encode(), owner)
