"""Answers that take long and do not stream: a byte now and then, before a client believes that nobody is there.

Clients give up after a minute without a byte. Once an answer is `PATIENCE_SECONDS` old, status 200 is committed and
spaces are sent, which JSON allows in front of a value. A failure after that can only be told inside the object.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from turnloom.domain.errors import Problem, ServerFault
from turnloom.domain.message import JSON
from turnloom.domain.turn import Turn
from turnloom.engine.follow import Followed
from turnloom.engine.inline import Run
from turnloom.wire.json_text import JSONAnswer, json_bytes

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 45.0
SPACE_SECONDS = 15.0

T = TypeVar("T")


async def patiently(
    work: Coroutine[Any, Any, T],
    in_time: Callable[[T], JSON],
    late: Callable[[T], JSON],
    failed: Callable[[Problem], JSON],
    patience: float = PATIENCE_SECONDS,
    pause: float = SPACE_SECONDS,
) -> Response:
    """The result of the work as JSON: by `in_time`, which may raise a Problem, or behind spaces by `late`.

    A Problem that comes too late for a status is told by `failed`.
    """
    result = asyncio.ensure_future(work)
    done, _ = await asyncio.wait({result}, timeout=patience)
    if done:
        return JSONAnswer(in_time(result.result()))
    return StreamingResponse(_spaced(result, late, failed, pause), media_type="application/json")


async def while_connected(request: Request, run: Run | Followed) -> Turn:
    """The turn once it rests; when the client goes away first, a run is called off."""
    settled = asyncio.ensure_future(run.settled())
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({settled, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not settled.done() and isinstance(run, Run):
            run.abandon()
        return await settled
    finally:
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


async def _spaced(
    result: asyncio.Future[T], late: Callable[[T], JSON], failed: Callable[[Problem], JSON], pause: float
) -> AsyncIterator[bytes]:
    while not result.done():
        yield b" "
        await asyncio.wait({result}, timeout=pause)
    try:
        told = late(result.result())
    except Problem as problem:
        told = failed(problem)
    except Exception:
        logger.exception("an answer that took long broke down")
        told = failed(ServerFault("The request failed because of an internal error."))
    yield json_bytes(told)
