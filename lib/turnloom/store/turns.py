"""Turns and their logs.

A turn is one row at its ordinal in a thread, and, while it runs, a log of batches beside it.

- **The row decides.** Opening, resting, resuming, cancelling, taking over: each is one conditional write of the row.
  A plain turn is two writes, one when it opens and one when it ends; the second holds all of its events.
- **The log carries.** What happens in between is appended in batches numbered without a gap, each written only if its
  number is free. So a retried task is harmless, and of two drivers only one gets on.
- **Who interferes from outside** (cancel, delete, take over) takes the next number of the log, a fence: the driver's
  next append fails, and it learns what happened at no extra cost. Who deletes or takes over writes the row before. Who
  cancels fences before, since the row is to hold all that was logged: a driver may meet the fence without its reason.
- A driver holds a **lease** that every write of its own prolongs. What rests or has ended has none.

The events of a turn are the row's followed by the log's from batch `row.batches` on; those before are in the row.
"""

from __future__ import annotations

import math
import uuid
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from turnloom.domain import ids
from turnloom.domain.errors import ContentLost, TooLarge, TurnGoesOn
from turnloom.domain.event import Event, TurnFailed, TurnStarted
from turnloom.domain.message import JSON
from turnloom.domain.turn import Turn, fold
from turnloom.ports import Absent, Blobs, Clock, Condition, ConditionFailed, Row, Table, Version
from turnloom.store import codec
from turnloom.store.keys import partition, place_in_thread, split
from turnloom.store.large import INLINE_BYTES, pack, unpack

DAY_SECONDS = 24 * 3600
LOG_SECONDS = DAY_SECONDS
BLOB_SECONDS = 20 * 60
"""After how long the writer of a blob has named it in a row, or never will; no function runs longer than 15 minutes."""
REMEMBERED = 2048
REMEMBERED_CHARACTERS = 8_000
"""How many turns that rest a process keeps folded, and how long these may be: history is read again and again."""
SHARDS = 8


@dataclass(frozen=True, slots=True)
class Place:
    """Where a turn lives: which API's table, whose, in which thread, at which ordinal."""

    api: str
    owner: str
    thread: str
    ordinal: int


@dataclass(frozen=True, slots=True)
class Record:
    """A stored turn: what its row and log say, and what a writer needs to go on (`version`, `batches`).

    `lease` is the time in microseconds until which its driver is taken to be alive; 0 while nobody drives.
    `origin` holds what belongs to the turn but is no event: agent, parent and lineage, fingerprint of the request.
    `reopens` is set in a row that is no turn: it only marks that the turn before it was reopened here. A `hidden` turn
    counts in its thread but is not to be had by its id. Until `closing`, a time in microseconds, the last two events of
    a cancelled turn are provisional: its driver may put in their place what it had told and not yet logged.
    With `content_lost` a blob of the turn is missing or unreadable, and `events` stand in for what it held: see
    `stand_in`. The turn can still be ended and removed.
    """

    place: Place
    turn: Turn
    events: tuple[Event, ...] = ()
    version: int = 1
    batches: int = 0
    lease: int = 0
    origin: dict[str, JSON] = field(default_factory=dict)
    secrets: str | None = None
    reopens: bool = False
    hidden: bool = False
    closing: int = 0
    expires: int | None = None
    blob: str | None = None
    content_lost: bool = False

    @property
    def running(self) -> bool:
        return self.turn.running and not self.reopens

    def with_events(self, events: Iterable[Event]) -> Record:
        """The record after these events, which are not stored yet."""
        new = tuple(events)
        return replace(self, events=self.events + new, turn=fold(self.turn, new))


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of the log; with `content_lost` its blob is missing or unreadable, and `events` are empty."""

    number: int
    events: tuple[Event, ...]
    lease: int
    content_lost: bool = False


class Turns:
    """The turns of one API."""

    def __init__(self, api: str, table: Table, log: Table, blobs: Blobs, clock: Clock, *, listed: bool = False) -> None:
        self.api = api
        self._table = table
        self._log = log
        self._blobs = blobs
        self._listed = listed
        self._clock = clock
        self._remembered: dict[tuple[str, str, str, int], Record] = {}

    # --- writing

    async def open(self, record: Record) -> Record:
        """Store a new turn. Raises ConditionFailed when its place in the thread is taken.

        Raises TurnGoesOn when it is not known whether the turn is stored.
        """
        row = await self._row(record)
        try:
            await self._table.put(row, Absent())
        except Exception as failure:
            if not await self._was_put(row, failure):
                await self._drop_blob(row.value.get("blob"))
                raise
        return replace(record, blob=row.value.get("blob"))

    async def settle(self, record: Record) -> Record:
        """Store the record, with all its events, as the successor of the version it came from.

        Raises ConditionFailed when someone else wrote the row in the meantime.
        """
        row = await self._row(replace(record, version=record.version + 1))
        await self._check_later(record.place, record.blob)
        await self._put(self._table, row, Version(record.version))
        await self._drop_blob(record.blob)
        return replace(record, version=row.version, blob=row.value.get("blob"))

    async def rewrite(self, record: Record) -> Record:
        """Settle a turn that has ended with less in it than there was; its log, which tells all, goes too."""
        kept = await self.settle(record)
        await self._drop_log(record)
        return kept

    async def append(self, record: Record, events: Sequence[Event], lease: int, turn: Turn | None = None) -> Record:
        """Append a batch to the log and prolong the lease; `turn` spares folding the events again.

        Raises ConditionFailed when the number of the batch is taken.
        """
        number = record.batches
        value = {**await self._packed(record, events, _log_blob_key), "lease": lease}
        expires = lease // 1_000_000 + LOG_SECONDS
        row = Row(self._log_of(record), place_in_thread(number), value, expires=expires)
        await self._put(self._log, row, Absent())
        after = replace(record, events=record.events + tuple(events), turn=turn or fold(record.turn, events))
        return replace(after, batches=number + 1, lease=lease)

    async def fence(self, record: Record, lease: int, events: Sequence[Event] = ()) -> Record:
        """Take the next number of the log, however far a driver has got, so that its next append fails."""
        while True:
            try:
                return await self.append(record, events, lease)
            except ConditionFailed:
                record = await self._caught_up(record)

    async def fenced(self, record: Record) -> bool:
        """Whether someone else has taken the next number of the log."""
        return await self._log.get(self._log_of(record), place_in_thread(record.batches)) is not None

    async def wipe(self, record: Record) -> None:
        """Remove the turn, however often it is written meanwhile."""
        found: Record | None = record
        while found is not None and found.turn.id == record.turn.id:
            try:
                await self.delete(found)
            except ConditionFailed:
                found = await self.load(record.place)
            else:
                found = None

    async def delete(self, record: Record) -> None:
        """Remove the turn and all that belongs to it; a driver at work on it finds out at its next append.

        For that driver the fence stays until it expires. Raises ConditionFailed when someone else wrote the row in the
        meantime, or removed it.
        """
        await self._check_later(record.place, record.blob)
        await self._table.delete(*self._key(record.place), Version(record.version))
        await self._drop_blob(record.blob)
        if record.running:
            record = await self.fence(record, record.lease)
        await self._drop_log(record)

    async def remove_unnamed_blobs(self) -> None:
        """Remove the blobs that no row names, since their writer died between the two, or the one who replaced them."""
        while True:
            page = await self._log.query(self._checks, before=f"{self._clock.now():017d}", limit=50)
            for check in page.rows:
                blob, row = check.value["blob"], await self._table.get(*check.value["row"])
                if row is None or row.value.get("blob") != blob:
                    await self._blobs.delete(blob)
                await self._log.delete(check.partition, check.sort)
            if not page.more:
                return

    # --- reading

    async def load(self, place: Place) -> Record | None:
        """The turn at this place with all that is logged of it; None if there is none."""
        record = await self.peek(place)
        return await self._caught_up(record) if record is not None and record.running else record

    async def peek(self, place: Place, known: Record | None = None) -> Record | None:
        """The turn as its row alone tells it: whole unless it is running. `known` spares reading the same again."""
        row = await self._table.get(*self._key(place))
        if row is not None and known is not None and (row.value["id"], row.version) == (known.turn.id, known.version):
            return known
        return None if row is None else await self._read(row)

    async def tail(self, record: Record) -> list[Batch]:
        """The batches logged after those that the record knows, in order, up to a gap: the turn is being deleted."""
        after = place_in_thread(record.batches - 1) if record.batches else None
        batches: list[Batch] = []
        while True:
            page = await self._log.query(self._log_of(record), after=after)
            for row in page.rows:
                expected = record.batches + len(batches)
                batch = await self._batch(row) if int(row.sort) == expected else None
                if batch is None:
                    return batches
                batches.append(batch)
            if not page.more:
                return batches
            after = page.rows[-1].sort

    async def thread(
        self, owner: str, thread: str, *, upto: int | None = None, newest_first: bool = False, limit: int | None = None
    ) -> list[Record]:
        """The records of a thread in order of their ordinals, up to and with `upto`; logs are not read.

        Made for reading history: runs of deltas are merged in `events`, so that these must not be written back.
        """
        key = partition(owner, thread)
        before = place_in_thread(upto + 1) if upto is not None else None
        records: list[Record] = []
        after: str | None = None
        while True:
            bounds = {"before": after or before} if newest_first else {"after": after, "before": before}
            wanted = limit - len(records) if limit is not None else None
            page = await self._table.query(key, **bounds, descending=newest_first, limit=wanted)
            found = [self._remembered.get(_key_of(row)) or await self._merged(row) for row in page.rows]
            records += [record for record in found if record is not None]
            if not page.more or (limit is not None and len(records) >= limit):
                return records
            after = page.rows[-1].sort

    async def listed(self, owner: str, *, after: str | None, descending: bool, limit: int) -> tuple[list[Record], bool]:
        """The owner's turns in order of their ids, one page, and whether there are more."""
        bounds = {"before": after} if descending else {"after": after}
        page = await self._table.query(partition(owner), **bounds, descending=descending, limit=limit, index="listed")
        records = []
        for row in page.rows:
            record = await self._read(row)
            if record is not None:
                records.append(await self._caught_up(record) if record.running else record)
        return records, page.more

    async def overdue(self, shard: int, now: int) -> AsyncGenerator[tuple[str, Place]]:
        """Ids and places of the turns in progress, of one of the shards, whose lease has run out, the newest first.

        They are not read themselves: one that cannot be must not hide the others.
        """
        running, before = f"running#{shard}", f"{now:017d}"
        while True:
            page = await self._table.query(running, before=before, descending=True, limit=50, index="running")
            for row in page.rows:
                if await self._leased_until(row) < now:
                    yield row.value["id"], self._place(row)
            if not page.more:
                return
            before = page.rows[-1].indexes["running"][1]

    async def _leased_until(self, row: Row) -> int:
        """Until when the driver of a turn is believed in, by its row or the last batch of its log."""
        owner, _ = split(row.partition)
        page = await self._log.query(partition(owner, row.value["id"]), descending=True, limit=1)
        return max(int(known.value.get("lease", 0)) for known in (row, *page.rows))

    # --- rows

    def _key(self, place: Place) -> tuple[str, str]:
        return partition(place.owner, place.thread), place_in_thread(place.ordinal)

    def _log_of(self, record: Record) -> str:
        return partition(record.place.owner, record.turn.id)

    async def _put(self, table: Table, row: Row, when: Condition) -> None:
        try:
            await table.put(row, when)
        except (ConditionFailed, TooLarge):
            await self._drop_blob(row.value.get("blob"))
            raise

    async def _was_put(self, row: Row, failure: Exception) -> bool:
        """Whether the row is there although its write failed: its answer may be lost, and a second try meets it.

        What has no lease has no driver who would have to know.
        """
        if "lease" not in row.value:
            return False
        try:
            stored = await self._table.get(row.partition, row.sort)
        except Exception:
            raise TurnGoesOn(row.value["id"]) from failure
        return stored is not None and all(stored.value.get(name) == row.value[name] for name in ("id", "lease"))

    async def _row(self, record: Record) -> Row:
        value: dict[str, Any] = {"id": record.turn.id, **record.origin}
        if record.batches:
            value["batches"] = record.batches
        if record.reopens:
            value["reopens"] = True
        if record.hidden:
            value["hidden"] = True
        if record.content_lost:
            value["content_lost"] = True
        if record.closing:
            value["closing"] = record.closing
        if record.running:
            value["lease"] = record.lease
            if record.secrets:
                value["secrets"] = record.secrets
        value |= await self._packed(record, record.events, _blob_key)
        return Row(*self._key(record.place), value, record.version, record.expires, self._indexes(record))

    async def _packed(self, record: Record, events: Sequence[Event], key: Callable[[Record], str]) -> dict[str, Any]:
        """The events as a row has them: `events`, or in place of what it could not hold `blob`, which is written."""
        dumped = codec.dump(events)
        # Only what is long by any measure is worth writing out twice to know its size: escaped, a character takes 12.
        if len(events) > 200 or len(str(dumped)) > INLINE_BYTES // 12:
            packed = pack(dumped)
            if len(packed) > INLINE_BYTES:
                blob = key(record)
                await self._check_later(record.place, blob)
                await self._blobs.put(blob, packed)
                return {"blob": blob}
        return {"events": dumped}

    @property
    def _checks(self) -> str:
        """The partition of the log that holds what `remove_unnamed_blobs` is to check; no turn has it."""
        return f"blobs-{self.api}"

    async def _check_later(self, place: Place, blob: str | None) -> None:
        """Have it checked whether the row names the blob, which is about to be written or replaced, as we may die.

        Those of the log are removed by the bucket in a day or two.
        """
        if blob is not None and not blob.startswith("log/"):
            due = self._clock.now() + BLOB_SECONDS * 1_000_000
            value = {"blob": blob, "row": list(self._key(place))}
            await self._log.put(Row(self._checks, f"{due:017d}#{blob}", value))

    def _indexes(self, record: Record) -> dict[str, tuple[str, str]]:
        place, indexes = record.place, {}
        if record.running:
            shard = zlib.crc32(place.thread.encode()) % SHARDS
            indexes["running"] = (f"running#{shard}", f"{record.lease:017d}#{record.turn.id}")
        if self._listed and not record.hidden:
            indexes["listed"] = (partition(place.owner), record.turn.id)
        return indexes

    def _place(self, row: Row) -> Place:
        owner, thread = split(row.partition)
        return Place(self.api, owner, thread, int(row.sort))

    async def _merged(self, row: Row) -> Record | None:
        """The record for reading, remembered if it is small and cannot change under its version any more."""
        record = await self._read(row, merged=True)
        if record is None or record.running or len(str(row.value)) > REMEMBERED_CHARACTERS or record.blob is not None:
            return record
        self._remembered[_key_of(row)] = record
        if len(self._remembered) > REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return record

    async def _read(self, row: Row, *, merged: bool = False) -> Record | None:
        """The record of the row, or of the one that has just replaced it with its blob; None when that is deleted.

        What stays missing is lost.
        """
        found: Row | None = row
        while found is not None and (blob := found.value.get("blob")) is not None:
            if (dumped := await self._unpacked(blob)) is not None:
                return self._record(found, dumped, merged=merged)
            known = found.version
            found = await self._table.get(row.partition, row.sort)
            if found is not None and found.version == known:
                return self._record(found, None, merged=merged)
        return None if found is None else self._record(found, found.value.get("events") or [], merged=merged)

    def _record(self, row: Row, dumped: list[JSON] | None, *, merged: bool) -> Record:
        value = {name: content for name, content in row.value.items() if name != "events"}
        identifier = value.pop("id")
        running = "lease" in value
        events = stand_in(identifier, running) if dumped is None else tuple(codec.load(dumped, merged=merged))
        return Record(
            place=self._place(row),
            turn=fold(Turn(identifier), events),
            events=events,
            version=row.version,
            batches=value.pop("batches", 0),
            lease=value.pop("lease", 0),
            secrets=value.pop("secrets", None),
            reopens=value.pop("reopens", False),
            hidden=value.pop("hidden", False),
            closing=value.pop("closing", 0),
            expires=row.expires,
            blob=value.pop("blob", None),
            content_lost=value.pop("content_lost", False) or dumped is None,
            origin=value,
        )

    async def _caught_up(self, record: Record) -> Record:
        """The record with what its log holds beyond it, up to a batch that is lost."""
        for batch in await self.tail(record):
            whole = not record.content_lost and not batch.content_lost
            record = record.with_events(batch.events) if whole else replace(record, content_lost=True)
            record = replace(record, batches=batch.number + 1, lease=batch.lease)
        return record

    async def _batch(self, row: Row) -> Batch | None:
        """The batch of a row of the log; None when it has just been removed."""
        blob = row.value.get("blob")
        dumped = row.value["events"] if blob is None else await self._unpacked(blob)
        if dumped is None and await self._log.get(row.partition, row.sort) is None:
            return None
        return Batch(int(row.sort), tuple(codec.load(dumped or ())), row.value["lease"], content_lost=dumped is None)

    async def _unpacked(self, blob: str) -> list[JSON] | None:
        dumped = unpack(await self._blobs.get(blob))
        return dumped if isinstance(dumped, list) else None

    async def _drop_blob(self, key: str | None) -> None:
        if key is not None:
            await self._blobs.delete(key)

    async def _drop_log(self, record: Record) -> None:
        """Remove the batches, but not the fences: a driver that was overtaken long ago may not have met its own yet."""
        key = self._log_of(record)
        after: str | None = None
        while True:
            page = await self._log.query(key, after=after)
            for row in page.rows:
                if not _is_fence(row):
                    await self._log.delete(row.partition, row.sort)
                    await self._drop_blob(row.value.get("blob"))
            if not page.more:
                return
            after = page.rows[-1].sort


def check_content(record: Record) -> None:
    """Raises ContentLost when a part of the turn is missing."""
    if record.content_lost:
        raise content_lost(record)


def content_lost(record: Record, hint: str = "") -> ContentLost:
    """That a part of the turn is missing, in the words of its API."""
    return ContentLost("response" if record.place.api == "responses" else "turn", record.turn.id, hint=hint)


def stand_in(identifier: str, running: bool) -> tuple[Event, ...]:
    """Events in place of those that are lost: of a turn that has no input, and has failed unless it is running."""
    at = ids.created_at(identifier)
    start = TurnStarted(at, ())
    message = "The stored content is lost."
    return (start,) if running else (start, TurnFailed(at + 1, ContentLost.code, message))


def _is_fence(batch: Row) -> bool:
    """Whether nothing is told in this row of a log, or only that the turn was taken over."""
    return all(tag == "taken" for tag, *_ in batch.value.get("events", [[""]]))


def _key_of(row: Row) -> tuple[str, str, str, int]:
    """What tells a row's content from any other: another turn may take the place of one that was deleted."""
    return row.partition, row.sort, row.value["id"], row.version


def _blob_key(record: Record) -> str:
    """A key for the events of this version: two writers may be making the same one, and each has a blob of its own.

    What goes with its row has the days of that in its first parts, which the bucket's rules of expiry name.
    """
    kind = "kept"
    if record.expires is not None:
        kind = f"expiring/{math.ceil((record.expires - record.turn.started_at / 1_000_000) / DAY_SECONDS)}"
    return f"{kind}/{partition(record.place.owner, record.turn.id)}/{record.version}-{uuid.uuid4().hex}"


def _log_blob_key(record: Record) -> str:
    """A key for the record's next batch, which two drivers may write; its first part is named by the bucket's rule."""
    return f"log/{partition(record.place.owner, record.turn.id)}/{record.batches}-{uuid.uuid4().hex}"


def days_of(key: str) -> int | None:
    """For how many days a blob of this key can be of use, None for ever: what the rules of a bucket have to say."""
    kind, *rest = key.split("/")
    if kind == "log":
        return LOG_SECONDS // DAY_SECONDS + 1
    return int(rest[0]) if kind == "expiring" and rest[0].isdecimal() else None


class Unstored:
    """Keeps nothing: for a turn that its caller asked not to be stored. It lives and ends with its driver.

    `alive` is called whenever the driver would have prolonged its lease.
    """

    def __init__(self, alive: Callable[[], Awaitable[None]] | None = None) -> None:
        self._alive = alive

    async def open(self, record: Record) -> Record:
        return record

    async def settle(self, record: Record) -> Record:
        return record

    async def append(self, record: Record, events: Sequence[Event], lease: int, turn: Turn | None = None) -> Record:
        if self._alive is not None:
            await self._alive()
        after = replace(record, events=record.events + tuple(events), turn=turn or fold(record.turn, events))
        return replace(after, lease=lease)

    async def fenced(self, record: Record) -> bool:
        return False
