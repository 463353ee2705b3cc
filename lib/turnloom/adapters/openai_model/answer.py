"""An answer as it comes over the wire, read into chunks."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from turnloom.adapters.openai_model.errors import (
    MOST_BYTES,
    AnswerTooLarge,
    blamed,
    refused,
    understood,
    words_of,
)
from turnloom.domain.errors import UpstreamBroken, UpstreamError
from turnloom.domain.message import JSON, Usage
from turnloom.domain.surrogates import JSONRepair, TextRepair, repair
from turnloom.ports import CallChunk, Chunk, Finished, TextChunk

if TYPE_CHECKING:
    import httpx2

_USAGE_SECONDS = 5.0
_DRAIN_SECONDS = 0.1
_MOST_CALLS = 1024
"""Of one answer."""
_MOST_TOKENS = 2**53
"""A larger number is no count, and neither every store nor every JSON reader can hold it."""


async def documents_of(response: httpx2.Response) -> AsyncGenerator[JSON]:
    """The JSON documents of an answer in order, each of at most `MOST_BYTES`, and None in place of `[DONE]`."""
    import httpx2

    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    with blamed(), understood():
        if kind == "application/json":
            yield json.loads(await _whole(response))
            return
        if kind != "text/event-stream":
            raise ValueError(f"completions are not sent as {kind!r}")
        async for event in httpx2.EventSource(response, MOST_BYTES):
            if event.data:
                yield None if event.data == "[DONE]" else json.loads(event.data)


async def _whole(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MOST_BYTES:
            raise AnswerTooLarge(MOST_BYTES)
    return bytes(body)


async def next_of(documents: AsyncGenerator[JSON], answer: Answer) -> JSON:
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


async def drain(documents: AsyncGenerator[JSON]) -> None:
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
    arguments: JSONRepair = field(default_factory=JSONRepair)
    extra: dict[str, JSON] = field(default_factory=dict)


@dataclass(slots=True)
class Answer:
    """What has been read of an answer: its finish reason, its usage, its calls in order and by the endpoint's index.

    `begun` says that some of it may have been passed on.
    """

    extra: dict[str, JSON] = field(default_factory=dict)
    begun: bool = False
    reason: str = ""
    usage: Usage | None = None
    calls: list[_Call] = field(default_factory=list)
    places: dict[JSON, _Call] = field(default_factory=dict)
    texts: dict[str, TextRepair] = field(default_factory=lambda: defaultdict(TextRepair))

    def read(self, document: JSON) -> list[Chunk]:
        """The chunks of one document, a chunk of a stream or a whole completion.

        Raises UpstreamError: for an error in place of an answer, what its status would have meant; else UpstreamBroken.
        """
        with understood():
            if error := document.get("error") or (document.get("object") == "error" and document):
                raise self._broken_off(error)
            if usage := document.get("usage"):
                self.usage = _usage(usage)
            chunks = [chunk for choice in document.get("choices") or () for chunk in self._choice(choice)]
        self.begun = self.begun or bool(chunks)
        return chunks

    def finished(self) -> Finished:
        """The end of the answer; raises UpstreamBroken when the endpoint has not said why it stopped."""
        if not self.reason:
            raise UpstreamBroken("The model endpoint ended its answer without a finish reason.")
        extras = {call.number: call.extra for call in self.calls if call.extra}
        return Finished(self._ending(), self.usage, self.extra, extras)

    def _broken_off(self, error: JSON) -> UpstreamError:
        if self.begun:
            return UpstreamBroken(f"The model endpoint reported an error: {words_of(error)}")
        return refused(error)

    def rest(self) -> list[Chunk]:
        """What no fragment has completed: half of a surrogate pair, part of an escape."""
        texts = [
            TextChunk(rest, block)
            for block in ("reasoning", "text", "refusal")
            if block in self.texts and (rest := self.texts[block].rest())
        ]
        calls = [CallChunk(call.number, "", "", rest) for call in self.calls if (rest := call.arguments.rest())]
        return [*texts, *calls]

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
        _add_extras(self.extra, delta, _MESSAGE_KEYS)
        if reasoning := self._added("reasoning", delta.get("reasoning_content") or delta.get("reasoning")):
            yield TextChunk(reasoning, "reasoning")
        if text := self._added("text", delta.get("content")):
            yield TextChunk(text, "text", _logprobs(logprobs.get("content")))
        if refusal := self._added("refusal", delta.get("refusal")):
            yield TextChunk(refusal, "refusal", _logprobs(logprobs.get("refusal")))
        for fragment in delta.get("tool_calls") or ():
            yield self._call(fragment)

    def _added(self, block: str, text: JSON) -> str:
        return self.texts[block].add(_string(text)) if text else ""

    def _call(self, fragment: JSON) -> CallChunk:
        function = fragment.get("function") or {}
        call_id, name = _text(fragment.get("id")), _text(function.get("name"))
        call = self._call_of(fragment.get("index"), call_id, name)
        _add_extras(call.extra, fragment, _CALL_KEYS)
        arguments = function.get("arguments") or ""
        chunk = CallChunk(
            call.number,
            "" if call.call_id else call_id,
            "" if call.name else name,
            call.arguments.add(arguments if isinstance(arguments, str) else json.dumps(arguments)),
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
            if len(self.calls) == _MOST_CALLS:
                raise UpstreamBroken(f"The model endpoint sent more than {_MOST_CALLS} tool calls in one answer.")
            call = _Call(len(self.calls))
            self.calls.append(call)
            self.places[index] = call
        return call


_TEXT_KEYS = ("content", "refusal", "reasoning", "reasoning_content", "audio", "annotations", "token_ids")
_MESSAGE_KEYS = frozenset((*_TEXT_KEYS, "role", "name", "tool_calls", "function_call"))
_CALL_KEYS = frozenset(("index", "id", "type", "function"))
"""What is read of a message and of a call, or is theirs alone; other keys go back to the endpoint as they came."""


def _add_extras(extras: dict[str, JSON], given: JSON, known: frozenset[str]) -> None:
    """Keep the keys that are not known; what comes in pieces is put together by its type."""
    for key, value in given.items():
        if key in known or value in (None, "", [], {}):
            continue
        before = extras.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            extras[key] = {**before, **value}
        elif isinstance(before, list) and isinstance(value, list):
            extras[key] = before + value
        else:
            extras[key] = value


def _text(value: JSON) -> str:
    return repair(_string(value))


def _logprobs(logprobs: JSON) -> tuple[JSON, ...]:
    """The log probabilities of a text's tokens, of which one may be half of a surrogate pair."""
    if not logprobs:
        return ()
    written = json.dumps(logprobs)
    return tuple(json.loads(JSONRepair().add(written)) if r"\ud" in written else logprobs)


def _string(value: JSON) -> str:
    if value is None or isinstance(value, str):
        return value or ""
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
    return given if type(given) is int and 0 <= given <= _MOST_TOKENS else 0
