"""The sample payloads in events/, what they name, and how to run a handler on one.

The name of a payload begins with what it must bring: the HTTP status; a task's next action (`none`: nothing); whether
the authorizer allows the request.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from turnloom import gate
from turnloom.domain import ids
from turnloom.domain.agent import Agent, Session
from turnloom.domain.api_key import ApiKey, digest_of
from turnloom.domain.event import (
    CallStarted,
    Delta,
    Event,
    Gathered,
    InferenceCompleted,
    InferenceStarted,
    InputAwaited,
    TurnCompleted,
    TurnStarted,
)
from turnloom.domain.turn import Turn
from turnloom.store.conversations import Conversation
from turnloom.store.turns import Place, Record
from turnloom.usecases.services import Services
from turnloom.wire.agents_api.models import AgentConfig
from turnloom.wire.authorizer import Unauthorized

ROOT = Path(__file__).parents[1]
EVENTS = sorted(ROOT.glob("events/*/*.json"))

AGENT = "01977420-dc00-7000-8000-00000000000a"
SESSION = "01977420-dc00-7000-8000-00000000000b"
NOW = 1_750_000_000_000_000
KEY_ID, SECRET = "0" * 16, "0" * 52


def load(function: str) -> ModuleType:
    """The module of the function's handler."""
    path = ROOT / "functions" / function / "handler.py"
    spec = importlib.util.spec_from_file_location(f"functions.{function}.handler", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(function: str, event: Any) -> Any:
    """What Lambda makes of the handler's answer to the event."""
    try:
        return load(function).handler(event, None)
    except Unauthorized as refusal:
        return {"errorMessage": str(refusal)}


def outcome(result: Any) -> str:
    """What the function brought, in the words that the names of payloads begin with."""
    if result is None:
        return "none"
    if "policyDocument" in result:
        return str(result["policyDocument"]["Statement"][0]["Effect"]).lower()
    return str(result.get("statusCode") or result.get("errorMessage", "").lower() or result.get("next") or "none")


def set_stage(services: Services, payload: Path) -> None:
    """Put there what the payload names, in the deployment that the environment tells of."""
    asyncio.run(furnish(services))
    if payload.parent.name.startswith("turn_") and "no-such" not in payload.stem:
        asyncio.run(start_turn(services))


async def furnish(services: Services) -> None:
    """The objects that the payloads name: an agent, a session with a turn of each kind, responses, a conversation."""
    await gate.api_keys(dict(os.environ)).add(ApiKey(KEY_ID, digest_of(SECRET), "default", "sample", NOW // 1_000_000))
    lookup = {"name": "lookup", "parameters": []}
    config = AgentConfig.model_validate({"model": "scripted", "instructions": "", "client_tools": [lookup]})
    await services.agents.put("default", Agent(AGENT, config.model_dump(), NOW))
    await services.sessions.put("default", Session(SESSION, "sample", AGENT, NOW))
    started = TurnStarted(NOW, ({"role": "user", "content": "Hello"},))
    said: list[Event] = [InferenceStarted(NOW + 1), Delta("text", "Hi"), InferenceCompleted(NOW + 2, "stop")]
    asked: list[Event] = [
        InferenceStarted(NOW + 1),
        CallStarted("call_sample", "lookup", "client"),
        Delta("arguments", "{}"),
        InferenceCompleted(NOW + 2, "tool_calls"),
        InputAwaited(NOW + 3),
    ]
    turns: dict[str, list[Event]] = {
        "01977420-dc01-7000-8000-00000000000c": [started, *said, TurnCompleted(NOW + 3)],
        "01977420-dc02-7000-8000-04000000000d": [started, *asked],
    }
    for ordinal, (turn_id, events) in enumerate(turns.items()):
        place = Place("agents", "default", SESSION, ordinal)
        await services.turns.open(Record(place, Turn(turn_id), origin={"agent": AGENT}).with_events(events))
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
    asked_for = TurnStarted(NOW, (item,), {"model": "scripted"})
    await services.responses.open(response("0abc").with_events([asked_for, *said, TurnCompleted(NOW + 3)]))
    running = replace(response("0abe"), lease=services.clock.now() + 60_000_000)
    await services.responses.open(running.with_events([asked_for]))
    held = response("0abf")
    conversation = Conversation(ids.conversation_id(NOW, held.place.thread), NOW, {"topic": "sample"})
    await services.conversations.put("default", conversation)
    put_in: list[Event] = [TurnStarted(NOW, ({**item, "id": "msg_sample"},)), TurnCompleted(NOW + 1)]
    held = replace(held, origin={"conversation": conversation.conversation_id}, hidden=True)
    await services.responses.open(held.with_events(put_in))


def response(name: str) -> Record:
    """A response that nothing has happened to, the first of a thread whose name ends like this."""
    thread = name.rjust(16, "0")
    return Record(Place("responses", "default", thread, 0), Turn(ids.response_id(NOW, 0, thread)))


async def start_turn(services: Services) -> None:
    """A turn at ordinal 2 that is in progress and has not called the model yet."""
    place = Place("agents", "default", SESSION, 2)
    turn = Turn(ids.turn_id(NOW, 2, lambda bits: 7))
    record = Record(place, turn, lease=services.clock.now() + 60_000_000, origin={"agent": AGENT})
    events: list[Event] = [TurnStarted(NOW, ({"role": "user", "content": "Hello"},)), Gathered(NOW + 1)]
    await services.turns.open(record.with_events(events))
