"""Turns on a real table: who may write, who finds out, what is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import House
from turnloom.adapters.blobs import FolderBlobs
from turnloom.domain.errors import ServerFault
from turnloom.domain.event import (
    Delta,
    Event,
    InferenceCompleted,
    InferenceStarted,
    TakenOver,
    TurnCompleted,
    TurnStarted,
)
from turnloom.domain.message import Spec
from turnloom.domain.turn import Turn
from turnloom.engine.engine import Brief
from turnloom.engine.takeover import MOST_LOST_DRIVERS, sweep, take_over
from turnloom.ports import ConditionFailed, ExecutionStatus
from turnloom.store.turns import SHARDS, Place, Record, Turns
from turnloom.testing import SteppedOrchestrator
from turnloom.usecases.disposal import DAY

PLACE = Place("agents", "me", "thread", 0)
LEASE = 30_000_000


def opened(house: House, ordinal: int = 0, text: str = "Go.") -> Record:
    at = house.clock.now()
    started = TurnStarted(at, ({"role": "user", "content": text},))
    place = replace(PLACE, ordinal=ordinal)
    return Record(place, Turn(f"turn-{ordinal}"), lease=at + LEASE).with_events([started])


def said(house: House, text: str) -> list[Event]:
    at = house.clock.now()
    return [InferenceStarted(at), Delta("text", text), InferenceCompleted(at + 1, "stop")]


async def test_a_place_in_a_thread_is_taken_once(house: House) -> None:
    turns = house.services.turns
    await turns.open(opened(house))
    with pytest.raises(ConditionFailed):
        await turns.open(opened(house))


async def test_a_running_turn_is_its_row_and_its_log(house: House) -> None:
    turns = house.services.turns
    record = opened(house)
    await turns.open(record)
    lease = house.clock.now() + LEASE
    record = await turns.append(record, [InferenceStarted(lease)], lease)
    record = await turns.append(record, [Delta("text", "Hel"), Delta("text", "lo")], lease)
    loaded = await turns.load(PLACE)
    assert loaded is not None and loaded.events == record.events and loaded.batches == 2


async def test_of_two_drivers_only_one_gets_on(house: House) -> None:
    turns = house.services.turns
    record = opened(house)
    await turns.open(record)
    await turns.append(record, said(house, "mine"), house.clock.now() + LEASE)
    with pytest.raises(ConditionFailed):
        await turns.append(record, said(house, "yours"), house.clock.now() + LEASE)


async def test_a_settled_turn_needs_no_log(house: House) -> None:
    turns = house.services.turns
    record = opened(house)
    await turns.open(record)
    record = await turns.append(record, said(house, "Hello"), house.clock.now() + LEASE)
    done = await turns.settle(record.with_events([TurnCompleted(house.clock.now())]))
    await turns._drop_log(done)
    loaded = await turns.load(PLACE)
    assert loaded is not None and loaded.events == done.events
    with pytest.raises(ConditionFailed):
        await turns.settle(record)


async def test_what_a_row_cannot_hold_goes_to_a_blob_and_leaves_with_the_turn(house: House) -> None:
    turns = house.services.turns
    record = opened(house, text="x" * 1_000_000)
    await turns.open(record)
    loaded = await turns.load(PLACE)
    assert loaded is not None and loaded.events == record.events and loaded.blob is not None
    done = await turns.settle(loaded.with_events([*said(house, "Hi"), TurnCompleted(house.clock.now())]))
    blobs = turns._blobs
    assert await blobs.get(loaded.blob) is None, "the blob of the earlier version is gone"
    assert done.blob is not None and await blobs.get(done.blob) is not None
    await turns.delete(done)
    assert await blobs.get(done.blob) is None


async def test_of_two_writers_of_one_version_the_loser_leaves_the_winners_blob_alone(house: House) -> None:
    turns = house.services.turns
    await turns.open(opened(house, text="x" * 1_000_000))
    loaded = await turns.load(PLACE)
    assert loaded is not None
    won = await turns.settle(loaded.with_events([*said(house, "Hi"), TurnCompleted(house.clock.now())]))
    with pytest.raises(ConditionFailed):
        await turns.settle(loaded.with_events([*said(house, "Ho"), TurnCompleted(house.clock.now())]))
    found = await turns.load(PLACE)
    assert found is not None and found.events == won.events


async def test_a_turn_that_was_not_opened_leaves_no_blob(house: House, tmp_path: Path) -> None:
    turns = house.services.turns
    await turns.open(opened(house))
    with pytest.raises(ConditionFailed):
        await turns.open(opened(house, text="x" * 1_000_000))
    assert list((tmp_path / "blobs").glob("*")) == []


class ReplacedBlobs(FolderBlobs):
    """Blobs that someone replaces, once, at the very moment they are asked for."""

    replaced: Callable[[], Awaitable[object]] | None = None

    async def get(self, key: str) -> bytes | None:
        if (replaced := self.replaced) is not None:
            self.replaced = None
            await replaced()
        return await super().get(key)


async def test_who_reads_a_row_whose_blob_is_just_replaced_gets_the_new_one(house: House, tmp_path: Path) -> None:
    blobs = ReplacedBlobs(tmp_path / "blobs")
    turns = house.services.turns
    turns._blobs = blobs
    record = opened(house, text="x" * 1_000_000)
    await turns.open(record)
    record = (await turns.load(PLACE)) or record
    done = record.with_events([*said(house, "Hi"), TurnCompleted(house.clock.now())])
    blobs.replaced = lambda: turns.settle(done)
    found = await turns.load(PLACE)
    assert found is not None and found.events == done.events
    blobs.replaced = lambda: turns.wipe(found)
    assert await turns.thread("me", "thread") == []


@pytest.mark.parametrize("content", [None, b"", b'[["start", 1, ', b"\xff", b"{}"])
async def test_a_missing_or_corrupt_blob_marks_the_turn_as_lost(
    house: House, tmp_path: Path, content: bytes | None
) -> None:
    turns = house.services.turns
    ended = [TurnCompleted(house.clock.now())]
    lost = await turns.open(opened(house, text="x" * 1_000_000).with_events(ended))
    await turns.open(opened(house, 1).with_events(ended))
    spoil(tmp_path, content)
    record, other = await turns.thread("me", "thread")
    assert record.content_lost and not record.running and record.turn.id == lost.turn.id
    assert record.turn.failure is not None and record.turn.failure.code == "content_lost"
    assert not other.content_lost and other.turn.status == "completed"
    await turns.delete(record)
    assert await turns.load(PLACE) is None and list((tmp_path / "blobs").glob("*")) == []


@pytest.mark.parametrize("log", [False, True])
async def test_a_running_turn_whose_blob_is_lost_can_be_deleted(house: House, tmp_path: Path, log: bool) -> None:
    turns = house.services.turns
    driver = await turns.open(opened(house, text="x" if log else "x" * 1_000_000))
    driver = await turns.append(driver, said(house, "x" * 1_000_000 if log else "x"), house.clock.now() + LEASE)
    spoil(tmp_path, None)
    record = await turns.load(PLACE)
    assert record is not None and record.running and record.content_lost and record.batches == 1
    await turns.delete(record)
    assert await turns.load(PLACE) is None
    with pytest.raises(ConditionFailed):
        await turns.append(driver, said(house, "late"), house.clock.now() + LEASE)


def spoil(folder: Path, content: bytes | None) -> None:
    """Remove the one blob, or put this content in its place."""
    [blob] = (folder / "blobs").glob("*")
    blob.unlink() if content is None else blob.write_bytes(content)


async def test_a_turn_that_expires_has_its_blob_where_the_bucket_lets_things_expire(house: House) -> None:
    turns = house.services.turns
    month = (house.clock.time + 30 * DAY) // 1_000_000
    await turns.open(replace(opened(house, text="x" * 1_000_000), expires=month))
    await turns.open(opened(house, 1, text="x" * 1_000_000))
    expiring, kept = await turns.thread("me", "thread")
    assert expiring.blob is not None and expiring.blob.startswith("expiring/30/")
    assert kept.blob is not None and kept.blob.startswith("kept/")
    await turns._blobs.delete(expiring.blob)
    left = await turns.thread("me", "thread")
    assert [record.content_lost for record in left] == [True, False], "it can be deleted before it expires"


async def test_what_was_written_meanwhile_is_deleted_only_by_who_wants_it_gone_whatever_it_is(house: House) -> None:
    turns = house.services.turns
    record = opened(house)
    await turns.open(record)
    done = await turns.settle(record.with_events([*said(house, "Hi"), TurnCompleted(house.clock.now())]))
    with pytest.raises(ConditionFailed):
        await turns.delete(record)
    found = await turns.load(PLACE)
    assert found is not None and found.events == done.events
    await turns.wipe(record)
    assert await turns.load(PLACE) is None
    await turns.wipe(record)


async def test_one_turn_that_cannot_be_taken_over_does_not_keep_the_sweeper_from_the_others(house: House) -> None:
    for ordinal in range(3):
        await house.services.turns.open(replace(opened(house, ordinal)))

    async def brief(record: Record) -> Brief:
        raise KeyError(record.turn.id) if record.place.ordinal == 0 else ServerFault("It has no rules any more.")

    house.clock.advance(31)
    assert await sweep(replace(house.engine, brief=brief)) == 2
    found = await house.services.turns.thread("me", "thread")
    assert [record.turn.status for record in found] == ["in_progress", "failed", "failed"]


async def test_a_driver_notices_a_deletion_at_its_next_append(house: House) -> None:
    turns = house.services.turns
    record = opened(house)
    await turns.open(record)
    await turns.delete(record)
    with pytest.raises(ConditionFailed):
        await turns.append(record, said(house, "too late"), house.clock.now() + LEASE)
    with pytest.raises(ConditionFailed):
        await turns.settle(record)


async def without_rules(_: Record) -> Brief:
    raise ServerFault("It has no rules any more.")


async def test_a_turn_whose_content_is_lost_fails_like_the_others(house: House) -> None:
    turns = house.services.turns
    unreadable = await turns.open(opened(house, 0, text="x" * 1_000_000))
    await turns.open(opened(house, 1))
    assert unreadable.blob is not None
    await turns._blobs.delete(unreadable.blob)
    house.clock.advance(31)
    assert await sweep(replace(house.engine, brief=without_rules)) == 2
    assert [record.turn.status for record in await turns.thread("me", "thread")] == ["failed", "failed"]


@pytest.mark.parametrize("log", [False, True])
async def test_a_running_turn_whose_content_is_lost_fails_when_its_driver_is_lost(
    house: House, tmp_path: Path, log: bool
) -> None:
    turns = house.services.turns
    driver = await turns.open(opened(house, text="x" if log else "x" * 1_000_000))
    await turns.append(driver, said(house, "x" * 1_000_000 if log else "x"), house.clock.now() + LEASE)
    spoil(tmp_path, None)
    house.clock.advance(31)
    assert await sweep(house.engine) == 1
    record = await turns.load(PLACE)
    assert record is not None and record.content_lost and record.turn.failure is not None
    assert record.turn.failure.code == "content_lost"
    assert await sweep(house.engine) == 0


async def test_a_turn_whose_execution_waits_is_not_lost_and_one_whose_execution_was_aborted_is(house: House) -> None:
    record = opened(house)
    await house.services.turns.open(record)
    throttled = asyncio.Event()
    house.orchestrator.before = throttled.wait
    await house.engine.hand_over(record, Spec("m"))
    house.clock.advance(3600)
    assert await sweep(replace(house.engine, brief=without_rules)) == 0
    house.orchestrator.abort()
    assert await sweep(replace(house.engine, brief=without_rules)) == 1
    throttled.set()
    await house.orchestrator.finished()


async def test_tries_that_the_state_machine_repeats_are_no_lost_drivers(house: House) -> None:
    record = opened(house)
    await house.services.turns.open(record)
    repeated = [TakenOver(house.clock.now()) for _ in range(MOST_LOST_DRIVERS + 1)]
    await house.services.turns.append(record, repeated, house.clock.now() + LEASE)
    house.clock.advance(60)
    assert await take_over(replace(house.engine, brief=without_rules), PLACE)
    failed = await house.services.turns.load(PLACE)
    assert failed is not None and failed.turn.failure is not None
    assert failed.turn.failure.message == "It has no rules any more."


async def test_a_driver_that_writes_while_the_state_machine_is_asked_was_only_slow(house: House) -> None:
    record = opened(house)
    await house.services.turns.open(record)
    house.clock.advance(60)

    class Slow(SteppedOrchestrator):
        async def status(self, name: str) -> ExecutionStatus:
            await house.services.turns.append(record, said(house, "Still here."), house.clock.now() + LEASE)
            return "absent"

    assert not await take_over(replace(house.engine, orchestrator=Slow()), PLACE)
    kept = await house.services.turns.load(PLACE)
    assert kept is not None and not any(isinstance(event, TakenOver) for event in kept.events)


async def test_a_row_that_is_known_is_not_read_out_again_until_it_changes(house: House) -> None:
    turns = house.services.turns
    record = await turns.open(opened(house, text="x" * 1_000_000))
    known = await turns.peek(PLACE)
    assert known is not None and await turns.peek(PLACE, known) is known
    settled = await turns.settle(record)
    changed = await turns.peek(PLACE, known)
    assert changed is not None and changed.version == settled.version > known.version


async def test_owners_do_not_see_each_other(house: House) -> None:
    turns = house.services.turns
    await turns.open(opened(house))
    assert await turns.load(replace(PLACE, owner="you")) is None
    assert await turns.load(replace(PLACE, owner="me#thread", thread="")) is None
    assert await turns.thread("you", "thread") == []


async def test_only_turns_without_a_living_driver_are_overdue(house: House) -> None:
    turns: Turns = house.services.turns
    await turns.open(opened(house, 0))
    await turns.open(opened(house, 1))
    house.clock.advance(31)
    alive = await turns.load(replace(PLACE, ordinal=1))
    assert alive is not None
    await turns.append(alive, said(house, "still here"), house.clock.now() + LEASE)
    now = house.clock.now()
    found = [turn_id for shard in range(SHARDS) async for turn_id, _ in turns.overdue(shard, now)]
    assert found == ["turn-0"]


async def test_overdue_turns_are_found_however_many_there_are(house: House) -> None:
    turns: Turns = house.services.turns
    for ordinal in range(120):
        await turns.open(opened(house, ordinal))
    house.clock.advance(31)
    assert len([found for shard in range(SHARDS) async for found in turns.overdue(shard, house.clock.now())]) == 120


async def test_a_turn_that_loses_driver_after_driver_fails_with_a_reason(house: House) -> None:
    record = opened(house)
    await house.services.turns.open(record)
    events: list[Event] = [InferenceStarted(house.clock.now())]
    for _ in range(MOST_LOST_DRIVERS):
        house.clock.advance(60)
        events += [TakenOver(house.clock.now(), lost=True), InferenceStarted(house.clock.now())]
    await house.services.turns.append(record, events, house.clock.now())
    house.clock.advance(60)
    assert await take_over(house.engine, record.place)
    failed = await house.services.turns.load(PLACE)
    assert failed is not None and failed.turn.failure is not None and failed.turn.failure.code == "internal_error"
    attempts = ", ".join(f"15:{minute}:40 in a model call" for minute in ("07", "08", "09", "10"))
    assert failed.turn.failure.message == f"The turn lost its driver 4 times (UTC): {attempts}."


async def test_the_sweeper_leaves_living_turns_alone(house: House) -> None:
    await house.services.turns.open(opened(house))
    assert await sweep(house.engine) == 0


async def test_a_batch_that_no_row_can_hold_is_logged_and_read_all_the_same(house: House) -> None:
    turns = house.services.turns
    record = await turns.open(opened(house))
    large = await turns.append(record, said(house, "x" * 1_000_000), house.clock.now() + LEASE)
    large = await turns.append(large, said(house, "y"), house.clock.now() + LEASE)
    assert [len(batch.events) for batch in await turns.tail(record)] == [len(said(house, "x"))] * 2
    loaded = await turns.load(PLACE)
    assert loaded is not None and loaded.events == large.events and loaded.batches == 2


async def test_of_two_large_batches_of_one_number_only_the_first_leaves_a_blob(house: House, tmp_path: Path) -> None:
    turns = house.services.turns
    record = await turns.open(opened(house))
    await turns.append(record, said(house, "x" * 1_000_000), house.clock.now() + LEASE)
    with pytest.raises(ConditionFailed):
        await turns.append(record, said(house, "y" * 1_000_000), house.clock.now() + LEASE)
    [blob] = (tmp_path / "blobs").glob("*")
    assert blob.name.startswith("log%2F")
    [batch] = await turns.tail(record)
    assert "xxx" in str(batch.events)


async def test_what_is_logged_in_blobs_leaves_with_the_turn(house: House, tmp_path: Path) -> None:
    turns = house.services.turns
    record = await turns.open(opened(house))
    large = await turns.append(record, said(house, "x" * 1_000_000), house.clock.now() + LEASE)
    await turns.delete(large)
    assert list((tmp_path / "blobs").glob("*")) == []


async def test_who_reads_a_log_that_is_just_removed_gets_what_came_before(house: House, tmp_path: Path) -> None:
    blobs = ReplacedBlobs(tmp_path / "blobs")
    turns = house.services.turns
    turns._blobs = blobs
    record = await turns.open(opened(house))
    large = await turns.append(record, said(house, "x"), house.clock.now() + LEASE)
    large = await turns.append(large, said(house, "x" * 1_000_000), house.clock.now() + LEASE)
    blobs.replaced = lambda: turns.wipe(large)
    assert [batch.number for batch in await turns.tail(record)] == [0]


async def test_a_batch_whose_blob_is_gone_is_lost_and_makes_no_shorter_turn(house: House, tmp_path: Path) -> None:
    turns = house.services.turns
    record = await turns.open(opened(house))
    await turns.append(record, said(house, "x" * 1_000_000), house.clock.now() + LEASE)
    [blob] = (tmp_path / "blobs").glob("*")
    blob.unlink()
    assert [batch.content_lost for batch in await turns.tail(record)] == [True]
    loaded = await turns.load(PLACE)
    assert loaded is not None and loaded.content_lost


async def test_a_log_that_is_being_removed_is_read_up_to_the_gap(house: House) -> None:
    turns = house.services.turns
    record = opened(house)
    await turns.open(record)
    lease = house.clock.now() + LEASE
    for events in (said(house, "one")[:1], said(house, "one")[1:]):
        record = await turns.append(record, events, lease)
    await turns._log.delete(turns._log_of(record), "0000000000")
    loaded = await turns.load(PLACE)
    assert loaded is not None and loaded.batches == 0 and len(loaded.events) == 1
