"""Server-sent events: one frame per write, LF only, and a comment whenever a reader would otherwise hear nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from fastapi.responses import StreamingResponse
from starlette.types import Message, Send

from turnloom.domain.message import JSON
from turnloom.wire.json_text import json_bytes

HEARTBEAT_SECONDS = 15.0
CONNECTION_SECONDS = 14 * 60.0
"""API Gateway and Lambda end everything after 15 minutes; a stream that ends itself before can say that it goes on."""
STALLED_SECONDS = 30.0
"""How long a client may leave a frame unread before its connection is closed."""
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
RECONNECT = b": reconnect\n\n"
"""The last words of a stream that ends although its turn goes on."""

# json.dumps(ensure_ascii=False) leaves these as they are, and some clients split lines on them.
_LINE_BREAKS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


class EventStream(StreamingResponse):
    """Frames with heartbeats between them. A client that stops reading loses the connection: it may read on later."""

    def __init__(self, frames: AsyncIterator[bytes]) -> None:
        headers = {"cache-control": "no-cache"}
        super().__init__(with_heartbeat(frames), media_type="text/event-stream", headers=headers)

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(STALLED_SECONDS):
                await send(message)

        with suppress(TimeoutError):
            await super().stream_response(send_in_time)


def frame(data: JSON, event: str | None = None) -> bytes:
    """One whole frame: the JSON on a single `data:` line, behind an `event:` line if a name is given."""
    text = json_bytes(data).decode().translate(_LINE_BREAKS)
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {text}\n\n".encode()


async def with_heartbeat(
    frames: AsyncIterator[bytes], seconds: float = HEARTBEAT_SECONDS, limit: float = CONNECTION_SECONDS
) -> AsyncIterator[bytes]:
    """The frames as they come, and a comment after every `seconds` of silence; no longer than `limit` seconds."""
    source = aiter(frames)
    upcoming: asyncio.Future[bytes] = asyncio.ensure_future(anext(source))
    end = time.monotonic() + limit
    try:
        while True:
            left = end - time.monotonic()
            if left <= 0:
                yield RECONNECT
                return
            done, _ = await asyncio.wait({upcoming}, timeout=min(seconds, left))
            if not done:
                yield PING
                continue
            try:
                yield upcoming.result()
            except StopAsyncIteration:
                return
            upcoming = asyncio.ensure_future(anext(source))
    finally:
        upcoming.cancel()
        with suppress(asyncio.CancelledError, StopAsyncIteration):
            await upcoming
