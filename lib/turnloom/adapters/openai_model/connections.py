"""The HTTP clients of one endpoint: connections belong to the event loop in which they were opened."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openai

_CONNECT_SECONDS = 5.0


class Connections:
    """A client with a pool of connections for every event loop; `api_key` is asked when one is made."""

    def __init__(self, base_url: str, api_key: Callable[[], str], timeout: float) -> None:
        self._base_url, self._api_key, self._timeout = base_url, api_key, timeout
        self._tls: ssl.SSLContext | None = None
        self._clients: dict[asyncio.AbstractEventLoop, openai.AsyncOpenAI] = {}

    def client(self) -> openai.AsyncOpenAI:
        """The client of the running loop."""
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            # Connections keep their loop alive: those of loops that are gone are let go here.
            for gone in [known for known in tuple(self._clients) if known.is_closed()]:
                self._clients.pop(gone, None)
            client = self._clients[loop] = self._new_client()
        return client

    async def aclose(self) -> None:
        """Close those of the running loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    def _new_client(self) -> openai.AsyncOpenAI:
        import httpx2
        import openai

        timeout = httpx2.Timeout(self._timeout, connect=_CONNECT_SECONDS)
        # Reading the certificates takes 20 ms: once per instance, not per loop.
        self._tls = self._tls or httpx2.create_ssl_context()
        return openai.AsyncOpenAI(
            base_url=self._base_url,
            # The SDK takes no empty key; endpoints that need none read none.
            api_key=self._api_key() or "none",
            timeout=timeout,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(timeout=timeout, verify=self._tls),
        )
