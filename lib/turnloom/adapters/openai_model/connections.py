"""The HTTP clients of one endpoint: connections belong to the event loop in which they were opened."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from turnloom.adapters.masking import mask
from turnloom.domain.errors import UpstreamError

if TYPE_CHECKING:
    import openai

_CONNECT_SECONDS = 5.0


class Connections:
    """A client with a pool of connections for every event loop; `api_key` is asked when one is made."""

    def __init__(self, base_url: str, api_key: Callable[[], str], timeout: float) -> None:
        self._base_url, self._api_key, self._timeout = base_url, api_key, timeout
        self._keys: set[str] = set()
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

    @contextmanager
    def masked(self) -> Iterator[None]:
        """Cut the API key, whole or in pieces, out of the UpstreamErrors that are raised inside."""
        try:
            yield
        except UpstreamError as error:
            error.message = mask(error.message, self._keys)
            error.args = (error.message,)
            if code := error.extra.get("upstream_code"):
                error.extra = {**error.extra, "upstream_code": mask(code, self._keys)}
            raise

    async def aclose(self) -> None:
        """Close those of the running loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    def _new_client(self) -> openai.AsyncOpenAI:
        import httpx2
        import openai

        from turnloom.adapters.openai_model.bounds import bound

        timeout = httpx2.Timeout(self._timeout, connect=_CONNECT_SECONDS)
        # Reading the certificates takes 20 ms: once per instance, not per loop.
        self._tls = self._tls or httpx2.create_ssl_context()
        key = self._api_key()
        self._keys.add(key)
        return openai.AsyncOpenAI(
            base_url=self._base_url,
            # The SDK takes no empty key; endpoints that need none read none.
            api_key=key or "none",
            timeout=timeout,
            max_retries=0,
            default_headers={"Accept-Encoding": "identity"},
            # A redirect would hand the conversation to whatever host the endpoint names.
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=timeout, verify=self._tls, event_hooks={"response": [bound]}, follow_redirects=False
            ),
        )
