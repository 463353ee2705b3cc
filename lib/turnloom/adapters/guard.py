"""Which addresses may be reached from here: public ones, looked at again for every connection that is made.

A connection goes to the very address that was looked at, so a name that answers differently the second time (DNS
rebinding) gains nothing; `tools/pinned.py` sees to that.

`is_public` has a table beside the interpreter's, which lacks the special-purpose addresses that are newer than itself.
It follows https://www.iana.org/assignments/iana-ipv4-special-registry and .../iana-ipv6-special-registry.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from turnloom.domain.errors import InvalidRequest

if TYPE_CHECKING:
    import httpx2

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Gives the IP addresses of a host; raises OSError or ValueError when it has none."""
Lookup = Callable[..., Sequence[tuple[Any, ...]]]
"""`socket.getaddrinfo`, or what a test has in its place."""

MIB = 1024 * 1024
_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_MOST_HOST_CHARACTERS = 253  # RFC 1035; a longer text would only be work for IDNA
_MOST_ADDRESSES = 8  # of one name: each may take a connection's time before the next is tried
_NOT_PUBLIC = tuple(
    ip_network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local; the metadata of cloud machines
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        # Everything but the one block of which IANA assigns unicast addresses, 2000::/3.
        "::/3",
        "4000::/2",
        "8000::/1",
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, deprecated: tunnels to any IPv4 address
        "3fff::/20",  # documentation
    )
)
_PUBLIC = tuple(
    ip_network(block)
    for block in (
        "192.0.0.9/32",  # anycast of PCP
        "192.0.0.10/32",  # anycast of TURN
        "2001:1::1/128",  # anycast of PCP
        "2001:1::2/128",  # anycast of TURN
        "2001:1::3/128",  # anycast of DNS-SD
        "2001:3::/32",  # AMT
        "2001:4:112::/48",  # AS112
        "2001:20::/28",  # ORCHIDv2
        "2001:30::/28",  # drone remote identification
        "::ffff:0:0/96",  # IPv4-mapped: the IPv4 address decides, here and in the next
        "64:ff9b::/96",
    )
)
"""Parts of `_NOT_PUBLIC` that the registries call globally reachable."""
_NAT64 = ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are the IPv4 address that is really reached
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # RFC 5214: before an IPv4 address in the last 32 bits


@dataclass(frozen=True, slots=True)
class Fetched:
    """What an address gave, with its Content-Disposition; `url` is where it was in the end, after redirects."""

    content: bytes
    content_type: str
    url: str
    disposition: str = ""


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


class Resolver:
    """Resolves hosts by the system's resolver, in threads of its own, within `seconds`.

    Nobody chooses how long a name server takes. So slow names hold up one another, and no other work.
    """

    def __init__(self, threads: int = 16, seconds: float = 5.0, lookup: Lookup = socket.getaddrinfo) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="turnloom-resolver")
        self._seconds = seconds
        self._lookup = lookup

    async def __call__(self, host: str, port: int) -> list[str]:
        """The first few IP addresses of a host; raises OSError (TimeoutError is one) or ValueError."""
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: self._lookup(host, port, type=socket.SOCK_STREAM)
        )
        answers = await asyncio.wait_for(work, self._seconds)
        return list(dict.fromkeys(str(address[0]) for *_, address in answers))[:_MOST_ADDRESSES]


resolved = Resolver()


@dataclass(frozen=True, slots=True)
class Guard:
    """Lets through http and https to public addresses, and to the exceptions it is given.

    `allow_loopback` permits 127.0.0.0/8 and ::1 (also without TLS), nothing else that is private. `allow_hosts` are
    host names, in lower case, that may have any address. With `https_only`, http is for these exceptions alone. With
    `public_only`, no exception leads to an address that is not public.
    """

    allow_loopback: bool = False
    allow_hosts: frozenset[str] = frozenset()
    https_only: bool = False
    public_only: bool = False
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
            except (OSError, ValueError):
                # A ValueError is of a text that cannot be a name: with a NUL, or labels that are too long.
                addresses = ()
            if not addresses:
                raise Unresolvable(f"The host '{host}' cannot be found")
            self._judge(parts, addresses)
            return tuple(addresses)

    def after(self, url: str, addresses: Sequence[str]) -> Guard:
        """The guard for the requests that an answer from this permitted URL, at these addresses, leads to.

        A public server may not choose what within this machine or network is reached, nor one with TLS to do without.
        """
        if not _are_public(addresses):
            return self
        return replace(self, public_only=True, https_only=self.https_only or urlsplit(url).scheme == "https")

    def transport(self) -> httpx2.AsyncBaseTransport:
        """A transport for one exchange of an HTTP client: it checks every request, redirects included, and pins it."""
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
        exempt = self._host_is_exempt(parts) or (self.allow_loopback and _are_loopback(addresses))
        if not _are_public(addresses) and (self.public_only or not exempt):
            # The address stays unsaid: what a name means within our network is nobody's business.
            raise InvalidRequest(f"{place_of(parts.geturl())} is not allowed: its address is not public")
        if not exempt:
            self._check_scheme(parts)

    def _check_scheme(self, parts: SplitResult) -> None:
        if self.https_only and parts.scheme == "http" and not self._host_is_exempt(parts):
            raise InvalidRequest(f"{place_of(parts.geturl())} is not allowed: only https addresses are taken")

    def _host_is_exempt(self, parts: SplitResult) -> bool:
        return _host(parts) in self.allow_hosts


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether the address, and any IPv4 address that it tunnels or translates to, is reached over the internet."""
    inner = _embedded(address)
    if inner is not None and not is_public(inner):
        return False
    if any(address in block for block in _PUBLIC):
        return True
    # The interpreter's table too: one that is newer than this file may know more.
    return address.is_global and not any(address in block for block in _NOT_PUBLIC)


def _embedded(address: IPv4Address | IPv6Address) -> IPv4Address | None:
    """The IPv4 address that a packet to this IPv6 address may end at."""
    if isinstance(address, IPv4Address):
        return None
    last, before = int(address) & 0xFFFF_FFFF, int(address) >> 32 & 0xFFFF_FFFF
    if address in _NAT64 or before in _ISATAP:
        return IPv4Address(last)
    return address.ipv4_mapped


def _are_public(addresses: Sequence[str]) -> bool:
    return bool(addresses) and all(is_public(ip_address(address)) for address in addresses)


def _are_loopback(addresses: Sequence[str]) -> bool:
    return bool(addresses) and all(_unmapped(address).is_loopback for address in addresses)


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
    if len(parts.hostname) > _MOST_HOST_CHARACTERS:
        raise InvalidRequest(f"The address names a host of more than {_MOST_HOST_CHARACTERS} characters")
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
