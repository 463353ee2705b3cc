"""What becomes of what the model writes: custom input, calls that need approval, calls beyond a limit."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.conftest import House
from tests.engine.test_responses import (
    LOOKUP,
    MCP,
    ToolServers,
    answered,
    ask,
    found,
    fragments,
    item_ids,
    results,
    said,
    serve,
    served,
    shown,
    stored,
    texts,
    until,
)
from tests.server import LoopbackServer
from turnloom.domain.errors import InvalidRequest, UpstreamBroken
from turnloom.domain.event import (
    CallsAllowed,
    CallStarted,
    Delta,
    Event,
    Gathered,
    InferenceStarted,
    TakenOver,
    ToolStarted,
    TurnStarted,
)
from turnloom.domain.layout import item_id, placed
from turnloom.domain.message import AssistantMessage, Tool, Usage
from turnloom.domain.transcript import NOT_ALLOWED
from turnloom.domain.turn import Resumption, ToolRun, Turn, fold
from turnloom.engine.answer import AnswerReader
from turnloom.engine.custom_input import CustomInput
from turnloom.engine.takeover import sweep
from turnloom.ports import CallChunk, Finished, TextChunk
from turnloom.testing import USAGE, call_chunks
from turnloom.usecases.conversations import create_conversation, delete_item
from turnloom.wire.responses_api.response import response_json

CAREFUL = {**MCP, "require_approval": "always"}
PATCH = {"type": "custom", "name": "patch"}


def cut(text: str, *places: int) -> list[str]:
    """The text in pieces, which end at these places."""
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def read(*pieces: str) -> list[str]:
    reader = CustomInput()
    told = [reader.take(piece) for piece in pieces]
    return [*told, reader.rest()]


# --- custom input

pieces = st.lists(st.integers(0, 10_000), max_size=12)


@given(text=st.text(), places=pieces, ascii_only=st.booleans(), indent=st.sampled_from([None, 2]))
@example(text='a\\nb"c\u2028d😀', places=list(range(40)), ascii_only=True, indent=None)
@settings(deadline=None)
def test_any_text_in_any_pieces_is_the_same_text(
    text: str, places: list[int], ascii_only: bool, indent: int | None
) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=ascii_only, indent=indent)
    assert "".join(read(*cut(arguments, *places))) == text


@given(text=st.text(), ascii_only=st.booleans())
@settings(deadline=None)
def test_text_that_comes_letter_by_letter_is_told_as_it_comes(text: str, ascii_only: bool) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=ascii_only)
    *streamed, rest = read(*arguments)
    assert "".join(streamed) == text and rest == ""


@given(junk=st.text(min_size=1), places=pieces)
@settings(deadline=None)
def test_what_is_no_object_with_an_input_comes_out_as_it_is(junk: str, places: list[int]) -> None:
    arguments = f"*** {junk}"
    assert "".join(read(*cut(arguments, *places))) == arguments


@pytest.mark.parametrize(
    "arguments",
    ["", "null", "[]", '{"input": 5}', '{"patch": "x"}', '{"inp', "{}", '"cut', '"Yes" or "no"', "[" * 50_000],
)
def test_arguments_of_another_shape_are_taken_for_the_text(arguments: str) -> None:
    assert "".join(read(*arguments)) == arguments


@given(text=st.text(), places=pieces)
@settings(deadline=None)
def test_a_string_without_its_object_is_the_text(text: str, places: list[int]) -> None:
    assert "".join(read(*cut(json.dumps(text), *places))) == text


@pytest.mark.parametrize(("arguments", "text"), [('{"input": "', ""), ('{"input": "ab', "ab"), ('{"input": "a\\', "a")])
def test_arguments_that_were_cut_give_the_text_as_far_as_it_came(arguments: str, text: str) -> None:
    assert "".join(read(*arguments)) == text


async def test_a_custom_call_is_told_as_text_and_replayed_as_json(house: House) -> None:
    text = 'print("hi")\n'
    house.model.answers(
        *fragments("patch", *cut(json.dumps({"input": text}), 3, 12, 20)), Finished("tool_calls", USAGE)
    )
    run = await ask(house, "Hi", tools=[PATCH])
    deltas = [e.text async for e in run.events() if isinstance(e, Delta)]
    assert "".join(deltas) == text and len(deltas) > 1
    [call] = (await stored(house, run.record)).turn.open_calls
    assert (call.kind, call.name, call.arguments) == ("custom", "patch", text)
    house.model.says("Done.")
    output = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "ok"}
    await answered(house, output, previous_response_id=run.record.turn.id, tools=[PATCH])
    [again] = [m.calls[0] for m in shown(house) if isinstance(m, AssistantMessage)]
    assert again.name == "patch" and json.loads(again.arguments) == {"input": text} and results(house) == ["ok"]


async def test_a_tool_of_a_namespace_keeps_its_name_for_both_sides(house: House) -> None:
    long = "x" * 50
    tools = [{"type": "namespace", "name": long, "tools": [{"type": "function", "name": long}]}]
    house.model._rule = lambda request: (
        [*call_chunks((request.tools[0].name, {})), Finished("tool_calls", USAGE)]
        if len(request.messages) == 1
        else [TextChunk("Done."), Finished("stop", USAGE)]
    )
    asking = await answered(house, "Hi", tools=tools)
    [call] = asking.open_calls
    assert (call.name, call.group) == (long, long)
    await answered(house, found(call.call_id, "ok"), previous_response_id=asking.id, tools=tools)
    [offered] = house.model.requests[-1].tools
    [again] = [m.calls[0] for m in shown(house) if isinstance(m, AssistantMessage)]
    assert again.name == offered.name and len(offered.name) <= 64


# --- how an answer is read


def reader(*tools: Tool, parallel: bool = True, left: int | None = None) -> AnswerReader:
    return AnswerReader(Turn("t"), tools, {"known"}, parallel, left)


def events_of(answer: AnswerReader, *chunks: CallChunk | TextChunk) -> list[Event]:
    told: list[Event] = []
    for chunk in chunks:
        told += answer.text(chunk) if isinstance(chunk, TextChunk) else answer.call(chunk)
    return [*told, *answer.close()]


def test_text_behind_a_call_does_not_get_into_its_arguments() -> None:
    custom = Tool("patch", kind="custom", called="patch")
    junk = CallChunk(0, "c", "patch", "not json")
    told = events_of(reader(custom), junk, TextChunk("Well."))
    assert told == [
        CallStarted("c", "patch", "client", kind="custom"),
        Delta("arguments", "not json"),
        Delta("text", "Well."),
    ]


def test_text_that_interrupts_a_call_comes_behind_it() -> None:
    chunks = [CallChunk(0, "c", "f", "{"), TextChunk("We"), TextChunk("ll."), CallChunk(0, arguments="}")]
    told = [CallStarted("c", "f", "unknown"), Delta("arguments", "{"), Delta("arguments", "}")]
    assert events_of(reader(), *chunks) == [*told, Delta("text", "We"), Delta("text", "ll.")]
    second = [CallChunk(1, "d", "f", "{}"), TextChunk("So.")]
    assert events_of(reader(), *chunks, *second)[-3:] == [
        CallStarted("d", "f", "unknown"),
        Delta("arguments", "{}"),
        Delta("text", "So."),
    ]
    assert events_of(reader(), *chunks[:-1])[-2:] == [Delta("text", "We"), Delta("text", "ll.")]


def test_a_call_that_goes_on_when_it_is_whole_is_the_upstreams_fault() -> None:
    with pytest.raises(UpstreamBroken):
        events_of(reader(), CallChunk(0, "c", "f", "{}"), TextChunk("Well."), CallChunk(0, arguments="}"))


def test_fragments_of_two_calls_that_come_mixed_are_told_one_call_after_the_other() -> None:
    pieces = [
        CallChunk(0, "c", "f"),
        CallChunk(1, "d", "f"),
        CallChunk(0, arguments='{"a"'),
        CallChunk(1, arguments='{"b"'),
    ]
    pieces += [CallChunk(0, arguments=": 1}"), CallChunk(1, arguments=": 2}")]
    told = events_of(reader(), *pieces)
    assert [event.call_id if isinstance(event, CallStarted) else event.text for event in told] == [
        "c",
        '{"a"',
        ": 1}",
        "d",
        '{"b"',
        ": 2}",
    ]


def test_a_whole_call_that_goes_on_behind_the_next_is_the_upstreams_fault() -> None:
    with pytest.raises(UpstreamBroken):
        events_of(reader(), CallChunk(0, "c", "f", "{}"), CallChunk(1, "d", "f", "{"), CallChunk(0, arguments="}"))


def test_a_call_without_a_name_is_the_upstreams_fault() -> None:
    with pytest.raises(UpstreamBroken):
        events_of(reader(), CallChunk(0, "c", "", "{}"))


def test_calls_get_ids_that_nobody_has() -> None:
    chunks = [CallChunk(n, given, "f", "{}") for n, given in enumerate(["a", "a", "", "known", "b"])]
    ids = [e.call_id for e in events_of(reader(), *chunks) if isinstance(e, CallStarted)]
    assert len(set(ids)) == 5 and "known" not in ids and "" not in ids and ids[0] == "a" and ids[4] == "b"


# --- limits


def mcp(house: House, *names: str) -> ToolServers:
    """A server whose tools say their names and what they were given."""
    return serve(
        house,
        {"srv": [served(name) for name in names]},
        **{name: (lambda _name=name, **given: f"{_name}: {given}") for name in names},
    )


async def test_hosted_calls_are_counted_over_the_whole_response(house: House) -> None:
    tools = mcp(house, "act")
    house.model.calls(("act", {"n": 1}))
    house.model.calls(("act", {"n": 2}), ("act", {"n": 3}), ("act", {"n": 4}))
    house.model.says("Done.")
    turn = await answered(house, "Hi", tools=[MCP, LOOKUP], max_tool_calls=2)
    assert [given for _, given, _ in tools.ran] == [{"n": 1}, {"n": 2}]
    assert [len(request.tools) for request in house.model.requests] == [2, 2, 1], "no hosted tools are offered any more"
    assert house.model.requests[-1].tools[0].name == "lookup"
    refused = results(house)[2:]
    assert len(refused) == 2 and all("no more tool calls" in text for text in refused)
    assert [item for item in item_ids(turn)] == ["mcp_list_tools", "mcp_call", "message"]
    assert turn.status == "completed" and turn.reason is None


def test_a_call_that_was_cut_by_a_crash_does_not_count() -> None:
    cut_off: list[Event] = [
        InferenceStarted(2),
        CallStarted("a", "act", "server", "srv"),
        Delta("arguments", "{"),
        TakenOver(4),
    ]
    assert fold(Turn("t"), [TurnStarted(1, ()), *cut_off]).hosted_calls == 0


async def test_client_calls_are_not_limited(house: House) -> None:
    house.model.calls(("lookup", {}), ("lookup", {}))
    turn = await answered(house, "Hi", tools=[LOOKUP], max_tool_calls=1)
    assert len(turn.open_calls) == 2


@pytest.mark.parametrize("parallel", [True, False])
async def test_without_parallel_calls_only_the_first_counts(house: House, parallel: bool) -> None:
    tools = mcp(house, "act")
    house.model.calls(("act", {"n": 1}), ("act", {"n": 2}), text="Now.")
    house.model.says("Done.")
    turn = await answered(house, "Hi", tools=[MCP], parallel_tool_calls=parallel)
    assert [given["n"] for _, given, _ in tools.ran] == ([1, 2] if parallel else [1])
    assert turn.status == "completed" and house.model.requests[0].parallel_calls is parallel
    assert len(results(house)) == len(tools.ran)


@pytest.mark.parametrize("background", [False, True])
async def test_the_last_permitted_model_call_may_still_call_tools(house: House, background: bool) -> None:
    tools = mcp(house, "act")
    for _ in range(3):
        house.model.calls(("act", {}))
    turn = await answered(house, "Hi", tools=[MCP], max_infer_iters=2, background=background)
    assert (turn.status, turn.reason) == ("completed", "max_infer_iters")
    assert len(tools.ran) == len(house.model.requests) == 2


async def test_each_model_call_gets_the_tokens_that_are_left(house: House) -> None:
    mcp(house, "act")
    house.model.answers(*call_chunks(("act", {})), Finished("tool_calls", Usage(1, 30)))
    house.model.answers(*call_chunks(("act", {})), Finished("tool_calls", Usage(1, 70)))
    turn = await answered(house, "Hi", tools=[MCP], max_output_tokens=100)
    assert [request.max_tokens for request in house.model.requests] == [100, 70]
    assert (turn.status, turn.reason, turn.usage.output_tokens) == ("completed", "out_of_tokens", 100)


async def test_a_call_to_what_was_never_offered_is_no_item_and_the_model_is_told(house: House) -> None:
    house.model.calls(("nonsense", {}), ("lookup", {}))
    house.model.calls(("lookup", {}))
    turn = await answered(house, "Hi", tools=[LOOKUP])
    assert [kind for kind in item_ids(turn)] == ["function_call"]
    assert house.tools.ran == []


SCHEMA = {"type": "object", "properties": {"n": {"$ref": "#/$defs/count"}}, "$defs": {"count": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "arguments", "runs"),
    [
        (SCHEMA, {"n": 1}, True),
        (SCHEMA, {"n": "one"}, False),
        ({"type": "object", "required": ["n"]}, {}, False),
        ({"type": "object", "required": ["n"]}, "", False),
        ({"type": "object"}, "[1]", False),
        ({"type": "object"}, '{"n": ', False),
        ({"type": "nonsense"}, {"n": 1}, True),
        ({"type": 7}, {"n": 1}, True),
        ({"properties": {"n": {"$ref": "#/$defs/nowhere"}}}, {"n": 1}, True),
        ({"properties": {"n": {"$ref": "http://127.0.0.1:9/schema.json"}}}, {"n": 1}, True),
        ({"$ref": "#"}, {"n": 1}, True),
        ({"properties": {"n": {"pattern": "["}}}, {"n": "x"}, True),
        ({"$schema": ["x"]}, {"n": 1}, True),
        ({}, {"n": 1}, True),
    ],
)
async def test_arguments_are_held_against_the_schema_where_it_is_one(
    house: House, schema: dict[str, Any], arguments: Any, runs: bool
) -> None:
    tools = serve(house, {"srv": [served("act", parameters=schema)]}, act=lambda **given: "acted")
    house.model.calls(("act", arguments))
    house.model.says("Done.")
    turn = await answered(house, "Hi", tools=[MCP])
    [run] = [step for step in turn.steps if isinstance(step, ToolRun)]
    assert turn.status == "completed" and bool(tools.ran) is runs
    assert (run.error is None) is runs and (runs or run.error["kind"] == "arguments")  # type: ignore[index]


async def test_nothing_that_a_schema_names_is_fetched(house: House) -> None:
    asked_for: list[str] = []

    async def note(request: Request) -> JSONResponse:
        asked_for.append(request.url.path)
        return JSONResponse({"type": "integer"})

    with LoopbackServer(Starlette(routes=[Route("/{path}", note)])) as server:
        schema = {"properties": {"n": {"$ref": f"{server.url}/schema"}}}
        serve(house, {"srv": [served("act", parameters=schema)]}, act=lambda **given: "acted")
        house.model.calls(("act", {"n": "one"}))
        house.model.says("Done.")
        await answered(house, "Hi", tools=[MCP])
    assert results(house) == ["acted"] and asked_for == []


async def test_arguments_of_the_clients_functions_are_passed_as_they_are(house: House) -> None:
    house.model.calls(("lookup", '{"q": '))
    turn = await answered(house, "Hi", tools=[LOOKUP])
    assert turn.open_calls[0].arguments == '{"q": '


# --- approvals


def approval(request: str, approve: bool = True, **more: Any) -> dict[str, Any]:
    return {"type": "mcp_approval_response", "approval_request_id": request, "approve": approve, **more}


async def asking(house: House, *calls: tuple[str, Any], **given: Any) -> tuple[Turn, str]:
    """A response that asks for an approval, and the id of its request."""
    house.model.calls(*(calls or (("act", {"n": 1}),)))
    turn = await answered(house, "Act", tools=[CAREFUL], **given)
    return turn, item_ids(turn)["mcp_approval_request"]


@pytest.mark.parametrize(
    ("policy", "asked_for"),
    [
        ("always", ["look", "write", "wipe"]),
        ("never", []),
        ({"always": {"tool_names": ["wipe"]}}, ["wipe"]),
        ({"never": {"tool_names": ["look"]}}, ["write", "wipe"]),
        ({"never": {"read_only": True}}, ["write", "wipe"]),
        ({"always": {"read_only": False}}, ["write", "wipe"]),
        ({"always": {"tool_names": ["look"]}, "never": {"tool_names": ["look", "write"]}}, ["look", "wipe"]),
        ({"always": {"tool_names": ["wipe"]}, "never": {"read_only": True}}, ["write", "wipe"]),
        ({"never": {"tool_names": ["look", "wipe"], "read_only": True}}, ["write", "wipe"]),
    ],
)
async def test_a_policy_says_which_calls_need_an_approval(house: House, policy: Any, asked_for: list[str]) -> None:
    names = ["look", "write", "wipe"]
    described = [served("look", read_only=True), served("write", read_only=False), served("wipe")]
    tools = serve(house, {"srv": described}, **{name: (lambda: "done") for name in names})
    house.model.calls(*((name, {}) for name in names))
    house.model.says("Done.")
    turn = await answered(house, "Hi", tools=[{**MCP, "require_approval": policy}])
    [inference, *_] = turn.inferences
    assert [call.name for call in inference.calls if call.runner == "approval"] == asked_for
    assert sorted(name for name, *_ in tools.ran) == sorted(set(names) - set(asked_for))
    assert turn.status == "completed"


@pytest.mark.parametrize("background", [False, True])
async def test_an_approved_call_runs_before_the_model_is_asked(house: House, background: bool) -> None:
    tools = mcp(house, "act")
    turn, request = await asking(house)
    assert turn.status == "completed" and tools.ran == []
    house.model.says("Done.")
    after = await answered(
        house, approval(request), previous_response_id=turn.id, tools=[CAREFUL], background=background
    )
    assert [(name, given) for name, given, _ in tools.ran] == [("act", {"n": 1})]
    assert results(house) == ["act: {'n': 1}"] and texts(house) == ["Act", ""]
    assert tools.listed == ["srv"], "the list of the first response is good for the second"
    assert list(item_ids(after)) == ["mcp_call", "message"]
    [resumption] = [step for step in after.steps if isinstance(step, Resumption)]
    assert resumption.calls[0].request == request
    house.model.says("Yes.")
    await answered(house, "And?", previous_response_id=after.id)
    assert results(house) == ["act: {'n': 1}"] and texts(house) == ["Act", "", "Done.", "And?"]


@pytest.mark.parametrize("background", [False, True])
async def test_of_approved_calls_only_as_many_run_as_the_response_may_make(house: House, background: bool) -> None:
    ran: list[int] = []

    def act(n: int) -> str:
        ran.append(n)
        return f"acted {n}"

    serve(house, {"srv": [served("act")]}, act=act)
    turn, _ = await asking(house, ("act", {"n": 1}), ("act", {"n": 2}))
    asked = [item for item in placed(turn) if item.kind == "mcp_approval_request"]
    requests = [item_id(item.kind, turn.id, item.position) for item in asked]
    house.model.says("Done.")
    settings: dict[str, Any] = {"previous_response_id": turn.id, "tools": [CAREFUL], "max_tool_calls": 1}
    after = await answered(house, *map(approval, requests), background=background, **settings)
    assert ran == [1]
    assert [item.kind for item in placed(after)] == ["mcp_call", "message"]
    first, second = results(house)
    assert first == "acted 1" and "no more tool calls are allowed" in second


async def test_what_the_model_wants_after_an_approved_call_is_asked_for_again(house: House) -> None:
    tools = mcp(house, "act")
    turn, request = await asking(house)
    house.model.calls(("act", {"n": 2}))
    after = await answered(house, approval(request), previous_response_id=turn.id, tools=[CAREFUL])
    assert [given["n"] for _, given, _ in tools.ran] == [1]
    assert list(item_ids(after)) == ["mcp_call", "mcp_approval_request"]
    house.model.says("Done.")
    again = approval(item_ids(after)["mcp_approval_request"])
    await answered(house, again, previous_response_id=after.id, tools=[CAREFUL])
    assert [given["n"] for _, given, _ in tools.ran] == [1, 2]
    assert results(house) == ["act: {'n': 1}", "act: {'n': 2}"]


async def test_a_denial_is_told_with_its_reason(house: House) -> None:
    tools = mcp(house, "act")
    turn, request = await asking(house)
    house.model.says("Then not.")
    denied = await answered(
        house, approval(request, approve=False, reason="Too risky."), previous_response_id=turn.id, tools=[CAREFUL]
    )
    assert tools.ran == [] and list(item_ids(denied)) == ["message"]
    assert results(house) == [f"{NOT_ALLOWED} The user says: Too risky."]


async def test_a_request_that_nobody_answers_counts_as_not_approved(house: House) -> None:
    tools = mcp(house, "act")
    turn, _ = await asking(house)
    house.model.says("Then not.")
    await answered(house, "Never mind", previous_response_id=turn.id)
    assert tools.ran == [] and results(house) == [NOT_ALLOWED]


async def test_an_answer_to_no_request_is_refused(house: House) -> None:
    mcp(house, "act")
    turn, _ = await asking(house)
    contexts: list[dict[str, Any]] = [{"previous_response_id": turn.id}, {}]
    for context in contexts:
        with pytest.raises(InvalidRequest, match="mcpr_unknown") as refusal:
            await ask(house, approval("mcpr_unknown"), tools=[CAREFUL], **context)
        assert refusal.value.param == "input"
    assert len(house.model.requests) == 1


async def test_an_approved_call_needs_its_server_among_the_tools_again(house: House) -> None:
    mcp(house, "act")
    turn, request = await asking(house)
    other = {**CAREFUL, "server_label": "other"}
    for tools in ([], [other]):
        with pytest.raises(InvalidRequest) as refusal:
            await ask(house, approval(request), previous_response_id=turn.id, tools=tools)
        assert refusal.value.param == "tools"
    house.model.says("Then not.")
    denied = await answered(house, approval(request, approve=False), previous_response_id=turn.id)
    assert denied.status == "completed", "a denial needs nothing"


async def test_a_call_is_approved_by_sending_its_request_back(house: House) -> None:
    tools = mcp(house, "act")
    request = {
        "type": "mcp_approval_request",
        "id": "mcpr_1",
        "name": "act",
        "server_label": "srv",
        "arguments": '{"n": 1}',
    }
    house.model.says("Done.")
    await answered(house, said("Act"), request, approval("mcpr_1"), tools=[CAREFUL])
    assert [given for _, given, _ in tools.ran] == [{"n": 1}]
    assert results(house) == ["act: {'n': 1}"] and texts(house) == ["Act", ""]


async def test_an_answer_that_is_echoed_does_not_run_its_call_again(house: House) -> None:
    tools = mcp(house, "act")
    turn, request = await asking(house)
    house.model.says("Done.")
    after = await answered(house, approval(request), previous_response_id=turn.id, tools=[CAREFUL])
    house.model.says("Yes.")
    await answered(house, approval(request), "And?", previous_response_id=after.id, tools=[CAREFUL])
    assert len(tools.ran) == 1 and results(house) == ["act: {'n': 1}"]


async def test_an_echo_of_the_whole_history_does_not_run_its_calls_again(house: House) -> None:
    tools = mcp(house, "act")
    request = {"type": "mcp_approval_request", "id": "mcpr_1", "name": "act", "server_label": "srv", "arguments": "{}"}
    made = {**request, "type": "mcp_call", "id": "mcp_1", "approval_request_id": "mcpr_1", "output": "acted"}
    house.model.says("Yes.")
    await answered(house, said("Act"), request, approval("mcpr_1"), made, said("And?"), tools=[CAREFUL])
    assert tools.ran == [] and results(house) == ["acted"]


async def test_one_answer_sent_twice_runs_its_call_once(house: House) -> None:
    tools = mcp(house, "act")
    turn, request = await asking(house)
    house.model.says("Done.")
    twice = (approval(request), approval(request))
    await answered(house, *twice, previous_response_id=turn.id, tools=[CAREFUL])
    assert len(tools.ran) == 1


async def test_children_that_approve_the_same_request_run_it_once_each(house: House) -> None:
    tools = mcp(house, "act")
    turn, request = await asking(house)
    for _ in range(2):
        house.model.says("Done.")
        await answered(house, approval(request), previous_response_id=turn.id, tools=[CAREFUL])
        assert results(house) == ["act: {'n': 1}"]
    assert len(tools.ran) == 2


async def test_the_free_calls_of_a_message_run_and_then_the_response_ends(house: House) -> None:
    tools = mcp(house, "act", "look")
    policy = {**MCP, "require_approval": {"always": {"tool_names": ["act"]}}}
    house.model.calls(("act", {}), ("look", {}))
    turn = await answered(house, "Hi", tools=[policy])
    assert [name for name, *_ in tools.ran] == ["look"] and len(house.model.requests) == 1
    assert turn.status == "completed" and [call.name for call in turn.open_calls] == ["act"]
    house.model.says("Done.")
    request = item_ids(turn)["mcp_approval_request"]
    await answered(house, approval(request), previous_response_id=turn.id, tools=[policy])
    assert results(house) == ["act: {}", "look: {}"]


@pytest.mark.parametrize("repeatable", [True, False])
async def test_an_approved_call_that_was_cut_is_repeated_only_if_it_may_be(house: House, repeatable: bool) -> None:
    """The driver was lost while the tool ran, which had been logged as begun."""
    gate = asyncio.Event()
    starts = 0

    async def act() -> str:
        nonlocal starts
        starts += 1
        if starts == 1:
            await gate.wait()
        return "acted"

    serve(house, {"srv": [served("act", read_only=repeatable)]}, act=act)
    house.model.calls(("act", {}))
    turn = await answered(house, "Act", tools=[CAREFUL])
    house.model.says("Done.")
    given = approval(item_ids(turn)["mcp_approval_request"])
    made = await ask(house, given, previous_response_id=turn.id, tools=[CAREFUL], background=True)
    await until(lambda: starts)
    house.clock.advance(120)
    house.orchestrator.abort()
    assert await sweep(house.engine) == 1
    record = await made.settled()
    assert record.status == "completed" and starts == (2 if repeatable else 1)
    [told] = results(house)
    assert told == "acted" if repeatable else "unknown" in told
    gate.set()
    await house.orchestrator.finished()
    final = await stored(house, made.record)
    assert len([e for e in final.events if isinstance(e, ToolStarted)]) == 1, "what the lost driver says is not heard"


async def test_an_approved_call_runs_although_its_request_is_deleted_meanwhile(house: House) -> None:
    tools = mcp(house, "act")
    conversation = {"id": (await create_conversation(house.services, "me", [], {})).conversation_id}
    _, request = await asking(house, conversation=conversation)
    house.model.says("Done.")
    house.orchestrator.refusals = 1
    run = await ask(house, approval(request), conversation=conversation, tools=[CAREFUL])
    await asyncio.wait_for(house.orchestrator.refused.wait(), 10)
    await delete_item(house.services, "me", conversation["id"], request)
    house.clock.advance(60)
    assert await sweep(house.engine) == 1
    after = await run.settled()
    assert after.failure is None and len(tools.ran) == 1
    assert list(item_ids(after)) == ["mcp_call", "message"]


async def test_an_approved_call_whose_arguments_are_wrong_is_told_to_the_model(house: House) -> None:
    tools = serve(house, {"srv": [served("act", parameters=SCHEMA)]}, act=lambda **_: "acted")
    house.model.calls(("act", {"n": "one"}))
    turn = await answered(house, "Act", tools=[CAREFUL])
    house.model.says("Oh.")
    given = approval(item_ids(turn)["mcp_approval_request"])
    after = await answered(house, given, previous_response_id=turn.id, tools=[CAREFUL])
    assert tools.ran == [] and after.status == "completed" and "do not match" in results(house)[0]


async def test_the_events_of_an_approved_call_come_in_one_order(house: House) -> None:
    mcp(house, "act")
    turn, request = await asking(house)
    house.model.says("Done.")
    after = await answered(house, approval(request), previous_response_id=turn.id, tools=[CAREFUL])
    kinds = [type(event) for event in (await stored(house, after)).events]
    assert kinds[:4] == [TurnStarted, CallsAllowed, Gathered, ToolStarted]


async def test_an_approval_does_not_count_as_a_hosted_call_before_it_is_given(house: House) -> None:
    tools = mcp(house, "act", "look")
    policy = {**MCP, "require_approval": {"always": {"tool_names": ["act"]}}}
    house.model.calls(("act", {}), ("look", {}))
    await answered(house, "Hi", tools=[policy], max_tool_calls=1)
    assert [name for name, *_ in tools.ran] == ["look"]


async def test_an_orchestrator_that_is_out_of_reach_does_not_lose_an_approved_call(house: House) -> None:
    tools = mcp(house, "act")
    turn, request = await asking(house)
    house.model.says("Done.")
    house.orchestrator.refusals = 1
    run = await ask(house, approval(request), previous_response_id=turn.id, tools=[CAREFUL])
    ended = asyncio.create_task(run.settled())
    await house.orchestrator.refused.wait()
    house.clock.advance(60)
    assert (await ended).status == "completed" and len(tools.ran) == 1


def test_endless_answer_is_broken_off() -> None:
    reader = AnswerReader(Turn("t"), (), set(), parallel_calls=True, most_characters=10)
    list(reader.text(TextChunk("12345")))
    with pytest.raises(UpstreamBroken, match="longer than 10 characters"):
        list(reader.text(TextChunk("678901")))


# --- keys that only the endpoint understands


async def test_what_a_model_gave_to_a_call_goes_back_to_it_and_is_shown_to_nobody(house: House) -> None:
    signature = {"extra_content": {"signature": "AbC="}}
    serve(house, {"srv": [served("act")]}, act=lambda: "acted")
    house.model.answers(*call_chunks(("act", {})), Finished("tool_calls", USAGE, {"note": 1}, {0: signature}))
    house.model.says("Done.")
    turn = await answered(house, "Hi", tools=[MCP])
    house.model.says("Fine.")
    await answered(house, "And?", previous_response_id=turn.id, tools=[MCP], model=turn.settings["model"])
    for request in house.model.requests[1:]:
        [message] = [m for m in request.messages if isinstance(m, AssistantMessage) and m.calls]
        assert (message.calls[0].extra, message.extra) == (signature, {"note": 1})
    assert "AbC=" not in json.dumps(response_json(turn))
