"""Which addresses count as public, and which spellings of a host are refused: the same on every Python."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest

from turnloom.adapters.guard import Guard, Resolver, is_public
from turnloom.domain.errors import InvalidRequest

PRIVATE_BLOCKS = """
0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/29 192.0.0.8/32 192.0.0.11/32
192.0.0.170/31 192.0.0.128/25 192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24
224.0.0.0/4 224.0.0.0/24 232.0.0.0/8 239.0.0.0/8 240.0.0.0/4 255.255.255.255/32
::/128 ::1/128 ::/96 ::/8 64:ff9b:1::/48 100::/64 100:0:0:1::/64 100::/8 200::/7 400::/6 800::/5 1000::/4
2001::/32 2001:1::/128 2001:1::4/128 2001:2::/48 2001:4::/112 2001:4:113::/48 2001:10::/28 2001:40::/28 2001:100::/24
2001:db8::/32 2002::/16 2002:5db8:d822::/48 3fff::/20 4000::/3 5f00::/16 6000::/3 8000::/3 a000::/3 c000::/3
e000::/4 f000::/5 f800::/6 fc00::/7 fd00:ec2::/32 fe00::/9 fe80::/10 fec0::/10 ff00::/8 ff02::/16 ff0e::/16
"""

PUBLIC_BLOCKS = """
1.1.1.1/32 8.8.8.8/32 9.9.9.9/32 93.184.216.34/32 9.255.255.255/32 11.0.0.0/32 100.63.255.255/32 100.128.0.0/32
126.255.255.255/32 128.0.0.0/32 169.253.255.255/32 169.255.0.0/32 172.15.255.255/32 172.32.0.0/32 191.255.255.255/32
192.0.0.9/32 192.0.0.10/32 192.0.1.0/32 192.0.3.0/32 192.31.196.0/24 192.52.193.0/24 192.88.98.255/32 192.88.100.0/32
192.167.255.255/32 192.169.0.0/32 192.175.48.0/24 198.17.255.255/32 198.20.0.0/32 198.51.99.255/32 198.51.101.0/32
203.0.112.255/32 203.0.114.0/32 223.255.255.255/32
2000::/16 2001:1::1/128 2001:1::2/128 2001:1::3/128 2001:3::/32 2001:4:112::/48 2001:20::/28 2001:30::/28
2001:200::/23 2001:4860:4860::8888/128 2001:db7:ffff::/48 2001:db9::/32 2003::/16 2400::/12 2600::/12
2606:4700:4700::1111/128 2606:4700::1111/128 2620:4f:8000::/48 2620:fe::fe/128 2800::/12 2a00:1450::/32 2c00::/12
3ffe:ffff::/32 3fff:1000::/32
"""

PRIVATE_V4 = ["0.0.0.0", "10.0.0.1", "127.0.0.1", "100.64.1.1", "169.254.169.254", "172.16.0.1", "192.168.1.1"]
PRIVATE_V4 += ["192.0.0.1", "192.88.99.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"]
PUBLIC_V4 = ["1.1.1.1", "93.184.216.34", "192.0.0.9", "223.255.255.255"]


def members(blocks: str) -> Iterator[str]:
    """The first, the last and one middle address of each block."""
    for block in map(ip_network, blocks.split()):
        last = block.num_addresses - 1
        yield from dict.fromkeys(str(block[at]) for at in (0, last // 2, last))


def embedded(address: str, *, in_public: bool) -> Iterator[str]:
    """IPv6 addresses whose packets end at this IPv4 address; `in_public`: those forms that may be public at all."""
    number = int(IPv4Address(address))
    high, low = number >> 16, number & 0xFFFF
    yield f"::ffff:{address}"
    yield f"64:ff9b::{address}"
    yield f"2606:4700::5efe:{high:x}:{low:x}"
    yield f"2606:4700::200:5efe:{high:x}:{low:x}"
    if not in_public:
        yield f"::{address}"
        yield f"2002:{high:x}:{low:x}::1"
        yield f"::ffff:0:{address}"
        yield f"64:ff9b:1::{address}"
        yield f"fe80::5efe:{high:x}:{low:x}"
        inverted = number ^ 0xFFFF_FFFF
        yield f"2001:0:101:101:0:0:{inverted >> 16:x}:{inverted & 0xFFFF:x}"


NOT_PUBLIC = [*members(PRIVATE_BLOCKS), *(form for v4 in PRIVATE_V4 for form in embedded(v4, in_public=False))]
PUBLIC = [*members(PUBLIC_BLOCKS), *(form for v4 in PUBLIC_V4 for form in embedded(v4, in_public=True))]


@pytest.mark.parametrize("address", dict.fromkeys(NOT_PUBLIC))
def test_special_purpose_address_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", dict.fromkeys(PUBLIC))
def test_globally_reachable_address_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", dict.fromkeys(NOT_PUBLIC))
async def test_name_of_a_special_purpose_address_is_refused(address: str) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return [address]

    with pytest.raises(InvalidRequest):
        await Guard(resolve=resolve).check("https://name.example/")
    if not (address.startswith("127.") or IPv6Address("::1") == ip_address(address) or ":ffff:127." in address):
        with pytest.raises(InvalidRequest):
            await Guard(allow_loopback=True, resolve=resolve).check("https://name.example/")


LOOPBACK_SPELLINGS = [
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127.0.1",
    "127.255.255.254",
    "2130706433",
    "017700000001",
    "0x7f000001",
    "0x7F.0.0.1",
    "0x7f.1",
    "0177.0.0.1",
    "0177.0.0.01",
    "127.0.0.0x1",
    "00000177.0.0.1",
    "0",
    "0.0.0.0",
    "0x0",
    "00",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "sub.localhost",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[0000:0000:0000:0000:0000:0000:0000:0001]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[2002:7f00:1::]",
    "１２７.０.０.１",
    "127。0。0。1",
    "①②⑦.⓪.⓪.①",
    "127．0．0．1",
    "ｌｏｃａｌｈｏｓｔ",
    "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
    "loca\u00adlhost",
    "%6c%6f%63%61%6c%68%6f%73%74",
    "127.0.0.1%00.example.com",
    "127.0.0.1%2eexample.com",
]


def lookup(host: str, port: int, **hints: int) -> Any:
    """The system's resolver for what no name server is needed for: addresses, and the name of this machine."""
    name = host.encode("idna").decode()
    if name.rstrip(".").endswith("localhost"):
        return socket.getaddrinfo("localhost", port, **hints)
    return socket.getaddrinfo(name, port, flags=socket.AI_NUMERICHOST, **hints)


GUARD = Guard(resolve=Resolver(lookup=lookup))


@pytest.mark.parametrize("host", LOOPBACK_SPELLINGS)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_every_spelling_of_loopback_is_refused(host: str, scheme: str) -> None:
    url = f"{scheme}://{host}:8080/x"
    with pytest.raises(InvalidRequest):
        await GUARD.check(url)
    with pytest.raises(InvalidRequest):
        await GUARD.fetch(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://a\0b.example/",
        "https://" + "a" * 64 + ".example/",
        "https://" + "a." * 200 + "example/",
        "https://" + "ä" * 10_000 + "/",
        "https://..example/",
        "https://*/",
        "https:///x",
        "https://:443/",
        "https://./",
        "https://example.com:99999/",
        "https://example.com:-1/",
        "https://exa mple/",
        "https://\ud800.example/",
        "https://example.com\\@127.0.0.1/",
        "https://127.0.0.1\\.example.com/",
        "https://user@127.0.0.1/",
        "https://example.com@127.0.0.1/",
        "https://[::1",
        "https://[::1%25lo]/",
        "https://[v1.x]/",
        "https://[127.0.0.1]/",
        "http:127.0.0.1/",
        "http:/127.0.0.1/",
        "//127.0.0.1/",
        "gopher://127.0.0.1/",
        "file://127.0.0.1/etc/passwd",
        "unix:///var/run/docker.sock",
        "data:text/plain,x",
        "",
    ],
)
async def test_malformed_address_is_a_plain_refusal(url: str) -> None:
    with pytest.raises(InvalidRequest):
        await GUARD.check(url)
    with pytest.raises(InvalidRequest):
        await GUARD.fetch(url)
