"""An answer as it comes over the wire, read into chunks."""

from __future__ import annotations

import asyncio
import json
import math
from codecs import BOM_UTF8
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from turnloom.adapters.openai_model.errors import (
    MOST_BYTES,
    AnswerTooLarge,
    blamed,
    refused,
    understood,
    unwrapped,
    words_of,
)
from turnloom.adapters.openai_model.event_stream import event_data
from turnloom.adapters.openai_model.parsing import parse_document
from turnloom.domain.errors import UpstreamBroken, UpstreamError, UpstreamTimeout
from turnloom.domain.json_scanner import JsonScanner
from turnloom.domain.message import JSON, Usage
from turnloom.domain.portable_json import MOST_LEVELS, levels
from turnloom.domain.surrogates import JSONRepair, TextRepair, repair
from turnloom.ports import CallChunk, Chunk, Finished, TextChunk

if TYPE_CHECKING:
    import httpx2

_DRAIN_SECONDS = 0.1
_SILENT_SECONDS = 900.0
"""For how long an endpoint may send nothing but comments and empty chunks, which say that a model thinks."""
_MOST_EXTRA_CHARACTERS = 1024 * 1024
_MOST_LOGPROB_CHARACTERS = 4 * 1024 * 1024
_MOST_CALLS = 1024
"""Of one answer, as are the characters."""
_LEAST_LOGPROB = -9999.0
"""The number that OpenAI gives where the probability is 0, whose logarithm JSON cannot hold."""
_LARGEST_NUMBER = 2**53
"""A larger number is no count or time, and neither every store nor every JSON reader can hold it."""
_MOST_HEAD_BYTES = 4096
_FIELDS = ("data", "event", "id", "retry", ":")


async def documents_of(response: httpx2.Response) -> AsyncGenerator[JSON]:
    """The JSON documents of an answer in order, each of at most `MOST_BYTES`, and None in place of `[DONE]`.

    Its first bytes tell whether it is one document or a stream of events; the content type does only where they do not.
    """
    with blamed(), understood():
        pieces = response.aiter_bytes()
        head = await _head(pieces)
        start = head.removeprefix(BOM_UTF8).lstrip()
        if start[:1] in (b"{", b"["):
            yield parse_document(await _whole(_behind(head, pieces)))
            return
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "text/event-stream" and not start.startswith(tuple(field.encode() for field in _FIELDS)):
            raise ValueError(f"completions are not sent as {kind!r}")
        async for data in event_data(_behind(head, pieces), MOST_BYTES):
            if data:
                yield None if data.strip() == "[DONE]" else parse_document(data)


async def _head(pieces: AsyncIterator[bytes]) -> bytes:
    """The first bytes of a body, up to some that are no white space."""
    head = b""
    async for piece in pieces:
        head += piece
        if len(head.removeprefix(BOM_UTF8).strip()) >= len("retry") or len(head) > _MOST_HEAD_BYTES:
            break
    return head


async def _behind(head: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield head
    async for piece in pieces:
        yield piece


async def _whole(pieces: AsyncIterator[bytes]) -> str:
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > MOST_BYTES:
            raise AnswerTooLarge(MOST_BYTES)
    return body.decode("utf-8-sig", "replace")


async def next_chunks(documents: AsyncGenerator[JSON], answer: Answer) -> list[Chunk] | None:
    """The chunks of the next document that has any; None at the end of the answer.

    Behind a finish reason whatever breaks the stream cannot break the answer. Raises UpstreamTimeout when the endpoint
    sends nothing of an answer for too long, and what `Answer.read` raises.
    """
    try:
        async with asyncio.timeout(_SILENT_SECONDS):
            while (document := await _next_document(documents, answer)) is not None:
                if chunks := answer.read(document):
                    return chunks
    except TimeoutError:
        if not answer.reason:
            message = f"The model endpoint sent nothing of its answer for {_SILENT_SECONDS:g} seconds."
            raise UpstreamTimeout(message) from None
    return None


async def _next_document(documents: AsyncGenerator[JSON], answer: Answer) -> JSON:
    if answer.ended:
        return None
    try:
        return await anext(documents, None)
    except UpstreamError:
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
    has_arguments: bool = False
    arguments: JsonScanner = field(default_factory=JsonScanner)
    repair: JSONRepair = field(default_factory=JSONRepair)
    extra: dict[str, JSON] = field(default_factory=dict)

    @property
    def is_begun(self) -> bool:
        """Whether its arguments have begun and are no whole JSON value yet."""
        return self.has_arguments and not self.arguments.is_complete()


@dataclass(slots=True)
class Answer:
    """What has been read of an answer: its finish reason, its usage, its calls in order and by the endpoint's index.

    `begun` says that some of it may have been passed on, `ended` that nothing more of it can come.
    """

    begun: bool = False
    ended: bool = False
    reason: str = ""
    usage: Usage | None = None
    extra: dict[str, JSON] = field(default_factory=dict)
    calls: list[_Call] = field(default_factory=list)
    by_index: dict[JSON, _Call] = field(default_factory=dict)
    texts: dict[str, TextRepair] = field(default_factory=lambda: defaultdict(TextRepair))
    extra_characters: int = 0
    logprob_characters: int = 0

    def read(self, document: JSON) -> list[Chunk]:
        """The chunks of one document, a chunk of a stream or a whole completion.

        Raises UpstreamError: for an error in place of an answer, what its status would have meant; else UpstreamBroken.
        """
        with understood():
            document = unwrapped(document)
            if error := document.get("error") or (document.get("object") == "error" and document):
                raise self._broken_off(error)
            if usage := document.get("usage"):
                self.usage = _usage(usage, self.usage or Usage())
            choices = document.get("choices") or ()
            self.ended = bool(self.reason and usage and not choices)
            chunks = [chunk for choice in choices for chunk in self._choice(choice)]
        self.begun = self.begun or bool(chunks)
        return chunks

    def finished(self) -> Finished:
        """The end of the answer; raises UpstreamBroken when the endpoint has not said why it stopped, or broke off."""
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
        calls = [CallChunk(call.number, "", "", rest) for call in self.calls if (rest := call.repair.rest())]
        return [*texts, *calls]

    def _ending(self) -> Literal["stop", "tool_calls", "length", "content_filter"]:
        word = self.reason.lower().partition(":")[0].strip()
        if word in _LENGTH:
            return "length"
        if word in _FILTERED:
            return "content_filter"
        if word not in _DONE:
            raise UpstreamBroken(f"The model endpoint ended its answer with '{self.reason[:100]}'.")
        # Some endpoints say `stop` although they call tools.
        return "tool_calls" if self.calls else "stop"

    def _choice(self, choice: JSON) -> Iterator[Chunk]:
        if choice.get("index"):
            return
        delta, logprobs = choice.get("delta") or choice.get("message") or {}, choice.get("logprobs") or {}
        if error := choice.get("error") or delta.get("error"):
            raise self._broken_off(error)
        if (reason := choice.get("finish_reason")) not in _NO_REASONS:
            self.reason = repair(str(reason))
        self._add_extras(self.extra, delta, _MESSAGE_KEYS)
        thoughts, speech = _voices(delta.get("content"))
        thoughts = _joined(delta.get("reasoning_content") or delta.get("reasoning")) + thoughts
        if reasoning := self._added("reasoning", thoughts):
            yield TextChunk(reasoning, "reasoning")
        if text := self._added("text", speech):
            yield TextChunk(text, "text", self._logprobs(logprobs.get("content")))
        if refusal := self._added("refusal", _string(delta.get("refusal"))):
            yield TextChunk(refusal, "refusal", self._logprobs(logprobs.get("refusal")))
        for fragment in delta.get("tool_calls") or ():
            yield from self._call(fragment)
        if older := delta.get("function_call"):
            yield from self._call({"index": "function_call", "function": older})

    def _added(self, block: str, text: str) -> str:
        return self.texts[block].add(text) if text else ""

    def _add_extras(self, extras: dict[str, JSON], values: JSON, known_keys: frozenset[str]) -> None:
        """Keep the keys that are not known, up to a limit; what comes in pieces is put together by its type."""
        for key, value in values.items():
            if key in known_keys or value in (None, "", [], {}):
                continue
            text = json.dumps(value, allow_nan=False)
            self.extra_characters += len(key) + len(text)
            if self.extra_characters > _MOST_EXTRA_CHARACTERS:
                raise UpstreamBroken("The model endpoint sent too much that is neither text nor calls.")
            if levels(value) > MOST_LEVELS:
                raise ValueError(f"{key} is nested too deep")
            value = _repaired(value, text)
            key = repair(key)
            before = extras.get(key)
            if isinstance(before, dict) and isinstance(value, dict):
                before.update(value)
            elif isinstance(before, list) and isinstance(value, list):
                before.extend(value)
            else:
                extras[key] = value

    def _logprobs(self, entries: JSON) -> tuple[JSON, ...]:
        """The log probabilities of a text's tokens, of which one may be half of a surrogate pair."""
        if not isinstance(entries, list):
            return ()
        text = json.dumps(entries)
        self.logprob_characters += len(text)
        if self.logprob_characters > _MOST_LOGPROB_CHARACTERS:
            raise UpstreamBroken("The model endpoint sent too many log probabilities.")
        return tuple(_logprob_entries(_repaired(entries, text)))

    def _call(self, fragment: JSON) -> Iterator[CallChunk]:
        """What a fragment adds to its call; of those that add nothing, an endpoint may send any number."""
        function = fragment.get("function") or {}
        call_id, name = _text(fragment.get("id")), _text(function.get("name"))
        value = function.get("arguments") or ""
        arguments = value if isinstance(value, str) else json.dumps(value)
        calls_before = len(self.calls)
        call = self._call_of(fragment.get("index"), call_id, name, arguments)
        self._add_extras(call.extra, fragment, _CALL_KEYS)
        call.arguments.add(arguments)
        call.has_arguments = call.has_arguments or bool(arguments.strip())
        repaired = call.repair.add(arguments)
        chunk = CallChunk(call.number, "" if call.call_id else call_id, "" if call.name else name, repaired)
        call.call_id, call.name = call.call_id or call_id, call.name or name
        if chunk.call_id or chunk.name or chunk.arguments or len(self.calls) > calls_before:
            yield chunk

    def _call_of(self, index: JSON, call_id: str, name: str, arguments: str) -> _Call:
        """The call that a fragment belongs to, a new one if it begins one.

        The index tells, where there is one; but some endpoints leave it out, or say 0 for every call (Gemini), and
        some repeat id or name with every fragment: a second name is a second call if its id is not the same, unless
        the arguments of the first have begun and need more. Arguments without a name belong to what is open.
        """
        open_call = self.by_index.get(index) if index is not None else self.calls[-1] if self.calls else None
        if not name and arguments and self.calls:
            same_id = (call for call in self.calls if call_id and call.call_id == call_id)
            return next(same_id, open_call or self.calls[-1])
        if open_call is None or self._begins_another(open_call, index, call_id, name):
            if len(self.calls) == _MOST_CALLS:
                raise UpstreamBroken(f"The model endpoint sent more than {_MOST_CALLS} tool calls in one answer.")
            open_call = _Call(len(self.calls))
            self.calls.append(open_call)
            self.by_index[index] = open_call
        return open_call

    def _begins_another(self, call: _Call, index: JSON, call_id: str, name: str) -> bool:
        if not call.name or not name:
            return False
        if index is not None and name == call.name and call.is_begun:
            return False
        return call_id != call.call_id if call_id else index is None


_DONE = ("stop", "eos", "end_turn", "stop_sequence", "complete", "tool_calls", "tool_use", "function_call", "eos_token")
"""The words of success are a closed list: an answer that ends with any other word is none."""
_LENGTH = ("length", "max_tokens", "model_length")
_FILTERED = (
    *("content_filter", "content_filtered", "safety", "recitation", "sensitive", "refusal"),
    *("blocklist", "prohibited_content", "spii"),
)
_NO_REASONS = (None, "", "null")

_TEXT_PARTS = ("text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning", "reasoning_text", "summary_text")


def _voices(content: JSON) -> tuple[str, str]:
    """What is thought and what is said in content, which is a text or (nested) parts; unknown parts are skipped."""
    if not isinstance(content, list):
        return "", _string(content)
    thoughts = [_joined(_inner(part)) for part in content if _part_type(part) in _THOUGHT_PARTS]
    texts = [part if isinstance(part, str) else _joined(_inner(part)) for part in content if _part_type(part) == "text"]
    return "".join(thoughts), "".join(texts)


def _part_type(part: JSON) -> str:
    if isinstance(part, str):
        return "text"
    kind = str(part.get("type") or "text") if isinstance(part, dict) else ""
    return "text" if kind in _TEXT_PARTS else kind


def _inner(part: JSON) -> JSON:
    keys = ("text", *_THOUGHT_PARTS, "content", "summary")
    return next((part[key] for key in keys if part.get(key)), "")


def _joined(value: JSON) -> str:
    """The text of a string, or of all parts of a list, however deep."""
    if isinstance(value, list):
        return "".join(_joined(part if isinstance(part, str | list) else _inner(part)) for part in value if part)
    return _string(value)


_TEXT_KEYS = ("content", "refusal", "reasoning", "reasoning_content", "audio", "annotations", "token_ids")
_MESSAGE_KEYS = frozenset((*_TEXT_KEYS, "role", "name", "tool_calls", "function_call"))
_CALL_KEYS = frozenset(("index", "id", "type", "function"))
"""What is read of a message and of a call, or is theirs alone; other keys go back to the endpoint as they came."""


def _text(value: JSON) -> str:
    return repair(_string(value))


def _repaired(value: JSON, text: str) -> JSON:
    """The value without halves of surrogate pairs; `text` is its JSON."""
    return json.loads(JSONRepair().add(text)) if r"\ud" in text else value


def _logprob(entry: JSON) -> dict[str, JSON] | None:
    """What an entry says of its token, each value of the type that it must have; None for what is no entry."""
    if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
        return None
    number, octets = entry.get("logprob"), entry.get("bytes")
    is_number = isinstance(number, int | float) and math.isfinite(number)
    is_bytes = isinstance(octets, list) and all(isinstance(octet, int) for octet in octets)
    logprob = number if is_number else _LEAST_LOGPROB
    return {"token": entry["token"], "logprob": logprob, "bytes": octets if is_bytes else None}


def _logprob_entries(entries: list[JSON]) -> Iterator[dict[str, JSON]]:
    """The entries of tokens, each with those of the tokens that could have stood in its place."""
    for entry in entries:
        if logprob := _logprob(entry):
            others = entry.get("top_logprobs")
            top = [other for other in map(_logprob, others if isinstance(others, list) else ()) if other]
            yield {**logprob, "top_logprobs": top}


def _string(value: JSON) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    raise TypeError(f"text expected, {type(value).__name__} found")


def _usage(figures: JSON, before: Usage) -> Usage:
    """The figures that are given over those that were known before; 0 stands for what nobody gave."""
    read = figures.get("prompt_tokens_details") or {}
    written = figures.get("completion_tokens_details") or {}
    input_tokens = whole_number(figures.get("prompt_tokens"))
    output_tokens = whole_number(figures.get("completion_tokens"))
    if input_tokens and output_tokens:
        # Some endpoints count what was thought in the total alone.
        output_tokens = max(output_tokens, whole_number(figures.get("total_tokens")) - input_tokens)
    return Usage(
        input_tokens or before.input_tokens,
        output_tokens or before.output_tokens,
        whole_number(read.get("cached_tokens")) or before.cached_tokens,
        whole_number(written.get("reasoning_tokens")) or before.reasoning_tokens,
    )


def whole_number(value: JSON) -> int:
    """A number of tokens or seconds, also one in a text; 0 for what is none."""
    try:
        number = int(float(value)) if isinstance(value, str | int | float) and not isinstance(value, bool) else 0
        return number if 0 <= number <= _LARGEST_NUMBER else 0
    except (ValueError, OverflowError):
        return 0
