"""Fixtures for every layer: real stores on SQLite, and everything else under control."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from turnloom.adapters.blobs import FolderBlobs
from turnloom.adapters.sqlite import SqliteDatabase
from turnloom.engine.engine import Engine, Pace
from turnloom.engine.scene import World
from turnloom.store.agents import Agents, Sessions
from turnloom.store.claims import Claims
from turnloom.store.conversations import Conversations
from turnloom.store.disposal import Disposal
from turnloom.store.registry import Registry
from turnloom.store.turns import Turns
from turnloom.testing import (
    CountingEntropy,
    FakeShields,
    FakeTools,
    FrozenClock,
    InlineDocuments,
    PlainVault,
    ScriptedModel,
    SteppedOrchestrator,
)
from turnloom.usecases.briefs import brief_of
from turnloom.usecases.services import Services


@dataclass
class House:
    """Services over real stores in a folder, and the fakes behind them."""

    services: Services
    model: ScriptedModel
    tools: FakeTools
    clock: FrozenClock
    orchestrator: SteppedOrchestrator
    shields: FakeShields

    @property
    def engine(self) -> Engine:
        return self.services.engine


def build_house(folder: Path, clock: FrozenClock | None = None, **functions: Callable[..., object]) -> House:
    """A house whose built-in tool group `test::tools` has these functions."""
    clock = clock or FrozenClock()
    database = SqliteDatabase(folder / "turnloom.db", now=lambda: clock.time / 1_000_000)
    blobs = FolderBlobs(folder / "blobs")
    log = database.table("events")
    stores = {
        "agents": Turns("agents", database.table("turns"), log, blobs, clock),
        "responses": Turns("responses", database.table("responses"), log, blobs, clock, listed=True),
    }
    model, shields = ScriptedModel(), FakeShields()
    tools, orchestrator = FakeTools(functions), SteppedOrchestrator()
    world = World(model, tools, shields, InlineDocuments(), clock)
    registry = Registry(database.table("registry"), PlainVault())

    async def brief(record):  # type: ignore[no-untyped-def]
        return await brief_of(services, record)

    engine = Engine(world, stores, brief, orchestrator, Pace(0.01, (0.001, 0.01)))
    orchestrator.engine = engine
    services = Services(
        agents=Agents(database.table("agents"), blobs),
        sessions=Sessions(database.table("sessions")),
        registry=registry,
        disposal=Disposal(database.table("registry")),
        conversations=Conversations(database.table("registry")),
        claims=Claims(database.table("registry")),
        turns=stores["agents"],
        responses=stores["responses"],
        engine=engine,
        clock=clock,
        entropy=CountingEntropy(),
        vault=PlainVault(),
        builtin_groups={"test::tools": tools.group("test::tools")},
    )
    return House(services, model, tools, clock, orchestrator, shields)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return build_house(tmp_path)
