"""The URL guard: what it refuses by looking, what by resolving, and that connections go where it looked."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from tests.server import LoopbackServer
from tests.upstream import Signal

from turnloom.adapters.guard import Guard, Resolver, Unresolvable, hosts_in
from turnloom.adapters.tools.pinned import PinnedTransport
from turnloom.domain.errors import InvalidRequest

PUBLIC = "93.184.216.34"


class Names:
    """A resolver that knows these names and counts how often it is asked; several answers are given in turn."""

    def __init__(self, **answers: Sequence[str]) -> None:
        self.asked: list[str] = []
        self._answers = {name.replace("_", "."): list(given) for name, given in answers.items()}

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if host not in self._answers:
            return [host]
        known = self._answers[host]
        return [known.pop(0)] if len(known) > 1 else known


def at(*addresses: str) -> Guard:
    """A guard in a world where every name has these addresses."""

    async def resolve(host: str, port: int) -> list[str]:
        return list(addresses)

    return Guard(resolve=resolve)


# --- by looking


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "ftp://example.com/x",
        "gopher://example.com/",
        "/relative",
        "example.com/no-scheme",
        "https://",
        "https://user:secret@example.com/",
        "https://user@example.com/",
        "https://example.com:port/",
        "https://[::1",
        "http://localhost/",
        "http://db.localhost:8000/",
        "http://LOCALHOST./",
        "http://127.0.0.1/",
        "http://127.9.9.9/",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "http://[fd00::1]/",
        "http://[::ffff:10.0.0.1]/",
    ],
)
async def test_what_can_be_refused_without_the_network_is(url: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        Guard().check_form(url, code="document_rejected")
    assert refusal.value.code == "document_rejected"
    assert "secret" not in refusal.value.message
    with pytest.raises(InvalidRequest):
        await Guard(resolve=Names()).fetch(url)


@pytest.mark.parametrize("url", ["https://example.com/a?b=c", "http://example.com:8080", f"https://{PUBLIC}/"])
def test_names_and_public_addresses_pass_without_the_network(url: str) -> None:
    Guard().check_form(url)


# --- by resolving


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "192.0.2.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fd00:ec2::254",
        "ff02::1",
        "ff0e::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "64:ff9b::a9fe:a9fe",
        "2001:db8::1",
    ],
)
async def test_a_name_may_not_lead_to_an_address_that_is_not_public(address: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await at(address).check("https://example.com/")
    assert refusal.value.code == "invalid_request"
    assert address not in refusal.value.message


@pytest.mark.parametrize("address", [PUBLIC, "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::5db8:d822"])
async def test_a_public_address_is_given_to_connect_to(address: str) -> None:
    assert await at(address).check("https://example.com/") == (address,)


async def test_one_private_address_among_several_spoils_the_name() -> None:
    with pytest.raises(InvalidRequest):
        await at(PUBLIC, "10.0.0.1").check("https://example.com/")


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "0177.0.0.1"])
async def test_other_spellings_of_loopback_are_loopback(host: str) -> None:
    with pytest.raises(InvalidRequest):
        await Guard().check(f"http://{host}/")


async def test_a_name_without_an_address_is_told_apart() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        raise OSError("no such name")

    with pytest.raises(Unresolvable) as refusal:
        await Guard(resolve=resolve).check("https://nowhere.example/", code="document_rejected")
    assert refusal.value.code == "document_rejected"
    for guard in (at(), replace(at(), allow_hosts=frozenset({"nowhere.example"}))):
        with pytest.raises(Unresolvable):
            await guard.check("https://nowhere.example/")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
async def test_the_laptop_may_reach_itself(address: str) -> None:
    guard = Guard(allow_loopback=True, https_only=True, resolve=at(address).resolve)
    assert await guard.check("http://mine.example/") == (address,)


@pytest.mark.parametrize("address", ["10.0.0.1", "192.168.1.1", "169.254.169.254", "fe80::1", "fd00::1", "0.0.0.0"])
async def test_the_laptop_may_not_reach_its_network(address: str) -> None:
    with pytest.raises(InvalidRequest):
        await Guard(allow_loopback=True, resolve=at(address).resolve).check("http://router.example/")


async def test_a_host_on_the_list_may_be_anywhere_and_no_other_may() -> None:
    guard = Guard(allow_hosts=frozenset({"tools.internal"}), https_only=True, resolve=at("10.0.0.1").resolve)
    assert await guard.check("http://Tools.Internal:8080/x") == ("10.0.0.1",)
    for other in ("https://more.tools.internal/", "https://10.0.0.1/"):
        with pytest.raises(InvalidRequest):
            await guard.check(other)


def test_a_list_of_hosts_may_be_written_with_spaces_capitals_and_a_last_dot() -> None:
    assert hosts_in(" Tools.Internal, , other.internal. ,") == {"tools.internal", "other.internal"}


async def test_http_can_be_ruled_out() -> None:
    guard = Guard(https_only=True, resolve=at(PUBLIC).resolve)
    assert await guard.check("https://example.com/")
    with pytest.raises(InvalidRequest, match="https"):
        await guard.check("http://example.com/")


# --- the resolver


def answers(*addresses: str) -> list[tuple[Any, ...]]:
    """Addresses as `socket.getaddrinfo` gives them."""
    return [(2, 1, 6, "", (address, 443)) for address in addresses]


async def test_resolver_gives_each_address_once_and_the_first_few_alone() -> None:
    many = [f"93.184.{at // 200}.{at % 200 + 1}" for at in range(900)]
    resolve = Resolver(lookup=lambda *_, **__: answers(PUBLIC, PUBLIC, *many))
    assert await resolve("many.example", 443) == [PUBLIC, *many[:7]]


async def test_slow_name_is_given_up_and_keeps_no_other_work_waiting() -> None:
    release = threading.Event()
    resolve = Resolver(threads=1, seconds=0.1, lookup=lambda *_, **__: answers(PUBLIC) if release.wait(30) else [])
    other = Resolver(threads=1, lookup=lambda *_, **__: answers(PUBLIC))
    try:
        checks = (Guard(resolve=resolve).check(f"https://slow-{at}.example/") for at in range(20))
        refusals = await asyncio.gather(*checks, return_exceptions=True)
        assert all(isinstance(refusal, Unresolvable) for refusal in refusals)
        assert await other("quick.example", 443) == [PUBLIC]
        assert await asyncio.to_thread(lambda: "the loop's own executor is free") != ""
    finally:
        release.set()
    assert await Resolver(lookup=lambda *_, **__: answers(PUBLIC))("slow.example", 443) == [PUBLIC]


# --- redirects of public servers


class Internet(PinnedTransport):
    """Answers in the place of every server, by the address that a request goes to and its path."""

    def __init__(self, guard: Guard, pages: dict[str, httpx2.Response]) -> None:
        super().__init__(guard)
        self.requests: list[httpx2.Request] = []
        self._pages = pages

    def _pool(self, url: httpx2.URL) -> Any:
        def answer(request: httpx2.Request) -> httpx2.Response:
            self.requests.append(request)
            return self._pages[f"{request.url.host}{request.url.path}"]

        return httpx2.MockTransport(answer)


@dataclass(frozen=True)
class Rehearsed(Guard):
    """A guard whose fetches reach an Internet of these pages."""

    pages: dict[str, httpx2.Response] = field(default_factory=dict)

    def transport(self) -> httpx2.AsyncBaseTransport:
        return Internet(self, self.pages)


WORLD = Names(
    public_example=[PUBLIC], local_example=["127.0.0.1"], listed_example=["10.0.0.1"], rebound_example=["127.0.0.1"]
)


def redirect(url: str, status: int = 302) -> httpx2.Response:
    return httpx2.Response(status, headers={"location": url})


TARGETS = [
    "http://local.example/secret",
    "http://127.0.0.1/secret",
    "http://[::1]/secret",
    "http://listed.example/secret",
    "http://listed.example./secret",
    "//local.example/secret",
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_public_page_leads_to_no_private_address_even_where_owners_may_name_it(target: str, status: int) -> None:
    secrets = {f"{host}/secret": httpx2.Response(200, text="a secret") for host in ("127.0.0.1", "::1", "10.0.0.1")}
    pages = {f"{PUBLIC}/": redirect(target, status), **secrets}
    guard = Rehearsed(allow_loopback=True, allow_hosts=frozenset({"listed.example"}), resolve=WORLD, pages=pages)
    with pytest.raises(InvalidRequest, match="not public"):
        await guard.fetch("http://public.example/")
    for address in ("http://local.example/secret", "http://listed.example/secret"):
        assert (await guard.fetch(address)).content == b"a secret"
    transport = Internet(guard, guard.pages)
    async with httpx2.AsyncClient(transport=transport, follow_redirects=True) as client:
        with pytest.raises(InvalidRequest, match="not public"):
            await client.get("http://public.example/")
    assert [request.url.host for request in transport.requests] == [PUBLIC]


async def test_local_page_leads_to_a_public_one_and_that_one_not_back() -> None:
    pages = {
        "127.0.0.1/": redirect("http://public.example/"),
        f"{PUBLIC}/": redirect("http://local.example/secret"),
        "127.0.0.1/out": redirect("http://public.example/page"),
        f"{PUBLIC}/page": httpx2.Response(200, text="a page"),
    }
    guard = Rehearsed(allow_loopback=True, resolve=WORLD, pages=pages)
    assert (await guard.fetch("http://local.example/out")).content == b"a page"
    with pytest.raises(InvalidRequest, match="not public"):
        await guard.fetch("http://local.example/")


async def test_public_name_that_becomes_loopback_is_refused_within_one_exchange() -> None:
    names = Names(public_example=[PUBLIC, "127.0.0.1"])
    pages = {f"{PUBLIC}/": redirect("/next"), "127.0.0.1/next": httpx2.Response(200, text="a secret")}
    with pytest.raises(InvalidRequest, match="not public"):
        await Rehearsed(allow_loopback=True, resolve=names, pages=pages).fetch("http://public.example/")


async def test_redirect_does_not_lead_away_from_tls() -> None:
    pages = {
        f"{PUBLIC}/": redirect("http://public.example/page"),
        f"{PUBLIC}/page": httpx2.Response(200, text="a page"),
    }
    pages |= {f"{PUBLIC}/up": redirect("https://public.example/")}
    guard = Rehearsed(resolve=WORLD, pages=pages)
    assert (await guard.fetch("http://public.example/page")).content == b"a page"
    assert (await guard.fetch("http://public.example/")).content == b"a page"
    for start in ("https://public.example/", "http://public.example/up"):
        with pytest.raises(InvalidRequest, match="only https"):
            await guard.fetch(start)


# --- fetching


class Site:
    """A small site on loopback, and what it was asked."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self.tokens: list[str | None] = []
        self.gate = Signal()
        self.app = Starlette(
            routes=[
                Route("/page", self.page),
                Route("/to", self.to),
                Route("/hops/{n:int}", self.hops),
                Route("/large", self.large),
                Route("/slow", self.slow),
                Route("/named", self.named),
                Route("/compressed", self.compressed),
            ]
        )

    async def page(self, request: Request) -> Response:
        self.hosts.append(request.headers["host"])
        self.tokens.append(request.headers.get("x-token"))
        return PlainTextResponse("a page")

    async def to(self, request: Request) -> Response:
        return Response(status_code=302, headers={"location": request.query_params["url"]})

    async def hops(self, request: Request) -> Response:
        left = request.path_params["n"]
        return RedirectResponse(f"/hops/{left - 1}" if left > 1 else "/page")

    async def large(self, _: Request) -> Response:
        return PlainTextResponse("x" * 1001)

    async def slow(self, _: Request) -> Response:
        await self.gate.wait(None)
        return PlainTextResponse("too late")

    async def compressed(self, request: Request) -> Response:
        coding = request.query_params["coding"]
        layers = coding.count("gzip")
        content = b"x" * (1 if layers < 2 else 50_000_000)
        for _ in range(layers):
            content = gzip.compress(content)
        return Response(content, headers={"content-encoding": coding})

    async def named(self, _: Request) -> Response:
        return PlainTextResponse("a page", headers={"content-disposition": 'attachment; filename="a.txt"'})


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def url(site: Site) -> Iterator[str]:
    with LoopbackServer(site.app) as server:
        yield server.url
        site.gate.set()


async def test_what_lies_at_an_address_is_fetched(url: str) -> None:
    fetched = await Guard(allow_loopback=True).fetch(f"{url}/page")
    assert (fetched.content, fetched.content_type) == (b"a page", "text/plain; charset=utf-8")
    assert fetched.url == f"{url}/page"


async def test_the_disposition_is_told_where_there_is_one(url: str) -> None:
    guard = Guard(allow_loopback=True)
    assert (await guard.fetch(f"{url}/named")).disposition == 'attachment; filename="a.txt"'
    assert (await guard.fetch(f"{url}/page")).disposition == ""


async def test_a_name_is_resolved_once_and_that_address_is_connected_to(site: Site, url: str) -> None:
    names = Names(docs_example=["127.0.0.1", "10.0.0.1"])
    address = url.replace("127.0.0.1", "docs.example")
    fetched = await Guard(allow_loopback=True, resolve=names).fetch(f"{address}/page")
    assert (fetched.content, fetched.url) == (b"a page", f"{address}/page")
    assert names.asked == ["docs.example"]
    assert site.hosts == [address.removeprefix("http://")]


async def test_a_name_that_answers_otherwise_at_the_next_request_is_refused(url: str) -> None:
    names = Names(docs_example=["127.0.0.1", "10.0.0.1"])
    address = url.replace("127.0.0.1", "docs.example")
    with pytest.raises(InvalidRequest, match="not public"):
        await Guard(allow_loopback=True, resolve=names).fetch(f"{address}/hops/1")
    assert names.asked == ["docs.example", "docs.example"]


async def test_the_next_address_is_tried_when_one_refuses_the_connection(url: str) -> None:
    guard = Guard(allow_loopback=True, resolve=at("127.0.0.2", "127.0.0.1").resolve)
    assert (await guard.fetch(f"{url}/page")).content == b"a page"


@pytest.mark.parametrize(
    "target",
    [
        "http://inner.example/",
        "http://169.254.169.254/",
        "file:///etc/passwd",
        "http://user:secret@docs.example/",
        "//",
    ],
)
async def test_a_redirect_is_checked_like_the_first_address(url: str, target: str) -> None:
    guard = Guard(allow_loopback=True, resolve=Names(inner_example=["10.0.0.1"]))
    with pytest.raises(InvalidRequest) as refusal:
        await guard.fetch(f"{url}/to?url={target}")
    assert refusal.value.code == "document_rejected"
    assert "secret" not in refusal.value.message


async def test_three_redirects_are_followed_and_no_fourth(url: str) -> None:
    guard = Guard(allow_loopback=True)
    fetched = await guard.fetch(f"{url}/hops/3")
    assert (fetched.content, fetched.url) == (b"a page", f"{url}/page")
    with pytest.raises(InvalidRequest, match="redirects more than 3 times"):
        await guard.fetch(f"{url}/hops/4")


async def test_headers_do_not_follow_a_redirect_to_another_host(site: Site, url: str) -> None:
    guard = Guard(allow_loopback=True, resolve=Names(docs_example=["127.0.0.1"]))
    other = url.replace("127.0.0.1", "docs.example")
    for target in (f"{url}/page", f"{other}/page"):
        await guard.fetch(f"{url}/to?url={target}", headers={"x-token": "mine"})
    assert site.tokens == ["mine", None]


async def test_too_much_content_is_refused(url: str) -> None:
    guard = Guard(allow_loopback=True)
    assert len((await guard.fetch(f"{url}/large", max_bytes=1001)).content) == 1001
    with pytest.raises(InvalidRequest, match="more than 1000 bytes"):
        await guard.fetch(f"{url}/large", max_bytes=1000)


@pytest.mark.parametrize("coding", ["gzip", "gzip, gzip", "GZIP", "br", "unknown"])
async def test_compressed_content_that_was_not_asked_for_is_refused_unread(coding: str, url: str) -> None:
    with pytest.raises(InvalidRequest, match="could not be read"):
        await Guard(allow_loopback=True).fetch(f"{url}/compressed?coding={coding}")


async def test_content_that_says_it_is_not_compressed_is_taken(url: str) -> None:
    assert (await Guard(allow_loopback=True).fetch(f"{url}/compressed?coding=identity")).content == b"x"


async def test_a_failed_fetch_is_a_refusal_that_tells_neither_path_nor_query(url: str) -> None:
    guard = Guard(allow_loopback=True)
    with pytest.raises(InvalidRequest, match="status 404") as refusal:
        await guard.fetch(f"{url}/missing?key=secret", code="invalid_request")
    assert refusal.value.code == "invalid_request"
    assert "secret" not in refusal.value.message
    assert "missing" not in refusal.value.message
    with pytest.raises(InvalidRequest, match="could not be read"):
        await guard.fetch("http://127.0.0.1:1/")


async def test_a_fetch_does_not_wait_longer_than_it_may(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"within 0\.05 seconds"):
        await Guard(allow_loopback=True).fetch(f"{url}/slow", timeout=0.05)


# --- TLS


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for this name that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, private = folder / "certificate.pem", folder / "key.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private.write_bytes(key.private_bytes(*plain))
    return pem, private


@asynccontextmanager
async def tls_server(pem: Path, private: Path, asked: list[str | None]) -> AsyncIterator[int]:
    """Answers everything with "secret page" over TLS; gives its port and notes the names that clients ask for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, private)
    context.sni_callback = lambda _, name, __: asked.append(name)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\nconnection: close\r\n\r\nsecret page")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_tls_is_spoken_with_the_name_although_the_address_is_pinned(tmp_path: Path) -> None:
    pem, private = certificate(tmp_path, "docs.example")
    names = Names(docs_example=["127.0.0.1"], other_example=["127.0.0.1"])
    guard = Guard(allow_loopback=True, https_only=True, resolve=names)
    asked: list[str | None] = []
    async with tls_server(pem, private, asked) as port:
        transport = PinnedTransport(guard, ssl.create_default_context(cafile=pem))
        async with httpx2.AsyncClient(transport=transport) as client:
            assert (await client.get(f"https://docs.example:{port}/")).text == "secret page"
            with pytest.raises(httpx2.ConnectError):
                await client.get(f"https://other.example:{port}/")
    assert asked == ["docs.example", "other.example"]
