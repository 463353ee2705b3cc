"""What the model is shown and what it may say: chat messages, tools, and the rules of one turn.

The shapes are those of the chat-completions protocol, in frozen form; nothing here belongs to one of the two APIs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any, Literal

ToolKind = Literal["function", "custom"]

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


ToolKey = tuple[bool, str | None, str]
"""What tells a tool from others: whether it is run here, its group, and its name in there."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as the model wrote it: `arguments` is its JSON text, verbatim.

    The `name` is the tool's own in its `group`, which is a client's namespace, or the server of one that is run here
    (`hosted`). The model may know it by another.
    """

    call_id: str
    name: str
    arguments: str
    group: str | None = None
    hosted: bool = False
    extra: Mapping[str, JSON] = field(default_factory=dict)
    """Keys that the endpoint gave to the call and wants back."""

    @property
    def tool(self) -> ToolKey:
        return self.hosted, self.group, self.name


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
    extra: Mapping[str, JSON] = field(default_factory=dict)
    """Keys that the endpoint gave to the message and wants back."""


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
    """A tool as the model sees it; without a `source` it is the client's to run.

    A client's tool may go by another name upstream than the one it has in its `namespace`, which is `called`. A custom
    tool takes a text; the model is shown a function whose one parameter is that text. With `approval`, a call is not
    run before the client has allowed it.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, JSON] = field(default_factory=lambda: {"type": "object", "properties": {}})
    source: ToolSource | None = None
    strict: bool | None = None
    kind: ToolKind = "function"
    namespace: str | None = None
    called: str = ""
    approval: bool = False

    @property
    def key(self) -> ToolKey:
        if self.source is not None:
            return True, self.source.group, self.source.name
        return False, self.namespace, self.called or self.name


@dataclass(frozen=True, slots=True)
class ToolFilter:
    """Some of a server's tools: those of these `names` (None: any) whose `readOnlyHint` is `read_only` (None: any)."""

    names: frozenset[str] | None = None
    read_only: bool | None = None

    def passes(self, name: str, read_only: bool) -> bool:
        return (self.names is None or name in self.names) and self.read_only in (None, read_only)


@dataclass(frozen=True, slots=True)
class Approval:
    """Which tools the client must allow call by call: `always` wins, and what is not in a given `never` needs it."""

    always: ToolFilter | None = None
    never: ToolFilter | None = None

    def needed(self, name: str, read_only: bool) -> bool:
        if self.always is not None and self.always.passes(name, read_only):
            return True
        return self.never is not None and not self.never.passes(name, read_only)


@dataclass(frozen=True, slots=True)
class ToolServer:
    """An MCP server that a request brings along: its tools are listed before the first model call.

    Of the `allowed` tools, which are listed, the `chosen` ones are offered in this turn. `listed` is what an earlier
    turn of the chain was told by the same server; None means that it must be asked. Without the list of a `needed`
    server the turn fails. The `fingerprint` stands for a secret `endpoint` in what is stored; it is empty for others.
    `args` are laid over the model's arguments, by the name of the tool, those under "" for every tool.
    """

    label: str
    endpoint: str
    allowed: ToolFilter = ToolFilter()
    chosen: ToolFilter = ToolFilter()
    approval: Approval = Approval()
    listed: tuple[JSON, ...] | None = None
    needed: bool = False
    fingerprint: str = ""
    args: Mapping[str, Mapping[str, JSON]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AllowedCall:
    """A call of an earlier turn which the client has allowed since: it runs before the model is asked.

    `request` is the id of the item that asked for the approval. The runner of one too many is `unknown`.
    """

    call_id: str
    name: str
    group: str
    arguments: str
    request: str
    runner: Literal["server", "unknown"] = "server"


@dataclass(frozen=True, slots=True)
class Spec:
    """The rules of one turn, resolved from an agent or a request; constant while the turn runs.

    `choice` is `auto`, `none`, `required` or a tool's name; a forcing one binds the first model call only, or the
    turn could never end. With `choice_group`, that call must be one to a tool of this MCP server. `sampling` holds
    chat-completions parameters as they go upstream, `optional_sampling` those that nobody asked for, without which a
    model is asked that refuses them. `max_hosted_calls` limits the calls that are run here, over the
    whole turn. With `truncates`, turns of the history are left out until the model can read what remains; a context
    of more than `compact_above` tokens is summed up first. The last four say where the two APIs differ: whether client
    calls suspend the turn (or end it), whether calls of the last permitted inference still run, whether a client call
    must have a JSON object for arguments to reach the client, and whether a turn fails when an MCP server refuses the
    credentials.
    """

    model: str
    instructions: str = ""
    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    sampling: Mapping[str, JSON] = field(default_factory=dict)
    optional_sampling: Mapping[str, JSON] = field(default_factory=dict)
    response_format: Mapping[str, JSON] | None = None
    parallel_calls: bool = True
    max_inferences: int = 10
    max_tokens: int | None = None
    input_shields: tuple[str, ...] = ()
    output_shields: tuple[str, ...] = ()
    documents: tuple[Mapping[str, JSON], ...] = ()
    servers: tuple[ToolServer, ...] = ()
    allowed_calls: tuple[AllowedCall, ...] = ()
    choice_group: str | None = None
    max_hosted_calls: int | None = None
    truncates: bool = False
    compact_above: int | None = None
    suspends_for_client: bool = True
    runs_last_calls: bool = False
    checks_client_arguments: bool = True
    fails_on_refused_credentials: bool = False


MOST_NAME_CHARACTERS = 64
"""Of a tool's name, for the endpoints that are strict about it."""
_FOREIGN_CHARACTER = re.compile(r"[^A-Za-z0-9_-]")


def flat_name(namespace: str | None, name: str) -> str:
    """The name for a tool of a namespace where there are no namespaces; what would be too long ends in a digest."""
    if not namespace:
        return name
    return distinct_name(f"{namespace}__{name}", ())


def distinct_name(name: str, taken: Container[str]) -> str:
    """The name, or one that is made of it and is not taken, in the form that all endpoints take for a tool.

    That is at most `MOST_NAME_CHARACTERS` letters, digits, `_` and `-` of ASCII.
    """
    name = _FOREIGN_CHARACTER.sub("_", name) or "_"
    name = name if len(name) <= MOST_NAME_CHARACTERS else _shortened(name)
    others = (f"{name[: MOST_NAME_CHARACTERS // 2]}__{number}" for number in count(2))
    return next(candidate for candidate in chain((name,), others) if candidate not in taken)


def _shortened(name: str) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: MOST_NAME_CHARACTERS - 9]}_{digest}"


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
