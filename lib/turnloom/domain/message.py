"""What the model is shown and what it may say: chat messages, tools, and the rules of one turn.

The shapes are those of the chat-completions protocol, in frozen form; nothing here belongs to one of the two APIs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

JSON = Any
"""A value that `json` can write: None, bool, int, float, str, lists and string-keyed dicts of these."""


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image by URL or data URL; it is passed on, never downloaded here."""

    url: str
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class FilePart:
    """A file for upstreams that take files: a data URL and the name to show."""

    data: str
    filename: str


Part = TextPart | ImagePart | FilePart
Content = str | tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as the model wrote it: `arguments` is its JSON text, verbatim."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class SystemMessage:
    content: Content


@dataclass(frozen=True, slots=True)
class UserMessage:
    content: Content


@dataclass(frozen=True, slots=True)
class AssistantMessage:
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class ToolMessage:
    call_id: str
    content: str
    name: str = ""


Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage


@dataclass(frozen=True, slots=True)
class ToolSource:
    """Where a server tool is run: the kind of its runner, and what that runner needs to find it.

    `name` is the tool's name at the source. `args` are laid over the model's arguments and never shown to it.
    `group` is the tool group's id, or the MCP server's label.
    """

    kind: Literal["builtin", "http", "mcp"]
    group: str
    name: str
    endpoint: str | None = None
    args: Mapping[str, JSON] = field(default_factory=dict)
    settings: Mapping[str, JSON] = field(default_factory=dict)
    repeatable: bool = False


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as the model sees it; without a `source` it is the client's to run."""

    name: str
    description: str = ""
    parameters: Mapping[str, JSON] = field(default_factory=lambda: {"type": "object", "properties": {}})
    source: ToolSource | None = None
    strict: bool | None = None


@dataclass(frozen=True, slots=True)
class ToolServer:
    """An MCP server that a request brings along: its tools are listed before the first model call.

    `allowed` are the names that may be offered (None: all); with `read_only`, only tools whose `readOnlyHint` is this.
    `listed` is what an earlier turn of the chain was told by the same server; None means that it must be asked.
    """

    label: str
    endpoint: str
    allowed: frozenset[str] | None = None
    read_only: bool | None = None
    listed: tuple[JSON, ...] | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """The rules of one turn, resolved from an agent or a request; constant while the turn runs.

    `choice` is `auto`, `none`, `required` or a tool's name; a forcing one binds the first model call only, or the
    turn could never end. `sampling` holds chat-completions parameters as they go upstream. The last three say where
    the two APIs differ: whether client calls suspend the turn (or end it), whether calls of the last permitted
    inference still run, and whether a client call must have a JSON object for arguments to reach the client.
    """

    model: str
    instructions: str = ""
    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    sampling: Mapping[str, JSON] = field(default_factory=dict)
    response_format: Mapping[str, JSON] | None = None
    parallel_calls: bool = True
    max_inferences: int = 10
    max_tokens: int | None = None
    input_shields: tuple[str, ...] = ()
    output_shields: tuple[str, ...] = ()
    documents: tuple[Mapping[str, JSON], ...] = ()
    servers: tuple[ToolServer, ...] = ()
    suspends_for_client: bool = True
    runs_last_calls: bool = False
    checks_client_arguments: bool = True

    def tool(self, name: str) -> Tool | None:
        """The tool that the model knows by this name, if it was offered."""
        return next((tool for tool in self.tools if tool.name == name), None)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one model call, or of several added up; a figure the upstream did not give is 0."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )
