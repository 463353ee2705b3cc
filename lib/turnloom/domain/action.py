"""What a turn can want next. The union `Action` is closed; the branches of the state machine are its kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from turnloom.domain.event import Reason, Touchpoint


@dataclass(frozen=True, slots=True)
class Gather:
    """Read documents and list the tools of MCP servers, before the first model call."""

    kind: ClassVar[str] = "gather"


@dataclass(frozen=True, slots=True)
class CallModel:
    """Ask the model; `forced` says that the tool choice still binds."""

    forced: bool
    kind: ClassVar[str] = "call_model"


@dataclass(frozen=True, slots=True)
class CallTools:
    """Run these server-side calls, all at the same time."""

    call_ids: tuple[str, ...]
    kind: ClassVar[str] = "call_tools"


@dataclass(frozen=True, slots=True)
class RunShields:
    touchpoint: Touchpoint
    shields: tuple[str, ...]
    kind: ClassVar[str] = "run_shields"


@dataclass(frozen=True, slots=True)
class AwaitClient:
    """Rest until the client has answered its calls."""

    kind: ClassVar[str] = "await_client"


@dataclass(frozen=True, slots=True)
class Finish:
    """End the turn."""

    reason: Reason | None = None
    kind: ClassVar[str] = "finish"


Action = Gather | CallModel | CallTools | RunShields | AwaitClient | Finish

KINDS: tuple[str, ...] = tuple(
    action.kind for action in (Gather, CallModel, CallTools, RunShields, AwaitClient, Finish)
)
