"""The bounds of what is read of an answer; imported with the first client, as `httpx2` takes time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator

import httpx2

from turnloom.adapters.openai_model.errors import MOST_BYTES, AnswerTooLarge
from turnloom.domain.errors import UpstreamBroken

_MOST_SECONDS_AT_ONCE = 0.01
_ERROR_BYTES = 64 * 1024
"""Of the body of an error, whose rest is not read; a caller is shown 2000 characters of it."""


async def bound(response: httpx2.Response) -> None:
    """Bound the bytes of an answer before its body is read. Raises UpstreamBroken if it is compressed.

    A few compressed bytes can hold gigabytes, and none are asked for. An answer to a completion may be as long as
    its reader lets it be.
    """
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise UpstreamBroken("The model endpoint compressed its answer, which it was not asked to do.")
    if not isinstance(response.stream, httpx2.AsyncByteStream):
        return
    # Python's decoders include some whose time is quadratic, and an endpoint could name one.
    response.encoding = "utf-8"
    if response.is_error:
        response.stream = _Bounded(response.stream, _ERROR_BYTES, cuts=True)
    elif response.request.url.path.endswith("/chat/completions"):
        response.stream = _Bounded(response.stream, math.inf, cuts=False)
    else:
        response.stream = _Bounded(response.stream, MOST_BYTES, cuts=False)


class _Bounded(httpx2.AsyncByteStream):
    """A body of at most `limit` bytes: with `cuts` it ends there, else AnswerTooLarge is raised.

    One read may hold thousands of HTTP chunks, so other tasks get their turn between them.
    """

    def __init__(self, stream: httpx2.AsyncByteStream, limit: float, *, cuts: bool) -> None:
        self._stream, self._limit, self._cuts = stream, limit, cuts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size, gave_way = 0, time.monotonic()
        async for piece in self._stream:
            size += len(piece)
            if size > self._limit and not self._cuts:
                raise AnswerTooLarge(MOST_BYTES)
            if time.monotonic() - gave_way > _MOST_SECONDS_AT_ONCE:
                await asyncio.sleep(0)
                gave_way = time.monotonic()
            yield piece
            if size > self._limit:
                return

    async def aclose(self) -> None:
        await self._stream.aclose()
