"""What input items may look like, what is kept of them, and that nobody behind the reader stumbles over any."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from openai.types.responses import (
    ParsedResponseFunctionToolCall,
    ParsedResponseOutputText,
    ResponseCodeInterpreterToolCall,
    ResponseCompactionItem,
    ResponseCustomToolCall,
    ResponseFileSearchToolCall,
    ResponseFunctionWebSearch,
    ResponseOutputMessage,
    ResponseReasoningItem,
)
from openai.types.responses.response_output_item import McpApprovalRequest, McpCall, McpListTools

from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import (
    JSON,
    AssistantMessage,
    FilePart,
    ImagePart,
    Message,
    Part,
    SystemMessage,
    TextPart,
    ToolMessage,
    UserMessage,
)
from turnloom.domain.responses_input import check_calls, read
from turnloom.domain.turn import Turn
from turnloom.usecases.approvals import with_calls
from turnloom.wire.responses_api.items import input_items
from turnloom.wire.responses_api.reading import read_input, read_items

MCP_CALL: dict[str, Any] = {"type": "mcp_call", "server_label": "s", "name": "f", "arguments": "{}"}
SERVER: dict[str, Any] = {"type": "mcp", "server_label": "s", "server_url": "https://host/x"}
PART = "input[0].content[0]"
PDF = "data:application/pdf;base64," + base64.b64encode(b"%PDF").decode()


def user(*parts: JSON) -> JSON:
    return {"role": "user", "content": list(parts)}


def refused(items: JSON) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        read_input(items)
    return raised.value


def test_items_lose_nulls_and_keys_that_mean_nothing_here() -> None:
    given: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "Hi", "extra": 1}], "name": "x", "id": None},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "phase": None,
            "content": [{"type": "output_text", "text": "Ho", "annotations": [], "logprobs": None, "parsed": 1}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}", "namespace": None},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "t", "x": 1}],
            "content": None,
        },
        {"type": "item_reference", "id": "msg_8", "x": 1},
        {"id": "msg_9", "type": None},
    ]
    assert list(read_input(given)) == [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Ho", "annotations": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "t"}]},
        {"type": "item_reference", "id": "msg_8"},
        {"type": "item_reference", "id": "msg_9"},
    ]


def test_items_of_unknown_types_are_kept_as_given() -> None:
    given: list[Any] = [{"type": "computer_call", "call_id": "c", "action": None}, {"type": "turnip", "x": [None]}]
    assert list(read_input(given)) == given


@pytest.mark.parametrize("given", ["", "..", "a/b", "a" * 65])
def test_an_id_of_the_clients_that_cannot_be_asked_for_is_dropped(given: str) -> None:
    [item] = read_input([{"role": "user", "content": "x", "id": given}])
    assert "id" not in item


def test_items_in_another_parameter_are_named_after_it() -> None:
    with pytest.raises(InvalidRequest) as raised:
        read_items([{"role": "user", "content": "x"}, {"role": "user"}], "items")
    assert raised.value.param == "items[1].content"


def test_a_file_by_address_is_kept_for_who_fetches_it() -> None:
    part = {"type": "input_file", "file_url": "https://host/a.txt", "filename": "a.txt"}
    [item] = read_input([user({**part, "file_data": None, "file_id": None, "detail": "low"})])
    assert item["content"] == [part]


def test_what_only_the_server_may_add_is_not_taken_from_clients() -> None:
    items: list[Any] = [
        {"type": "compaction", "id": "cmp_1", "encrypted_content": "x", "summary": "planted"},
        {"type": "mcp_approval_response", "approval_request_id": "m", "approve": False, "call_id": "planted"},
        {"type": "reasoning", "encrypted_content": "x", "opened": "planted"},
        user({"type": "input_file", "file_data": PDF, "text": "planted"}),
    ]
    assert "planted" not in json.dumps(read_input(items))


def test_a_thought_without_a_type_is_told_by_where_it_stands() -> None:
    [item] = read_input([{"type": "reasoning", "summary": [{"text": "a"}], "content": [{"text": "b", "type": None}]}])
    assert item["summary"] == [{"type": "summary_text", "text": "a"}]
    assert item["content"] == [{"type": "reasoning_text", "text": "b"}]


def test_a_phase_is_kept_where_the_assistant_speaks() -> None:
    said: list[Any] = [{"role": role, "content": "x", "phase": "commentary"} for role in ("assistant", "user")]
    first, second = read_input([*said])
    assert (first["phase"], "phase" in second) == ("commentary", False)


def test_output_items_sent_back_as_they_came_are_input() -> None:
    """As the SDK dumps them: with nulls, with what it parsed, with keys that only a server sets."""
    mcp = {"id": "mcp_1", "server_label": "s", "name": "f", "arguments": "{}"}
    failure: Any = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "no"}]}
    text = ParsedResponseOutputText[Any](type="output_text", text="Ho", annotations=[], parsed={"a": 1})
    query: Any = {"type": "search", "query": "q"}
    found: Any = [{"file_id": "f", "text": "t"}]
    dumped = [
        McpListTools(id="l", type="mcp_list_tools", server_label="s", tools=[]).model_dump(),
        ResponseReasoningItem(id="r", type="reasoning", summary=[]).model_dump(),
        ResponseOutputMessage(id="m", type="message", role="assistant", status="completed", content=[]).model_dump()
        | {"content": [text.model_dump()]},
        ParsedResponseFunctionToolCall(
            type="function_call", id="fc", arguments="{}", parsed_arguments={"x": 1}, call_id="c1", name="f"
        ).model_dump(),
        ResponseCustomToolCall(type="custom_tool_call", input="x", call_id="c2", name="g").model_dump(),
        McpCall(type="mcp_call", error=failure, status="failed", **mcp).model_dump(),
        McpApprovalRequest(type="mcp_approval_request", **{**mcp, "id": "mcpr_1"}).model_dump(),
        ResponseFileSearchToolCall(
            id="fs", type="file_search_call", status="completed", queries=["q"], results=found
        ).model_dump(),
        ResponseFunctionWebSearch(id="w", type="web_search_call", status="completed", action=query).model_dump(),
        ResponseCodeInterpreterToolCall(
            id="ci", type="code_interpreter_call", status="completed", container_id="k"
        ).model_dump(),
        ResponseCompactionItem(id="z", type="compaction", encrypted_content="x", created_by="y").model_dump(),
    ]
    items = read_input(dumped)
    assert [item["type"] for item in items] == [item["type"] for item in dumped]
    assert "null" not in json.dumps(items)
    reached = read([*items[:-1]], True)
    told = [call.name for message in reached for call in getattr(message, "calls", ())]
    assert told == ["f", "g", "f", "f", "file_search", "web_search", "code_interpreter"]
    assert ToolMessage("mcp_1", "no", "f") in reached


@pytest.mark.parametrize(
    ("item", "code", "param"),
    [
        (1, "invalid_type", "input[0]"),
        ({}, "missing_required_parameter", "input[0].type"),
        ({"type": 1}, "invalid_type", "input[0].type"),
        ({"role": "robot", "content": "x"}, "invalid_value", "input[0].role"),
        ({"type": "message", "content": "x"}, "missing_required_parameter", "input[0].role"),
        ({"role": "user"}, "missing_required_parameter", "input[0].content"),
        ({"role": "assistant", "content": "x", "phase": "overture"}, "invalid_value", "input[0].phase"),
        ({"role": "assistant", "content": "x", "phase": 1}, "invalid_type", "input[0].phase"),
        ({"role": "user", "content": {}}, "invalid_type", "input[0].content"),
        ({"role": "user", "content": ["x"]}, "invalid_type", "input[0].content[0]"),
        ({"role": "user", "content": [{"type": "smell"}]}, "invalid_value", "input[0].content[0].type"),
        (
            {"role": "user", "content": [{"type": "input_text"}]},
            "missing_required_parameter",
            "input[0].content[0].text",
        ),
        (
            {"role": "user", "content": [{"type": "input_image"}]},
            "missing_required_parameter",
            "input[0].content[0].image_url",
        ),
        (
            {"role": "user", "content": [{"type": "input_image", "image_url": "x", "detail": "best"}]},
            "invalid_value",
            "input[0].content[0].detail",
        ),
        (
            {"role": "user", "content": [{"type": "input_file", "file_data": "%%%"}]},
            "invalid_value",
            "input[0].content[0].file_data",
        ),
        (
            {"role": "user", "content": [{"type": "input_file", "file_data": PDF, "filename": 1}]},
            "invalid_type",
            "input[0].content[0].filename",
        ),
        ({"type": "function_call", "call_id": "c", "name": "f"}, "missing_required_parameter", "input[0].arguments"),
        ({"type": "function_call_output", "output": "x"}, "missing_required_parameter", "input[0].call_id"),
        ({"type": "function_call_output", "call_id": "c", "output": 1}, "invalid_type", "input[0].output"),
        ({"type": "reasoning", "summary": ["x"]}, "invalid_type", "input[0].summary[0]"),
        ({"type": "reasoning", "content": [{"text": 1}]}, "invalid_type", "input[0].content[0].text"),
        ({"type": "reasoning", "summary": [{"type": 1, "text": "x"}]}, "invalid_type", "input[0].summary[0].type"),
        ({"type": "function_call_output", "call_id": "c", "output": ["x"]}, "invalid_type", "input[0].output[0]"),
        ({"role": "user", "content": "x", "id": 1}, "invalid_type", "input[0].id"),
        (user({"type": "output_text", "text": "x", "annotations": {}}), "invalid_type", f"{PART}.annotations"),
        (user({"type": "output_text", "text": "x", "annotations": [1]}), "invalid_type", f"{PART}.annotations[0]"),
        (user({"type": "input_audio", "input_audio": {}}), "invalid_value", f"{PART}.type"),
        (user({"text": "x"}), "missing_required_parameter", f"{PART}.type"),
        (user({"type": "input_image", "file_id": "f"}), "unsupported_parameter", f"{PART}.file_id"),
        (user({"type": "input_file", "file_id": "f"}), "unsupported_parameter", f"{PART}.file_id"),
        (user({"type": "input_file", "filename": "f"}), "missing_required_parameter", f"{PART}.file_data"),
        (user({"type": "input_file", "file_url": "ftp://host/x"}), "invalid_value", f"{PART}.file_url"),
        (user({"type": "input_file", "file_url": "https:///x"}), "invalid_value", f"{PART}.file_url"),
        (
            user({"type": "input_file", "file_url": "https://host/x", "file_data": PDF}),
            "invalid_value",
            f"{PART}.file_url",
        ),
        ({"type": "compaction"}, "missing_required_parameter", "input[0].encrypted_content"),
        ({"type": "compaction", "encrypted_content": {}}, "invalid_type", "input[0].encrypted_content"),
        (
            {"type": "mcp_approval_response", "approve": True},
            "missing_required_parameter",
            "input[0].approval_request_id",
        ),
        (
            {"type": "mcp_approval_response", "approval_request_id": "m", "approve": "no"},
            "invalid_type",
            "input[0].approve",
        ),
        (
            {"type": "mcp_approval_response", "approval_request_id": "m", "approve": True, "reason": 1},
            "invalid_type",
            "input[0].reason",
        ),
        (
            {"type": "mcp_approval_request", "server_label": "s", "arguments": "{}"},
            "missing_required_parameter",
            "input[0].name",
        ),
        ({**MCP_CALL, "error": 1}, "invalid_type", "input[0].error"),
        ({**MCP_CALL, "output": []}, "invalid_type", "input[0].output"),
        ({**MCP_CALL, "approval_request_id": []}, "invalid_type", "input[0].approval_request_id"),
        ({"type": "mcp_list_tools", "server_label": "s", "tools": [1]}, "invalid_type", "input[0].tools[0]"),
        (
            {"type": "mcp_list_tools", "server_label": "s", "tools": [{}]},
            "missing_required_parameter",
            "input[0].tools[0].name",
        ),
        ({"type": "file_search_call", "queries": [1]}, "invalid_type", "input[0].queries[0]"),
        ({"type": "file_search_call", "queries": [], "results": "x"}, "invalid_type", "input[0].results"),
        ({"type": "web_search_call", "action": "x"}, "invalid_type", "input[0].action"),
        ({"type": "code_interpreter_call", "outputs": ["x"]}, "invalid_type", "input[0].outputs[0]"),
        ({"type": "computer_call", "call_id": 1}, "invalid_type", "input[0].call_id"),
        ({"type": "turnip", "id": 1}, "invalid_type", "input[0].id"),
        ({"type": "shell_call_output", "output": ["x"]}, "invalid_type", "input[0].output[0]"),
        (
            {"type": "shell_call_output", "output": [{"type": "input_text"}]},
            "missing_required_parameter",
            "input[0].output[0].text",
        ),
        (
            {"type": "shell_call_output", "output": [{"type": "input_file", "file_url": "https://host/x"}]},
            "unsupported_parameter",
            "input[0].output[0].file_url",
        ),
        ({"type": "computer_call_output", "output": {"image_url": 1}}, "invalid_type", "input[0].output.image_url"),
        ({"id": "msg_1", "text": "x"}, "missing_required_parameter", "input[0].type"),
        ({"type": "item_reference"}, "missing_required_parameter", "input[0].id"),
    ],
)
def test_an_invalid_item_is_named_by_its_path(item: Any, code: str, param: str) -> None:
    problem = refused([item])
    assert (problem.code, problem.param) == (code, param)


# --- whatever is put in

# A right item of each type with all that it may hold, any of which may be spoilt.
SOUND: list[dict[str, Any]] = [
    {
        "role": "assistant",
        "phase": "commentary",
        "content": [{"type": "output_text", "text": "x", "annotations": [{}]}],
    },
    user({"type": "refusal", "refusal": "x"}, {"type": "input_image", "image_url": "x", "detail": "original"}),
    {"type": "message", "role": "system", "content": [{"type": "input_file", "file_data": PDF, "filename": "x"}]},
    {"type": "message", "role": "developer", "content": [{"type": "input_file", "file_url": "https://host/x"}]},
    {"type": "function_call", "id": "a", "call_id": "a", "name": "f", "arguments": "{}", "namespace": "n"},
    {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_image", "image_url": "x"}]},
    {"type": "custom_tool_call", "call_id": "b", "name": "f", "input": "{}", "status": "completed"},
    {"type": "custom_tool_call_output", "call_id": "b", "output": "x"},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}], "encrypted_content": "x"},
    {"type": "reasoning", "content": [{"text": "x"}]},
    {**MCP_CALL, "output": "x", "approval_request_id": "a"},
    {**MCP_CALL, "error": {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "x"}]}},
    {"type": "mcp_list_tools", "server_label": "s", "tools": [{"name": "f", "input_schema": {}}], "error": "x"},
    {"type": "mcp_approval_request", "id": "a", "server_label": "s", "name": "f", "arguments": ""},
    {"type": "mcp_approval_response", "approval_request_id": "a", "approve": False, "reason": "x"},
    {"type": "file_search_call", "id": "b", "queries": ["x"], "results": [{"text": "x"}]},
    {"type": "web_search_call", "action": {"type": "search"}, "sources": [{"url": "x"}]},
    {"type": "code_interpreter_call", "code": "1", "container_id": "x", "outputs": [{"type": "logs", "logs": "x"}]},
    {"type": "compaction", "encrypted_content": "x"},
    {"type": "computer_call", "call_id": "c", "action": {"type": "click"}},
    {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot", "image_url": "x"}},
    {"type": "shell_call_output", "call_id": "d", "output": [{"stdout": "x"}, {"type": "input_text", "text": "x"}]},
    {"type": "local_shell_call", "call_id": "e", "action": {"command": ["ls"]}},
    {"type": "local_shell_call_output", "id": "e", "output": "x"},
    {"type": "apply_patch_call", "call_id": "f", "operation": {"diff": "x"}},
    {"type": "apply_patch_call_output", "call_id": "f", "output": "x"},
    {"type": "turnip", "call_id": "g", "output": [1]},
    {"type": "additional_tools", "tools": [{"type": "namespace", "name": "n", "tools": [SERVER]}, SERVER]},
    {"id": "msg_1"},
]

# What does not belong where it is put.
JUNK: list[JSON] = [
    *(None, True, 0, 1.5, "", "x", "incomplete", "%%%", "data:,%ff", "https://host/x"),
    *([], [None], [1], ["x"], [[]], [{}], {}, {"message": 1}, {"content": [1]}, {"image_url": [1]}),
    {"type": []},
    [{"type": "input_text"}],
    [{"type": "input_text", "text": 1}],
    [{"type": "input_file"}],
    [{"type": "input_file", "file_data": "%%%"}],
    [{"type": "input_file", "file_url": "https://host/x"}],
    [{"type": "input_image", "image_url": {"url": "x"}}],
]

# Every key that means something anywhere behind the reader, and some that mean nothing.
NAMED = (
    "type id role status phase content call_id name namespace arguments input output error reason approve summary text "
    "approval_request_id server_label tools queries results sources outputs code action encrypted_content opened caller"
)
KEYS = NAMED.split()

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
ANY_JSON: SearchStrategy[JSON] = st.recursive(
    SCALARS | st.sampled_from(JUNK),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=3),
    max_leaves=5,
)


def spoilt(value: JSON, junk: JSON) -> Iterator[JSON]:
    """Copies of the value, each with the junk in the place of one of its members, or of the value itself."""
    yield junk
    if isinstance(value, dict):
        for key, member in value.items():
            yield from ({**value, key: worse} for worse in spoilt(member, junk))
    if isinstance(value, list):
        for place, member in enumerate(value):
            yield from ([*value[:place], worse, *value[place + 1 :]] for worse in spoilt(member, junk))


def fetched(value: JSON) -> JSON:
    """What is read later: files that were given by their address have been fetched then."""
    if isinstance(value, list | tuple):
        return [fetched(each) for each in value]
    if not isinstance(value, dict):
        return value
    seen = {key: fetched(each) for key, each in value.items()}
    return {**seen, "text": "read"} if seen.get("type") == "input_file" and "file_url" in seen else seen


def taken(given: JSON) -> bool:
    """Whether the items are accepted; if so, everybody who reads them later has had a look at them."""
    try:
        accepted = read_input(given)
    except InvalidRequest as problem:
        assert (problem.param or "").startswith("input")
        return False
    items = tuple(fetched(accepted))
    json.dumps(items, allow_nan=False)
    for message in read(items, True):
        assert all_text(message)
    for check in (check_calls, with_calls):
        with suppress(InvalidRequest):
            check([], items)
    for listed in input_items(Turn("resp_" + "0" * 32, input=items)):
        assert listed["id"] and isinstance(listed["type"], str)
    return True


def all_text(message: Message) -> bool:
    """Whether what an endpoint expects to be text is text."""
    match message:
        case ToolMessage(call_id, content, name):
            texts: list[object] = [call_id, content, name]
        case AssistantMessage(text, calls, reasoning):
            texts = [text, reasoning, *(each for call in calls for each in (call.call_id, call.name, call.arguments))]
        case UserMessage(content) | SystemMessage(content):
            texts = [content] if isinstance(content, str) else [each for part in content for each in parts_of(part)]
    return all(isinstance(each, str) for each in texts)


def parts_of(part: Part) -> list[object]:
    match part:
        case TextPart(text):
            return [text]
        case ImagePart(url, detail):
            return [url, detail or ""]
        case FilePart(data, filename):
            return [data, filename]


def test_sound_items_are_taken() -> None:
    assert [item for item in SOUND if not taken([item])] == []


def test_an_item_with_one_thing_wrong_is_refused_or_taken_by_everybody() -> None:
    verdicts = Counter(taken([item]) for sound in SOUND for junk in JUNK for item in spoilt(sound, junk))
    verdicts += Counter(taken([{**sound, key: junk}]) for sound in SOUND for key in KEYS for junk in JUNK)
    assert min(verdicts[True], verdicts[False]) > 1000


@settings(max_examples=300, deadline=None)
@drawn(st.data(), st.lists(st.sampled_from(SOUND), min_size=1, max_size=4), ANY_JSON)
def test_whatever_is_sent_is_refused_or_taken_by_everybody(data: st.DataObject, sound: list[JSON], odd: JSON) -> None:
    taken(odd)
    taken([*sound, odd])
    once = data.draw(st.sampled_from([*spoilt(sound, odd)]))
    taken(data.draw(st.sampled_from([*spoilt(once, data.draw(ANY_JSON))])))
