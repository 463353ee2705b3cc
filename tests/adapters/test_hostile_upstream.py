"""Hostile model endpoints: whatever one answers, a call ends within bounds, and repeats no API key."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import aclosing

import pytest
from tests.heartbeat import Heartbeat
from tests.hostile_mcp import HostileServer
from tests.hostile_upstream import HOSTILE

from turnloom.adapters.openai_model import OpenAIModel
from turnloom.adapters.openai_model import answer as reading
from turnloom.adapters.openai_model.tokenizer import Tokenizer
from turnloom.domain.errors import UpstreamError
from turnloom.domain.message import UserMessage
from turnloom.ports import CallChunk, Chunk, Finished, ModelRequest, TextChunk

KEY = "sk-abcdefgh-12345-ijklmnop-67890"
REQUEST = ModelRequest("m", (UserMessage("Go."),))
LONGEST_BLOCK = 0.5
MOST_GROWTH = 100 * 1024 * 1024
MOST_CHARACTERS = 8 * 1024 * 1024
SECONDS = 0.15


@pytest.fixture(scope="module")
def hostile() -> Iterator[HostileServer]:
    with HostileServer("tests.hostile_upstream") as server:
        yield server


@pytest.fixture(autouse=True)
def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_SILENT_SECONDS", SECONDS)
    monkeypatch.setitem(Tokenizer.__init__.__kwdefaults__, "timeout", SECONDS)


def reveals(text: str) -> bool:
    """Whether the text has a piece of the key that could be of use."""
    return any(KEY[at : at + 8] in text for at in range(len(KEY) - 7))


def size(chunk: Chunk) -> int:
    match chunk:
        case TextChunk():
            return len(chunk.text)
        case CallChunk():
            return len(chunk.call_id) + len(chunk.name) + len(chunk.arguments)
        case Finished():
            return 0


async def answer(model: OpenAIModel) -> str:
    """The answer as the engine would store it, read no further than the engine reads it; or the error's text."""
    chunks: list[Chunk] = []
    characters = 0
    try:
        async with aclosing(model.stream(REQUEST)) as stream:
            async for chunk in stream:
                chunks.append(chunk)
                characters += size(chunk)
                if characters > MOST_CHARACTERS:
                    break
    except UpstreamError as error:
        return f"{error.message} {error.extra} {error!r}"
    return "".join(map(repr, chunks[:100]))


async def listing(model: OpenAIModel) -> str:
    try:
        return repr(await model.models())
    except UpstreamError as error:
        return f"{error.message} {error.extra} {error!r}"


@pytest.mark.parametrize("behaviour", HOSTILE)
async def test_a_hostile_endpoint_is_read_within_bounds(
    hostile: HostileServer, behaviour: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = OpenAIModel(hostile.url(behaviour, "v1"), KEY, retries=0, timeout=SECONDS)
    with caplog.at_level(logging.INFO):
        async with asyncio.timeout(8), Heartbeat() as heart:
            texts = [await answer(model), await listing(model), str(await model.count(REQUEST))]
    await model.aclose()
    assert heart.longest < LONGEST_BLOCK
    assert heart.growth < MOST_GROWTH
    assert not reveals(f"{texts} {caplog.text}")
    "".join(texts).encode()


async def test_a_redirect_is_not_followed(hostile: HostileServer) -> None:
    model = OpenAIModel(hostile.url("redirect_to_another_host", "v1"), KEY, retries=0, timeout=SECONDS)
    with pytest.raises(UpstreamError, match="307"):
        await anext(model.stream(REQUEST))
    await model.aclose()
