"""The Model port on any OpenAI-compatible chat-completions endpoint, over the `openai` package.

`openai` is imported by the first call, as that takes half a second: a function that calls models imports it at its
start, any other never pays. Requests go through the client's `post`, and answers are read as they lie on the wire: the
typed `create` checks every message and every chunk (for 40 messages and 8 chunks 10 ms, instead of 1.3 ms).
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar, assert_never, cast

from turnloom.domain.errors import (
    UpstreamBroken,
    UpstreamError,
    UpstreamLimited,
    UpstreamRejected,
    UpstreamTimeout,
)
from turnloom.domain.message import (
    JSON,
    AssistantMessage,
    Content,
    FilePart,
    ImagePart,
    Message,
    Part,
    SystemMessage,
    TextPart,
    Tool,
    ToolCall,
    ToolMessage,
    Usage,
    UserMessage,
)
from turnloom.ports import CallChunk, Chunk, Finished, ModelInfo, ModelRequest, TextChunk

if TYPE_CHECKING:
    import httpx2
    import openai

_T = TypeVar("_T")
_CONNECT_SECONDS = 5.0
_USAGE_SECONDS = 5.0
_DRAIN_SECONDS = 0.1
_MESSAGE_CHARACTERS = 2000


class OpenAIModel:
    """The endpoint at `base_url` (with its `/v1`), called with `api_key` (empty where none is needed),
    or with what it gives when the first call is made.

    An answer that fails before its first chunk, or 429, is asked for again up to `retries` times: after `backoff`
    seconds, then twice that and so on, each up to half as long again by chance, and never sooner than the endpoint
    wishes; if it wishes for more than `patience` seconds, the error goes to the caller at once, as timeouts do.
    `timeout` bounds the wait for the first byte and from byte to byte, in seconds. With `sends_reasoning` the model is
    shown its earlier reasoning as `reasoning_content`.

    One instance serves any number of event loops, with a pool of connections for each.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | Callable[[], str],
        *,
        retries: int = 2,
        timeout: float = 120.0,
        backoff: float = 0.5,
        patience: float = 5.0,
        sends_reasoning: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._base_url, self._timeout = base_url, timeout
        self._api_key = api_key if callable(api_key) else lambda: api_key
        self._retries, self._backoff, self._patience = retries, backoff, patience
        self._sends_reasoning, self._sleep = sends_reasoning, sleep
        self._asks_usage = True
        self._tls: ssl.SSLContext | None = None
        self._clients: dict[asyncio.AbstractEventLoop, openai.AsyncOpenAI] = {}

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Chunk]:
        """The answer in chunks, the last one `Finished`; closing the generator ends the call at the endpoint.

        Raises UpstreamRejected (`context_length_exceeded`, `model_not_found`, `upstream_authentication_error` or
        `upstream_rejected`), UpstreamLimited (`rate_limited`, `insufficient_quota`), UpstreamTimeout or UpstreamBroken.
        """
        body = _body(request, self._sends_reasoning)
        first, chunks = await self._persist(lambda: self._begin(body))
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    async def models(self) -> list[ModelInfo]:
        """What the endpoint lists; raises as `stream` does."""
        return await self._persist(self._list)

    async def aclose(self) -> None:
        """Close the running loop's connections; the instance stays usable."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    # --- retries

    async def _persist(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        tried = 0
        while True:
            try:
                return await attempt()
            except UpstreamError as error:
                if tried >= self._retries or not self._may_pass(error):
                    raise
                wish = error.extra.get("retry_after", 0)
            pause = max(self._backoff * 2**tried, wish)
            await self._sleep(pause * random.uniform(1, 1.5))  # noqa: S311  (spreads load, guards no secret)
            tried += 1

    def _may_pass(self, error: UpstreamError) -> bool:
        """Whether the same call may soon succeed."""
        soon = error.extra.get("retry_after", 0) <= self._patience
        limited = isinstance(error, UpstreamLimited) and error.code == "rate_limited"
        return soon and (limited or isinstance(error, UpstreamBroken))

    # --- one attempt

    async def _begin(self, body: Mapping[str, JSON]) -> tuple[Chunk, AsyncGenerator[Chunk]]:
        chunks = self._chunks(body)
        return await anext(chunks), chunks

    async def _chunks(self, body: Mapping[str, JSON]) -> AsyncGenerator[Chunk]:
        answer = _Answer()
        async with aclosing(await self._open(body)) as response, aclosing(_documents(response)) as documents:
            while (document := await _next(documents, answer)) is not None:
                for chunk in answer.read(document):
                    yield chunk
            yield answer.finished()
            await _drain(documents)

    async def _open(self, body: Mapping[str, JSON]) -> httpx2.Response:
        """Send the request; an endpoint that does not know `stream_options` is asked without them from then on."""
        import openai

        with _blamed():
            if not self._asks_usage:
                return await self._post(body)
            try:
                return await self._post({**body, "stream_options": {"include_usage": True}})
            except (openai.BadRequestError, openai.UnprocessableEntityError) as refusal:
                if "stream_options" not in refusal.response.text:
                    raise
            response = await self._post(body)
            # Only now it is sure: a refusal may quote the whole request and mean another part of it.
            self._asks_usage = False
            return response

    async def _post(self, body: Mapping[str, JSON]) -> httpx2.Response:
        import httpx2
        import openai

        # The SDK hands out the response itself for this `cast_to`, which its types know only for calls without stream.
        given = await self._client().post(
            "/chat/completions",
            cast_to=httpx2.Response,
            body=body,
            stream=True,
            stream_cls=openai.AsyncStream[object],
        )
        return cast("httpx2.Response", given)

    async def _list(self) -> list[ModelInfo]:
        import httpx2

        with _blamed():
            response = await self._client().get("/models", cast_to=httpx2.Response)
        with _understood():
            return [
                ModelInfo(model["id"], model.get("created") or 0, model.get("owned_by") or "")
                for model in response.json()["data"]
            ]

    def _client(self) -> openai.AsyncOpenAI:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            # Connections belong to their loop, and keep it alive: those of loops that are gone are let go here.
            for gone in [known for known in tuple(self._clients) if known.is_closed()]:
                self._clients.pop(gone, None)
            client = self._clients[loop] = self._new_client()
        return client

    def _new_client(self) -> openai.AsyncOpenAI:
        import httpx2
        import openai

        timeout = httpx2.Timeout(self._timeout, connect=_CONNECT_SECONDS)
        # Reading the certificates takes 20 ms: once per instance, not per loop.
        self._tls = self._tls or httpx2.create_ssl_context()
        return openai.AsyncOpenAI(
            base_url=self._base_url,
            # The SDK takes no empty key; endpoints that need none read none.
            api_key=self._api_key() or "none",
            timeout=timeout,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(timeout=timeout, verify=self._tls),
        )


# --- the request


def _body(request: ModelRequest, sends_reasoning: bool) -> dict[str, JSON]:
    """The request as JSON; what is not asked for is left out, as few endpoints know every key."""
    body: dict[str, JSON] = {
        **request.sampling,
        "model": request.model,
        "messages": [_message(message, sends_reasoning) for message in request.messages],
        "stream": True,
    }
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        if not request.parallel_calls:
            body["parallel_tool_calls"] = False
    if request.tool_choice is not None:
        body["tool_choice"] = _choice(request.tool_choice)
    if request.response_format is not None:
        body["response_format"] = request.response_format
    if request.max_tokens is not None:
        # Deprecated at OpenAI in favour of `max_completion_tokens`, yet the one word that all endpoints know.
        body["max_tokens"] = request.max_tokens
    return body


def _message(message: Message, sends_reasoning: bool) -> dict[str, JSON]:
    match message:
        case SystemMessage():
            return {"role": "system", "content": _content(message.content)}
        case UserMessage():
            return {"role": "user", "content": _content(message.content)}
        case AssistantMessage():
            return _assistant(message, sends_reasoning)
        case ToolMessage():
            return {"role": "tool", "tool_call_id": message.call_id, "content": message.content}
        case _:
            assert_never(message)


def _assistant(message: AssistantMessage, sends_reasoning: bool) -> dict[str, JSON]:
    shown: dict[str, JSON] = {"role": "assistant", "content": message.text or (None if message.calls else "")}
    if message.calls:
        shown["tool_calls"] = [_called(call) for call in message.calls]
    if sends_reasoning and message.reasoning:
        shown["reasoning_content"] = message.reasoning
    return shown


def _called(call: ToolCall) -> dict[str, JSON]:
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _content(content: Content) -> JSON:
    return content if isinstance(content, str) else [_part(part) for part in content]


def _part(part: Part) -> dict[str, JSON]:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text}
        case ImagePart():
            detail = {} if part.detail is None else {"detail": part.detail}
            return {"type": "image_url", "image_url": {"url": part.url, **detail}}
        case FilePart():
            return {"type": "file", "file": {"filename": part.filename, "file_data": part.data}}
        case _:
            assert_never(part)


def _tool(tool: Tool) -> dict[str, JSON]:
    function: dict[str, JSON] = {"name": tool.name, "parameters": tool.parameters}
    if tool.description:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _choice(choice: str) -> JSON:
    return choice if choice == "required" else {"type": "function", "function": {"name": choice}}


# --- the answer


async def _documents(response: httpx2.Response) -> AsyncGenerator[JSON]:
    """The JSON documents of an answer in order, and None in place of `[DONE]`."""
    import httpx2

    with _blamed(), _understood():
        if response.headers.get("content-type", "").startswith("application/json"):
            yield json.loads(await response.aread())
            return
        async for event in httpx2.EventSource(response):
            if event.data:
                yield None if event.data == "[DONE]" else json.loads(event.data)


async def _next(documents: AsyncGenerator[JSON], answer: _Answer) -> JSON:
    """The next document, or None at the end.

    After the finish reason only the count of tokens is still missing: it is not waited for long, and whatever breaks
    the stream then cannot break the answer.
    """
    try:
        async with asyncio.timeout(_USAGE_SECONDS if answer.reason else None):
            return await anext(documents, None)
    except (TimeoutError, UpstreamError):
        if answer.reason:
            return None
        raise


async def _drain(documents: AsyncGenerator[JSON]) -> None:
    """Read on to the end of the body, without which the connection could not serve another call."""
    with suppress(TimeoutError, UpstreamError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in documents:
                continue


@dataclass(slots=True)
class _Call:
    number: int
    call_id: str = ""
    name: str = ""


@dataclass(slots=True)
class _Answer:
    """What has been read of an answer: its finish reason, its usage, its calls in order and by the endpoint's index."""

    reason: str = ""
    usage: Usage | None = None
    calls: list[_Call] = field(default_factory=list)
    places: dict[JSON, _Call] = field(default_factory=dict)

    def read(self, document: JSON) -> list[Chunk]:
        """The chunks of one document, a chunk of a stream or a whole completion; raises UpstreamBroken."""
        with _understood():
            if error := document.get("error") or (document.get("object") == "error" and document):
                raise UpstreamBroken(f"The model endpoint reported an error: {_words(error)}")
            if usage := document.get("usage"):
                self.usage = _usage(usage)
            return [chunk for choice in document.get("choices") or () for chunk in self._choice(choice)]

    def finished(self) -> Finished:
        """The end of the answer; raises UpstreamBroken when the endpoint has not said why it stopped."""
        if not self.reason:
            raise UpstreamBroken("The model endpoint ended its answer without a finish reason.")
        return Finished(self._ending(), self.usage)

    def _ending(self) -> Literal["stop", "tool_calls", "length", "content_filter"]:
        if self.reason == "length":
            return "length"
        if self.reason == "content_filter":
            return "content_filter"
        # Some endpoints say `stop`, `function_call` or a word of their own although they call tools.
        return "tool_calls" if self.calls else "stop"

    def _choice(self, choice: JSON) -> Iterator[Chunk]:
        if choice.get("index"):
            return
        self.reason = choice.get("finish_reason") or self.reason
        delta, logprobs = choice.get("delta") or choice.get("message") or {}, choice.get("logprobs") or {}
        if reasoning := _text(delta.get("reasoning_content") or delta.get("reasoning")):
            yield TextChunk(reasoning, "reasoning")
        if text := _text(delta.get("content")):
            yield TextChunk(text, "text", tuple(logprobs.get("content") or ()))
        if refusal := _text(delta.get("refusal")):
            yield TextChunk(refusal, "refusal", tuple(logprobs.get("refusal") or ()))
        for fragment in delta.get("tool_calls") or ():
            yield self._call(fragment)

    def _call(self, fragment: JSON) -> CallChunk:
        function = fragment.get("function") or {}
        call_id, name = _text(fragment.get("id")), _text(function.get("name"))
        call = self._call_of(fragment.get("index"), call_id, name)
        arguments = function.get("arguments") or ""
        chunk = CallChunk(
            call.number,
            "" if call.call_id else call_id,
            "" if call.name else name,
            arguments if isinstance(arguments, str) else json.dumps(arguments),
        )
        call.call_id, call.name = call.call_id or call_id, call.name or name
        return chunk

    def _call_of(self, index: JSON, call_id: str, name: str) -> _Call:
        """The call that a fragment belongs to, a new one if it begins one.

        The index tells, where there is one; but some endpoints leave it out, or say 0 for every call (Gemini), and
        some repeat id or name with every fragment: a second name is a second call if its id is not the same.
        """
        call = self.places.get(index) if index is not None else self.calls[-1] if self.calls else None
        second = call is not None and call.name and name and (call_id != call.call_id if call_id else index is None)
        if call is None or second:
            call = _Call(len(self.calls))
            self.calls.append(call)
            self.places[index] = call
        return call


def _text(value: JSON) -> str:
    if value is None or isinstance(value, str):
        # Half a surrogate pair cannot be stored or sent on.
        return (value or "").encode(errors="replace").decode()
    raise TypeError(f"text expected, {type(value).__name__} found")


def _usage(given: JSON) -> Usage:
    read = given.get("prompt_tokens_details") or {}
    written = given.get("completion_tokens_details") or {}
    return Usage(
        _count(given.get("prompt_tokens")),
        _count(given.get("completion_tokens")),
        _count(read.get("cached_tokens")),
        _count(written.get("reasoning_tokens")),
    )


def _count(given: JSON) -> int:
    """A number of tokens; what is none counts as not given."""
    return given if isinstance(given, int) and given >= 0 else 0


# --- the errors

_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size"
    r"|maximum (context|model|input) length"  # OpenAI, vLLM, SGLang, Mistral, Groq
    r"|(context|model) (length|size|window)[^.]{0,40}exceeded"
    r"|exceeds?\b[^.]{0,40}\b(context|maximum number of (input )?tokens)"  # llama.cpp, Ollama, OpenAI, Gemini
    r"|(prompt|input)\b[^.]{0,80} is too long"  # Anthropic, Bedrock, older vLLM
    r"|inputs\b.{0,40} must (be <=|have less)",  # TGI
    re.IGNORECASE,
)
_NO_MODEL = re.compile(
    r"model_not_found|\bmodel\b.{0,120}?\b(not found|(does not|doesn't) exist|not a valid model)"
    r"|\b(unknown|invalid|no such) model\b|not a valid model",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d{1,9}(\.\d+)?")


@contextmanager
def _blamed() -> Iterator[None]:
    """Turn what the HTTP client raises into an UpstreamError."""
    import anyio
    import httpx2
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        # Not the cause: its text is upstream's, and may quote the key.
        raise _refusal(error) from None
    except (openai.APITimeoutError, httpx2.TimeoutException) as error:
        raise UpstreamTimeout("The model endpoint did not answer in time.") from error
    except openai.APIConnectionError as error:
        raise UpstreamBroken("The model endpoint cannot be reached.") from error
    # The last two are TLS failures that the client lets through (pydantic/httpx2, issue 854).
    except (httpx2.RequestError, ssl.SSLError, anyio.EndOfStream) as error:
        raise UpstreamBroken("The model endpoint broke off its answer.") from error


@contextmanager
def _understood() -> Iterator[None]:
    """Turn what goes wrong in reading a document of any shape into UpstreamBroken."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UpstreamBroken("The model endpoint sent something other than chat completions.") from error


def _refusal(error: openai.APIStatusError) -> UpstreamError:
    """What an answer with an error status means; the endpoint's own words are for the caller unless about our key."""
    status, words, kinds = error.status_code, _words(error.body), (error.code, error.type)
    message = words or f"The model endpoint answered with status {status}."
    wish = _retry_after(error.response.headers)
    extra = {} if wish is None else {"retry_after": wish}
    if status in (401, 403):
        return UpstreamRejected(
            "The model endpoint did not accept the credential it was given.", code="upstream_authentication_error"
        )
    if status == 408:
        return UpstreamTimeout("The model endpoint did not answer in time.")
    if status == 402 or (status == 429 and "insufficient_quota" in kinds):
        return UpstreamLimited(message, code="insufficient_quota", extra=extra)
    if status == 429:
        return UpstreamLimited(message, extra=extra)
    if 400 <= status < 500:
        return UpstreamRejected(message, code=_rejection(status, f"{kinds} {words}"))
    return UpstreamBroken(message, extra=extra)


def _rejection(status: int, words: str) -> str:
    if _TOO_LONG.search(words):
        return "context_length_exceeded"
    return "model_not_found" if status == 404 or _NO_MODEL.search(words) else "upstream_rejected"


def _words(error: object) -> str:
    """The sentence in an error body of any of the usual shapes, cut to a length that can be stored; no HTML."""
    if not error:
        return ""
    if isinstance(error, dict):
        told = next((error[key] for key in ("message", "detail", "error") if error.get(key)), None)
        return _words(told) if told else json.dumps(error)[:_MESSAGE_CHARACTERS]
    if isinstance(error, str):
        return "" if error.lstrip().startswith("<") else error[:_MESSAGE_CHARACTERS]
    return json.dumps(error)[:_MESSAGE_CHARACTERS]


def _retry_after(headers: Mapping[str, Any]) -> int | None:
    """The seconds of `Retry-After`, given as such or as a date, or of `retry-after-ms`; rounded up."""
    if _NUMBER.fullmatch(milliseconds := headers.get("retry-after-ms", "")):
        return math.ceil(float(milliseconds) / 1000)
    if _NUMBER.fullmatch(given := headers.get("retry-after", "")):
        return math.ceil(float(given))
    with suppress(ValueError, TypeError):  # no date, or one without a zone
        return max(0, math.ceil((parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds()))
    return None
