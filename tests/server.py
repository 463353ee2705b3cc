"""A real loopback server for tests: what streams must stream, and official clients want an address."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import uvicorn


class LoopbackServer:
    """Serves an ASGI app from a thread of its own for as long as the context lasts; `url` is its address."""

    def __init__(self, app: Any) -> None:
        # With the protocol named, asyncio turns off Nagle's algorithm on what is accepted; 40 ms an answer otherwise.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.loop: asyncio.AbstractEventLoop | None = None
        config = uvicorn.Config(app, ws="none", log_level="warning", access_log=False, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._started = threading.Event()

    def __enter__(self) -> LoopbackServer:
        self._thread.start()
        self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)

    def _serve(self) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            self._socket.listen(128)
            self._started.set()
            await self._server.serve(sockets=[self._socket])

        asyncio.run(serve())
