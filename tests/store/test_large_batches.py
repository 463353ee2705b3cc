"""Batches that no row can hold: on the laptop, and in the cloud as moto plays it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from turnloom.domain.errors import TooLarge
from turnloom.domain.event import Delta, Event, InferenceStarted, ToolCompleted, TurnCompleted, TurnStarted
from turnloom.domain.turn import Turn
from turnloom.ports import Blobs, ConditionFailed, Table
from turnloom.store.turns import Place, Record, Turns
from turnloom.testing import FrozenClock

pytestmark = pytest.mark.parametrize(("table", "blobs"), [("sqlite", "folder"), ("moto", "s3")], indirect=True)

PLACE = Place("agents", "me", "thread", 0)
LEASE = 4_100_000_000_000_000
"""In microseconds; after what the tables of these tests take for now."""


class WatchedBlobs:
    """Blobs, and the keys of those that are there."""

    def __init__(self, kept: Blobs) -> None:
        self._kept = kept
        self.keys: set[str] = set()

    async def put(self, key: str, content: bytes) -> None:
        await self._kept.put(key, content)
        self.keys.add(key)

    async def get(self, key: str) -> bytes | None:
        return await self._kept.get(key)

    async def delete(self, key: str) -> None:
        await self._kept.delete(key)
        self.keys.discard(key)


@pytest.fixture
def watched(blobs: Blobs) -> WatchedBlobs:
    return WatchedBlobs(blobs)


@pytest.fixture
def turns(table: Table, watched: WatchedBlobs) -> Turns:
    return Turns("agents", table, table, watched, FrozenClock())


def opening(text: str = "Go.") -> Record:
    record = Record(PLACE, Turn("turn-0"), lease=LEASE)
    return record.with_events([TurnStarted(1, ({"role": "user", "content": text},))])


def said(text: str) -> list[Event]:
    return [InferenceStarted(2), Delta("text", text)]


@pytest.mark.parametrize("text", ["x" * 400_000, "\N{GRINNING FACE}" * 90_000, '"\\\n' * 120_000, "\x01" * 60_000])
async def test_a_large_batch_is_a_blob_of_the_log_and_read_like_any(
    turns: Turns, watched: WatchedBlobs, text: str
) -> None:
    opened = await turns.open(opening())
    written = await turns.append(opened, said(text), LEASE)
    written = await turns.append(written, [Delta("text", ".")], LEASE)
    assert [key.split("/")[0] for key in watched.keys] == ["log"]
    assert [batch.number for batch in await turns.tail(opened)] == [0, 1]
    found = await turns.load(PLACE)
    assert found is not None and found.events == written.events


async def test_a_batch_that_a_row_can_hold_is_in_its_row(turns: Turns, watched: WatchedBlobs) -> None:
    await turns.append(await turns.open(opening()), said("x" * 250_000), LEASE)
    assert not watched.keys


@pytest.mark.parametrize("length", [5_000, 24_000, 60_000, 400_000])
async def test_half_a_surrogate_pair_is_held_beside_text_that_takes_more_bytes_escaped(
    turns: Turns, length: int
) -> None:
    text = "\udc00" + "\N{GRINNING FACE}" * length
    written = await turns.append(await turns.open(opening(text)), said(text), LEASE)
    found = await turns.load(PLACE)
    assert found is not None and found.events == written.events


async def test_the_second_of_two_large_batches_of_one_number_takes_its_blob_with_it(
    turns: Turns, watched: WatchedBlobs
) -> None:
    opened = await turns.open(opening())
    await turns.append(opened, said("x" * 400_000), LEASE)
    first = set(watched.keys)
    with pytest.raises(ConditionFailed):
        await turns.append(opened, said("y" * 400_000), LEASE)
    assert watched.keys == first and len(first) == 1


@pytest.mark.parametrize("ended", [False, True])
async def test_a_turn_that_is_deleted_leaves_no_blobs(turns: Turns, watched: WatchedBlobs, ended: bool) -> None:
    record = await turns.append(await turns.open(opening("?" * 400_000)), said("x" * 400_000), LEASE)
    if ended:
        record = await turns.settle(record.with_events([TurnCompleted(3)]))
    assert sorted(key.split("/")[0] for key in watched.keys) == ["kept", "log"]
    await turns.delete(record)
    assert not watched.keys


async def test_what_no_row_can_hold_beside_its_blob_leaves_no_blob(turns: Turns, watched: WatchedBlobs) -> None:
    record = replace(opening("?" * 400_000), origin={"parent": "p" * 400_000})
    with pytest.raises(TooLarge):
        await turns.open(record)
    assert not watched.keys


async def test_a_large_result_fences_like_a_small_one(turns: Turns) -> None:
    opened = await turns.open(opening())
    taken = await turns.fence(opened, LEASE, said("x" * 400_000))
    assert taken.batches == 1 and await turns.fenced(opened)
    with pytest.raises(ConditionFailed):
        await turns.append(opened, [ToolCompleted(3, "call", "late")], LEASE)
