"""Turns on a real table: who may write, who finds out, what is left behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.conftest import House
from turnloom.domain.event import (
    Delta,
    Event,
    InferenceCompleted,
    InferenceStarted,
    TakenOver,
    TurnCompleted,
    TurnStarted,
)
from turnloom.domain.turn import Turn
from turnloom.engine.takeover import MOST_LOST_DRIVERS, sweep, take_over
from turnloom.ports import ConditionFailed
from turnloom.store.turns import Place, Record, Turns

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


async def test_a_driver_notices_a_deletion_at_its_next_append(house: House) -> None:
    turns = house.services.turns
    record = opened(house)
    await turns.open(record)
    await turns.delete(record)
    with pytest.raises(ConditionFailed):
        await turns.append(record, said(house, "too late"), house.clock.now() + LEASE)
    with pytest.raises(ConditionFailed):
        await turns.settle(record)


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
    overdue = await turns.overdue(house.clock.now())
    assert [record.turn.id for record in overdue] == ["turn-0"]


async def test_a_turn_that_loses_driver_after_driver_fails_with_a_reason(house: House) -> None:
    record = opened(house)
    await house.services.turns.open(record)
    lost = [TakenOver(house.clock.now()) for _ in range(MOST_LOST_DRIVERS)]
    await house.services.turns.append(record, lost, house.clock.now() + LEASE)
    house.clock.advance(60)
    await take_over(house.engine, record)
    failed = await house.services.turns.load(PLACE)
    assert failed is not None and failed.turn.failure is not None
    assert failed.turn.failure.code == "internal_error" and "lost its driver" in failed.turn.failure.message


async def test_the_sweeper_leaves_living_turns_alone(house: House) -> None:
    await house.services.turns.open(opened(house))
    assert await sweep(house.engine) == 0
