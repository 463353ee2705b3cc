"""Conversations under several writers: what is read to put items in, and what is left when one is deleted meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import House
from tests.engine.test_responses import MCP, answered, ask, held, item_ids, said, serve, served, talk
from turnloom.adapters.vault import SivVault
from turnloom.domain.errors import InvalidRequest, NotFound, ServerFault
from turnloom.domain.layout import INPUT_POSITION, input_ids, item_id
from turnloom.domain.turn import Turn
from turnloom.ports import Condition, Finished, Page, Row, Table, TextChunk, Version
from turnloom.store import codec
from turnloom.store.conversations import thread_of
from turnloom.store.turns import Place, Record
from turnloom.testing import USAGE
from turnloom.usecases.callers import Caller, sealed, unsealed
from turnloom.usecases.chains import get_response
from turnloom.usecases.conversations import (
    TAIL,
    append_items,
    conversation_records,
    delete_conversation,
    delete_item,
    get_conversation,
    update_conversation,
)
from turnloom.usecases.disposal import LONGEST_REQUEST, dispose_due
from turnloom.usecases.responses import delete_response
from turnloom.usecases.services import Limits

Work = Callable[[], Awaitable[object]]


class Killed(BaseException):
    """The process ends here."""


class WatchedTable:
    """A table that counts the rows it reads, a look at nothing being one, and that can be interrupted."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._work: dict[str, Work] = {}
        self.reads = 0

    def before(self, call: str, work: Work) -> None:
        """Let this be done right before the next call of that name."""
        self._work[call] = work

    async def get(self, partition: str, sort: str) -> Row | None:
        await self._interrupted("get")
        self.reads += 1
        return await self._table.get(partition, sort)

    async def get_many(self, keys: Sequence[tuple[str, str]]) -> list[Row]:
        self.reads += len(keys)
        return await self._table.get_many(keys)

    async def put(self, row: Row, when: Condition | None = None) -> None:
        await self._interrupted("put")
        await self._table.put(row, when)

    async def delete(self, partition: str, sort: str, when: Version | None = None) -> None:
        await self._interrupted("delete")
        await self._table.delete(partition, sort, when)

    async def query(self, partition: str, **bounds: Any) -> Page:
        await self._interrupted("query")
        page = await self._table.query(partition, **bounds)
        self.reads += max(1, len(page.rows))
        return page

    async def _interrupted(self, call: str) -> None:
        if (work := self._work.pop(call, None)) is not None:
            await work()


def watched(store: Any) -> WatchedTable:
    """The table of this store, from now on watched."""
    store._table = table = WatchedTable(store._table)
    return table


async def thread(house: House, conversation: str) -> list[Record]:
    return await house.services.responses.thread("me", thread_of(conversation))


async def kill() -> None:
    raise Killed


async def sweep_later(house: House) -> None:
    """The sweeper's visit when everybody who was at work has ended."""
    house.clock.advance(LONGEST_REQUEST / 1_000_000 + 1)
    await dispose_due(house.services)


def named(name: str, text: str = "x") -> dict[str, Any]:
    return {**said(text), "id": name}


async def names(house: House, conversation: str) -> list[str]:
    """The ids of the items that were put in, as a list of them tells."""
    taken: set[str] = set()
    found: list[str] = []
    for record in await conversation_records(house.services, "me", conversation):
        own = input_ids(record.turn, taken)
        taken |= set(own)
        found += own
    return found


# --- metadata


async def test_a_change_of_metadata_does_not_bring_a_deleted_conversation_back(house: House) -> None:
    conversation = await talk(house)
    table = watched(house.services.conversations)
    table.before("put", lambda: delete_conversation(house.services, "me", conversation))
    with pytest.raises(NotFound):
        await update_conversation(house.services, "me", conversation, {"a": "1"})
    with pytest.raises(NotFound):
        await get_conversation(house.services, "me", conversation)


async def test_of_two_changes_of_metadata_the_later_one_stays(house: House) -> None:
    conversation = await talk(house)
    table = watched(house.services.conversations)
    table.before("put", lambda: update_conversation(house.services, "me", conversation, {"a": "1"}))
    changed = await update_conversation(house.services, "me", conversation, {"b": "2"})
    assert changed == await get_conversation(house.services, "me", conversation) and changed.metadata == {"b": "2"}


async def test_a_conversation_that_was_changed_often_can_be_changed_again(house: House) -> None:
    conversation = await talk(house)
    for number in range(3):
        await update_conversation(house.services, "me", conversation, {"n": str(number)})
    assert (await get_conversation(house.services, "me", conversation)).metadata == {"n": "2"}


# --- writers in a conversation that is being deleted


async def test_items_that_arrive_while_the_conversation_is_deleted_are_refused_and_leave_nothing(house: House) -> None:
    conversation = await talk(house, said("Before"))
    table = watched(house.services.responses)
    table.before("put", lambda: delete_conversation(house.services, "me", conversation))
    with pytest.raises(NotFound):
        await append_items(house.services, "me", conversation, [said("Late")])
    assert await thread(house, conversation) == []


async def test_items_that_arrive_between_the_halves_of_a_deletion_leave_nothing(house: House) -> None:
    conversation = await talk(house, said("Before"))

    async def append() -> None:
        with pytest.raises(NotFound):
            await append_items(house.services, "me", conversation, [said("Late")])

    found = await get_conversation(house.services, "me", conversation)
    table = watched(house.services.responses)
    table.before("query", lambda: _unseen(house, found, append))
    await delete_conversation(house.services, "me", conversation)
    assert await thread(house, conversation) == []


async def _unseen(house: House, conversation: Any, work: Work) -> None:
    """Do this as someone who still found the conversation the first time they looked."""
    looks = iter([conversation])
    store = house.services.conversations

    class Stale:
        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        async def get(self, owner: str, conversation_id: str) -> Any:
            return next(looks, None) or await store.get(owner, conversation_id)

    kept, house.services = house.services, replace(house.services, conversations=Stale())  # type: ignore[arg-type]
    await work()
    house.services = kept


async def test_items_of_a_process_that_died_as_their_conversation_was_deleted_are_removed_later(house: House) -> None:
    conversation = await talk(house)
    responses, registry = watched(house.services.responses), watched(house.services.conversations)

    async def delete() -> None:
        await delete_conversation(house.services, "me", conversation)
        registry.before("get", kill)

    responses.before("put", delete)
    with pytest.raises(Killed):
        await append_items(house.services, "me", conversation, [said("Late")])
    assert len(await thread(house, conversation)) == 1
    await sweep_later(house)
    assert await thread(house, conversation) == []
    assert await house.services.disposal.due(house.clock.now() + 10**15) == []


async def test_a_deletion_that_was_cut_off_is_finished_later(house: House) -> None:
    conversation = await talk(house, said("Before"))
    watched(house.services.responses).before("query", kill)
    with pytest.raises(Killed):
        await delete_conversation(house.services, "me", conversation)
    with pytest.raises(NotFound):
        await get_conversation(house.services, "me", conversation)
    await sweep_later(house)
    assert await thread(house, conversation) == []


async def test_a_response_that_is_not_stored_leaves_nothing_in_a_conversation_deleted_as_it_began(house: House) -> None:
    conversation = await talk(house)
    house.model.says("Hello.")
    table = watched(house.services.responses)
    table.before("put", lambda: delete_conversation(house.services, "me", conversation))
    await answered(house, "Hi", conversation={"id": conversation}, store=False)
    await sweep_later(house)
    assert await thread(house, conversation) == []


async def test_a_response_that_began_as_its_conversation_was_deleted_stays_as_those_made_before_it(
    house: House,
) -> None:
    conversation = await talk(house)
    house.model.says("Hello.")
    table = watched(house.services.responses)
    table.before("put", lambda: delete_conversation(house.services, "me", conversation))
    made = await answered(house, "Hi", conversation={"id": conversation})
    await sweep_later(house)
    assert (await get_response(house.services, "me", made.id)).turn.status == "completed"


async def test_a_response_that_began_as_its_conversation_expired_expires_by_its_own_time(house: House) -> None:
    house.services = replace(house.services, limits=Limits(retention_days=30))
    conversation = await talk(house, said("Before"))
    house.clock.advance(31 * 86_400)
    house.model.says("Hello.")
    table = watched(house.services.responses)
    table.before("put", lambda: dispose_due(house.services))
    made = await answered(house, "Hi", conversation={"id": conversation})
    await sweep_later(house)
    assert (await get_response(house.services, "me", made.id)).turn.status == "completed"
    house.clock.advance(31 * 86_400)
    await dispose_due(house.services)
    assert await thread(house, conversation) == []


# --- what is read


@pytest.mark.parametrize("given", [False, True])
async def test_putting_items_in_reads_as_much_in_a_long_conversation_as_in_a_short_one(
    house: House, given: bool
) -> None:
    conversation = await talk(house)
    tables = [watched(house.services.responses), watched(house.services.conversations)]
    reads = []
    for number in range(5 * TAIL):
        before = sum(table.reads for table in tables)
        item = named(f"msg_{number}") if given else said(str(number))
        await append_items(house.services, "me", conversation, [item])
        reads.append(sum(table.reads for table in tables) - before)
    assert max(reads) == max(reads[: 2 * TAIL]) <= (TAIL + 3 if given else 3)


async def test_turns_without_ids_are_looked_through_once_however_many_they_are(house: House) -> None:
    conversation = await talk(house)
    for number in range(3 * TAIL):
        await append_items(house.services, "me", conversation, [said(str(number))])
    table = watched(house.services.responses)
    for name in ("msg_one", "msg_two"):
        table.reads = 0
        await append_items(house.services, "me", conversation, [named(name)])
    assert table.reads <= TAIL


# --- ids


async def test_an_id_is_taken_however_long_ago_it_was_given(house: House) -> None:
    house.model.says("Hello.")
    conversation = await talk(house, named("msg_first"))
    await answered(house, named("msg_asked"), conversation={"id": conversation})
    for number in range(3 * TAIL):
        await append_items(house.services, "me", conversation, [named(f"msg_{number}")])
    old = ["msg_first", "msg_asked", "msg_0", f"msg_{TAIL}", f"msg_{3 * TAIL - 1}"]
    record = await append_items(house.services, "me", conversation, [named(name) for name in (*old, "msg_new")])
    *replaced, new = input_ids(record.turn)
    assert new == "msg_new" and not set(old) & set(replaced)
    found = await names(house, conversation)
    assert found[-6:] == [*replaced, new] and len(set(found)) == len(found)


async def test_an_id_is_taken_that_was_given_before_many_items_without_one(house: House) -> None:
    conversation = await talk(house, named("msg_first"))
    for number in range(2 * TAIL):
        await append_items(house.services, "me", conversation, [said(str(number))])
    for _ in range(2):
        record = await append_items(house.services, "me", conversation, [named("msg_first")])
        assert input_ids(record.turn) != ["msg_first"]


async def test_an_item_that_comes_back_to_its_conversation_gets_another_id(house: House) -> None:
    house.model.says("Hello.")
    conversation = await talk(house)
    made = await answered(house, "Hi", conversation={"id": conversation})
    own = item_ids(made)["message"]
    house.model.says("Elsewhere.")
    foreign = item_ids(await answered(house, "Hi"))["message"]
    record = await append_items(house.services, "me", conversation, [named(own), named(foreign)])
    assert input_ids(record.turn) == [item_id("message", record.turn.id, INPUT_POSITION), foreign]


async def test_of_two_writers_who_give_the_same_id_one_keeps_it(house: House) -> None:
    conversation = await talk(house)
    table = watched(house.services.responses)
    table.before("put", lambda: append_items(house.services, "me", conversation, [named("msg_mine", "first")]))
    record = await append_items(house.services, "me", conversation, [named("msg_mine", "second")])
    assert input_ids(record.turn) != ["msg_mine"]
    assert await names(house, conversation) == ["msg_mine", *input_ids(record.turn)]


async def test_an_id_that_was_told_stays_when_a_running_response_brings_the_same(house: House) -> None:
    gate = asyncio.Event()
    house.model.answers(gate, TextChunk("Hello."), Finished("stop", USAGE))
    conversation = await talk(house)
    run = await ask(house, named("msg_mine"), conversation={"id": conversation})
    record = await append_items(house.services, "me", conversation, [named("msg_mine")])
    told = input_ids(record.turn)
    gate.set()
    await run.settled()
    assert await names(house, conversation) == ["msg_mine", *told] and told != ["msg_mine"]


async def test_an_id_that_a_failed_response_was_given_is_free(house: House) -> None:
    house.model.breaks_after("Hm")
    conversation = await talk(house)
    assert (await answered(house, named("msg_mine"), conversation={"id": conversation})).status == "failed"
    record = await append_items(house.services, "me", conversation, [named("msg_mine")])
    assert input_ids(record.turn) == ["msg_mine"]


async def test_an_id_given_in_the_place_of_a_deleted_response_is_taken_too(house: House) -> None:
    house.model.breaks_after("Hm")
    conversation = await talk(house)
    for number in range(TAIL - 1):
        await append_items(house.services, "me", conversation, [named(f"msg_{number}")])
    failed = await answered(house, "Hi", conversation={"id": conversation})
    watched(house.services.responses).before("put", kill)
    with pytest.raises(Killed):
        await append_items(house.services, "me", conversation, [named("msg_lost")])
    await delete_response(house.services, "me", failed.id)
    for name in ("msg_mine", *(f"msg_later_{number}" for number in range(2 * TAIL))):
        await append_items(house.services, "me", conversation, [named(name)])
    record = await append_items(house.services, "me", conversation, [named("msg_mine")])
    assert input_ids(record.turn) != ["msg_mine"]


async def test_nothing_is_left_of_the_ids_in_a_deleted_conversation(house: House) -> None:
    conversation = await talk(house)
    given = [f"msg_{number}" for number in range(2 * TAIL)]
    for name in given:
        await append_items(house.services, "me", conversation, [named(name)])
    assert await house.services.conversations.known("me", conversation, given) != set()
    await delete_conversation(house.services, "me", conversation)
    assert await house.services.conversations.known("me", conversation, given) == set()


async def test_ids_that_are_noted_as_their_conversation_is_deleted_are_forgotten(house: House) -> None:
    conversation = await talk(house)
    given = [f"msg_{number}" for number in range(TAIL)]
    for name in given:
        await append_items(house.services, "me", conversation, [named(name)])
    table = watched(house.services.conversations)
    table.before("put", lambda: delete_conversation(house.services, "me", conversation))
    with pytest.raises(NotFound):
        await append_items(house.services, "me", conversation, [named("msg_late")])
    assert await thread(house, conversation) == []
    assert await house.services.conversations.known("me", conversation, [*given, "msg_late"]) == set()


async def test_metadata_that_changes_while_ids_are_noted_is_kept(house: House) -> None:
    conversation = await talk(house)
    for number in range(TAIL):
        await append_items(house.services, "me", conversation, [named(f"msg_{number}")])
    table = watched(house.services.conversations)
    table.before("put", lambda: update_conversation(house.services, "me", conversation, {"a": "1"}))
    record = await append_items(house.services, "me", conversation, [named("msg_0")])
    assert input_ids(record.turn) != ["msg_0"]
    assert (await get_conversation(house.services, "me", conversation)).metadata == {"a": "1"}


# --- what is deleted in hidden turns


@pytest.mark.parametrize("end", ["unstored", "deleted"])
async def test_a_deleted_output_of_a_response_that_nobody_can_read_is_kept_nowhere(house: House, end: str) -> None:
    house.model.says("A secret.")
    conversation = await talk(house)
    made = await answered(house, "Hi", conversation={"id": conversation}, store=end != "unstored")
    if end == "deleted":
        await delete_response(house.services, "me", made.id)
    await delete_item(house.services, "me", conversation, item_ids(made)["message"])
    [record] = await thread(house, conversation)
    assert "secret" not in str(codec.dump(record.events))
    assert await held(house, conversation) == ["Hi"]


async def test_an_output_is_deleted_of_a_response_that_is_deleted_at_the_same_time(house: House) -> None:
    house.model.says("A secret.")
    conversation = await talk(house)
    made = await answered(house, "Hi", conversation={"id": conversation})
    table = watched(house.services.responses)
    table.before("put", lambda: delete_response(house.services, "me", made.id))
    await delete_item(house.services, "me", conversation, item_ids(made)["message"])
    [record] = await thread(house, conversation)
    assert record.hidden and "secret" not in str(codec.dump(record.events))


# --- approvals and credentials of what is running


async def test_an_approval_whose_request_is_deleted_meanwhile_fails_with_the_requests_id(house: House) -> None:
    serve(house, {"srv": [served("act")]}, act=lambda: "acted")
    tools = [{**MCP, "require_approval": "always"}]
    house.model.calls(("act", {}))
    conversation = await talk(house)
    request = item_ids(await answered(house, "Act", conversation={"id": conversation}, tools=tools))[
        "mcp_approval_request"
    ]
    house.orchestrator.refusals = 1
    answer = {"type": "mcp_approval_response", "approval_request_id": request, "approve": True}
    made = await ask(house, answer, conversation={"id": conversation}, tools=tools, background=True)
    await delete_item(house.services, "me", conversation, request)
    with pytest.raises(InvalidRequest, match=request) as caught:
        await house.engine.brief(made.record)
    assert (caught.value.code, caught.value.param) == ("invalid_request", "input")


async def test_credentials_sealed_with_a_key_that_was_changed_are_a_fault_that_says_so(house: House) -> None:
    old = replace(house.services, vault=SivVault(lambda: b"old"))
    new = replace(house.services, vault=SivVault(lambda: b"new"))
    caller = Caller("me", headers={"https://srv.test/mcp": {"authorization": "secret"}})
    record = Record(Place("responses", "me", "thread", 0), Turn("resp_1"), secrets=sealed(old, caller))
    assert unsealed(old, record) == caller
    with pytest.raises(ServerFault, match=r"'resp_1' .* key of this deployment .* was changed"):
        unsealed(new, record)


async def test_an_item_deleted_before_its_response_leaves_no_text_behind(house: House) -> None:
    conversation = await talk(house)
    house.model.says("Very secret.")
    turn = await answered(house, "Hi", conversation={"id": conversation})
    await delete_item(house.services, "me", conversation, item_ids(turn)["message"])
    await delete_response(house.services, "me", turn.id)
    record = next(iter(await house.services.responses.thread("me", thread_of(conversation))))
    assert record.hidden and "Very secret." not in repr(record.events)


async def test_a_response_whose_conversation_is_gone_is_deleted_for_good(house: House) -> None:
    conversation = await talk(house)
    house.model.says("Hello.")
    turn = await answered(house, "Hi", conversation={"id": conversation})
    await delete_conversation(house.services, "me", conversation)
    await delete_response(house.services, "me", turn.id)
    assert await house.services.responses.thread("me", thread_of(conversation)) == []
