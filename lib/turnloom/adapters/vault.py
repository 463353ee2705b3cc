"""Sealing with a key of the deployment: AES-SIV (RFC 5297), which may be deterministic and stays authenticated."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING

from turnloom.ports import Unreadable

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

_KEY_BYTES = 64
_KEY_PURPOSE = b"turnloom/vault/1"


class SivVault:
    """Seals with a key derived from what `secret` gives; it is asked once, when something is first sealed or opened.

    Any bytes do that cannot be guessed. Who sees two sealed texts of one context learns whether their secrets are the
    same, and about how long they are; nothing else.
    """

    def __init__(self, secret: Callable[[], bytes]) -> None:
        self._secret = secret
        self._siv: AESSIV | None = None

    def seal(self, secret: bytes, context: str) -> str:
        return _text(self._cipher().encrypt(secret, [context.encode()]))

    def unseal(self, sealed: str, context: str) -> bytes:
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher().decrypt(_bytes(sealed), [context.encode()])
        except InvalidTag:
            raise Unreadable("This was not sealed here for this context.") from None

    def _cipher(self) -> AESSIV:
        if self._siv is None:
            # Imported late: most functions never seal anything, and this costs them 30 ms of their start.
            from cryptography.hazmat.primitives.ciphers.aead import AESSIV
            from cryptography.hazmat.primitives.hashes import SHA512
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF

            if not (secret := self._secret()):
                raise ValueError("The secret to seal with is empty: anyone could open what it seals.")
            self._siv = AESSIV(HKDF(SHA512(), _KEY_BYTES, salt=None, info=_KEY_PURPOSE).derive(secret))
        return self._siv


def secret_in_file(path: Path) -> bytes:
    """The bytes of this file, which is made of random ones, readable by its owner only, when it is not there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        _publish(os.urandom(_KEY_BYTES), path)
    return path.read_bytes()


def _publish(content: bytes, path: Path) -> None:
    """Create the file whole, unless another process has: a reader must never take half a secret for one."""
    import tempfile  # 10 ms that only a laptop's first start needs

    handle, draft = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.link(draft, path)
    except FileExistsError:
        return
    finally:
        Path(draft).unlink()


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode()


def _bytes(sealed: str) -> bytes:
    """What `_text` gave; the decoder skips letters it does not know, and one secret must not have many texts."""
    try:
        content = base64.urlsafe_b64decode(sealed)
    except ValueError:
        content = b""
    if not content or _text(content) != sealed:
        raise Unreadable("This is nothing that was sealed here.")
    return content
