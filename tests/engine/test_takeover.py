"""Turns whose driver is lost, or whose state machine does not start, and the races of those who find them."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import House
from tests.engine.test_cancel import AwaitedClock, cancelled, clock, rest, running
from tests.engine.test_responses import MCP, ask, ends, serve, served, stored, until
from turnloom.domain.event import TakenOver, ToolStarted, TurnCompleted
from turnloom.engine.takeover import START_PAUSE_SECONDS, START_SECONDS, sweep, take_over
from turnloom.ports import NotStarted, TextChunk
from turnloom.store.turns import Record

__all__ = ["clock"]


def losses(record: Record) -> int:
    return sum(isinstance(event, TakenOver) and event.lost for event in record.events)


async def sweep_until(house: House, seconds: int) -> int:
    """Sweep once a minute for so long, and count the sweeps that did something."""
    busy = 0
    for _ in range(0, seconds, 60):
        house.clock.advance(60)
        busy += await sweep(house.engine) > 0
    return busy


# --- a state machine that does not start


async def test_refused_starts_are_tried_again_and_are_no_lost_drivers(house: House) -> None:
    house.orchestrator.refusals = 40
    house.model.says("Hello")
    made = await ask(house, "Hi", background=True)
    await sweep_until(house, 45 * 60)
    await house.orchestrator.finished()
    final = await stored(house, made.record)
    assert final.turn.status == "completed" and losses(final) == 0 and house.orchestrator.refusals == 0


async def test_a_turn_that_cannot_be_started_within_an_hour_fails_and_says_so(house: House) -> None:
    house.orchestrator.refusals = 1000
    made = await ask(house, "Hi", background=True)
    await sweep_until(house, START_SECONDS - 60)
    assert (await stored(house, made.record)).turn.queued
    await sweep_until(house, 180)
    failure = (await stored(house, made.record)).turn.failure
    assert failure is not None and failure.message == "The turn could not be started within an hour."


async def test_the_pauses_between_starts_grow_up_to_a_minute(house: House) -> None:
    house.orchestrator.refusals = 1000
    made = await ask(house, "Hi", background=True)
    pauses = []
    for _ in range(4):
        before = house.clock.time
        while not await take_over(house.engine, made.record.place):
            house.clock.advance(1)
        pauses.append(round((house.clock.time - before) / 1e6))
    lease = int(house.engine.pace.lease)
    assert pauses[:2] == pytest.approx([lease, lease], abs=2)
    assert pauses[2:] == pytest.approx([START_PAUSE_SECONDS] * 2, abs=2)


async def test_tools_whose_hand_over_is_refused_wait_and_run_once(house: House) -> None:
    house.orchestrator.refusals = 10
    serve(house, {"srv": [served("act")]}, act=lambda: "acted")
    house.model.calls(("act", {}))
    house.model.says("Done.")
    made = await ask(house, "Hi", tools=[MCP])
    await house.orchestrator.refused.wait()
    await sweep_until(house, 15 * 60)
    await house.orchestrator.finished()
    final = await stored(house, made.record)
    assert final.turn.status == "completed" and losses(final) == 0
    assert len([event for event in final.events if isinstance(event, ToolStarted)]) == 1


async def test_a_start_that_is_refused_after_a_driver_was_lost_counts_that_driver_once(house: House) -> None:
    throttled = asyncio.Event()
    house.orchestrator.before = throttled.wait
    made = await ask(house, "Hi", background=True)
    house.orchestrator.abort()
    house.orchestrator.refusals = 10
    await sweep_until(house, 5 * 60)
    assert losses(await stored(house, made.record)) == 1 and house.orchestrator.refusals < 9
    house.model.says("Hello")
    house.orchestrator.refusals = 0
    throttled.set()
    await sweep_until(house, 5 * 60)
    await house.orchestrator.finished()
    final = await stored(house, made.record)
    assert final.turn.status == "completed" and losses(final) == 1


async def test_a_start_without_an_answer_that_happened_is_left_alone(house: House) -> None:
    start = house.orchestrator.start

    async def started_without_answer(name: str, state: dict[str, object]) -> None:
        await start(name, state)
        raise NotStarted("no answer")

    house.orchestrator.start = started_without_answer  # type: ignore[method-assign,assignment]
    throttled = asyncio.Event()
    house.orchestrator.before = throttled.wait
    house.model.says("Hello")
    made = await ask(house, "Hi", background=True)
    assert await sweep_until(house, 10 * 60) == 0
    throttled.set()
    await house.orchestrator.finished()
    final = await stored(house, made.record)
    assert final.turn.status == "completed" and losses(final) == 0 and len(house.orchestrator.names) == 1


# --- several at once


@pytest.mark.parametrize("refusals", [1, 2])
async def test_of_two_sweeps_at_once_one_starts_the_turn(house: House, refusals: int) -> None:
    house.orchestrator.refusals = refusals
    house.model.says("Hello")
    made = await ask(house, "Hi", background=True)
    house.clock.advance(31)
    assert sorted(await asyncio.gather(sweep(house.engine), sweep(house.engine))) == [0, 1]
    await sweep_until(house, 180)
    await house.orchestrator.finished()
    final = await stored(house, made.record)
    assert final.turn.status == "completed" and losses(final) == 0 and len(house.model.requests) == 1


async def test_of_two_sweeps_at_once_one_takes_the_lost_driver_over(house: House) -> None:
    throttled = asyncio.Event()
    house.orchestrator.before = throttled.wait
    house.model.says("Hello")
    made = await ask(house, "Hi", background=True)
    house.orchestrator.abort()
    house.clock.advance(31)
    assert sorted(await asyncio.gather(sweep(house.engine), sweep(house.engine))) == [0, 1]
    throttled.set()
    await house.orchestrator.finished()
    final = await stored(house, made.record)
    assert final.turn.status == "completed" and losses(final) == 1 and len(ends(final.events)) == 1


async def test_a_response_cancelled_while_its_start_is_refused_is_not_started(house: House) -> None:
    house.orchestrator.refusals = 2
    made = await ask(house, "Hi", background=True)
    house.clock.advance(31)
    _, record = await asyncio.gather(sweep(house.engine), cancelled(house, made))
    await sweep_until(house, 180)
    await house.orchestrator.finished()
    assert (await stored(house, record)).turn.status == "cancelled" and house.model.requests == []


async def test_a_driver_that_was_frozen_for_minutes_writes_nothing_any_more(house: House, clock: AwaitedClock) -> None:
    gate = asyncio.Event()
    run, told = await running(house, TextChunk("Hel"), gate, TextChunk("lo"), told=2)
    house.model.says("Hello again")
    clock.time += 300_000_000  # the sandbox sleeps, and with it all that it waits for
    swept = await asyncio.gather(sweep(house.engine), sweep(house.engine))
    await house.orchestrator.finished()
    final = await stored(house, run.record)
    assert sorted(swept) == [0, 1] and isinstance(final.events[-1], TurnCompleted)
    gate.set()
    clock.advance(0)
    with pytest.raises(Exception, match="read on"):
        await rest(run)
    woken = await stored(house, run.record)
    assert (woken.version, woken.events) == (final.version, final.events) and len(told) == 3
    await until(lambda: house.model.closed == 2)
