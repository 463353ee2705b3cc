"""Agents in their rows, and beside these what no row can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import House
from turnloom.domain.agent import Agent

LARGE: dict[str, Any] = {"model": "m", "instructions": "é" * 500_000}


async def test_an_agent_that_no_row_can_hold_is_kept_whole(house: House) -> None:
    agents = house.services.agents
    large, small = Agent("a", LARGE, 1), Agent("b", {"model": "m"}, 2)
    await agents.put("me", large)
    await agents.put("me", small)
    assert await agents.get("me", "a") == large
    assert await agents.all("me") == [large, small]
    assert await agents.get("you", "a") is None


async def test_it_leaves_nothing_behind(house: House, tmp_path: Path) -> None:
    agents = house.services.agents
    await agents.put("me", Agent("a", LARGE, 1))
    assert len(list((tmp_path / "blobs").glob("*"))) == 1
    assert await agents.state("me", "a") == "live"
    await agents.bury("me", "a", house.clock.now())
    assert await agents.get("me", "a") is None and await agents.all("me") == []
    assert list((tmp_path / "blobs").glob("*")) == []
    assert await agents.state("me", "a") == "deleted"
    assert await agents.state("me", "b") is None


async def test_an_agent_whose_blob_is_gone_is_listed_as_lost_and_can_be_deleted(house: House) -> None:
    agents = house.services.agents
    await agents.put("me", Agent("a", LARGE, 1))
    await agents._blobs.delete("agent/me#a")
    lost = Agent("a", {}, 1, content_lost=True)
    assert await agents.get("me", "a") == lost and await agents.all("me") == [lost]
    await agents.bury("me", "a", house.clock.now())
    assert await agents.get("me", "a") is None and await agents.all("me") == []
    assert await agents.state("me", "a") == "deleted"


@pytest.mark.parametrize("length", [1, 100_000])
async def test_half_a_surrogate_pair_keeps_no_agent_from_being_made(house: House, length: int) -> None:
    agent = Agent("a", {"model": "m", "instructions": "\udc00" * length}, 1)
    await house.services.agents.put("me", agent)
    assert await house.services.agents.get("me", "a") == agent
