"""Sealing with a key of the deployment (Fernet: AES-128-CBC with an HMAC)."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.fernet import Fernet


class FernetVault:
    """Seals with the key that `key` gives; it is asked once, when something is first sealed or opened."""

    def __init__(self, key: Callable[[], bytes]) -> None:
        self._key = key
        self._fernet: Fernet | None = None

    def seal(self, secret: bytes) -> str:
        return self._cipher().encrypt(secret).decode()

    def unseal(self, sealed: str) -> bytes:
        return self._cipher().decrypt(sealed.encode())

    def _cipher(self) -> Fernet:
        if self._fernet is None:
            # Imported late: most functions never seal anything, and this costs them 40 ms of their start.
            from cryptography.fernet import Fernet

            self._fernet = Fernet(self._key())
        return self._fernet


def key_from(secret: bytes) -> bytes:
    """A key made of any secret text, e.g. one that Secrets Manager has generated."""
    return base64.urlsafe_b64encode(hashlib.sha256(secret).digest())


def key_in_file(path: Path) -> bytes:
    """The key in this file, which is made, readable by its owner only, when it is not there."""
    from cryptography.fernet import Fernet

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(handle, "wb") as file:
        key = Fernet.generate_key()
        file.write(key)
    return key
