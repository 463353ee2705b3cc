"""A scripted model endpoint on loopback, and the adapter that asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from tests.upstream import ScriptedUpstream

from turnloom.adapters.openai_model import OpenAIModel


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture
def upstream(server: ScriptedUpstream) -> ScriptedUpstream:
    server.forget()
    return server


@pytest.fixture
async def model(upstream: ScriptedUpstream) -> AsyncIterator[OpenAIModel]:
    model = OpenAIModel(upstream.url, "key", backoff=0)
    yield model
    await model.aclose()
