"""What the core needs from the world, as protocols; `adapters/` answers them, `testing.py` fakes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from turnloom.domain.event import Event
from turnloom.domain.message import JSON, Message, Tool, ToolSource, Usage

# --- storage ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One item of an ordered table: `value` is JSON, at most 350,000 bytes of it (what is larger goes to `Blobs`).

    `version` is what `Version` compares: the writer sets it. `expires` is in seconds since the epoch; an expired row
    is not returned by any read. `indexes` places the row in named secondary orders, as (partition, sort); a row that
    leaves out an index is not in it.
    """

    partition: str
    sort: str
    value: JSON
    version: int = 1
    expires: int | None = None
    indexes: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Absent:
    """Write only if no row has this key."""


@dataclass(frozen=True, slots=True)
class Version:
    """Write only if the row is there with this version."""

    number: int


Condition = Absent | Version


class ConditionFailed(Exception):
    """A conditional write met another state than it asked for; nothing was written."""


@dataclass(frozen=True, slots=True)
class Page:
    """A run of rows in order; `more` says that the query has further rows beyond the last one."""

    rows: tuple[Row, ...]
    more: bool


class Table(Protocol):
    """An ordered table with conditional writes. Reads are strongly consistent, but for queries with `index`."""

    async def get(self, partition: str, sort: str) -> Row | None: ...

    async def get_many(self, keys: Sequence[tuple[str, str]]) -> list[Row]:
        """The rows with these (partition, sort) keys, in the order of `keys`; what does not exist is left out."""
        ...

    async def put(self, row: Row, when: Condition | None = None) -> None:
        """Write the row whole, replacing any other. Raises ConditionFailed when `when` does not hold."""
        ...

    async def delete(self, partition: str, sort: str, when: Version | None = None) -> None:
        """Remove the row; removing what is not there is no error, unless `when` names a version (ConditionFailed)."""
        ...

    async def query(
        self,
        partition: str,
        *,
        after: str | None = None,
        before: str | None = None,
        descending: bool = False,
        limit: int | None = None,
        index: str | None = None,
    ) -> Page:
        """Rows of one partition in order of the sort key, `after` and `before` exclusive; one page, at most `limit`.

        With `index`, partition and sort key are those of that secondary order, which may lag behind by moments.
        """
        ...


class Blobs(Protocol):
    """Bytes by key, for what a table item cannot hold."""

    async def put(self, key: str, content: bytes) -> None: ...

    async def get(self, key: str) -> bytes | None: ...

    async def delete(self, key: str) -> None: ...


# --- the model -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One chat-completions call. `tool_choice` is None (not sent), `required`, or the name of a tool in `tools`.

    `optional_sampling` holds parameters that nobody asked for: a model that refuses one is asked without it.
    `patience` is the longest wait, in seconds, that the endpoint may wish for (Retry-After) before the error goes to
    the caller at once.
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: str | None = None
    sampling: Mapping[str, JSON] = field(default_factory=dict)
    optional_sampling: Mapping[str, JSON] = field(default_factory=dict)
    response_format: Mapping[str, JSON] | None = None
    parallel_calls: bool = True
    max_tokens: int | None = None
    patience: float = 5.0


@dataclass(frozen=True, slots=True)
class TextChunk:
    """Text, refusal or reasoning as it arrives; never empty. `logprobs` as the upstream gave them for this text."""

    text: str
    block: Literal["text", "refusal", "reasoning"] = "text"
    logprobs: tuple[JSON, ...] = ()


@dataclass(frozen=True, slots=True)
class CallChunk:
    """A fragment of the tool call number `index` (as the upstream counts); id and name come with one of them."""

    index: int
    call_id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """The model stopped: the upstream's reason, and its count of tokens, None if it gave none.

    `extra` and `call_extras` are keys of the message, and of its calls by their index, that only the endpoint
    understands and wants back with the history.
    """

    reason: Literal["stop", "tool_calls", "length", "content_filter"]
    usage: Usage | None = None
    extra: Mapping[str, JSON] = field(default_factory=dict)
    call_extras: Mapping[int, Mapping[str, JSON]] = field(default_factory=dict)


Chunk = TextChunk | CallChunk | Finished


@dataclass(frozen=True, slots=True)
class ModelInfo:
    model_id: str
    created: int = 0
    owned_by: str = ""


class Model(Protocol):
    """An OpenAI-compatible endpoint."""

    @property
    def takes_files(self) -> bool:
        """Whether it is shown files such as PDFs, which else become text before."""
        ...

    def stream(self, request: ModelRequest) -> AsyncGenerator[Chunk]:
        """The answer in chunks, the last one `Finished`.

        Raises an UpstreamError: connection errors, 429 and 5xx only after retries, and never a retry once a chunk is
        out; UpstreamBroken when the stream ends without a finish reason. Closing the iterator ends the upstream call.
        """
        ...

    async def count(self, request: ModelRequest) -> int | None:
        """How many tokens the endpoint would read for this request; None where it has no way to tell.

        Never a billable call, and never an error.
        """
        ...

    async def models(self) -> list[ModelInfo]: ...


# --- tools -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToolScope:
    """For whom and within what a tool is run. `headers` are secrets of this caller by MCP server address."""

    owner: str
    session: str | None = None
    turn: str | None = None
    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    provider_data: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gave back: text, or the content blocks of MCP. With `error` set, `content` says what went wrong."""

    content: str | list[JSON]
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    error: ToolError | None = None


@dataclass(frozen=True, slots=True)
class ToolError:
    """Why a tool failed: `kind` tells an MCP protocol error, an HTTP status and a tool's own error apart."""

    kind: Literal["tool", "protocol", "http", "arguments", "unknown", "timeout", "interrupted"]
    message: str
    code: int = 1


class Tools(Protocol):
    """Runs server tools, and asks tool servers what they offer."""

    def check(self, endpoint: str) -> None:
        """Refuse, without reaching for it, the address of a tool server that is not taken (InvalidRequest)."""
        ...

    async def call(self, source: ToolSource, arguments: Mapping[str, JSON], scope: ToolScope) -> ToolResult:
        """Run one tool. A failing tool is a result with `error`, never an exception."""
        ...

    async def offered(self, source: ToolSource, scope: ToolScope) -> list[Tool]:
        """The tools of a group (`source.name` is ignored), each with its own source filled in.

        Raises Unauthenticated (`mcp_unauthenticated`), UpstreamError (`toolgroup_unreachable`) or InvalidRequest.
        """
        ...


# --- shields, documents, orchestration, tokens, time -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Violation:
    level: Literal["info", "warn", "error"]
    user_message: str | None = None
    metadata: Mapping[str, JSON] = field(default_factory=dict)


class Shields(Protocol):
    async def check(self, shield: str, messages: Sequence[Message], scope: ToolScope) -> Violation | None:
        """What this shield has against the last of `messages`; raises UpstreamError (`shield_unavailable`)."""
        ...


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """What lies at an address, its media type in lower case (`application/octet-stream` when untold), and its name.

    A text is in UTF-8, whatever it was. The name, "" if there is none, has no folders and no control characters.
    """

    content: bytes
    media_type: str
    filename: str


class Retriever(Protocol):
    def check(self, content: JSON, mime_type: str) -> None:
        """Refuse, without reading it, a document of a kind, size or address that is not taken (InvalidRequest)."""
        ...

    async def document(self, content: JSON, mime_type: str) -> str:
        """The text of a document, inline or by address; raises InvalidRequest (`document_rejected`)."""
        ...

    async def file(self, url: str) -> FetchedFile:
        """The file at an https address, of at most 20 MiB; raises InvalidRequest (`invalid_value`)."""
        ...

    async def pdf_text(self, content: bytes, owner: str) -> str:
        """The text in a PDF, of at most 1 MiB, never blank; raises InvalidRequest (`unsupported_file`)."""
        ...


class NotStarted(Exception):
    """The orchestrator could not be reached, or would not start an execution; another try may succeed."""


ExecutionStatus = Literal["running", "ended", "absent"]


class Orchestrator(Protocol):
    """Step Functions: runs a turn on, one action at a time."""

    async def start(self, name: str, given: Mapping[str, Any]) -> None:
        """Start an execution; starting one of the same name again changes nothing. `given` holds ids only.

        Raises NotStarted.
        """
        ...

    async def status(self, name: str) -> ExecutionStatus:
        """The status of the execution of that name, `absent` if none was started; `running` if it is unknown."""
        ...


class Meter(Protocol):
    """Figures for who operates the deployment. Nothing that is measured may suffer from it: no method raises."""

    def saw(self, event: Event, *, api: str, model: str | None = None) -> None:
        """This has happened in a turn of the API, in a run of the model if one is named."""
        ...

    def first_token(self, seconds: float, *, api: str, model: str) -> None:
        """So long after its beginning a turn had the model's first word for its reader."""
        ...


class Unreadable(Exception):
    """The text was not sealed here for this context."""


class Vault(Protocol):
    """Seals what must not be readable at rest, or by the client that is handed it to bring it back."""

    def seal(self, secret: bytes, context: str) -> str:
        """Text in the URL-safe base64 alphabet, the same for the same secret and context: sealed text is replayed."""
        ...

    def unseal(self, sealed: str, context: str) -> bytes:
        """What was sealed for this context; raises Unreadable."""
        ...


class Tokens(Protocol):
    """Signed tokens of the issuer that a deployment trusts."""

    async def claims(self, token: str) -> Mapping[str, JSON]:
        """What a valid token says; raises Unauthenticated, or UpstreamError when its issuer cannot be asked."""
        ...


class Clock(Protocol):
    def now(self) -> int:
        """Microseconds since the epoch."""
        ...

    async def sleep(self, seconds: float) -> None: ...
