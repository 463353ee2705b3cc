"""Cancelling, as everybody sees it: who asked for it, the driver, the upstream, and all who read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import House
from tests.engine.conversations import CONVERSATIONS
from tests.engine.test_drivers_agree import OWNER, asked, scripted_house, session
from tests.engine.test_responses import (
    LOOKUP,
    MCP,
    answered,
    ask,
    ends,
    fragments,
    results,
    serve,
    served,
    stored,
    tell_time,
    texts,
    until,
    until_logged,
)
from turnloom.domain.errors import InvalidRequest, NotFound, ServerFault, UpstreamBroken
from turnloom.domain.event import CallStarted, Delta, Event, TakenOver, ToolStarted, TurnCancelled
from turnloom.domain.turn import Turn
from turnloom.engine.engine import state_of
from turnloom.engine.follow import Followed
from turnloom.engine.inline import Run
from turnloom.engine.stepped import TurnMoved, call_tool, step
from turnloom.engine.takeover import sweep, take_over
from turnloom.ports import Chunk, Finished, TextChunk
from turnloom.store.claims import Claims
from turnloom.store.turns import Record
from turnloom.testing import USAGE, FrozenClock
from turnloom.usecases import turns
from turnloom.usecases.callers import Caller
from turnloom.usecases.responses import cancel_response


@dataclass
class AwaitedClock(FrozenClock):
    """Time that is slept through when told to pass; sleeps of less than a second are those of a frozen clock."""

    time: int = 1_750_000_000_000_000
    sleepers: list[tuple[int, asyncio.Event]] = field(default_factory=list)

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        for due, wake in self.sleepers:
            if due <= self.time:
                wake.set()

    async def sleep(self, seconds: float) -> None:
        if seconds < 1:
            await super().sleep(seconds)
            return
        wake = asyncio.Event()
        self.sleepers.append((self.time + int(seconds * 1_000_000), wake))
        await wake.wait()


@pytest.fixture
def clock(house: House) -> AwaitedClock:
    """The clock of the house: a driver logs what it has told only when two seconds are over."""
    clock = AwaitedClock()
    tell_time(house, clock)
    return clock


async def running(house: House, *said: Chunk | asyncio.Event, told: int, **settings: Any) -> tuple[Run, list[Event]]:
    """A response whose model has said this and then nothing more, and the events that its reader has been told."""
    house.model.answers(*said, asyncio.Event())
    run = await ask(house, "Hi", **settings)
    assert isinstance(run, Run)
    return run, [*run.record.events, *[await anext(run.events()) for _ in range(told)]]


async def cancelled(house: House, run: Run | Followed) -> Record:
    return await cancel_response(house.services, "me", run.record.turn.id)


async def rest(run: Run) -> list[Event]:
    """All that the reader of a run is still told."""
    async with asyncio.timeout(20):
        return [event async for event in run.events()]


async def read(house: House, record: Record) -> list[Event]:
    """What a reader who comes in now sees, from the start."""
    followed = Followed(house.engine, record)
    async with asyncio.timeout(20):
        return [*followed.record.events, *[event async for event in followed.events()]]


# --- a driver with a connection


async def test_the_driver_completes_the_row_with_exactly_what_it_had_told(house: House, clock: AwaitedClock) -> None:
    run, told = await running(house, TextChunk("Hel"), TextChunk("lo"), told=3)
    at_once = await cancelled(house, run)
    assert at_once.turn.status == "cancelled" and at_once.closing > clock.time
    assert [type(event) for event in at_once.events[-2:]] == [TakenOver, TurnCancelled]
    assert at_once.turn.last_inference is None, "nothing of the answer had been logged"
    clock.advance(2)
    told += await rest(run)
    assert house.model.closed == 1
    final = await stored(house, at_once)
    assert final.events == tuple(told) and final.closing == 0
    assert final.turn.last_inference is not None and final.turn.last_inference.said("text") == "Hello"
    assert [type(event) for event in ends(told)] == [TurnCancelled]


async def test_followers_see_what_the_reader_of_the_run_sees(house: House, clock: AwaitedClock) -> None:
    run, told = await running(house, TextChunk("Hel"), TextChunk("lo"), told=3)
    early = asyncio.create_task(read(house, await stored(house, run.record)))
    late = asyncio.create_task(read(house, await cancelled(house, run)))
    await asyncio.wait({early, late}, timeout=0.05)
    assert not early.done() and not late.done(), "the end was provisional"
    clock.advance(2)
    told += await rest(run)
    assert await early == await late == await read(house, await stored(house, run.record)) == told


async def test_what_was_held_back_but_logged_is_told_as_well(house: House) -> None:
    run, told = await running(house, TextChunk("Hm."), *fragments("lookup"), told=2, tools=[LOOKUP])
    # On a clock that does not wait, what closes the text is soon logged, and told only when more is to come.
    await until_logged(house, run.record, CallStarted)
    at_once = await cancelled(house, run)
    house.clock.advance(3)
    told += await rest(run)
    assert any(isinstance(event, CallStarted) for event in told)
    assert (await stored(house, at_once)).events == tuple(told)


async def test_a_driver_with_nothing_to_write_notices_within_two_seconds(house: House, clock: AwaitedClock) -> None:
    run, _ = await running(house, told=1)
    clock.advance(2)
    await until(lambda: not run._journal.unlogged and clock.sleepers[-1][0] > clock.time)
    await cancelled(house, run)
    clock.advance(2)
    assert isinstance((await rest(run))[-1], TurnCancelled) and house.model.closed == 1


async def test_a_follower_of_a_dead_driver_sees_the_provisional_end_when_its_lease_is_over(
    house: House, clock: AwaitedClock
) -> None:
    run, _ = await running(house, TextChunk("Hel"), told=2)
    run.stop()
    at_once = await cancelled(house, run)
    waiting = asyncio.create_task(read(house, at_once))
    await asyncio.wait({waiting}, timeout=0.05)
    assert not waiting.done()
    clock.advance(31)
    assert await waiting == list(at_once.events)
    assert await read(house, await stored(house, at_once)) == list(at_once.events)


async def test_a_driver_that_wakes_too_late_changes_nothing_any_more(house: House, clock: AwaitedClock) -> None:
    run, _ = await running(house, TextChunk("Hel"), told=2)
    at_once = await cancelled(house, run)
    clock.advance(31)
    with pytest.raises(ServerFault) as told:
        await rest(run)
    assert told.value.code == "turn_taken_over", "the reader has seen numbers that mean something else now"
    assert (await stored(house, at_once)).events == at_once.events


async def test_who_waits_for_the_whole_reads_on_where_a_listener_would_have_to_ask_again(
    house: House, clock: AwaitedClock
) -> None:
    run, _ = await running(house, TextChunk("Hel"), told=2)
    at_once = await cancelled(house, run)
    clock.advance(31)
    async with asyncio.timeout(20):
        turn = await run.settled()
    assert turn.status == "cancelled" and turn.steps == at_once.turn.steps


async def test_a_driver_that_meets_the_fence_before_the_verdict_completes_the_row_all_the_same(
    house: House, clock: AwaitedClock
) -> None:
    run, told = await running(house, TextChunk("Hel"), TextChunk("lo"), told=3)
    record = await stored(house, run.record)
    await house.services.responses.fence(record, record.lease)
    looked = house.clock.time
    clock.advance(2)
    await until(lambda: house.model.closed and house.clock.time > looked)
    await cancelled(house, run)
    told += await rest(run)
    final = await stored(house, run.record)
    assert [type(event) for event in ends(told)] == [TurnCancelled] and final.events == tuple(told)


class StuckClaims(Claims):
    async def drop(self, owner: str, key: str, response_id: str) -> None:
        raise OSError("the table is out of reach")


async def test_a_key_that_cannot_be_freed_does_not_keep_the_reader(house: House) -> None:
    house.services = replace(house.services, claims=StuckClaims(house.services.claims._table))
    house.model.says("Hi.")
    async with asyncio.timeout(20):
        turn = await (await ask(house, "Hi", store=False, key="k")).settled()
    assert turn.status == "completed"


async def test_a_reader_who_was_told_nothing_more_than_the_log_reads_on_after_a_takeover(
    house: House, clock: AwaitedClock
) -> None:
    gate = asyncio.Event()
    run, told = await running(house, TextChunk("Hm."), gate, *fragments("lookup"), told=2, tools=[LOOKUP])
    clock.advance(2)
    await until(lambda: not run._journal.unlogged)
    gate.set()
    await until(lambda: run._held)
    house.model.says("Done.")
    clock.time += 31_000_000  # the driver sleeps on
    await take_over(house.engine, run.record.place)
    clock.advance(0)
    told += await rest(run)
    final = await stored(house, run.record)
    assert final.turn.status == "completed" and final.events == tuple(told)


async def test_a_run_that_was_handed_over_ends_at_once(house: House, clock: AwaitedClock) -> None:
    house.orchestrator.refusals = 1
    serve(house, {"srv": [served("act")]}, act=lambda: "acted")
    house.model.calls(("act", {}))
    run = await ask(house, "Hi", tools=[MCP])
    assert isinstance(run, Run)
    await house.orchestrator.refused.wait()
    at_once = await cancelled(house, run)
    assert at_once.closing == 0 and not any(isinstance(event, TakenOver) for event in at_once.events)
    assert (*run.record.events, *await rest(run)) == at_once.events
    assert house.tools.ran == []


# --- in the background


async def test_a_background_run_stops_in_the_middle_of_a_model_call(house: House) -> None:
    house.model.answers(TextChunk("Hel"), asyncio.Event())
    made = await ask(house, "Hi", background=True)
    await until(lambda: house.model.requests)
    record = await cancelled(house, made)
    assert record.turn.status == "cancelled" and record.closing == 0
    house.clock.advance(3)
    await house.orchestrator.finished()
    assert house.orchestrator.errors == [] and house.model.closed == 1
    assert (await stored(house, record)).events == record.events
    assert await read(house, made.record) == list(record.events)


async def test_no_tool_is_started_after_a_cancel(house: House) -> None:
    house.orchestrator.refusals = 1
    serve(house, {"srv": [served("act")]}, act=lambda: "acted")
    house.model.calls(("act", {}))
    made = await ask(house, "Hi", background=True, tools=[MCP])
    state = state_of(made.record, (await house.engine.brief(made.record)).spec)
    for kind in ("gather", "call_model"):
        state = await step(house.engine, state, kind)
    record = await cancelled(house, made)
    [call_id] = state["calls"]
    await call_tool(house.engine, state, call_id)
    after = await step(house.engine, state, "call_model")
    assert after["next"] == "done" and house.tools.ran == [] and len(house.model.requests) == 1
    assert (await stored(house, record)).events == record.events
    assert not any(isinstance(event, ToolStarted) for event in record.events)


async def test_a_cancel_between_the_decision_and_the_start_of_a_tool_keeps_it_from_running(house: House) -> None:
    house.orchestrator.refusals = 1
    serve(house, {"srv": [served("act")]}, act=lambda: "acted")
    house.model.calls(("act", {}))
    made = await ask(house, "Hi", background=True, tools=[MCP])
    state = state_of(made.record, (await house.engine.brief(made.record)).spec)
    for kind in ("gather", "call_model"):
        state = await step(house.engine, state, kind)

    async def brief(record: Record) -> Any:
        found = await house.engine.brief(record)
        await cancelled(house, made)
        return found

    with pytest.raises(TurnMoved):
        await call_tool(replace(house.engine, brief=brief), state, state["calls"][0])
    assert house.tools.ran == []


async def test_a_tool_that_runs_is_called_off_by_a_cancel(house: House) -> None:
    left = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    serve(house, {"srv": [served("endless")]}, endless=endless)
    house.model.calls(("endless", {}))
    made = await ask(house, "Hi", background=True, tools=[MCP])
    await until(lambda: house.tools.ran)
    record = await cancelled(house, made)
    async with asyncio.timeout(20):
        await left.wait()
        await house.orchestrator.finished()
    assert house.orchestrator.errors == [] and (await stored(house, record)).events == record.events


async def test_what_a_tool_says_after_a_cancel_is_not_stored(house: House) -> None:
    gate = asyncio.Event()

    async def slow() -> str:
        await gate.wait()
        return "done"

    serve(house, {"srv": [served("slow")]}, slow=slow)
    house.model.calls(("slow", {}), ("slow", {}))
    made = await ask(house, "Hi", background=True, tools=[MCP])
    await until(lambda: len(house.tools.ran) == 2)
    record = await cancelled(house, made)
    gate.set()
    await house.orchestrator.finished()
    assert house.orchestrator.errors == [] and len(house.model.requests) == 1
    assert (await stored(house, record)).events == record.events


async def test_a_failure_of_the_upstream_after_a_cancel_is_nobodys_error(house: House) -> None:
    gate = asyncio.Event()
    house.model.answers(gate, UpstreamBroken("gone"))
    made = await ask(house, "Hi", background=True)
    await until(lambda: house.model.requests)
    record = await cancelled(house, made)
    gate.set()
    await house.orchestrator.finished()
    assert house.orchestrator.errors == []
    assert (await stored(house, record)).events == record.events


async def test_a_queued_response_is_cancelled_before_it_has_begun(house: House) -> None:
    house.orchestrator.refusals = 1
    made = await ask(house, "Hi", background=True)
    record = await cancelled(house, made)
    house.clock.advance(60)
    assert await sweep(house.engine) == 0
    assert [type(event) for event in record.events[1:]] == [TurnCancelled] and house.model.requests == []


# --- when it is over


async def test_cancelling_twice_is_cancelling_once(house: House) -> None:
    house.orchestrator.refusals = 1
    made = await ask(house, "Hi", background=True)
    first, second = await asyncio.gather(cancelled(house, made), cancelled(house, made))
    third = await cancelled(house, made)
    assert first.events == second.events == third.events and len(ends(third.events)) == 1


async def test_a_foreground_response_is_cancelled_twice_as_well(house: House, clock: AwaitedClock) -> None:
    run, _ = await running(house, TextChunk("Hel"), told=2)
    await cancelled(house, run)
    assert (await cancelled(house, run)).turn.status == "cancelled"
    clock.advance(2)
    await rest(run)
    assert (await cancelled(house, run)).turn.status == "cancelled"


@pytest.mark.parametrize("broken", [False, True])
async def test_a_background_response_that_ended_comes_back_unchanged(house: House, broken: bool) -> None:
    house.model.answers(UpstreamBroken("gone") if broken else TextChunk("Hello"), Finished("stop", USAGE))
    made = await ask(house, "Hi", background=True)
    ended = await made.settled()
    assert (await cancelled(house, made)).turn.status == ended.status != "cancelled"


async def test_a_foreground_response_that_ended_cannot_be_cancelled(house: House) -> None:
    house.model.says("Hello")
    run = await ask(house, "Hi")
    await run.settled()
    with pytest.raises(InvalidRequest, match="ended"):
        await cancelled(house, run)
    assert (await stored(house, run.record)).turn.status == "completed"


async def test_what_is_unknown_cannot_be_cancelled(house: House) -> None:
    with pytest.raises(NotFound):
        await cancel_response(house.services, "me", "resp_" + "0" * 32)
    with pytest.raises(NotFound):
        await cancel_response(house.services, "me", "nonsense")


async def test_an_agents_turn_that_awaits_input_is_cancelled(tmp_path: Path) -> None:
    conversation = next(c for c in CONVERSATIONS if c.name == "a client tool")
    house = scripted_house(tmp_path, conversation)
    agent_id, session_id = await session(house, conversation)
    reading = await turns.create_turn(house.services, Caller(OWNER), agent_id, session_id, asked(conversation))
    turn = await reading.run.settled()
    assert turn.status == "awaiting_input"
    record = await turns.cancel_turn(house.services, OWNER, agent_id, session_id, turn.id)
    assert record.turn.status == "cancelled" and len(ends(record.events)) == 1
    again = await turns.cancel_turn(house.services, OWNER, agent_id, session_id, turn.id)
    assert again.events == record.events
    following = await turns.create_turn(house.services, Caller(OWNER), agent_id, session_id, asked(conversation))
    assert (await following.run.settled()).id != turn.id, "the session is free"


# --- races


@pytest.mark.parametrize("moments", range(0, 24, 2))
async def test_whoever_is_first_a_turn_has_one_end(house: House, moments: int) -> None:
    gate = asyncio.Event()
    house.model.answers(TextChunk("Hello"), gate, Finished("stop", USAGE))
    run = await ask(house, "Hi")
    assert isinstance(run, Run)
    reader = asyncio.create_task(rest(run))
    follower = asyncio.create_task(read(house, run.record))
    gate.set()
    for _ in range(moments):
        await asyncio.sleep(0)
    try:
        assert (await cancelled(house, run)).turn.status == "cancelled"
    except InvalidRequest:
        assert (await stored(house, run.record)).turn.status == "completed"
    house.clock.advance(3)
    told = [*run.record.events, *await reader]
    final = await stored(house, run.record)
    assert final.events == tuple(told) and len(ends(told)) == 1
    assert await follower == told


@pytest.mark.parametrize("moments", range(0, 24, 2))
async def test_a_cancel_and_a_takeover_at_the_same_time_agree_on_the_end(house: House, moments: int) -> None:
    house.model._rule = lambda request: [asyncio.Event()]
    house.orchestrator.refusals = 1
    made = await ask(house, "Hi", background=True)
    house.clock.advance(31)
    taking = asyncio.create_task(take_over(house.engine, made.record.place))
    for _ in range(moments):
        await asyncio.sleep(0)
    record = await cancelled(house, made)
    await taking
    house.clock.advance(3)
    async with asyncio.timeout(20):
        await house.orchestrator.finished()
    assert house.orchestrator.errors == [] and house.model.closed == len(house.model.requests)
    final = await stored(house, record)
    assert final.turn.status == "cancelled" and len(ends(final.events)) == 1
    assert await read(house, final) == list(final.events)


# --- what comes after


async def child_of(house: House, turn: Turn | Record) -> None:
    house.model.says("On.")
    parent = turn.turn.id if isinstance(turn, Record) else turn.id
    assert (await answered(house, "On?", previous_response_id=parent)).status == "completed"


async def test_a_child_is_shown_the_partial_text_but_no_unfinished_call(house: House, clock: AwaitedClock) -> None:
    said: list[Chunk] = [TextChunk("Let me "), TextChunk("see."), *fragments("lookup", '{"q": ')]
    run, _ = await running(house, *said, told=4, tools=[LOOKUP])
    await cancelled(house, run)
    clock.advance(2)
    await rest(run)
    record = await stored(house, run.record)
    assert record.turn.last_inference is not None and record.turn.last_inference.calls != ()
    await child_of(house, record)
    assert texts(house) == ["Hi", "Let me see.", "On?"] and results(house) == []


async def test_a_child_of_a_response_whose_tool_never_answered_is_told_so(house: House) -> None:
    gate = asyncio.Event()

    async def slow() -> str:
        await gate.wait()
        return "done"

    serve(house, {"srv": [served("slow")]}, slow=slow)
    house.model.calls(("slow", {}))
    made = await ask(house, "Hi", background=True, tools=[MCP])
    await until(lambda: house.tools.ran)
    record = await cancelled(house, made)
    gate.set()
    await house.orchestrator.finished()
    await child_of(house, record)
    assert texts(house) == ["Hi", "", "On?"] and results(house) == ["There is no result: this call was never answered."]


async def test_deltas_that_were_logged_survive_a_cancel_of_a_background_run(house: House) -> None:
    house.model.answers(TextChunk("Hel"), TextChunk("lo"), asyncio.Event())
    made = await ask(house, "Hi", background=True)
    await until_logged(house, made.record, Delta)
    record = await cancelled(house, made)
    house.clock.advance(3)
    await house.orchestrator.finished()
    await child_of(house, record)
    assert texts(house)[1] == "Hello"


async def test_a_stopped_step_leaves_its_lease_to_the_sweeper_and_not_a_second_end(house: House) -> None:
    house.model.answers(TextChunk("Hel"), asyncio.Event())
    made = await ask(house, "Hi", background=True)
    await until(lambda: house.model.requests)
    record = await cancelled(house, made)
    house.clock.advance(60)
    assert await sweep(house.engine) == 0
    await house.orchestrator.finished()
    assert len(ends((await stored(house, record)).events)) == 1
