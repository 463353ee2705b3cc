"""The Table port on one SQLite file, which several processes may read and write at once.

Each of Turnloom's tables is one SQLite table. A row's value is JSON text; its places in secondary orders are JSON too,
indexed by expression, so that every write is a single statement and no index can disagree with the rows.

Small pages and row numbers keep the file small: 100 rows of 900 bytes take 136 KB. In pages of 4 KB they take 184 KB,
and 520 KB WITHOUT ROWID, where a row that fills more than a quarter of a page spills into a page of its own.
"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeVar, assert_never

from turnloom.adapters.dynamodb import dump  # what a row may hold is DynamoDB's rule, and the laptop keeps to it
from turnloom.domain.errors import StorageFull, StoreUnavailable
from turnloom.ports import Absent, Condition, ConditionFailed, Page, Row, Version

PAGE_CHARACTERS = 1_000_000
"""A page of a query ends after this much JSON; in DynamoDB it is 1 MB."""
PATIENCE = 30.0
"""For how many seconds a call waits until other processes have done their writes."""
SHORT_CHARACTERS, SHORT_ROWS = 4096, 4096
"""Which values are remembered as decoded, and how many: more than the conversations that go on at a time have turns."""
_PAUSE = 0.01
_SWEEP_EVERY = 256
_SWEEP_ROWS = 512

_PRAGMAS = (
    "page_size = 1024",  # first: it counts only while the file is empty
    "journal_mode = WAL",
    "synchronous = NORMAL",  # survives any kill; a power cut may take the last writes, but only whole ones
    "secure_delete = ON",  # what is deleted is gone from the file as well
    "busy_timeout = 5",  # milliseconds, spent on the event loop; a longer wait is `SqliteDatabase.run`'s
)
_CREATE = """
    CREATE TABLE IF NOT EXISTS {table} (
        id INTEGER PRIMARY KEY, partition TEXT NOT NULL, sort TEXT NOT NULL,
        version INTEGER NOT NULL, expires INTEGER, indexes TEXT, value TEXT NOT NULL,
        UNIQUE (partition, sort)
    )"""
_CREATE_INDEX = (
    "CREATE INDEX IF NOT EXISTS {{table}}_by_{index} ON {{table}} ({partition}, {sort}) WHERE {partition} IS NOT NULL"
)

_LIVE = "(expires IS NULL OR expires > :now)"
_SELECT = "SELECT partition, sort, version, expires, indexes, value FROM {table}"
_GET = f"{_SELECT} WHERE partition = :partition AND sort = :sort AND {_LIVE}"
_PUT = """
    INSERT INTO {table} (partition, sort, version, expires, indexes, value)
    VALUES (:partition, :sort, :version, :expires, :indexes, :value)
    ON CONFLICT (partition, sort) DO UPDATE SET
        version = excluded.version, expires = excluded.expires, indexes = excluded.indexes, value = excluded.value"""
_PUT_ABSENT = f"{_PUT} WHERE {{table}}.expires <= :now"
_PUT_VERSION = """
    UPDATE {table} SET version = :version, expires = :expires, indexes = :indexes, value = :value
    WHERE partition = :partition AND sort = :sort AND version = :expected AND (expires IS NULL OR expires > :now)"""
_DELETE = "DELETE FROM {table} WHERE partition = :partition AND sort = :sort"
_DELETE_VERSION = f"{_DELETE} AND version = :expected AND {_LIVE}"
_SWEEP = (
    "CREATE INDEX IF NOT EXISTS {table}_expires ON {table} (expires) WHERE expires IS NOT NULL",
    "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE expires <= :now ORDER BY expires LIMIT :rows)",
)

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

T = TypeVar("T")
Given = dict[str, str | int | float | None]
Found = tuple[str, str, int, int | None, str | None, str]
"""What `_SELECT` finds of a row."""


class SqliteDatabase:
    """The file at `path`, created with its folder if need be; `close` it when done.

    One connection under a lock serves all threads and event loops of the process: a statement takes some tens of
    microseconds and none is held across an `await`, so waiting for the lock costs less than a connection, with a cache
    of its own, for every thread of a pool.
    """

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives its -wal and -shm the mode of the database.
        path.touch(mode=0o600)
        self.now = now
        self._lock = threading.Lock()
        self._file = _opened(path)

    def table(self, name: str) -> SqliteTable:
        """The table of this name, which its first use creates. Raises ValueError for a name that is no plain word."""
        return SqliteTable(self, _word(name))

    def close(self) -> None:
        """Close the file; the last process to do so leaves it without a write-ahead log."""
        with self._lock:
            self._file.close()

    def once(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` at once. Raises sqlite3.OperationalError when another process is writing."""
        with self._lock:
            return work(self._file)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work`, at most one statement that writes, once no other process is writing.

        A statement that was refused has left no trace, so it is just run again. Raises StoreUnavailable after
        `PATIENCE`, and when the disk fails; StorageFull when it is full.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.once(work)
            except sqlite3.OperationalError as error:
                if not _busy(error):
                    raise _fault(error) from error
                if time.monotonic() > deadline:
                    raise StoreUnavailable(str(error)) from error
            await asyncio.sleep(_PAUSE)


class SqliteTable:
    """One table of a SqliteDatabase, as a Table."""

    def __init__(self, database: SqliteDatabase, name: str) -> None:
        self._database = database
        self._name = name
        self._created = False
        self._indexes: set[str] = set()
        self._expiring_writes = 0

    async def get(self, partition: str, sort: str) -> Row | None:
        rows = await self.get_many([(partition, sort)])
        return rows[0] if rows else None

    async def get_many(self, keys: Sequence[tuple[str, str]]) -> list[Row]:
        await self._create()
        statement = self._sql(_GET)
        asked = [self._given(*key) for key in keys]
        found = await self._database.run(
            lambda file: [columns for key in asked for columns in file.execute(statement, key)]
        )
        return [_row(columns) for columns in found]

    async def put(self, row: Row, when: Condition | None = None) -> None:
        given = self._given(row.partition, row.sort) | {
            "version": row.version,
            "expires": row.expires,
            "indexes": _compact(dict(row.indexes)) if row.indexes else None,
            "value": dump(row.value),
        }
        await self._create(*row.indexes)
        match when:
            case None:
                written = await self._change(_PUT, given)
            case Absent():
                written = await self._change(_PUT_ABSENT, given)
            case Version(number):
                written = await self._change(_PUT_VERSION, given | {"expected": number})
            case _:
                assert_never(when)
        if not written:
            raise ConditionFailed(f"{self._name}: {when}")
        if row.expires is not None:
            self._sweep_in_turn()

    async def delete(self, partition: str, sort: str, when: Version | None = None) -> None:
        await self._create()
        given = self._given(partition, sort)
        if when is None:
            await self._change(_DELETE, given)
        elif not await self._change(_DELETE_VERSION, given | {"expected": when.number}):
            raise ConditionFailed(f"{self._name}: {when}")

    async def query(
        self,
        partition: str,
        *,
        after: str | None = None,
        before: str | None = None,
        descending: bool = False,
        limit: int | None = None,
        index: str | None = None,
    ) -> Page:
        await self._create(*([] if index is None else [index]))
        key, order = ("partition", "sort") if index is None else _place(index)
        conditions = [f"{key} = :partition", _LIVE]
        conditions += [f"{order} > :after"] if after is not None else []
        conditions += [f"{order} < :before"] if before is not None else []
        direction = "DESC" if descending else "ASC"
        statement = self._sql(f"{_SELECT} WHERE {' AND '.join(conditions)} ORDER BY {order} {direction}")
        given = self._given(partition) | {"after": after, "before": before}
        found, more = await self._database.run(lambda file: _page(file.execute(statement, given), limit))
        return Page(tuple(map(_row, found)), more)

    async def _create(self, *indexes: str) -> None:
        """Create the table and these secondary indexes at their first use; what is not used takes no space."""
        if not self._created:
            await self._change(_CREATE)
            self._created = True
        for index in set(indexes) - self._indexes:
            partition, sort = _place(_word(index))
            await self._change(_CREATE_INDEX.format(index=index, partition=partition, sort=sort))
            self._indexes.add(index)

    async def _change(self, text: str, given: Given | None = None) -> int:
        """Run a statement that writes, and say to how many rows."""
        statement = self._sql(text)
        return await self._database.run(lambda file: file.execute(statement, given or {}).rowcount)

    def _sweep_in_turn(self) -> None:
        """At the first of every so many writes of rows that expire, remove some that have expired.

        Not while another process is writing: nobody is to wait for this.
        """
        self._expiring_writes += 1
        if self._expiring_writes % _SWEEP_EVERY == 1:
            with suppress(sqlite3.OperationalError):
                self._database.once(self._remove_expired)

    def _remove_expired(self, file: sqlite3.Connection) -> None:
        given = {"now": self._database.now(), "rows": _SWEEP_ROWS}
        for statement in _SWEEP:
            file.execute(self._sql(statement), given)

    def _given(self, partition: str, sort: str = "") -> Given:
        return {"partition": partition, "sort": sort, "now": self._database.now()}

    def _sql(self, text: str) -> str:
        return text.format(table=self._name)


def _opened(path: Path) -> sqlite3.Connection:
    file = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            for pragma in _PRAGMAS:
                file.execute(f"PRAGMA {pragma}").close()
            return file
        except sqlite3.OperationalError as error:
            # Of several that create the file at once, all but one are refused WAL without the wait they asked for.
            if not _busy(error) or time.monotonic() > deadline:
                file.close()
                raise
        time.sleep(_PAUSE)


def _page(cursor: sqlite3.Cursor, limit: int | None) -> tuple[list[Found], bool]:
    """The rows that fit on one page, and whether there are more."""
    found: list[Found] = []
    characters = 0
    # Closed at once, for an unfinished reading statement keeps the write-ahead log from being emptied.
    with closing(cursor):
        for columns in cursor:
            if len(found) == limit or characters >= PAGE_CHARACTERS:
                return found, True
            found.append(columns)
            characters += len(columns[-1])
    return found, False


def _row(found: Found) -> Row:
    return _short(found) if len(found[-1]) <= SHORT_CHARACTERS else _decoded(found)


def _decoded(found: Found) -> Row:
    partition, sort, version, expires, indexes, value = found
    places = {name: (key, order) for name, (key, order) in json.loads(indexes).items()} if indexes else {}
    return Row(partition, sort, json.loads(value), version, expires, places)


_short = lru_cache(maxsize=SHORT_ROWS)(_decoded)
"""Short rows decoded, remembered: history is read again and again. Nobody changes what was read."""


def _place(index: str) -> tuple[str, str]:
    """The expressions for a row's partition and sort key in this secondary order."""
    return f"json_extract(indexes, '$.{index}[0]')", f"json_extract(indexes, '$.{index}[1]')"


def _word(name: str) -> str:
    """The name, which may stand in a statement."""
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise ValueError(f"'{name}' cannot name a table or an index")
    return name


def _busy(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _fault(error: sqlite3.OperationalError) -> Exception:
    """The error for callers: the disk's as StoreUnavailable, one of our own as it is."""
    match error.sqlite_errorcode & 0xFF:
        case sqlite3.SQLITE_FULL:
            return StorageFull(str(error))
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN:
            return StoreUnavailable(str(error))
        case _:
            return error
