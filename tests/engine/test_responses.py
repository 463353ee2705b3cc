"""Responses as the use cases give them: chains, conversations, the background, idempotency keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import House
from turnloom.domain.errors import Busy, InvalidRequest, NotFound, Problem, UpstreamBroken
from turnloom.domain.event import Event, TurnCancelled, TurnCompleted, TurnFailed
from turnloom.domain.layout import input_ids, item_id, placed
from turnloom.domain.message import (
    JSON,
    AssistantMessage,
    Message,
    SystemMessage,
    Tool,
    ToolMessage,
    ToolSource,
    UserMessage,
)
from turnloom.domain.turn import Turn
from turnloom.engine.engine import state_of
from turnloom.engine.follow import Followed
from turnloom.engine.inline import Run
from turnloom.engine.stepped import call_tool, step
from turnloom.engine.takeover import sweep
from turnloom.ports import CallChunk, Finished, ModelRequest, Table, TextChunk, ToolScope, Version
from turnloom.store.claims import Claim
from turnloom.store.turns import Record
from turnloom.testing import USAGE, FakeTools, FrozenClock
from turnloom.usecases.callers import Caller
from turnloom.usecases.conversations import (
    append_items,
    conversation_records,
    create_conversation,
    delete_conversation,
    delete_item,
)
from turnloom.usecases.disposal import dispose_due
from turnloom.usecases.responses import (
    ResponseRequest,
    cancel_response,
    create_response,
    delete_response,
    get_response,
    response_context,
)
from turnloom.usecases.services import Limits

ME = Caller("me")
Item = dict[str, Any]

MCP = {"type": "mcp", "server_label": "srv", "server_url": "https://srv.test/mcp", "require_approval": "never"}
LOOKUP = {"type": "function", "name": "lookup", "parameters": {"type": "object"}}


@dataclass
class ToolServers(FakeTools):
    """MCP servers by label, with what they offer or what keeps them from saying so; `listed` are those asked."""

    servers: dict[str, Sequence[Tool] | Problem] = field(default_factory=dict)
    listed: list[str] = field(default_factory=list)

    async def offered(self, source: ToolSource, scope: ToolScope) -> list[Tool]:
        self.listed.append(source.group)
        found = self.servers[source.group]
        if isinstance(found, Problem):
            raise found
        return list(found)


def served(name: str, *, read_only: bool | None = None, **more: Any) -> Tool:
    """A tool as its server describes it."""
    hints = {} if read_only is None else {"annotations": {"readOnlyHint": read_only}}
    return Tool(name, **more, source=ToolSource("mcp", "", name, settings=hints))


def serve(
    house: House, servers: dict[str, Sequence[Tool] | Problem], **functions: Callable[..., object]
) -> ToolServers:
    """Let the house have these servers; their tools run these functions."""
    tools = ToolServers(functions, servers=servers)
    house.tools = tools
    refit(house, world=replace(house.engine.world, tools=tools))
    return tools


def tell_time(house: House, clock: FrozenClock) -> None:
    """Let the house have this clock."""
    house.clock = clock
    house.services = replace(house.services, clock=clock)
    refit(house, world=replace(house.engine.world, clock=clock))


def refit(house: House, **parts: Any) -> None:
    engine = replace(house.engine, **parts)
    house.orchestrator.engine = engine
    house.services = replace(house.services, engine=engine)


def said(text: str, role: str = "user") -> Item:
    return {"type": "message", "role": role, "content": text}


def found(call_id: str, output: str) -> Item:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


async def ask(
    house: House,
    *items: str | Item,
    caller: Caller = ME,
    store: bool = True,
    key: str | None = None,
    fingerprint: str = "",
    **settings: JSON,
) -> Run | Followed:
    """A response under way; strings are what the user says."""
    given = [said(item) if isinstance(item, str) else item for item in items]
    request = ResponseRequest(given, {"model": "m", **settings}, store, key, fingerprint)
    return await create_response(house.services, caller, request)


async def answered(house: House, *items: str | Item, **settings: Any) -> Turn:
    """The response once it rests."""
    async with asyncio.timeout(20):
        return await (await ask(house, *items, **settings)).settled()


async def stored(house: House, turn: Turn | Record) -> Record:
    return await get_response(house.services, "me", turn.turn.id if isinstance(turn, Record) else turn.id)


async def until(condition: Callable[[], object]) -> None:
    for _ in range(20_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came to that")


async def until_logged(house: House, record: Record, kind: type[Event]) -> None:
    for _ in range(20_000):
        if any(isinstance(event, kind) for event in (await stored(house, record)).events):
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"no {kind.__name__} was logged")


def shown(house: House) -> tuple[Message, ...]:
    """What the model was shown last, after every request so far was found to be well formed."""
    for request in house.model.requests:
        check_well_formed(request.messages)
    return house.model.requests[-1].messages


def texts(house: House) -> list[str]:
    """What the model was shown last, as text alone."""
    return [
        message.text if isinstance(message, AssistantMessage) else str(message.content)
        for message in shown(house)
        if not isinstance(message, ToolMessage)
    ]


def check_well_formed(messages: Sequence[Message]) -> None:
    """Each assistant message is followed by one result for each of its calls, in their order, and nothing else is."""
    due: list[str] = []
    for message in messages:
        if isinstance(message, ToolMessage):
            assert due and due.pop(0) == message.call_id, "a result stands where it does not belong"
            continue
        assert due == [], "a call has no result right behind it"
        if isinstance(message, AssistantMessage):
            due = [call.call_id for call in message.calls]
    assert due == []


def results(house: House) -> list[str]:
    """The results of tools that the model was shown last."""
    return [message.content for message in shown(house) if isinstance(message, ToolMessage)]


def item_ids(turn: Turn) -> dict[str, str]:
    """The ids of a turn's output items, by their types."""
    return {item.kind: item_id(item.kind, turn.id, item.position) for item in placed(turn)}


def echo(request: ModelRequest) -> list[Any]:
    """A model that says what it heard last."""
    last = next(m for m in reversed(request.messages) if isinstance(m, UserMessage))
    return [TextChunk(f"re: {last.content}"), Finished("stop", USAGE)]


# --- chains


async def test_a_child_sees_everything_of_its_parent_but_its_instructions(house: House) -> None:
    house.model.says("One.")
    house.model.says("Two.")
    first = await answered(house, "Hi", instructions="Be brief.")
    await answered(house, "And?", previous_response_id=first.id)
    assert texts(house) == ["Hi", "One.", "And?"]


async def test_children_of_one_parent_made_at_the_same_time_see_their_own_past_alone(house: House) -> None:
    house.model.says("root")
    root = await answered(house, "Hi")
    house.model._rule = echo
    left, right = await asyncio.gather(
        answered(house, "left", previous_response_id=root.id), answered(house, "right", previous_response_id=root.id)
    )
    for child, text in ((left, "left"), (right, "right")):
        await answered(house, "on", previous_response_id=child.id)
        assert texts(house) == ["Hi", "root", text, f"re: {text}", "on"]


async def test_a_child_that_takes_the_place_of_a_deleted_one_is_not_mistaken_for_it(house: House) -> None:
    house.model._rule = echo
    root = await answered(house, "root")
    old = await answered(house, "old", previous_response_id=root.id)
    await answered(house, "a reader of the old one", previous_response_id=old.id)
    await delete_response(house.services, "me", old.id)
    house.clock.advance(1)
    new = await answered(house, "new", previous_response_id=root.id)
    await answered(house, "on", previous_response_id=new.id)
    assert texts(house) == ["root", "re: root", "new", "re: new", "on"]


async def test_a_chain_with_a_hole_in_it_names_what_is_missing(house: House) -> None:
    house.model._rule = echo
    root = await answered(house, "root")
    child = await answered(house, "child", previous_response_id=root.id)
    await delete_response(house.services, "me", root.id)
    assert (await stored(house, child)).turn.status == "completed"
    with pytest.raises(InvalidRequest, match=root.id) as refusal:
        await answered(house, "on", previous_response_id=child.id)
    assert (refusal.value.code, refusal.value.param) == ("previous_response_not_found", "previous_response_id")


async def test_nothing_is_put_on_top_of_what_is_still_running(house: House) -> None:
    house.model.answers(asyncio.Event())
    run = await ask(house, "Hi")
    with pytest.raises(Busy) as refusal:
        await ask(house, "more", previous_response_id=run.record.turn.id)
    assert refusal.value.code == "previous_response_in_progress"
    assert len(house.model.requests) <= 1, "nothing was paid for"
    await cancel_response(house.services, "me", run.record.turn.id)


async def test_what_a_failed_parent_said_is_replayed(house: House) -> None:
    house.model.breaks_after("So f", "ar")
    failed = await answered(house, "Hi")
    assert failed.status == "failed"
    house.model.says("On.")
    await answered(house, "Go on", previous_response_id=failed.id)
    assert texts(house) == ["Hi", "So far", "Go on"]


async def test_another_owners_response_is_as_unknown_as_none(house: House) -> None:
    house.model.says("Mine.")
    mine = await answered(house, "Hi")
    with pytest.raises(NotFound):
        await get_response(house.services, "you", mine.id)
    with pytest.raises(InvalidRequest, match="not found"):
        await ask(house, "Hi", caller=Caller("you"), previous_response_id=mine.id)


async def test_a_background_child_whose_parent_is_deleted_fails_and_says_why(house: House) -> None:
    house.model.says("root")
    root = await answered(house, "Hi")
    house.orchestrator.refusals = 1
    child = await ask(house, "on", previous_response_id=root.id, background=True)
    await delete_response(house.services, "me", root.id)
    house.clock.advance(31)
    assert await sweep(house.engine) == 1
    await house.orchestrator.finished()
    failure = (await stored(house, child.record)).turn.failure
    assert failure is not None and failure.code == "previous_response_not_found" and root.id in failure.message


async def test_a_step_whose_history_is_gone_fails_the_response_and_not_the_state_machine(house: House) -> None:
    house.model.says("root")
    root = await answered(house, "Hi")
    house.orchestrator.refusals = 1
    child = await ask(house, "on", previous_response_id=root.id, background=True)
    state = state_of(child.record, (await house.engine.brief(child.record)).spec)
    await delete_response(house.services, "me", root.id)
    assert (await step(house.engine, state, "call_model"))["next"] == "done"
    failure = (await stored(house, child.record)).turn.failure
    assert failure is not None and failure.code == "previous_response_not_found"


async def test_a_deleted_response_stops_where_it_runs(house: House) -> None:
    clock = FrozenClock()
    tell_time(house, clock)
    house.model.answers(TextChunk("Hel"), asyncio.Event())
    run = await ask(house, "Hi")
    ended = asyncio.create_task(run.settled())
    await delete_response(house.services, "me", run.record.turn.id)
    clock.advance(3)
    with pytest.raises(NotFound):
        await asyncio.wait_for(ended, 20)
    assert house.model.closed == 1
    assert await house.services.responses.load(run.record.place) is None
    logged = await house.services.responses.tail(run.record)
    assert [event for batch in logged for event in batch.events] == [], "the driver has written nothing since"


async def test_a_response_too_large_for_a_row_leaves_one_blob_and_none_when_it_is_deleted(
    house: House, tmp_path: Path
) -> None:
    house.model.says("Long.")
    turn = await answered(house, "x" * 1_000_000)
    assert len(list((tmp_path / "blobs").iterdir())) == 1
    await delete_response(house.services, "me", turn.id)
    assert list((tmp_path / "blobs").iterdir()) == []


# --- conversations


async def talk(house: House, *items: Item) -> str:
    """The id of a new conversation."""
    return (await create_conversation(house.services, "me", items, {})).conversation_id


async def held(house: House, conversation: str) -> list[str]:
    """What a response of the conversation would be shown before its own input."""
    house.model.says("Seen.")
    request = await ask(house, "?", conversation={"id": conversation})
    await request.settled()
    *before, _ = texts(house)
    await delete_response(house.services, "me", request.record.turn.id)
    return before


async def test_a_response_adds_its_block_to_its_conversation(house: House) -> None:
    conversation = await talk(house, said("Before"))
    house.model.says("One.")
    house.model.says("Two.")
    await answered(house, "Hi", conversation={"id": conversation})
    await answered(house, "And?", conversation={"id": conversation})
    assert texts(house) == ["Before", "Hi", "One.", "And?"]


class Interrupted:
    """A table whose next deletion finds that something else has just been done."""

    def __init__(self, table: Table, work: Callable[[], Awaitable[object]]) -> None:
        self._table = table
        self._work: Callable[[], Awaitable[object]] | None = work

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    async def delete(self, partition: str, sort: str, when: Version | None = None) -> None:
        if (work := self._work) is not None:
            self._work = None
            await work()
        await self._table.delete(partition, sort, when)


async def test_a_response_that_completes_while_it_is_deleted_keeps_its_place_in_its_conversation(house: House) -> None:
    conversation = await talk(house)
    gate = asyncio.Event()
    house.model.answers(gate, TextChunk("One."), Finished("stop", USAGE))
    run = await ask(house, "Hi", conversation={"id": conversation})

    async def complete() -> None:
        gate.set()
        await run.settled()

    responses = house.services.responses
    responses._table = Interrupted(responses._table, complete)  # type: ignore[assignment]
    await delete_response(house.services, "me", run.record.turn.id)
    with pytest.raises(NotFound):
        await get_response(house.services, "me", run.record.turn.id)
    assert await held(house, conversation) == ["Hi", "One."]


async def test_who_waits_for_a_response_that_is_deleted_is_told_so_in_the_words_of_its_api(house: House) -> None:
    gate = asyncio.Event()
    house.model.answers(gate, TextChunk("One."), Finished("stop", USAGE))
    run = await ask(house, "Hi", stream=False)
    waiting = asyncio.create_task(run.settled())
    await delete_response(house.services, "me", run.record.turn.id)
    gate.set()
    with pytest.raises(NotFound, match="Response 'resp_") as gone:
        await waiting
    assert gone.value.code == "response_not_found"


async def test_of_two_responses_at_once_one_is_told_that_the_conversation_is_locked(house: House) -> None:
    gate = asyncio.Event()
    house.model._rule = lambda request: [gate, *echo(request)]
    conversation = await talk(house)
    both = await asyncio.gather(
        *(ask(house, text, conversation={"id": conversation}) for text in ("a", "b")), return_exceptions=True
    )
    [run] = [made for made in both if isinstance(made, Run)]
    [refusal] = [made for made in both if isinstance(made, Busy)]
    assert (refusal.code, refusal.param, refusal.retryable) == ("conversation_locked", "conversation", True)
    gate.set()
    assert (await run.settled()).status == "completed"
    assert (await answered(house, "c", conversation={"id": conversation})).status == "completed"
    first = str(run.record.turn.input[0]["content"])
    assert texts(house) == [first, f"re: {first}", "c"]


async def test_the_lock_falls_with_the_driver(house: House) -> None:
    house.model.answers(TextChunk("Hel"), asyncio.Event())
    house.model.says("Hello")
    conversation = await talk(house)
    run = await ask(house, "Hi", conversation={"id": conversation})
    assert isinstance(run, Run)
    run.stop()
    house.clock.advance(31)
    with pytest.raises(Busy):
        await ask(house, "Hi?", conversation={"id": conversation})
    await house.orchestrator.finished()
    assert (await stored(house, run.record)).turn.last_inference.said("text") == "Hello"  # type: ignore[union-attr]
    house.model.says("Yes.")
    assert (await answered(house, "Hi?", conversation={"id": conversation})).status == "completed"


async def test_items_put_in_while_a_response_runs_come_after_its_block(house: House) -> None:
    gate = asyncio.Event()
    house.model.answers(gate, TextChunk("One."), Finished("stop", USAGE))
    conversation = await talk(house)
    run = await ask(house, "Hi", conversation={"id": conversation})
    await append_items(house.services, "me", conversation, [said("In between")])
    gate.set()
    await run.settled()
    assert texts(house) == ["Hi"]
    assert await held(house, conversation) == ["Hi", "One.", "In between"]


async def test_appends_at_the_same_time_lose_nothing(house: House) -> None:
    conversation = await talk(house)
    await asyncio.gather(*(append_items(house.services, "me", conversation, [said(str(n))]) for n in range(5)))
    assert sorted(await held(house, conversation)) == ["0", "1", "2", "3", "4"]


async def test_a_response_that_goes_on_elsewhere_keeps_the_snapshot_it_began_with(house: House) -> None:
    gate = asyncio.Event()

    async def slow() -> str:
        await gate.wait()
        return "done"

    serve(house, {"srv": [served("slow")]}, slow=slow)
    house.model.calls(("slow", {}))
    house.model.says("After.")
    conversation = await talk(house, said("Before"))
    run = await ask(house, "Hi", conversation={"id": conversation}, tools=[MCP])
    await until(lambda: house.tools.ran)
    await append_items(house.services, "me", conversation, [said("In between")])
    gate.set()
    assert (await run.settled()).status == "completed"
    assert texts(house) == ["Before", "Hi", ""] and results(house) == ["done"]
    assert "In between" in await held(house, conversation)


@pytest.mark.parametrize("end", ["failed", "cancelled"])
async def test_a_response_that_gave_no_answer_adds_nothing(house: House, end: str) -> None:
    conversation = await talk(house, said("Before"))
    if end == "failed":
        house.model.breaks_after("Hm")
        assert (await answered(house, "Hi", conversation={"id": conversation})).status == "failed"
    else:
        house.model.answers(TextChunk("Hm"), asyncio.Event())
        run = await ask(house, "Hi", conversation={"id": conversation})
        await cancel_response(house.services, "me", run.record.turn.id)
    assert await held(house, conversation) == ["Before"]


async def test_a_response_cut_short_adds_what_it_has(house: House) -> None:
    house.model.says("So f", finish="length")
    conversation = await talk(house)
    await answered(house, "Hi", conversation={"id": conversation})
    assert await held(house, conversation) == ["Hi", "So f"]


@pytest.mark.parametrize("half", ["call", "output"])
async def test_deleting_one_half_of_a_call_takes_the_other_out_of_the_context(house: House, half: str) -> None:
    house.model.calls(("lookup", {"q": 1}), text="Let me see.")
    house.model.says("There.")
    conversation = await talk(house)
    asking = await answered(house, "Hi", conversation={"id": conversation}, tools=[LOOKUP])
    [call] = asking.open_calls
    telling = await answered(house, found(call.call_id, "42"), conversation={"id": conversation})
    item = item_ids(asking)["function_call"] if half == "call" else input_ids(telling)[0]
    await delete_item(house.services, "me", conversation, item)
    house.model.says("On.")
    await answered(house, "On?", conversation={"id": conversation})
    assert texts(house) == ["Hi", "Let me see.", "There.", "On?"] and results(house) == []
    with pytest.raises(NotFound):
        await delete_item(house.services, "me", conversation, item)


async def test_the_items_behind_a_deleted_one_keep_their_ids(house: House) -> None:
    serve(house, {"srv": [served("act")]}, act=lambda: "acted")
    tools = [{**MCP, "require_approval": "always"}]
    house.model.calls(("act", {}), text="May I?")
    house.model.says("Done.")
    conversation = await talk(house)
    asking = await answered(house, "Act", conversation={"id": conversation}, tools=tools)
    ids = item_ids(asking)
    await delete_item(house.services, "me", conversation, ids["message"])
    await delete_item(house.services, "me", conversation, ids["mcp_list_tools"])
    answer = {
        "type": "mcp_approval_response",
        "approval_request_id": ids["mcp_approval_request"],
        "approve": True,
    }
    assert (await answered(house, answer, conversation={"id": conversation}, tools=tools)).status == "completed"
    assert [name for name, *_ in house.tools.ran] == ["act"]
    assert texts(house) == ["Act", ""] and results(house) == ["acted"]


async def test_items_are_deleted_at_the_same_time_without_losing_one(house: House) -> None:
    conversation = await talk(house, *(said(str(n)) for n in range(4)))
    [record] = await conversation_records(house.services, "me", conversation)
    doomed = input_ids(record.turn)[:3]
    await asyncio.gather(*(delete_item(house.services, "me", conversation, item) for item in doomed))
    assert await held(house, conversation) == ["3"]


async def test_a_conversation_expires_some_days_after_its_last_response(house: House) -> None:
    house.services = replace(house.services, limits=Limits(retention_days=30))
    house.model.says("One.")
    conversation = await talk(house, said("Before"))
    house.clock.advance(20 * 86_400)
    response = await answered(house, "Hi", conversation={"id": conversation})
    house.clock.advance(15 * 86_400)
    await dispose_due(house.services)
    assert len(await conversation_records(house.services, "me", conversation)) == 2
    house.clock.advance(20 * 86_400)
    await dispose_due(house.services)
    with pytest.raises(NotFound):
        await conversation_records(house.services, "me", conversation)
    with pytest.raises(NotFound):
        await stored(house, response)


async def test_nothing_expires_once_nothing_is_to_expire_and_it_may_again(house: House) -> None:
    kept = house.services
    house.services = replace(kept, limits=Limits(retention_days=30))
    conversation = await talk(house, said("Before"))
    house.clock.advance(40 * 86_400)
    house.services = replace(kept, limits=Limits(retention_days=None))
    await dispose_due(house.services)
    assert len(await conversation_records(house.services, "me", conversation)) == 1
    house.clock.advance(86_401)
    house.services = replace(kept, limits=Limits(retention_days=30))
    await dispose_due(house.services)
    with pytest.raises(NotFound):
        await conversation_records(house.services, "me", conversation)


async def test_what_cannot_be_removed_keeps_nothing_else_from_it_and_is_tried_again(house: House) -> None:
    house.services = replace(house.services, limits=Limits(retention_days=1))
    made = [await talk(house, said(text)) for text in ("x" * 1_000_000, "Hi")]
    [large] = await conversation_records(house.services, "me", made[0])
    house.clock.advance(2 * 86_400)
    assert large.blob is not None
    blob = await house.services.responses._blobs.get(large.blob)
    await house.services.responses._blobs.delete(large.blob)
    assert await dispose_due(house.services) == 2
    with pytest.raises(NotFound):
        await conversation_records(house.services, "me", made[1])
    assert blob is not None
    await house.services.responses._blobs.put(large.blob, blob)
    house.clock.advance(3601)
    await dispose_due(house.services)
    assert await house.services.responses.peek(large.place) is None


async def test_a_response_expires_some_days_after_it_was_made(house: House) -> None:
    old = house.clock
    house.services = replace(house.services, limits=Limits(retention_days=30))
    house.model.says("One.")
    response = await answered(house, "Hi")
    old.advance(29 * 86_400)
    assert (await stored(house, response)).turn.status == "completed"
    old.advance(2 * 86_400)
    with pytest.raises(NotFound):
        await stored(house, response)


async def test_deleting_a_conversation_leaves_its_responses(house: House) -> None:
    house.model.says("One.")
    conversation = await talk(house, said("Before"))
    response = await answered(house, "Hi", conversation={"id": conversation})
    await delete_conversation(house.services, "me", conversation)
    assert (await stored(house, response)).turn.last_inference is not None
    with pytest.raises(NotFound):
        await ask(house, "Hi", conversation={"id": conversation})


async def test_deleting_a_response_leaves_its_block_in_the_conversation(house: House) -> None:
    house.model.says("One.")
    conversation = await talk(house)
    response = await answered(house, "Hi", conversation={"id": conversation})
    house.model.says("Aside.")
    branch = await answered(house, "Aside?", previous_response_id=response.id)
    await delete_response(house.services, "me", response.id)
    with pytest.raises(NotFound):
        await stored(house, response)
    for parent in (response.id, branch.id):
        with pytest.raises(InvalidRequest, match=response.id):
            await ask(house, "on", previous_response_id=parent)
    assert await held(house, conversation) == ["Hi", "One."]


async def test_a_response_of_a_conversation_is_continued_and_forked_outside_of_it(house: House) -> None:
    house.model._rule = echo
    conversation = await talk(house, said("Before"))
    first = await answered(house, "1", conversation={"id": conversation})
    await append_items(house.services, "me", conversation, [said("later")])
    branch = await answered(house, "a", previous_response_id=first.id)
    assert texts(house) == ["Before", "1", "re: 1", "a"]
    twins = [await answered(house, text, previous_response_id=branch.id) for text in ("left", "right")]
    for twin, text in zip(twins, ("left", "right"), strict=True):
        await answered(house, "on", previous_response_id=twin.id)
        assert texts(house) == ["Before", "1", "re: 1", "a", "re: a", text, f"re: {text}", "on"]
    house.model._rule = None
    assert await held(house, conversation) == ["Before", "1", "re: 1", "later"]


async def test_the_context_of_a_conversations_response_is_what_was_there_before_it(house: House) -> None:
    house.model._rule = echo
    conversation = await talk(house, said("Before"))
    first = await answered(house, "1", conversation={"id": conversation})
    await answered(house, "2", conversation={"id": conversation})
    context = await response_context(house.services, "me", first.id)
    assert [record.turn.input[0]["content"] for record in context] == ["Before", "1"]


async def test_a_response_that_is_not_stored_still_adds_its_block(house: House) -> None:
    house.model.says("One.")
    conversation = await talk(house)
    response = await answered(house, "Hi", conversation={"id": conversation}, store=False)
    with pytest.raises(NotFound):
        await stored(house, response)
    with pytest.raises(NotFound):
        await cancel_response(house.services, "me", response.id)
    assert await held(house, conversation) == ["Hi", "One."]


# --- the background


async def test_a_background_response_is_queued_and_then_run_by_the_state_machine(house: House) -> None:
    gate = asyncio.Event()
    house.model.answers(gate, TextChunk("Hello"), Finished("stop", USAGE))
    made = await ask(house, "Hi", background=True)
    assert isinstance(made, Followed) and made.record.turn.queued
    await until(lambda: house.model.requests)
    gate.set()
    assert (await made.settled()).last_inference.said("text") == "Hello"  # type: ignore[union-attr]
    assert not (await stored(house, made.record)).turn.queued and house.orchestrator.errors == []


async def test_a_background_response_that_could_not_be_started_is_swept_up_later(house: House) -> None:
    house.orchestrator.refusals = 1
    house.model.says("Hello")
    made = await ask(house, "Hi", background=True)
    assert (await stored(house, made.record)).turn.queued and house.model.requests == []
    assert await sweep(house.engine) == 0, "its lease is not over"
    house.clock.advance(31)
    assert await sweep(house.engine) == 1
    await house.orchestrator.finished()
    assert (await stored(house, made.record)).turn.status == "completed"


async def test_a_background_response_fails_with_the_upstreams_code(house: House) -> None:
    house.model.answers(UpstreamBroken("The model endpoint broke off."))
    made = await ask(house, "Hi", background=True)
    await house.orchestrator.finished()
    failure = (await stored(house, made.record)).turn.failure
    assert failure is not None and failure.code == "upstream_error" and house.orchestrator.errors == []


async def test_a_background_response_locks_and_extends_its_conversation(house: House) -> None:
    gate = asyncio.Event()
    house.model.answers(gate, TextChunk("One."), Finished("stop", USAGE))
    conversation = await talk(house, said("Before"))
    made = await ask(house, "Hi", conversation={"id": conversation}, background=True)
    with pytest.raises(Busy):
        await ask(house, "Hi?", conversation={"id": conversation})
    await append_items(house.services, "me", conversation, [said("later")])
    await until(lambda: house.model.requests)
    gate.set()
    await made.settled()
    assert texts(house) == ["Before", "Hi"]
    assert await held(house, conversation) == ["Before", "Hi", "One.", "later"]


async def test_a_task_that_is_run_twice_does_its_work_once(house: House) -> None:
    house.orchestrator.refusals = 1
    serve(house, {"srv": [served("act")]}, act=lambda: "acted")
    house.model.calls(("act", {}))
    made = await ask(house, "Hi", background=True, tools=[MCP])
    state = state_of(made.record, (await house.engine.brief(made.record)).spec)
    state = await step(house.engine, state, state["next"])
    again = await step(house.engine, state, "gather")
    assert again["next"] == "call_model"
    state = await step(house.engine, state, "call_model")
    assert (await step(house.engine, state, "call_model")) == state and len(house.model.requests) == 1
    [call_id] = state["calls"]
    await call_tool(house.engine, state, call_id)
    await call_tool(house.engine, state, call_id)
    assert len(house.tools.ran) == 1


# --- idempotency


async def test_a_request_sent_twice_is_one_response(house: House) -> None:
    house.model.says("Hello")
    first = await answered(house, "Hi", key="k", fingerprint="f")
    again = await ask(house, "Hi", key="k", fingerprint="f")
    assert isinstance(again, Followed) and again.record.turn.id == first.id
    assert (await again.settled()).status == "completed" and len(house.model.requests) == 1


async def test_a_request_sent_twice_at_the_same_time_is_one_response(house: House) -> None:
    gate = asyncio.Event()
    house.model.answers(gate, TextChunk("Hello"), Finished("stop", USAGE))
    runs = await asyncio.gather(*(ask(house, "Hi", key="k", fingerprint="f") for _ in range(3)))
    gate.set()
    turns = await asyncio.gather(*(run.settled() for run in runs))
    assert len({turn.id for turn in turns}) == 1 and {turn.status for turn in turns} == {"completed"}
    assert len(house.model.requests) == 1


async def test_a_key_cannot_be_used_for_another_request(house: House) -> None:
    house.model.says("Hello")
    await answered(house, "Hi", key="k", fingerprint="f")
    with pytest.raises(InvalidRequest) as refusal:
        await ask(house, "Ho", key="k", fingerprint="g")
    assert refusal.value.code == "idempotency_key_reused"


async def test_keys_are_each_owners_own(house: House) -> None:
    house.model.says("Mine.")
    house.model.says("Yours.")
    mine = await answered(house, "Hi", key="k", fingerprint="f")
    yours = await answered(house, "Ho", caller=Caller("you"), key="k", fingerprint="g")
    assert mine.id != yours.id


async def test_a_key_is_free_again_when_its_request_was_refused(house: House) -> None:
    with pytest.raises(InvalidRequest):
        await ask(house, found("nowhere", "x"), key="k", fingerprint="f")
    house.model.says("Hello")
    assert (await answered(house, "Hi", key="k", fingerprint="g")).status == "completed"


async def test_a_key_whose_response_never_came_to_be_is_free_after_a_while(house: House) -> None:
    house.model.says("Hello")
    claim = Claim("k", "resp_" + "0" * 32, "f")
    await house.services.claims.stake("me", claim, house.clock.now())
    waiting = asyncio.create_task(answered(house, "Hi", key="k", fingerprint="f"))
    await asyncio.sleep(0)
    house.clock.advance(4)
    assert (await waiting).status == "completed"


async def test_who_waited_in_vain_does_not_take_the_key_from_another(house: House) -> None:
    lost = Claim("k", "resp_" + "0" * 32, "f")
    await house.services.claims.stake("me", lost, house.clock.now())
    house.model.says("Hello")
    both = [asyncio.create_task(answered(house, "Hi", key="k", fingerprint="f")) for _ in range(2)]
    await asyncio.sleep(0)
    house.clock.advance(4)
    first, second = await asyncio.gather(*both)
    assert first.id == second.id and len(house.model.requests) == 1
    await house.services.claims.drop("me", "k", lost.response_id)
    assert (await house.services.claims.get("me", "k")).response_id == first.id  # type: ignore[union-attr]


async def test_a_key_of_what_is_not_stored_is_taken_only_while_it_runs(house: House) -> None:
    gate = asyncio.Event()
    house.model.answers(gate, TextChunk("One."), Finished("stop", USAGE))
    house.model.says("Two.")
    run = await ask(house, "Hi", store=False, key="k", fingerprint="f")
    with pytest.raises(Busy) as refusal:
        await ask(house, "Hi", store=False, key="k", fingerprint="f")
    assert refusal.value.code == "idempotency_key_in_use"
    gate.set()
    await run.settled()
    assert (await answered(house, "Hi", store=False, key="k", fingerprint="f")).status == "completed"


async def test_a_key_holds_for_a_child_that_has_to_fork(house: House) -> None:
    house.model.says("root")
    root = await answered(house, "Hi")
    house.model._rule = echo
    made = await asyncio.gather(
        *(answered(house, "twin", previous_response_id=root.id, key=key, fingerprint="f") for key in ("a", "b", "a"))
    )
    assert made[0].id == made[2].id != made[1].id


def ends(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, TurnCompleted | TurnFailed | TurnCancelled)]


def fragments(name: str, *arguments: str, index: int = 0) -> list[CallChunk]:
    """One call as a model streams it, its arguments cut like this."""
    return [CallChunk(index, "", name), *(CallChunk(index, arguments=text) for text in arguments)]


def systems(messages: Sequence[Message]) -> list[str]:
    return [str(message.content) for message in messages if isinstance(message, SystemMessage)]
