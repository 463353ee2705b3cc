"""What an action is given: the world, and the turn as it stands."""

from __future__ import annotations

from dataclasses import dataclass

from turnloom.domain.message import Message, Spec
from turnloom.domain.turn import Turn
from turnloom.ports import Clock, Model, Retriever, Shields, Tools, ToolScope


@dataclass(frozen=True, slots=True)
class World:
    """The ports that actions need."""

    model: Model
    tools: Tools
    shields: Shields
    retriever: Retriever
    clock: Clock


@dataclass(frozen=True, slots=True)
class Scene:
    """A turn at the moment of an action: its rules, what the model gets to see, and for whom tools run.

    `patience` is how many seconds the upstream may ask us to wait before the action fails.
    """

    turn: Turn
    spec: Spec
    messages: tuple[Message, ...]
    scope: ToolScope
    patience: float = 5.0


@dataclass(slots=True)
class Stamp:
    """Times that only ever rise, starting after `last` (microseconds)."""

    clock: Clock
    last: int

    def __call__(self) -> int:
        self.last = max(self.clock.now(), self.last + 1)
        return self.last
