"""Slow answers that do not stream: spaces first, then the object."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import pytest
from fastapi.responses import StreamingResponse

from turnloom.domain.errors import Problem, ServerFault
from turnloom.domain.message import JSON
from turnloom.wire.patience import patiently


def told(problem: Problem) -> JSON:
    return {"error": problem.message}


async def spaced(work: Coroutine[Any, Any, int], gate: asyncio.Event) -> Any:
    """What is told by work that is not done before the gate opens, which the first space does."""
    response = await patiently(work, lambda n: n, lambda n: {"late": n}, told, patience=0, pause=0)
    assert isinstance(response, StreamingResponse)
    parts = []
    async for part in response.body_iterator:
        parts.append(bytes(part))
        gate.set()
    assert parts[0] == b" "
    return json.loads(b"".join(parts))


async def test_an_answer_in_time_is_plain_json() -> None:
    response = await patiently(asyncio.sleep(0, 7), lambda n: {"n": n}, lambda n: {"late": n}, told)
    assert json.loads(bytes(response.body)) == {"n": 7}


async def test_a_failure_in_time_is_an_error() -> None:
    def refuse(_: int) -> None:
        raise ServerFault("no")

    with pytest.raises(ServerFault):
        await patiently(asyncio.sleep(0, 7), refuse, lambda n: n, told)


async def test_a_late_answer_is_the_same_json_behind_spaces() -> None:
    gate = asyncio.Event()

    async def work() -> int:
        await gate.wait()
        return 7

    assert await spaced(work(), gate) == {"late": 7}


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (ServerFault("The response is gone."), "The response is gone."),
        (KeyError("secret"), "The request failed because of an internal error."),
    ],
)
async def test_a_late_failure_is_told_in_the_body_behind_spaces(failure: Exception, message: str) -> None:
    gate = asyncio.Event()

    async def work() -> int:
        await gate.wait()
        raise failure

    assert await spaced(work(), gate) == {"error": message}
