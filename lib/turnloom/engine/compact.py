"""Summing up a context that has grown too long, and leaving the oldest of it out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import assert_never

from turnloom.domain.errors import UpstreamBroken, UpstreamRejected
from turnloom.domain.message import ImagePart, Message, SystemMessage, Usage, UserMessage
from turnloom.domain.transcript import begins_exchange
from turnloom.ports import CallChunk, Chunk, Finished, Model, ModelRequest, TextChunk

MOST_SUMMARY_CHARACTERS = 1024 * 1024
"""Of a summary with the reasoning before it: an endpoint may go on for ever."""
CHARACTERS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
TOKENS_PER_IMAGE = 765
"""Of the estimate, for upstreams that do not count: English text, and an image of medium size."""

_TASK = (
    "Sum up the conversation above, so that it can go on with nothing but your summary in place of it. Keep what the "
    "user wants, what was decided, facts, names, numbers, results of tools, and what is still open. Write the summary "
    "alone, without a preface."
)


async def tokens(model: Model, request: ModelRequest) -> int:
    """How many tokens the model would read: as its endpoint counts them, or an estimate."""
    counted = await model.count(request)
    return estimate(request) if counted is None else counted


def estimate(request: ModelRequest) -> int:
    """A number of tokens that grows with the request: a token is about four characters."""
    written = sum(_characters(message) for message in request.messages)
    tools = sum(len(f"{tool.name}{tool.description}{json.dumps(dict(tool.parameters))}") for tool in request.tools)
    schema = len(json.dumps(dict(request.response_format))) if request.response_format else 0
    images = sum(_images(message) for message in request.messages)
    overhead = TOKENS_PER_MESSAGE * len(request.messages) + TOKENS_PER_IMAGE * images
    return -(-(written + tools + schema) // CHARACTERS_PER_TOKEN) + overhead


async def summed_up(model: Model, request: ModelRequest, *, truncates: bool = False) -> tuple[str, Usage]:
    """A summary of the messages, made by the model, and what it cost.

    With `truncates`, the oldest turns are left out of what the model could not read otherwise. Raises what
    `Model.stream` raises, and UpstreamBroken for a summary that is empty or was cut, as it would stand for all that was
    said.
    """
    asked = ModelRequest(request.model, (*request.messages, UserMessage(_TASK)), patience=request.patience)
    try:
        async with aclosing(model.stream(asked)) as stream:
            summary, end = await _read_summary(stream)
    except UpstreamRejected as refusal:
        return await summed_up(model, shorter(request, refusal, truncates=truncates), truncates=truncates)
    if end is None or end.reason != "stop" or not summary.strip():
        raise UpstreamBroken("The model gave no whole summary of the conversation.")
    return summary, known_usage(end.usage, asked, len(summary))


async def _read_summary(stream: AsyncIterator[Chunk]) -> tuple[str, Finished | None]:
    """The text of an answer, and its end. Raises UpstreamBroken for one of more than `MOST_SUMMARY_CHARACTERS`."""
    texts: list[str] = []
    characters = 0
    end: Finished | None = None
    async for chunk in stream:
        match chunk:
            case TextChunk():
                characters += len(chunk.text)
                texts += [chunk.text] if chunk.block == "text" else []
            case CallChunk():
                characters += len(chunk.call_id + chunk.name + chunk.arguments)
            case Finished():
                end = chunk
            case _:
                assert_never(chunk)
        if characters > MOST_SUMMARY_CHARACTERS:
            raise UpstreamBroken(f"The model's summary is longer than {MOST_SUMMARY_CHARACTERS} characters.")
    return "".join(texts), end


def known_usage(usage: Usage | None, request: ModelRequest, characters: int) -> Usage:
    """The usage of an answer of so many characters, with an estimate for each total that the endpoint did not give."""
    usage = usage or Usage()
    return replace(
        usage,
        input_tokens=usage.input_tokens or estimate(request),
        output_tokens=usage.output_tokens or -(-characters // CHARACTERS_PER_TOKEN),
    )


def shorter(request: ModelRequest, refusal: UpstreamRejected, *, truncates: bool) -> ModelRequest:
    """The request to make after this refusal, by what `shortened` leaves; raises the refusal when that is no help."""
    messages = shortened(request.messages) if truncates else None
    if messages is None or refusal.code != "context_length_exceeded":
        raise refusal
    return replace(request, messages=messages)


def shortened(messages: Sequence[Message]) -> tuple[Message, ...] | None:
    """The messages without the oldest turns, a quarter of those that may go; None when nothing more may.

    A turn begins with a message of the user's and ends before the next one, so calls keep their results. Instructions
    and the newest turn stay.
    """
    starts = [place for place, message in enumerate(messages) if begins_exchange(message)]
    if len(starts) < 2:
        return None
    dropped = -(-(len(starts) - 1) // 4)
    kept = [message for message in messages[: starts[dropped]] if isinstance(message, SystemMessage)]
    return (*kept, *messages[starts[dropped] :])


def _characters(message: Message) -> int:
    content = getattr(message, "content", "")
    if isinstance(content, str):
        text = len(content) + len(getattr(message, "text", "")) + len(getattr(message, "reasoning", ""))
        return text + sum(len(call.name) + len(call.arguments) for call in getattr(message, "calls", ()))
    return sum(len(getattr(part, "text", "")) + len(getattr(part, "data", "")) // 8 for part in content)


def _images(message: Message) -> int:
    content = getattr(message, "content", "")
    return 0 if isinstance(content, str) else sum(isinstance(part, ImagePart) for part in content)
