"""Where MCP servers with secret addresses are asked, whoever drives, and what is stored of their addresses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tests.conftest import House
from tests.engine.test_responses import MCP, ME, ToolServers, answered, refit, said, served, stored
from turnloom.domain import ids
from turnloom.domain.event import Gathered, ToolsListed, TurnCompleted, TurnStarted
from turnloom.domain.message import JSON, Tool, ToolSource
from turnloom.domain.turn import Listing, Turn
from turnloom.engine.takeover import sweep
from turnloom.ports import ToolResult, ToolScope
from turnloom.store.turns import Place, Record
from turnloom.usecases.conversations import append_items, conversation_records, create_conversation

ONE = {**MCP, "server_label": "one", "server_url": "https://srv.test/first-secret"}
TWO = {**MCP, "server_label": "two", "server_url": "https://srv.test/second-secret"}
ADDRESSES = {("one", ONE["server_url"]), ("two", TWO["server_url"])}


@dataclass
class Servers(ToolServers):
    """MCP servers, and at which addresses they were asked for their tools and called."""

    listings: list[tuple[str, str | None]] = field(default_factory=list)
    calls: list[tuple[str, str | None]] = field(default_factory=list)

    async def offered(self, source: ToolSource, scope: ToolScope) -> list[Tool]:
        self.listings.append((source.group, source.endpoint))
        return await super().offered(source, scope)

    async def call(self, source: ToolSource, arguments: Mapping[str, JSON], scope: ToolScope) -> ToolResult:
        self.calls.append((source.group, source.endpoint))
        return await super().call(source, arguments, scope)


@pytest.fixture
def servers(house: House) -> Servers:
    tools = Servers({"look": lambda: "looked"}, servers={label: [served("look")] for label in ("srv", "one", "two")})
    house.tools = tools
    refit(house, world=replace(house.engine.world, tools=tools))
    return tools


def additional(*tools: Any) -> dict[str, Any]:
    return {"type": "additional_tools", "tools": list(tools)}


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("as_item", [False, True])
async def test_servers_whose_public_addresses_are_equal_stay_apart(
    house: House, servers: Servers, background: bool, as_item: bool
) -> None:
    house.model.calls(("look", {}), ("two__look", {}))
    house.model.says("Done.")
    given: dict[str, Any] = {} if as_item else {"tools": [ONE, TWO]}
    items = [additional(ONE, TWO)] if as_item else []
    turn = await answered(house, *items, "Hi", background=background, **given)
    assert turn.status == "completed" and house.orchestrator.errors == []
    assert set(servers.listings) == set(servers.calls) == ADDRESSES
    record = await stored(house, turn)
    assert record.secrets is None and "secret" not in repr(record.events)


async def test_a_list_is_kept_for_the_one_of_two_servers_that_gave_it(house: House, servers: Servers) -> None:
    house.model.says("One.")
    first = await answered(house, "Hi", tools=[ONE])
    house.model.says("Two.")
    await answered(house, "Hi", previous_response_id=first.id, tools=[{**TWO, "server_label": "one"}])
    house.model.says("Three.")
    await answered(house, "Hi", previous_response_id=first.id, tools=[ONE], background=True)
    assert servers.listings == [("one", ONE["server_url"]), ("one", TWO["server_url"])]


async def test_a_server_of_an_earlier_request_is_offered_only_if_its_address_was_no_secret(
    house: House, servers: Servers
) -> None:
    public = {**TWO, "server_url": "https://public.test"}
    house.model.says("One.")
    first = await answered(house, additional(ONE, public), "Hi")
    for background in (False, True):
        house.model.says("Two.")
        await answered(house, "Hi", previous_response_id=first.id, background=background)
        assert {tool.source.group for tool in house.model.requests[-1].tools if tool.source} == {"two"}
    house.model.says("Three.")
    await answered(house, additional(ONE), "Hi", previous_response_id=first.id)
    assert servers.listings[-1] == ("one", ONE["server_url"])


async def test_items_of_a_conversation_are_stored_without_secret_addresses(house: House) -> None:
    conversation = await create_conversation(house.services, "me", [additional(ONE)], {})
    await append_items(house.services, "me", conversation.conversation_id, [additional(TWO)])
    records = await conversation_records(house.services, "me", conversation.conversation_id)
    addresses = [item["tools"][0]["server_url"] for record in records for item in record.turn.input]
    assert addresses == ["https://srv.test/<redacted>"] * 2 and "-secret" not in repr(records)


# --- rows that an earlier version stored, with the address itself


def earlier(house: House, *, secrets: str | None = None, lease: int = 0) -> Record:
    thread, now = ids.new_thread(house.services.entropy), house.clock.now()
    turn = Turn(ids.response_id(now, 0, thread))
    record = Record(Place("responses", "me", thread, 0), turn, secrets=secrets, lease=lease)
    return record.with_events([TurnStarted(now, (said("Hi"),), {"model": "m", "tools": [ONE]})])


async def test_a_list_that_an_earlier_version_stored_is_known(house: House, servers: Servers) -> None:
    record = earlier(house)
    now = record.turn.last_at
    listed = ToolsListed(now + 1, "one", ({"name": "look", "input_schema": {}},))
    record = record.with_events([listed, Gathered(now + 2), TurnCompleted(now + 3)])
    await house.services.responses.open(record)
    house.model.says("Two.")
    turn = await answered(house, "And?", previous_response_id=record.turn.id, tools=[ONE])
    assert servers.listings == [] and not any(isinstance(step, Listing) for step in turn.steps)
    assert "secret" not in repr((await stored(house, turn)).events)


async def test_a_turn_that_an_earlier_version_started_goes_on(house: House, servers: Servers) -> None:
    headers = {ONE["server_url"]: {"x-key": "k"}}
    sealed = house.services.vault.seal(json.dumps([headers, {}]).encode(), f"secrets:{ME.owner}")
    record = await house.services.responses.open(earlier(house, secrets=sealed, lease=house.engine.lease()))
    house.model.calls(("look", {}))
    house.model.says("Done.")
    house.clock.advance(60)
    assert await sweep(house.engine) == 1
    await house.orchestrator.finished()
    assert (await stored(house, record)).turn.status == "completed" and house.orchestrator.errors == []
    assert servers.listings == servers.calls == [("one", ONE["server_url"])]
    assert servers.ran[0][2].headers == headers
