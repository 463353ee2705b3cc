"""The folder of the laptop's state: private, and fit for use before anything starts."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

SECRET_BYTES = 32
"""What a secret to seal with must have at least; the one that is made here has 64."""


class Unusable(Exception):
    """The folder cannot hold the state; the message is for people."""


def prepare(folder: Path) -> None:
    """Make the folder with mode 0700 if need be, and the state in it readable by its owner only. Raises Unusable.

    A folder that was there keeps its mode unless it holds state already, for it may be shared with other programs.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (folder / "turnloom.db").exists():
            folder.chmod(0o700)
        for path in _state(folder):
            path.chmod(0o700 if path.is_dir() else 0o600)
        _check_writable(folder)
    except OSError as failure:
        raise Unusable(f"The data folder {folder} cannot be used: {failure.strerror}") from failure
    _check_key(folder / "seal.key")
    _check_database(folder / "turnloom.db")


def _state(folder: Path) -> Iterator[Path]:
    """The files and folders of ours that are there."""
    yield from folder.glob("turnloom.db*")
    yield from folder.glob("seal.key")
    yield from folder.glob("blobs")
    yield from (folder / "blobs").glob("*")


def _check_writable(folder: Path) -> None:
    for path in (folder, *_state(folder)):
        if not os.access(path, os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)):
            raise PermissionError(0, f"{path} is not writable")


def _check_key(path: Path) -> None:
    if path.exists() and (size := path.stat().st_size) < SECRET_BYTES:
        raise Unusable(
            f"{path} has {size} bytes, too few for a secret: restore it, or remove it and lose what it sealed"
        )


def _check_database(path: Path) -> None:
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path)) as file:
            file.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as failure:
        # Another process may be writing; that passes.
        if failure.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise Unusable(f"{path} cannot be opened: {failure}") from failure
    except sqlite3.DatabaseError as failure:
        raise Unusable(f"{path} is no database of Turnloom's: {failure}") from failure
