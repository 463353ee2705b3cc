"""What is stored in place of the addresses of MCP servers."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import House
from turnloom.adapters.vault import SivVault
from turnloom.domain.redaction import public_address
from turnloom.usecases.server_addresses import FINGERPRINT, ServerAddresses


def tool(url: str) -> dict[str, Any]:
    return {"type": "mcp", "server_label": "s", "server_url": url}


def fingerprint(house: House, url: str, *, owner: str = "me", key: bytes = b"key") -> Any:
    services = replace(house.services, vault=SivVault(lambda: key))
    [hidden] = ServerAddresses(services, owner).hide_in_tools([tool(url)])
    return hidden[FINGERPRINT]


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("https://a.test", "https://a.test"),
        ("https://a.test:8443/", "https://a.test:8443"),
        ("https://a.test/mcp", "https://a.test/<redacted>"),
        ("https://a.test?key=1", "https://a.test/<redacted>"),
        ("https://user:pw@a.test", "https://a.test"),
        ("https://a.test#fragment", "https://a.test"),
        ("https://[2001:db8::1]:1/x", "https://[2001:db8::1]:1/<redacted>"),
    ],
)
def test_all_of_an_address_but_its_origin_is_hidden(house: House, url: str, public: str) -> None:
    addresses = ServerAddresses(house.services, "me")
    [hidden] = addresses.hide_in_tools([tool(url)])
    assert public_address(url) == public
    if FINGERPRINT in hidden:
        assert hidden["server_url"] == public and addresses.secrets == {hidden[FINGERPRINT]: url}
    else:
        assert hidden == tool(url) and url.rstrip("/") == public
    assert addresses.hide_in_tools([hidden]) == [hidden], "what is hidden already stays as it is"


def test_nothing_is_sealed_for_tools_without_a_secret_address(house: House) -> None:
    services = replace(house.services, vault=None)  # type: ignore[arg-type]
    tools = [tool("https://a.test/"), {"type": "function", "name": "f"}]
    items = [{"type": "message", "role": "user", "content": "Hi."}, {"type": "additional_tools", "tools": tools}]
    addresses = ServerAddresses(services, "me")
    assert addresses.hide_in_tools(tools) == tools and addresses.hide_in_items(items) == items


def test_a_fingerprint_is_the_same_for_one_address_of_one_owner_and_cannot_be_made_without_the_key(
    house: House,
) -> None:
    url = "https://a.test/mcp"
    known = fingerprint(house, url)
    others = [
        fingerprint(house, "https://a.test/mcp2"),
        fingerprint(house, url, owner="you"),
        fingerprint(house, url, key=b"other"),
        hashlib.sha256(url.encode()).hexdigest(),
    ]
    assert fingerprint(house, url) == known and known not in others
