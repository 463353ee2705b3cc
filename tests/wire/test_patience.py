"""Slow answers that do not stream: spaces first, then the object."""

from __future__ import annotations

import asyncio
import json

import pytest
from fastapi.responses import StreamingResponse

from turnloom.domain.errors import ServerFault
from turnloom.wire.patience import patiently


async def test_an_answer_in_time_is_plain_json() -> None:
    response = await patiently(asyncio.sleep(0, 7), lambda n: {"n": n}, lambda n: {"late": n})
    assert json.loads(bytes(response.body)) == {"n": 7}


async def test_a_failure_in_time_is_an_error() -> None:
    def refuse(_: int) -> None:
        raise ServerFault("no")

    with pytest.raises(ServerFault):
        await patiently(asyncio.sleep(0, 7), refuse, lambda n: n)


async def test_a_late_answer_is_the_same_json_behind_spaces() -> None:
    gate = asyncio.Event()

    async def work() -> int:
        await gate.wait()
        return 7

    response = await patiently(work(), lambda n: n, lambda n: {"late": n}, patience=0, pause=0)
    assert isinstance(response, StreamingResponse)
    parts = []
    async for part in response.body_iterator:
        parts.append(bytes(part))
        gate.set()
    assert parts[0] == b" " and json.loads(b"".join(parts)) == {"late": 7}
