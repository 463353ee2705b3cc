"""What the use cases work with; `bootstrap` fills it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from turnloom.domain.ids import Entropy
from turnloom.domain.message import Tool
from turnloom.engine.engine import Engine
from turnloom.ports import Clock, Vault
from turnloom.store.agents import Agents, Sessions
from turnloom.store.disposal import Disposal
from turnloom.store.registry import Registry
from turnloom.store.turns import Turns


@dataclass(frozen=True, slots=True)
class Limits:
    """Settings of a deployment: most model calls in a turn, days that a session without persistence is kept."""

    inferences: int = 50
    session_days: int = 30


@dataclass(frozen=True, slots=True)
class Services:
    agents: Agents
    sessions: Sessions
    registry: Registry
    disposal: Disposal
    turns: Turns
    responses: Turns
    engine: Engine
    clock: Clock
    entropy: Entropy
    vault: Vault
    builtin_groups: Mapping[str, tuple[Tool, ...]]
    limits: Limits = Limits()
