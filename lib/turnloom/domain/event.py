"""What can happen in a turn. The log of these, in order, *is* the turn: `evolve` folds it, the encoders tell it.

All times are microseconds since the epoch. The union `Event` is closed; `match` on it with `assert_never`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from turnloom.domain.message import JSON, ToolKind, Usage

Runner = Literal["server", "client", "approval", "unknown"]
"""Who answers a call: `approval` means that the client must first allow it, `unknown` that nobody may run it."""
Block = Literal["text", "refusal", "reasoning", "arguments"]
Touchpoint = Literal["user-input", "assistant-output"]
FinishReason = Literal["stop", "tool_calls", "length", "content_filter"]
Reason = Literal["max_infer_iters", "out_of_tokens", "content_filter"]


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The request was accepted: its input and settings as they came in, in the words of its API."""

    at: int
    input: tuple[JSON, ...]
    settings: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContextInserted:
    """The server put the text of documents into the context (agents: a memory_retrieval step)."""

    at: int
    started_at: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolsListed:
    """An MCP server was asked what it offers; `tools` in the shape of `mcp_list_tools`, or `error` saying why not."""

    at: int
    server: str
    tools: tuple[JSON, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Compacted:
    """What the model had been told so far was summed up: the summary stands for all of it from here on."""

    at: int
    summary: str
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class CallsAllowed:
    """The client allowed calls that an earlier turn asked for: `AllowedCall`s as objects; they run now."""

    at: int
    calls: tuple[Mapping[str, JSON], ...]


@dataclass(frozen=True, slots=True)
class Gathered:
    """All that the first model call needs has been collected."""

    at: int


@dataclass(frozen=True, slots=True)
class ShieldsRun:
    """Every shield of a touchpoint has judged; `violation` is the first blocking one in the order of the agent."""

    at: int
    started_at: int
    touchpoint: Touchpoint
    violation: Mapping[str, JSON] | None = None


@dataclass(frozen=True, slots=True)
class InferenceStarted:
    at: int


@dataclass(frozen=True, slots=True)
class CallStarted:
    """The model began a tool call; `arguments` deltas follow, of a custom tool its text.

    `group` is the tool group or MCP server of a tool that is run here, or the namespace of a client's tool.
    """

    call_id: str
    name: str
    runner: Runner
    group: str | None = None
    kind: ToolKind = "function"


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that the model added to its current block; never empty."""

    block: Block
    text: str
    logprobs: tuple[JSON, ...] = ()


@dataclass(frozen=True, slots=True)
class InferenceCompleted:
    at: int
    finish: FinishReason
    usage: Usage = Usage()
    extras: Mapping[str, JSON] = field(default_factory=dict)
    """Keys that only the endpoint understands and wants back: of the message under "", of a call under its id."""


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A server tool is about to run: from here on it may have had its effect."""

    at: int
    call_id: str


@dataclass(frozen=True, slots=True)
class ToolCompleted:
    """A server tool answered. `error` is `{"kind", "code", "message"}` when it failed; the model reads `content`."""

    at: int
    call_id: str
    content: JSON
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    error: Mapping[str, JSON] | None = None


@dataclass(frozen=True, slots=True)
class InputAwaited:
    """The client has calls to answer; the turn rests."""

    at: int


@dataclass(frozen=True, slots=True)
class InputProvided:
    """The client answered: `{"call_id", "tool_name", "content", "metadata"}` each, as sent; a new leg begins."""

    at: int
    responses: tuple[Mapping[str, JSON], ...]


@dataclass(frozen=True, slots=True)
class TakenOver:
    """What was left half done is begun again: by another driver if one was `lost`, else by the next try of a task.

    Whoever left it may have sent up to `unlogged` frames that the log lacks.
    """

    at: int
    unlogged: int = 0
    lost: bool = False


@dataclass(frozen=True, slots=True)
class TurnCompleted:
    at: int
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class TurnFailed:
    """The turn ended without an answer: a code that clients match on, and a message for people."""

    at: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class TurnAbandoned:
    """A newer turn of the session made this one, which was awaiting input, moot."""

    at: int


@dataclass(frozen=True, slots=True)
class TurnCancelled:
    at: int


Event = (
    TurnStarted
    | ContextInserted
    | ToolsListed
    | Compacted
    | CallsAllowed
    | Gathered
    | ShieldsRun
    | InferenceStarted
    | CallStarted
    | Delta
    | InferenceCompleted
    | ToolStarted
    | ToolCompleted
    | InputAwaited
    | InputProvided
    | TakenOver
    | TurnCompleted
    | TurnFailed
    | TurnAbandoned
    | TurnCancelled
)

Terminal = TurnCompleted | TurnFailed | TurnAbandoned | TurnCancelled
