"""What the use cases work with; `bootstrap` fills it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from turnloom.domain.ids import Entropy
from turnloom.domain.message import Tool
from turnloom.engine.engine import Engine
from turnloom.ports import Clock, Vault
from turnloom.store.agents import Agents, Sessions
from turnloom.store.claims import Claims
from turnloom.store.conversations import Conversations
from turnloom.store.disposal import Disposal
from turnloom.store.registry import Registry
from turnloom.store.turns import Turns


@dataclass(frozen=True, slots=True)
class Limits:
    """Settings of a deployment: the most model calls in a turn, and for how many days things are kept.

    `session_days` are for sessions without persistence, `retention_days` for responses and conversations (None: until
    they are deleted). `removal_seconds` is how long a request that deletes something works at it.
    """

    inferences: int = 50
    session_days: int = 30
    retention_days: int | None = None
    removal_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Services:
    agents: Agents
    sessions: Sessions
    registry: Registry
    disposal: Disposal
    conversations: Conversations
    claims: Claims
    turns: Turns
    responses: Turns
    engine: Engine
    clock: Clock
    entropy: Entropy
    vault: Vault
    builtin_groups: Mapping[str, tuple[Tool, ...]]
    limits: Limits = Limits()
