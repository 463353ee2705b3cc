"""Which addresses may be reached from here: public ones, looked at again for every connection that is made.

A connection goes to the very address that was looked at, so a name that answers differently the second time (DNS
rebinding) gains nothing; `tools/pinned.py` sees to that.
"""

from __future__ import annotations

import asyncio
import codecs
import re
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from turnloom.domain.errors import InvalidRequest

if TYPE_CHECKING:
    import httpx2

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Gives the IP addresses of a host; raises OSError or UnicodeError when it has none."""

MIB = 1024 * 1024
_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_SLOW_CODECS = ("idna", "punycode")  # made for host names: they take quadratic time
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are the IPv4 address that is really reached


@dataclass(frozen=True, slots=True)
class Fetched:
    """What an address gave, with its Content-Disposition; `url` is where it was in the end, after redirects."""

    content: bytes
    content_type: str
    url: str
    disposition: str = ""


def text_of(content: bytes, content_type: str) -> str:
    """The text of bytes, in the charset of their content type, by default UTF-8; raises UnicodeError."""
    named = _CHARSET.search(content_type)
    try:
        codec = codecs.lookup(named[1] if named else "utf-8").name
        if codec in _SLOW_CODECS:
            raise LookupError(codec)
        return content.decode("utf-8-sig" if codec == "utf-8" else codec)
    except LookupError:
        raise UnicodeError("the charset is not known") from None


def place_of(url: str) -> str:
    """Scheme, host and port of an address, for messages: everything else in it may be secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a malformed address"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


class Unresolvable(InvalidRequest):
    """A host has no address, now; a retry may help."""


def hosts_in(text: str) -> frozenset[str]:
    """The host names in a text that has commas between them, as `allow_hosts` of a Guard wants them."""
    return frozenset(name.strip().rstrip(".").lower() for name in text.split(",") if name.strip())


async def resolved(host: str, port: int) -> list[str]:
    """The IP addresses of a host, by the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


@dataclass(frozen=True, slots=True)
class Guard:
    """Lets through http and https to public addresses, and to the exceptions it is given.

    `allow_loopback` permits 127.0.0.0/8 and ::1 (also without TLS), nothing else that is private. `allow_hosts` are
    host names, in lower case, that may have any address. With `https_only`, http is for these exceptions alone.
    """

    allow_loopback: bool = False
    allow_hosts: frozenset[str] = frozenset()
    https_only: bool = False
    resolve: Resolve = resolved

    def check_form(self, url: str, *, code: str = "invalid_request") -> None:
        """Refuse what can be refused without the network: the scheme, credentials, an IP address, `localhost`.

        Raises InvalidRequest with this code.
        """
        with _coded(code):
            parts = _parts(url)
            if addresses := _written_out(_host(parts)):
                self._judge(parts, addresses)
            else:
                self._check_scheme(parts)

    async def check(self, url: str, *, code: str = "invalid_request") -> tuple[str, ...]:
        """The IP addresses of a permitted URL; a connection must go to one of these and to no other.

        Raises InvalidRequest with this code; Unresolvable, which is one, when the host has no address.
        """
        with _coded(code):
            parts = _parts(url)
            host = _host(parts)
            try:
                addresses = await self.resolve(host, parts.port or _PORTS[parts.scheme])
            except (OSError, UnicodeError):
                raise Unresolvable(f"The host '{host}' cannot be found") from None
            self._judge(parts, addresses)
            return tuple(addresses)

    def transport(self) -> httpx2.AsyncBaseTransport:
        """A transport for an HTTP client that checks every request, redirects included, and pins its connection."""
        from turnloom.adapters.tools.pinned import PinnedTransport

        return PinnedTransport(self)

    async def fetch(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        max_bytes: int = 10 * MIB,
        timeout: float = 10.0,  # noqa: ASYNC109 - one word with the HTTP clients
        code: str = "document_rejected",
    ) -> Fetched:
        """GET the URL, following at most 3 redirects, within `timeout` seconds; `headers` go to its own host only.

        Raises InvalidRequest with this code for whatever keeps the content from being had.
        """
        import httpx2

        with _coded(code):
            self.check_form(url)
            try:
                async with (
                    asyncio.timeout(timeout),
                    httpx2.AsyncClient(transport=self.transport(), timeout=timeout) as client,
                ):
                    return await _fetched(client, url, headers or {}, max_bytes)
            except (TimeoutError, httpx2.TimeoutException):
                raise InvalidRequest(f"{place_of(url)} did not answer within {timeout:g} seconds") from None
            except (httpx2.HTTPError, httpx2.InvalidURL):
                raise InvalidRequest(f"{place_of(url)} could not be read") from None

    def _judge(self, parts: SplitResult, addresses: Sequence[str]) -> None:
        host = _host(parts)
        if host in self.allow_hosts:
            return
        reached = [_unmapped(address) for address in addresses]
        local = self.allow_loopback and all(address.is_loopback for address in reached)
        if not addresses or not (local or all(map(is_public, reached))):
            # The address stays unsaid: what a name means within our network is nobody's business.
            raise InvalidRequest(f"{place_of(parts.geturl())} is not allowed: its address is not public")
        if not local:
            self._check_scheme(parts)

    def _check_scheme(self, parts: SplitResult) -> None:
        if self.https_only and parts.scheme == "http" and _host(parts) not in self.allow_hosts:
            raise InvalidRequest(f"{place_of(parts.geturl())} is not allowed: only https addresses are taken")


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether the address, and any IPv4 address that it tunnels or translates to, is reached over the internet."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
    if inner:
        return is_public(inner)
    return address.is_global and not (address.is_multicast or address.is_site_local or address.is_reserved)


async def _fetched(client: httpx2.AsyncClient, url: str, headers: Mapping[str, str], max_bytes: int) -> Fetched:
    place = place_of(url)
    for _ in range(_REDIRECTS + 1):
        own = headers if place_of(url) == place else {}
        # Compressed, a small answer could become any size at once.
        request = client.build_request("GET", url, headers={**own, "accept-encoding": "identity"})
        response = await client.send(request, stream=True)
        async with aclosing(response):
            if response.next_request is None:
                return await _content(response, max_bytes)
            url = str(response.next_request.url)
    raise InvalidRequest(f"{place} redirects more than {_REDIRECTS} times")


async def _content(response: httpx2.Response, max_bytes: int) -> Fetched:
    from turnloom.adapters.tools.pinned import first_bytes

    url = str(response.url)
    if not response.is_success:
        raise InvalidRequest(f"{place_of(url)} answered with status {response.status_code}")
    content, whole = await first_bytes(response, max_bytes)
    if not whole:
        raise InvalidRequest(f"{place_of(url)} sent more than {max_bytes} bytes")
    told = (response.headers.get(name, "") for name in ("content-type", "content-disposition"))
    return Fetched(content, next(told), url, next(told))


@contextmanager
def _coded(code: str) -> Iterator[None]:
    try:
        yield
    except InvalidRequest as refusal:
        refusal.code = code
        raise


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise InvalidRequest("The address is malformed") from None
    if parts.scheme not in _PORTS:
        raise InvalidRequest(f"Only http and https addresses are taken, not '{parts.scheme}:'")
    if parts.username is not None or parts.password is not None:
        raise InvalidRequest("The address must not hold a user name or a password")
    if not parts.hostname:
        raise InvalidRequest("The address names no host")
    return parts


def _host(parts: SplitResult) -> str:
    return (parts.hostname or "").rstrip(".")


def _written_out(host: str) -> list[str]:
    """The address of a host that needs no resolver; RFC 6761 reserves `localhost` for loopback."""
    if host == "localhost" or host.endswith(".localhost"):
        return ["127.0.0.1"]
    try:
        return [str(ip_address(host))]
    except ValueError:
        return []


def _unmapped(address: str) -> IPv4Address | IPv6Address:
    parsed = ip_address(address)
    return (isinstance(parsed, IPv6Address) and parsed.ipv4_mapped) or parsed
