"""Checks a stream, or a Response, against the invariants of the Responses API (contracts/responses.md, 4 and 5.4).

`check_stream` takes the raw body of a whole stream and asserts what one stream can show: invariants 1 to 15 and 18.
`check_response` asserts the shape of a Response and invariant 19. Both name what is wrong where.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]

TERMINAL = {"response.completed": "completed", "response.incomplete": "incomplete", "response.failed": "failed"}
LIFECYCLE = {"response.created", "response.queued", "response.in_progress", *TERMINAL}
DONE = "data: [DONE]"

# What stands between `output_item.added` and `output_item.done`, each word followed by a space.
_TEXT_PART = r"content_part\.added (output_text\.delta )*(output_text\.annotation\.added )*output_text\.done "
_REFUSAL_PART = r"content_part\.added (refusal\.delta )*refusal\.done "
_SEARCH = r"{0}\.in_progress {0}\.searching {0}\.completed "
GRAMMAR = {
    "message": rf"(({_TEXT_PART}|{_REFUSAL_PART})content_part\.done )*",
    "reasoning": r"(reasoning_summary_part\.added (reasoning_summary_text\.delta )*"
    r"reasoning_summary_text\.done reasoning_summary_part\.done )*",
    "function_call": r"(function_call_arguments\.delta )*function_call_arguments\.done ",
    "custom_tool_call": r"(custom_tool_call_input\.delta )*custom_tool_call_input\.done ",
    "mcp_list_tools": r"mcp_list_tools\.in_progress mcp_list_tools\.(completed|failed) ",
    "mcp_call": r"mcp_call\.in_progress (mcp_call_arguments\.delta )*mcp_call_arguments\.done "
    r"(mcp_call\.(?P<outcome>completed|failed) )?",
    "mcp_approval_request": r"",
    "file_search_call": _SEARCH.format("file_search_call"),
    "web_search_call": _SEARCH.format("web_search_call"),
    "code_interpreter_call": r"code_interpreter_call\.in_progress (code_interpreter_call_code\.delta )*"
    r"code_interpreter_call_code\.done code_interpreter_call\.interpreting code_interpreter_call\.completed ",
    "compaction": r"compaction\.compacting ",
}
CONSTANT = ("id", "type", "call_id", "name", "role", "server_label", "namespace", "approval_request_id")
EMPTY_AT_FIRST: dict[str, Any] = {
    "content": [],
    "summary": [],
    "arguments": "",
    "input": "",
    "tools": [],
    "output": None,
    "error": None,
    "encrypted_content": "",
}

# Before the model is asked: what is gathered, and the calls that the client has allowed.
_GATHERED = ("compaction", "mcp_list_tools", "mcp_call")
_MAY_FAIL = ("mcp_call", "mcp_list_tools", "file_search_call", "web_search_call", "code_interpreter_call")

# Where the text of a run of deltas is repeated: the key in `*.done`, in the part, and in the item.
_RUNS = {
    "output_text": "text",
    "refusal": "refusal",
    "reasoning_summary_text": "text",
    "function_call_arguments": "arguments",
    "mcp_call_arguments": "arguments",
    "custom_tool_call_input": "input",
    "code_interpreter_call_code": "code",
}
ALIAS_TYPES = {
    "response.mcp_call_arguments.delta": "response.mcp_call.arguments.delta",
    "response.mcp_call_arguments.done": "response.mcp_call.arguments.done",
}
WITH_RESPONSE_ID = (
    "response.output_item.added",
    "response.output_item.done",
    "response.content_part.added",
    "response.content_part.done",
)
_PART_LISTS = {"content_part": ("content_index", "content"), "reasoning_summary_part": ("summary_index", "summary")}


def check_stream(raw: bytes, *, alias: bool = False, cancelled: bool = False, crashed: bool = False) -> list[Event]:
    """The events of a whole stream, after asserting that it keeps the contract.

    `cancelled`: the response was cancelled, so there is no terminal event. `crashed`: a driver was lost on the way, so
    `response.in_progress` may be repeated and an item may be incomplete in a completed response.
    """
    check = _StreamCheck(alias=alias, crashed=crashed)
    events = _events(raw, alias=alias)
    assert events, "the stream has no events"
    for event in events:
        check.take(_without_alias(event) if alias else event)
    check.end(cancelled=cancelled)
    return events


def _without_alias(event: Event) -> Event:
    """The event as `/v1/responses` sends it, after asserting what the llama-stack path makes of it."""
    kind = event["type"].replace(".mcp_call.arguments.", ".mcp_call_arguments.")
    assert kind not in ALIAS_TYPES or event["type"] == ALIAS_TYPES[kind], f"not the llama-stack path's name: {event}"
    assert ("response_id" in event) is (kind in WITH_RESPONSE_ID), f"response_id on the wrong events: {event}"
    return {key: value for key, value in {**event, "type": kind}.items() if key != "response_id"}


def check_response(body: dict[str, Any], *, alias: bool = False) -> None:
    """Assert that a Response has every key of contract 4, each of its type, and that its parts agree."""
    for key, wanted in _KEYS.items():
        assert key in body, f"the response has no key '{key}'"
        assert wanted(body[key]), f"response.{key} is {body[key]!r}"
    assert not body.keys() & {"output_text", "alias", "max_infer_iters"}, f"keys that do not belong: {body.keys()}"
    _check_status(body)
    ids = [item["id"] for item in body["output"]]
    assert len(ids) == len(set(ids)), f"two output items have one id: {ids}"
    calls = [item["call_id"] for item in body["output"] if "call_id" in item]
    assert len(calls) == len(set(calls)), f"two calls have one call_id: {calls}"
    for item in body["output"]:
        check_item(item, alias=alias)


def check_item(item: dict[str, Any], *, alias: bool = False) -> None:
    """Assert the shape of one finished output item."""
    kind = item["type"]
    assert kind in GRAMMAR, f"no client expects an item of type '{kind}'"
    assert re.fullmatch(r"[a-z]+_[A-Za-z0-9]+", item["id"]), f"the id of {item} has an odd form"
    assert len(item["id"]) <= 64, f"the id {item['id']} is too long"
    final = ("completed", "incomplete", "failed") if kind in _MAY_FAIL else ("completed", "incomplete")
    assert item["status"] in final, f"the status of {item} is not one that it can end with"
    nulls = {key for key, value in item.items() if value is None} - _NULLABLE.get(kind, set())
    assert not nulls, f"{nulls} of {item} must be absent, not null"
    _ITEM_CHECKS.get(kind, lambda _: None)(item)
    if kind == "mcp_call" and item["error"] is not None:
        assert isinstance(item["error"], str if alias else dict), f"mcp_call.error is {item['error']!r}"


# --- frames


def _events(raw: bytes, *, alias: bool) -> list[Event]:
    text = raw.decode()
    assert "\r" not in text, "the body has a CR"
    frames = text.split("\n\n")
    assert frames.pop() == "", "the last frame is not ended by an empty line"
    frames = [frame for frame in frames if not frame.startswith(":")]
    assert DONE not in frames[:-1], "something follows [DONE]"
    ended = bool(frames) and frames[-1] == DONE
    assert ended is not alias, "[DONE] belongs at the end of the stream, and not on the alias"
    return [_event(frame) for frame in (frames[:-1] if ended else frames)]


def _event(frame: str) -> Event:
    lines = frame.split("\n")
    assert len(lines) == 2, f"a frame is one event line and one data line: {frame!r}"
    assert lines[0].startswith("event: "), f"no event line first: {frame!r}"
    assert lines[1].startswith("data: "), f"no data line second: {frame!r}"
    assert not re.search("[\x85\u2028\u2029]", frame), "a line break of Unicode is not escaped"
    event = json.loads(lines[1].removeprefix("data: "))
    assert isinstance(event, dict), f"the data is no object: {frame!r}"
    assert lines[0] == f"event: {event['type']}", f"the event line differs from the type: {frame!r}"
    assert type(event["sequence_number"]) is int, f"no integer sequence_number: {frame!r}"
    assert not event.get("error"), f"a frame with a top-level error: {frame!r}"
    return event


# --- the stream as a whole


@dataclass
class _Told:
    """An item as the stream has told it so far; `shaken` once a filler has cast doubt on its newest deltas."""

    added: dict[str, Any]
    words: str = ""
    parts: list[dict[str, Any]] = field(default_factory=list)
    joined: str = ""
    done: dict[str, Any] | None = None
    shaken: bool = False


class _StreamCheck:
    def __init__(self, *, alias: bool, crashed: bool) -> None:
        self.alias = alias
        self.crashed = crashed
        self.number = 0
        self.items: list[_Told] = []
        self.lifecycle: list[Event] = []

    def take(self, event: Event) -> None:
        assert event["sequence_number"] == self.number, f"number {self.number} expected: {event}"
        self.number += 1
        assert not self._ended, f"after the terminal event: {event}"
        kind = event["type"]
        assert ("obfuscation" in event) <= (kind.endswith(".delta") and not self.alias), f"padding on {event}"
        if kind in LIFECYCLE:
            self._take_lifecycle(event)
        elif kind == "response.output_item.added":
            self._take_added(event)
        elif kind == "response.output_item.done":
            self._take_done(event)
        else:
            self._take_inner(kind.removeprefix("response."), event)

    def end(self, *, cancelled: bool) -> None:
        open_items = [told.added["id"] for told in self.items if told.done is None]
        assert not open_items, f"never closed: {open_items}"
        assert self._ended is not cancelled, "one terminal event ends a stream, unless it was cancelled"
        assert self._in_progress or self._may_be_queued_still(), "response.in_progress is missing"
        if self._ended:
            self._check_terminal(self.lifecycle[-1]["response"])

    @property
    def _ended(self) -> bool:
        return bool(self.lifecycle) and self.lifecycle[-1]["type"] in TERMINAL

    @property
    def _in_progress(self) -> bool:
        return any(event["type"] == "response.in_progress" for event in self.lifecycle)

    def _may_be_queued_still(self) -> bool:
        """Whether the stream may be over by now, with nothing done: in the background only, cancelled or failed."""
        kinds = [event["type"].removeprefix("response.") for event in self.lifecycle]
        return kinds[:2] == ["created", "queued"] and kinds[2:] in ([], ["failed"])

    def _take_lifecycle(self, event: Event) -> None:
        response = event["response"]
        check_response(response, alias=self.alias)
        kind = event["type"].removeprefix("response.")
        order = [earlier["type"].removeprefix("response.") for earlier in self.lifecycle]
        self.lifecycle.append(event)
        match kind:
            case "created":
                assert order == [], "response.created comes first, and once"
                assert response["status"] == ("queued" if response["background"] else "in_progress")
                assert response["output"] == [], "output at the beginning"
            case "queued":
                assert order == ["created"], "response.queued comes second, and once"
                assert response["background"], "response.queued without background"
                assert response["status"] == "queued", response["status"]
            case "in_progress":
                self._take_in_progress(order, response)
            case _:
                assert "in_progress" in order or self._may_be_queued_still(), f"{kind} before response.in_progress"
                assert response["status"] == kind, f"status {response['status']} in response.{kind}"
        first = self.lifecycle[0]["response"]
        for key in ("id", "created_at", "model"):
            assert response[key] == first[key], f"response.{key} changed from {first[key]} to {response[key]}"

    def _take_in_progress(self, order: list[str], response: dict[str, Any]) -> None:
        assert order, "response.created must come first"
        assert ("queued" in order) is response["background"], "a response in the background is queued first"
        assert response["status"] == "in_progress", response["status"]
        if "in_progress" not in order:
            assert not self.items, "response.in_progress comes before any item"
            assert response["output"] == [], "output before any item"
            return
        assert self.crashed, "response.in_progress is repeated, but no driver was lost"
        done = [told.done for told in self.items if told.done is not None]
        assert response["output"] == done, "a filler shows what is done"
        for told in self.items:
            told.shaken = told.done is None

    # --- items

    def _take_added(self, event: Event) -> None:
        item, index = event["item"], event["output_index"]
        assert self._in_progress, "an item before response.in_progress"
        assert item["status"] == "in_progress", f"status at added: {item}"
        assert item["type"] in GRAMMAR, f"no client expects an item of type '{item['type']}'"
        for key, empty in EMPTY_AT_FIRST.items():
            assert item.get(key, empty) == empty, f"{key} is not empty at added: {item}"
        if index < len(self.items):
            again = self.items[index]
            assert again.shaken, f"output_index {index} is taken: {event}"
            assert again.added["id"] == item["id"], f"an item started over with another id: {event}"
            self.items[index] = _Told(item)
            return
        assert index == len(self.items), f"output_index {len(self.items)} expected: {event}"
        self._check_place(item)
        taken = [told.added[key] for told in self.items for key in ("id", "call_id") if key in told.added]
        assert item["id"] not in taken, f"the id is taken: {item}"
        assert item.get("call_id") not in [*taken, item["id"]], f"the call_id is taken: {item}"
        self.items.append(_Told(item))

    def _check_place(self, item: dict[str, Any]) -> None:
        """Assert that an item of this kind may be opened now."""
        before = [told.added["type"] for told in self.items]
        writing = [told.added for told in self.items if told.done is None and told.added["type"] != "mcp_call"]
        assert not writing, f"{item} is opened while something else is written: {writing}"
        if item["type"] == "compaction":
            assert before == [], f"a compaction comes first, and once: {before}"
        if item.get("approval_request_id") is not None:
            assert set(before) <= set(_GATHERED), f"an allowed call runs before the model is asked: {before}"

    def _take_done(self, event: Event) -> None:
        told, item = self._open_item(event["output_index"], event["item"]["id"]), event["item"]
        check_item(item, alias=self.alias)
        for key in CONSTANT:
            assert item.get(key) == told.added.get(key), f"{key} changed between {told.added} and {item}"
        match = re.fullmatch(GRAMMAR[item["type"]], told.words)
        assert match, f"the events of a {item['type']} in a wrong order: {told.words}"
        if item["type"] == "mcp_call":
            outcome = match["outcome"] or "incomplete"
            assert item["status"] == outcome, f"the events say {outcome}: {item}"
            earlier = [told for told in self.items[: event["output_index"]] if told.added["type"] == "mcp_call"]
            assert all(told.done for told in earlier), f"closed before a call that was made earlier: {item}"
        for _, name in _PART_LISTS.values():
            if name in item:
                assert item[name] == [part["done"] for part in told.parts], f"the item's {name} is not as told: {item}"
        for name in ("arguments", "input", "code"):
            if name in item and told.words:
                self._same(told, item[name], f"{name} of {item}")
        told.done = item

    def _take_inner(self, kind: str, event: Event) -> None:
        told = self._open_item(event["output_index"], event["item_id"])
        told.words += f"{kind} "
        stem, _, verb = kind.rpartition(".")
        if stem in _PART_LISTS:
            self._take_part(told, stem, verb, event)
        elif stem in _RUNS:
            self._take_run(told, stem, verb, event)

    def _take_part(self, told: _Told, stem: str, verb: str, event: Event) -> None:
        index = event[_PART_LISTS[stem][0]]
        text = event["part"].get("text", event["part"].get("refusal"))
        if verb == "added":
            assert index == len(told.parts), f"part {len(told.parts)} expected: {event}"
            assert text == "", f"a part is empty when added: {event}"
            told.parts.append({"done": None, "type": event["part"]["type"]})
            told.joined = ""
            return
        part = told.parts[index]
        assert index == len(told.parts) - 1, f"an earlier part is closed: {event}"
        assert part["done"] is None, f"a part is closed twice: {event}"
        assert part["type"] == event["part"]["type"], f"a part changed its type: {event}"
        self._same(told, text, f"the part of {event}")
        part["done"] = event["part"]

    def _take_run(self, told: _Told, stem: str, verb: str, event: Event) -> None:
        for name, _ in _PART_LISTS.values():
            if name in event:
                assert event[name] == len(told.parts) - 1, f"not in the open part: {event}"
                assert told.parts[-1]["done"] is None, f"in a closed part: {event}"
        if stem == "output_text":
            assert isinstance(event["logprobs"], list), f"no logprobs: {event}"
        if verb == "delta":
            assert event["delta"], f"an empty delta: {event}"
            told.joined += event["delta"]
        else:
            self._same(told, event[_RUNS[stem]], str(event))

    def _same(self, told: _Told, text: str, where: str) -> None:
        if told.shaken:
            assert told.joined.startswith(text), f"{where}: {text!r} is no beginning of {told.joined!r}"
        else:
            assert text == told.joined, f"{where}: {text!r} is not what the deltas say: {told.joined!r}"

    def _open_item(self, index: int, identifier: str) -> _Told:
        assert index < len(self.items), f"no item {index} was added"
        told = self.items[index]
        assert told.added["id"] == identifier, f"item {index} is {told.added['id']}, not {identifier}"
        assert told.done is None, f"item {index} is done already"
        return told

    def _check_terminal(self, response: dict[str, Any]) -> None:
        assert response["output"] == [told.done for told in self.items], "the output is not the done items in order"
        unfinished = [item for item in response["output"] if item["status"] == "incomplete"]
        if response["status"] == "completed" and not self.crashed:
            assert not unfinished, f"incomplete in a completed response: {unfinished}"


# --- the Response object


def _optional(kind: type) -> Any:
    return lambda value: value is None or type(value) is kind


def _is(*kinds: type) -> Any:
    return lambda value: type(value) in kinds


_KEYS: dict[str, Any] = {
    "id": lambda value: re.fullmatch(r"resp_[A-Za-z0-9]{1,59}", value),
    "object": lambda value: value == "response",
    "created_at": _is(int),
    "status": lambda value: value in ("queued", "in_progress", "completed", "incomplete", "failed", "cancelled"),
    "completed_at": _optional(int),
    "model": _is(str),
    "instructions": _optional(str),
    "previous_response_id": _optional(str),
    "conversation": lambda value: value is None or set(value) == {"id"},
    "output": _is(list),
    "error": lambda value: value is None or set(value) == {"code", "message", "type", "param"},
    "incomplete_details": lambda value: value is None or set(value) == {"reason"},
    "usage": _optional(dict),
    "tools": _is(list),
    "tool_choice": _is(str, dict),
    "parallel_tool_calls": _is(bool),
    "store": _is(bool),
    "background": _is(bool),
    "temperature": _is(int, float),
    "top_p": _is(int, float),
    "presence_penalty": _is(int, float),
    "frequency_penalty": _is(int, float),
    "top_logprobs": _is(int),
    "max_output_tokens": _optional(int),
    "max_tool_calls": _optional(int),
    "text": lambda value: type(value["format"]["type"]) is str and type(value.get("verbosity", "")) is str,
    "reasoning": lambda value: {"effort", "summary"} <= set(value),
    "truncation": _is(str),
    "service_tier": _is(str),
    "metadata": _is(dict),
    "user": _optional(str),
    "safety_identifier": _optional(str),
    "prompt_cache_key": _optional(str),
}
_REASONS = ("max_output_tokens", "content_filter", "max_iterations_exceeded")


def _check_status(body: dict[str, Any]) -> None:
    status, usage, error = body["status"], body["usage"], body["error"]
    assert (body["completed_at"] is not None) == (status == "completed"), "completed_at if and only if completed"
    assert (error is not None) == (status == "failed"), "an error if and only if failed"
    assert (body["incomplete_details"] is not None) == (status == "incomplete"), "details if and only if incomplete"
    if error is not None:
        assert all(type(error[key]) is str for key in ("code", "message", "type")), f"error is {error}"
    if status == "incomplete":
        assert body["incomplete_details"]["reason"] in _REASONS, body["incomplete_details"]
    if status in ("queued", "in_progress"):
        assert usage is None, f"usage of a response that is {status}"
    else:
        assert usage is not None, f"no usage of a response that is {status}"
    if usage is not None:
        _check_usage(usage)
    if status == "queued":
        assert body["background"], "queued, but not in the background"
        assert body["output"] == [], "output of a response that is queued"
    for tool in body["tools"]:
        _check_tool(tool)
        for inner in tool["tools"] if tool["type"] == "namespace" else ():
            _check_tool(inner)


def _check_tool(tool: dict[str, Any]) -> None:
    needed = {"type", "name", "description", "parameters", "strict"} if tool["type"] == "function" else {"type"}
    assert needed <= set(tool), f"a tool lacks {needed - set(tool)}"
    assert not {"headers", "authorization"} & set(tool) or tool["type"] != "mcp", "a secret in tools"


def _check_usage(usage: dict[str, Any]) -> None:
    figures = [usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]]
    figures += [usage["input_tokens_details"][key] for key in ("cached_tokens", "cache_write_tokens")]
    figures.append(usage["output_tokens_details"]["reasoning_tokens"])
    assert all(type(figure) is int for figure in figures), f"usage is {usage}"
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"], f"usage does not add up: {usage}"


# --- items


_NULLABLE = {
    "mcp_call": {"output", "error", "approval_request_id"},
    "file_search_call": {"results"},
    "code_interpreter_call": {"code", "outputs"},
}


def _check_message(item: dict[str, Any]) -> None:
    assert item["role"] == "assistant", item
    assert item.get("phase", "commentary") in ("commentary", "final_answer"), item
    for part in item["content"]:
        if part["type"] == "refusal":
            assert set(part) == {"type", "refusal"}, part
        else:
            assert part["type"] == "output_text", part
            assert isinstance(part["annotations"], list), part
            assert isinstance(part["logprobs"], list), part


def _check_client_call(item: dict[str, Any]) -> None:
    assert all(type(item[key]) is str for key in ("call_id", "name")), item
    assert item["id"] != item["call_id"], item
    assert item.get("namespace", "x"), f"a namespace is absent or has a name: {item}"


def _check_function_call(item: dict[str, Any]) -> None:
    _check_client_call(item)
    _check_arguments(item)


def _check_custom_call(item: dict[str, Any]) -> None:
    _check_client_call(item)
    assert type(item["input"]) is str, item
    assert "arguments" not in item, item


def _check_arguments(item: dict[str, Any]) -> None:
    assert type(item["arguments"]) is str, item
    assert item["arguments"] or item["status"] == "incomplete", f"a call without arguments has '{{}}': {item}"


def _check_mcp_call(item: dict[str, Any]) -> None:
    _check_arguments(item)
    assert all(type(item[key]) is str for key in ("server_label", "name")), item
    assert {"output", "error", "approval_request_id"} <= set(item), item
    assert item["approval_request_id"] is None or type(item["approval_request_id"]) is str, item
    assert (item["output"] is not None) == (item["status"] == "completed"), item
    assert (item["error"] is not None) == (item["status"] == "failed"), item


def _check_approval_request(item: dict[str, Any]) -> None:
    _check_arguments(item)
    assert set(item) == {"id", "type", "status", "server_label", "name", "arguments"}, item
    assert all(type(item[key]) is str for key in ("server_label", "name")), item


def _check_compaction(item: dict[str, Any]) -> None:
    assert set(item) == {"id", "type", "status", "encrypted_content"}, item
    assert type(item["encrypted_content"]) is str, item
    assert item["status"] == "completed", item


def _check_listing(item: dict[str, Any]) -> None:
    assert type(item["server_label"]) is str, item
    for tool in item["tools"]:
        assert {"name", "input_schema"} <= set(tool), tool
        assert None not in tool.values(), tool


def _check_reasoning(item: dict[str, Any]) -> None:
    assert all(set(part) == {"type", "text"} for part in item["summary"]), item
    assert set(item) <= {"id", "type", "status", "summary", "encrypted_content"}, item
    assert type(item.get("encrypted_content", "")) is str, item


_ITEM_CHECKS = {
    "message": _check_message,
    "function_call": _check_function_call,
    "custom_tool_call": _check_custom_call,
    "mcp_call": _check_mcp_call,
    "mcp_approval_request": _check_approval_request,
    "compaction": _check_compaction,
    "mcp_list_tools": _check_listing,
    "reasoning": _check_reasoning,
}
