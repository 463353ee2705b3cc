"""Sealing: the same text for the same secret, and nothing for anyone else."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from turnloom.adapters.vault import SivVault, secret_in_file
from turnloom.ports import Unreadable, Vault
from turnloom.testing import PlainVault

SECRET = b"what a deployment has generated"
TEXT = "Für niemanden sonst. 🤫".encode()


def vault(secret: bytes = SECRET) -> SivVault:
    return SivVault(lambda: secret)


VAULTS = pytest.mark.parametrize("sealing", [vault(), PlainVault()], ids=["real", "plain"])


@VAULTS
@pytest.mark.parametrize("secret", [TEXT, b"", b"x" * 300_000], ids=["text", "nothing", "much"])
def test_what_is_sealed_can_be_read_in_its_context(sealing: Vault, secret: bytes) -> None:
    assert sealing.unseal(sealing.seal(secret, "alice"), "alice") == secret


@VAULTS
def test_sealed_text_can_stand_in_an_address(sealing: Vault) -> None:
    assert all(re.fullmatch(r"[\w-]+=*", sealing.seal(TEXT + bytes([n]), "alice"), re.ASCII) for n in range(64))


@VAULTS
def test_sealing_twice_gives_the_same_text(sealing: Vault) -> None:
    assert sealing.seal(TEXT, "alice") == sealing.seal(TEXT, "alice")


@VAULTS
def test_another_context_has_another_text_and_cannot_read_this_one(sealing: Vault) -> None:
    assert sealing.seal(TEXT, "bob") != sealing.seal(TEXT, "alice")
    with pytest.raises(Unreadable):
        sealing.unseal(sealing.seal(TEXT, "alice"), "bob")


@VAULTS
@pytest.mark.parametrize("sealed", ["", "AAAA", "no base64 at all", "é", "A" * 300, "\x00"])
def test_what_was_never_sealed_is_unreadable(sealing: Vault, sealed: str) -> None:
    with pytest.raises(Unreadable):
        sealing.unseal(sealed, "alice")


def test_another_process_with_the_same_secret_seals_alike_and_reads() -> None:
    assert vault().seal(TEXT, "alice") == vault().seal(TEXT, "alice")
    assert vault().unseal(vault().seal(TEXT, "alice"), "alice") == TEXT


def test_another_secret_reads_nothing() -> None:
    with pytest.raises(Unreadable):
        vault(b"another").unseal(vault().seal(TEXT, "alice"), "alice")


def test_any_changed_letter_makes_the_text_unreadable() -> None:
    sealed = vault().seal(TEXT, "alice")
    for place, letter in enumerate(sealed):
        changed = sealed[:place] + ("A" if letter != "A" else "B") + sealed[place + 1 :]
        with pytest.raises(Unreadable):
            vault().unseal(changed, "alice")


@pytest.mark.parametrize("change", ["{}\n", " {}", "{}=", "{}!"])
def test_a_secret_has_one_text_only(change: str) -> None:
    with pytest.raises(Unreadable):
        vault().unseal(change.format(vault().seal(TEXT, "alice")), "alice")


def test_the_text_shows_nothing_of_the_secret_or_the_context() -> None:
    raw = vault().seal(b"a" * 64, "alice")
    assert "YWFh" not in raw
    assert "alice" not in raw


def test_the_secret_is_asked_for_once_and_not_before_it_is_needed() -> None:
    asked: list[bytes] = []

    def secret() -> bytes:
        asked.append(SECRET)
        return SECRET

    sealing = SivVault(secret)
    assert asked == []
    sealing.unseal(sealing.seal(TEXT, "alice"), "alice")
    assert len(asked) == 1


def test_an_empty_secret_seals_nothing() -> None:
    with pytest.raises(ValueError, match="empty"):
        vault(b"").seal(TEXT, "alice")


# --- the secret of a laptop


def test_a_secret_is_made_once_and_kept_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "seal.key"
    first = secret_in_file(path)
    assert len(first) >= 32
    assert secret_in_file(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["seal.key"]


def test_two_secrets_are_not_alike(tmp_path: Path) -> None:
    assert secret_in_file(tmp_path / "a") != secret_in_file(tmp_path / "b")


def test_a_file_that_is_there_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "seal.key"
    path.write_bytes(b"\x00 any bytes \xff")
    assert secret_in_file(path) == b"\x00 any bytes \xff"
    assert vault(secret_in_file(path)).unseal(vault(path.read_bytes()).seal(TEXT, "alice"), "alice") == TEXT


def test_those_who_start_together_agree_on_one_secret(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(secret_in_file, [tmp_path / "seal.key"] * 64))
    assert found == {(tmp_path / "seal.key").read_bytes()}


def test_importing_the_vault_does_not_import_cryptography() -> None:
    code = (
        "import sys; from turnloom.adapters.vault import SivVault; SivVault(lambda: b'');"
        "sys.exit('cryptography' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": os.pathsep.join(sys.path)})
