"""Agents and their sessions, as they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from turnloom.domain.message import JSON


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent; `config` is the AgentConfig of the API with every default filled in, and never changes.

    `content_lost` says that `config` is empty because what was stored of it is missing or unreadable.
    """

    agent_id: str
    config: Mapping[str, JSON]
    created_at: int
    content_lost: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    session_id: str
    session_name: str
    agent_id: str
    started_at: int


@dataclass(frozen=True, slots=True)
class ToolGroup:
    """A registered tool group, with the tools it had when it was registered; `builtin` ones belong to everybody.

    Of one that is not `readable`, because the key that it was sealed with is gone, only id and provider are known.
    The server of a `guarded` one lists its tools only to callers who bring it a credential, so none are kept.
    """

    identifier: str
    provider_id: str
    endpoint: str | None
    args: Mapping[str, JSON]
    tools: tuple[Mapping[str, JSON], ...]
    builtin: bool = False
    readable: bool = True
    guarded: bool = False
