"""One loop: inline, handed over to the state machine, and stepped from the first action on, the log is the same."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import House, build_house
from tests.engine.conversations import CLIENT_TOOL, CONVERSATIONS, FUNCTIONS, Conversation
from turnloom.domain.event import Event, TakenOver
from turnloom.domain.turn import Turn
from turnloom.engine.engine import state_of
from turnloom.engine.follow import follow
from turnloom.engine.takeover import take_over
from turnloom.store.turns import Record
from turnloom.testing import ScriptedModel
from turnloom.usecases import agents, turns
from turnloom.usecases.callers import Caller
from turnloom.usecases.turns import TurnRequest
from turnloom.wire.agents_api.models import AgentConfig

OWNER = "someone"


def config(conversation: Conversation) -> dict[str, Any]:
    given = {
        "model": "m",
        "instructions": "Be brief.",
        "toolgroups": ["test::tools"],
        "client_tools": [CLIENT_TOOL],
        **conversation.config,
    }
    return AgentConfig.model_validate(given).model_dump()


def scripted_house(folder: Path, conversation: Conversation) -> House:
    house = build_house(folder, **FUNCTIONS)
    world = replace(house.engine.world, model=ScriptedModel(conversation.rule()))
    engine = replace(house.engine, world=world)
    house.orchestrator.engine = engine
    house.services = replace(house.services, engine=engine)
    return house


async def session(house: House, conversation: Conversation) -> tuple[str, str]:
    agent = await agents.create_agent(house.services, OWNER, config(conversation))
    opened = await agents.create_session(house.services, OWNER, agent.agent_id, "s")
    return agent.agent_id, opened.session_id


def asked(conversation: Conversation) -> TurnRequest:
    return TurnRequest([{"role": "user", "content": "Go."}], conversation.settings, "f")


def replies(record: Record, text: str) -> list[dict[str, Any]]:
    return [
        {"call_id": call.call_id, "tool_name": call.name, "content": text, "metadata": {}}
        for call in record.turn.open_calls
    ]


async def play_inline(house: House, conversation: Conversation) -> Record:
    """As a connected client has it: inline until server tools are due, then followed."""
    agent_id, session_id = await session(house, conversation)
    reading = await turns.create_turn(house.services, Caller(OWNER), agent_id, session_id, asked(conversation))
    told = [*reading.run.record.events, *[event async for event in reading.run.events()]]
    record = await turns.get_turn(house.services, OWNER, agent_id, session_id, reading.run.record.turn.id)
    for text in conversation.replies:
        reading = await turns.resume_turn(
            house.services, Caller(OWNER), agent_id, session_id, record.turn.id, replies(record, text)
        )
        told += [reading.run.record.events[-1], *[event async for event in reading.run.events()]]
        record = await turns.get_turn(house.services, OWNER, agent_id, session_id, record.turn.id)
    assert tuple(told) == record.events, "what was told is not what was stored"
    return record


async def play_stepped(house: House, conversation: Conversation) -> Record:
    """As nobody's connection: every action is a task."""
    agent_id, session_id = await session(house, conversation)
    opening = turns._opening(house.services, Caller(OWNER), agent_id, session_id, [], asked(conversation))
    await house.services.turns.open(opening)
    record = await run_steps(house, opening)
    for text in conversation.replies:
        provided = turns.InputProvided(house.clock.now(), tuple(replies(record, text)))
        going_on = replace(record.with_events([provided]), lease=house.clock.now() + 30_000_000)
        record = await house.services.turns.settle(going_on)
        record = await run_steps(house, record)
    return record


async def run_steps(house: House, record: Record) -> Record:
    brief = await house.engine.brief(record)
    await house.orchestrator.start(f"{record.turn.id}-{record.turn.leg}", state_of(record, brief.spec))
    followed = [event async for event in follow(house.engine, record)]
    await house.orchestrator.finished()
    assert house.orchestrator.errors == []
    stored = await house.services.turns.load(record.place)
    assert stored is not None and (*record.events, *followed) == stored.events
    return stored


def timeless(events: tuple[Event, ...]) -> list[Event]:
    """The events without their times."""
    return [replace(event, **{name: 0 for name in ("at", "started_at") if hasattr(event, name)}) for event in events]


def outcome(turn: Turn) -> tuple[Any, ...]:
    return turn.status, turn.reason, turn.failure and turn.failure.code, len(turn.steps)


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda c: c.name)
async def test_inline_and_stepped_drivers_write_the_same_log(conversation: Conversation, tmp_path: Path) -> None:
    inline = await play_inline(scripted_house(tmp_path / "inline", conversation), conversation)
    stepped = await play_stepped(scripted_house(tmp_path / "stepped", conversation), conversation)
    assert outcome(inline.turn) == outcome(stepped.turn)
    assert normal(inline) == normal(stepped)


def normal(record: Record) -> list[str]:
    """The log as text, with ids and times replaced by the place of their first appearance."""
    names: dict[str, str] = {}
    for inference in record.turn.inferences:
        for call in inference.calls:
            names.setdefault(call.call_id, f"call {len(names)}")
    lines = []
    for event in timeless(record.events):
        text = str(event)
        # The longest first: one id may be the beginning of another.
        for identifier, name in sorted(names.items(), key=lambda pair: -len(pair[0])):
            text = text.replace(identifier, name)
        lines.append(text)
    return _runs_sorted(lines)


def _runs_sorted(lines: list[str]) -> list[str]:
    """Lines about tools that run side by side, in one order: which comes first is nobody's promise."""
    result: list[str] = []
    run: list[str] = []
    for line in [*lines, ""]:
        if line.startswith(("ToolStarted", "ToolCompleted")):
            run.append(line)
        else:
            result += [*sorted(run), line]
            run = []
    return result


async def test_a_turn_taken_over_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    conversation = next(c for c in CONVERSATIONS if c.name == "one server tool")
    house = scripted_house(tmp_path, conversation)
    agent_id, session_id = await session(house, conversation)
    opening = turns._opening(house.services, Caller(OWNER), agent_id, session_id, [], asked(conversation))
    await house.services.turns.open(opening)
    house.clock.advance(60)
    await take_over(house.engine, opening.place)
    events = [event async for event in follow(house.engine, opening)]
    assert any(isinstance(event, TakenOver) for event in events)
    stored = await house.services.turns.load(opening.place)
    assert stored is not None and stored.turn.status == "completed"
    assert stored.turn.inferences[-1].said("text") == "done"


async def test_a_state_machine_that_cannot_be_reached_is_tried_again(tmp_path: Path) -> None:
    conversation = next(c for c in CONVERSATIONS if c.name == "one server tool")
    house = scripted_house(tmp_path, conversation)
    house.orchestrator.refusals = 1
    agent_id, session_id = await session(house, conversation)
    reading = await turns.create_turn(house.services, Caller(OWNER), agent_id, session_id, asked(conversation))
    ended = asyncio.create_task(reading.run.settled())
    await house.orchestrator.refused.wait()
    house.clock.advance(60)
    assert (await ended).inferences[-1].said("text") == "done"
