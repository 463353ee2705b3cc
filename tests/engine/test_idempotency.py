"""Keys of responses that are not stored: held while they run, free when nobody is at work on them any more."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.conftest import House
from tests.engine.test_responses import Item, answered, ask, said, until
from turnloom.domain.errors import Busy, NotFound
from turnloom.engine.follow import Followed
from turnloom.engine.inline import Run
from turnloom.ports import Finished, TextChunk
from turnloom.store.claims import Claim, Claims
from turnloom.testing import USAGE
from turnloom.usecases.conversations import create_conversation
from turnloom.usecases.idempotency import join
from turnloom.usecases.responses import get_response


class WatchedClaims(Claims):
    """Claims that count how often one is renewed; `broken`, none can be."""

    renewed = 0
    broken = False

    async def renew(self, owner: str, claim: Claim, now: int) -> None:
        if not self.broken:
            await super().renew(owner, claim, now)
        self.renewed += 1
        if self.broken:
            raise OSError("the table is out of reach")


@pytest.fixture
def claims(house: House) -> WatchedClaims:
    watched = WatchedClaims(house.services.claims._table)
    house.services = replace(house.services, claims=watched)
    return watched


async def begun(house: House, gate: asyncio.Event, **settings: Item) -> Run:
    """A response that is not stored, at work until the gate opens."""
    house.model.answers(gate, TextChunk("One."), Finished("stop", USAGE))
    run = await ask(house, "Hi", store=False, key="k", fingerprint="f", **settings)
    assert isinstance(run, Run)
    return run


async def test_a_key_is_held_for_as_long_as_its_response_runs(house: House, claims: WatchedClaims) -> None:
    gate = asyncio.Event()
    run = await begun(house, gate)
    for count in range(1, 5):
        house.clock.advance(30)
        await until(lambda count=count: claims.renewed == count)
    with pytest.raises(Busy) as refusal:
        await ask(house, "Hi", store=False, key="k", fingerprint="f")
    assert refusal.value.code == "idempotency_key_in_use"
    gate.set()
    assert (await run.settled()).status == "completed"
    house.model.says("Two.")
    assert (await answered(house, "Hi", store=False, key="k", fingerprint="f")).id != run.record.turn.id


async def test_a_key_whose_driver_was_killed_is_free_in_a_minute(house: House) -> None:
    killed = Claim("k", "resp_" + "0" * 32, "f", stored=False)
    await house.services.claims.stake("me", killed, house.clock.now())
    house.clock.advance(50)
    with pytest.raises(Busy):
        await ask(house, "Hi", store=False, key="k", fingerprint="f")
    house.clock.advance(11)
    house.model.says("Hello")
    assert (await answered(house, "Hi", store=False, key="k", fingerprint="f")).status == "completed"


async def test_a_response_does_not_fail_because_its_key_cannot_be_held(house: House, claims: WatchedClaims) -> None:
    claims.broken = True
    gate = asyncio.Event()
    run = await begun(house, gate)
    house.clock.advance(30)
    await until(lambda: claims.renewed)
    gate.set()
    assert (await run.settled()).status == "completed"


async def test_who_holds_a_key_does_not_take_it_back(house: House) -> None:
    claims, now = house.services.claims, house.clock.now()
    lost, newer = (Claim("k", f"resp_{mark * 32}", "f", stored=False) for mark in "ab")
    await claims.stake("me", lost, now)
    house.clock.advance(61)
    await claims.stake("me", newer, house.clock.now())
    await claims.renew("me", lost, house.clock.now())
    assert await claims.get("me", "k") == newer


async def test_a_short_response_writes_its_key_once_and_no_more(house: House, claims: WatchedClaims) -> None:
    house.model.says(*["word"] * 200)
    await answered(house, "Hi", store=False, key="k", fingerprint="f")
    assert claims.renewed == 0 and await claims.get("me", "k") is None


async def test_what_is_there_only_for_its_conversation_is_joined_while_it_runs(house: House) -> None:
    conversation = await create_conversation(house.services, "me", [said("Before.")], {})
    gate, named = asyncio.Event(), {"id": conversation.conversation_id}
    run = await begun(house, gate, conversation=named)
    again = await join(house.services, "me", "k", "f")
    assert isinstance(again, Followed)
    gate.set()
    first, second = await asyncio.gather(run.settled(), again.settled())
    assert first.id == second.id and second.status == "completed" and len(house.model.requests) == 1
    with pytest.raises(NotFound):
        await get_response(house.services, "me", first.id)
    assert await join(house.services, "me", "k", "f") is None
    house.model.says("Two.")
    later = await answered(house, "Hi", store=False, key="k", fingerprint="f", conversation=named)
    assert later.id != first.id, "what has ended is not to be had again"


async def test_a_key_that_outlived_what_its_conversation_holds_is_free(house: House) -> None:
    conversation = await create_conversation(house.services, "me", [], {})
    named = {"id": conversation.conversation_id}
    house.model.says("One.")
    first = await answered(house, "Hi", store=False, key="k", fingerprint="f", conversation=named)
    await house.services.claims.stake("me", Claim("k", first.id, "f"), house.clock.now())
    async with asyncio.timeout(20):
        assert await join(house.services, "me", "k", "f") is None
    house.model.says("Two.")
    second = await answered(house, "Hi", store=False, key="k", fingerprint="f", conversation=named)
    assert second.id != first.id and second.status == "completed"
