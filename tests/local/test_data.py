"""The laptop's data folder is private, and refused before the start when it cannot hold the state."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from turnloom.adapters.sqlite import SqliteDatabase
from turnloom.adapters.vault import secret_in_file
from turnloom.local.data import Unusable, prepare


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_new_folder_and_its_database_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    prepare(folder)
    database = SqliteDatabase(folder / "turnloom.db")
    database.once(lambda file: file.execute("CREATE TABLE a (b)"))
    assert mode(folder) == 0o700
    assert {mode(path) for path in folder.glob("turnloom.db*")} == {0o600}
    database.close()


def test_state_with_looser_modes_is_tightened(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir(mode=0o755)
    SqliteDatabase(tmp_path / "turnloom.db").close()
    secret_in_file(tmp_path / "seal.key")
    files = [tmp_path / "turnloom.db", tmp_path / "seal.key", tmp_path / "blobs" / "a"]
    files[2].touch()
    for path in files:
        path.chmod(0o644)
    tmp_path.chmod(0o755)
    prepare(tmp_path)
    assert {mode(path) for path in files} == {0o600}
    assert mode(tmp_path) == mode(tmp_path / "blobs") == 0o700


def test_a_folder_of_the_users_own_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    prepare(tmp_path)
    assert mode(tmp_path) == 0o755


@pytest.mark.parametrize(
    ("name", "content"), [("turnloom.db", b"no database " * 100), ("seal.key", b""), ("seal.key", b"short")]
)
def test_state_that_is_broken_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unusable, match=name):
        prepare(tmp_path)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(Unusable, match="data"):
        prepare(tmp_path / "data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_is_read_only_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Unusable, match="not writable"):
        prepare(tmp_path)
