"""An HTTP transport that asks the guard about every request and connects to the addresses that it looked at."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

import httpx2

if TYPE_CHECKING:
    from turnloom.adapters.guard import Guard

CONNECT_SECONDS = 5.0

# Below warnings they log addresses and headers, and with them credentials.
for _library in ("httpx2", "httpcore2"):
    logging.getLogger(_library).setLevel(logging.WARNING)


class PinnedTransport(httpx2.AsyncBaseTransport):
    """Sends a request to one of its host's checked addresses; Host header, SNI and certificate stay those of the name.

    For one exchange: once a public server has been reached, what its answers lead to must be public too. Raises
    InvalidRequest for what the guard refuses.
    """

    def __init__(self, guard: Guard, context: ssl.SSLContext | None = None) -> None:
        self._guard = guard
        self._context = context
        self._pools: dict[str, httpx2.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = str(request.url)
        addresses = await self._guard.check(url)
        self._guard = self._guard.after(url, addresses)
        pool = self._pool(request.url)
        for address in addresses[:-1]:
            with suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
                return await pool.handle_async_request(_pinned(request, address))
        return await pool.handle_async_request(_pinned(request, addresses[-1]))

    async def aclose(self) -> None:
        for pool in self._pools.values():
            await pool.aclose()

    def _pool(self, url: httpx2.URL) -> httpx2.AsyncHTTPTransport:
        # One for each name: two names on one address must not share a connection whose certificate is for one of them.
        if url.host not in self._pools:
            context = self._context or _trusted()
            self._pools[url.host] = httpx2.AsyncHTTPTransport(verify=context, trust_env=False)
        return self._pools[url.host]


class TooLong(Exception):
    """A peer sent more bytes than it may."""


class ByteBudget:
    """How many bytes more may come; to be shared by streams that have one limit together."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise TooLong


class BoundedStream(httpx2.AsyncByteStream):
    """A body as it comes from the connection, still compressed, within a budget; raises TooLong."""

    def __init__(self, inner: httpx2.AsyncByteStream, budget: ByteBudget) -> None:
        self._inner = inner
        self._budget = budget

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            self._budget.take(len(chunk))
            # One read may hold thousands of HTTP chunks, which would all be parsed before anything else runs.
            await asyncio.sleep(0)
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


async def first_bytes(response: httpx2.Response, limit: int) -> tuple[bytes, bool]:
    """The body up to `limit` bytes, and whether that is all of it.

    Raises httpx2.DecodingError for one that is compressed although its request asked for none: few bytes could become
    any number at once.
    """
    if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise httpx2.DecodingError("the body is compressed")
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = BoundedStream(response.stream, ByteBudget(limit))
    content = bytearray()
    with suppress(TooLong):
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > limit:
                return bytes(content[:limit]), False
        return bytes(content), True
    return bytes(content), False


@cache
def _trusted() -> ssl.SSLContext:
    """The authorities that are trusted; reading them takes some 20 ms."""
    return httpx2.create_ssl_context()


def _pinned(request: httpx2.Request, address: str) -> httpx2.Request:
    timeouts = dict(request.extensions.get("timeout") or {})
    timeouts["connect"] = min(timeouts.get("connect") or CONNECT_SECONDS, CONNECT_SECONDS)
    name = request.url.raw_host.decode("ascii")
    return httpx2.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "timeout": timeouts, "sni_hostname": name},
    )
