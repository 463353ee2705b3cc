"""Hostile MCP servers: whatever one answers, a listing or a call ends in bounds, and repeats no credential."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest
from tests.heartbeat import Heartbeat
from tests.hostile_mcp import HOSTILE, WHEN, HostileServer

from turnloom.adapters.guard import MIB, Guard
from turnloom.adapters.tools import ToolRunners
from turnloom.domain.errors import Unauthenticated, UpstreamBroken
from turnloom.domain.message import Tool, ToolSource
from turnloom.ports import ToolResult, ToolScope
from turnloom.testing import FrozenClock

TOKEN = "k3y-abcdefgh-12345-ijklmnop-67890"
LONGEST_BLOCK = 0.5
MOST_GROWTH = 100 * MIB


@pytest.fixture(scope="module")
def hostile() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


def runners() -> ToolRunners:
    return ToolRunners(Guard(allow_loopback=True), FrozenClock(), seconds=0.5)


def source(url: str) -> ToolSource:
    return ToolSource("mcp", "group", "echo", url, settings={"authorization": TOKEN})


def reveals(text: str) -> bool:
    """Whether the text has a piece of the token that could be of use."""
    return any(TOKEN[at : at + 8] in text for at in range(len(TOKEN) - 7))


async def offered(url: str) -> list[Tool] | str:
    try:
        return await runners().offered(source(url), ToolScope("owner"))
    except (UpstreamBroken, Unauthenticated) as refusal:
        return refusal.message


async def called(url: str) -> ToolResult:
    return await runners().call(source(url), {}, ToolScope("owner"))


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("behaviour", HOSTILE)
async def test_a_hostile_server_is_read_within_bounds(
    hostile: HostileServer, behaviour: str, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = hostile.url(behaviour, when)
    with caplog.at_level(logging.DEBUG):
        async with asyncio.timeout(6), Heartbeat() as heart:
            listed, result = await asyncio.gather(offered(url), called(url))
    assert heart.longest < LONGEST_BLOCK
    assert heart.growth < MOST_GROWTH
    assert not reveals(f"{listed} {result} {caplog.text}".replace(f"'authorization': '{TOKEN}'", ""))
    str(listed).encode()
    str(result).encode()
    assert len(str(result.content)) <= MIB
