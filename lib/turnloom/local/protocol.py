"""HTTP as the laptop's gateway reads it: no request without an end, in bytes of its headers or in time."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_BYTES = 65_536
HEADER_SECONDS = 10.0
"""For the headers of a request as a whole."""
BODY_SECONDS = 60.0
"""From one piece of a body to the next."""


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request headers are too long, or whose request does not come in time."""

    _timer: asyncio.TimerHandle | None = None
    _in_headers = False
    _size = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_headers or self.transport.is_closing():
            return
        self._size += len(data)
        if self._size > HEADER_BYTES:
            self.send_400_response("The request's headers are too long.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._in_headers:
            self._await_headers()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._start_timer(BODY_SECONDS)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._start_timer(BODY_SECONDS)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_timer()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: the route that is asked to upgrade answers for itself."""

    def _await_headers(self) -> None:
        self._in_headers, self._size = True, 0
        self._start_timer(HEADER_SECONDS)

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
