"""Items of the Responses API as JSON: those a turn has put out, and those it was given.

The k-th item that a turn opens has the id that `ids.item_id` derives from k, whoever tells of it; `encode.py` opens
them in the same order. Input items without an id of their own are named from `INPUT_POSITION` on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal

from turnloom.domain import ids
from turnloom.domain.message import JSON
from turnloom.domain.turn import Call, Inference, Listing, Said, ToolRun, Turn

Item = dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete", "failed"]

INPUT_POSITION = 1 << 19
"""The first position of input items: half of what an item id can count, so that no output item gets there."""

MOST_ID_CHARACTERS = 64

PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fc",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctc",
    "mcp_list_tools": "mcpl",
    "mcp_call": "mcp",
    "mcp_approval_request": "mcpr",
    "mcp_approval_response": "mcpr",
    "file_search_call": "fs",
    "web_search_call": "ws",
    "code_interpreter_call": "ci",
    "compaction": "cmp",
}


def item_id(kind: str, response: str, position: int) -> str:
    """The id of the item of this type at this position of a response."""
    return ids.item_id(PREFIXES.get(kind, "msg"), response, position)


# --- items and parts


def message(identifier: str, status: Status, content: list[Item], phase: str | None = None) -> Item:
    """An assistant's message; the phase is absent unless set."""
    item = {"id": identifier, "type": "message", "status": status, "role": "assistant", "content": content}
    return item if phase is None else {**item, "phase": phase}


def output_text(text: str, logprobs: Sequence[JSON] = ()) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs_json(logprobs)}


def refusal(text: str) -> Item:
    return {"type": "refusal", "refusal": text}


def summary_text(text: str) -> Item:
    return {"type": "summary_text", "text": text}


def reasoning(identifier: str, status: Status, summary: list[Item]) -> Item:
    return {"id": identifier, "type": "reasoning", "status": status, "summary": summary}


def function_call(identifier: str, status: Status, call_id: str, name: str, arguments: str) -> Item:
    kind = "function_call"
    return {"id": identifier, "type": kind, "status": status, "call_id": call_id, "name": name, "arguments": arguments}


def mcp_call(identifier: str, status: Status, label: str, name: str, arguments: str) -> Item:
    """A call without its outcome yet: see `with_outcome`."""
    return {
        "id": identifier,
        "type": "mcp_call",
        "status": status,
        "server_label": label,
        "name": name,
        "arguments": arguments,
        "output": None,
        "error": None,
        "approval_request_id": None,
    }


def with_outcome(call: Item, content: JSON, error: Mapping[str, JSON] | None, *, alias: bool) -> Item:
    """An `mcp_call` with what the server answered; on the alias an error is a string."""
    if error is None:
        return {**call, "status": "completed", "output": _output(content)}
    return {**call, "status": "failed", "error": str(error["message"]) if alias else _call_error(content, error)}


def mcp_list_tools(identifier: str, status: Status, label: str, tools: Sequence[JSON], error: str | None) -> Item:
    """What a server offers, or why it does not tell; the error is absent when there is none."""
    kind = "mcp_list_tools"
    item = {"id": identifier, "type": kind, "status": status, "server_label": label, "tools": list(tools)}
    return item if error is None else {**item, "error": error}


def logprobs_json(logprobs: Sequence[JSON]) -> list[Item]:
    """Log probabilities with every field set; upstreams may leave out `bytes` and `top_logprobs`."""
    return [
        {**_logprob(token), "top_logprobs": [_logprob(other) for other in token.get("top_logprobs") or ()]}
        for token in logprobs
    ]


def _logprob(token: Mapping[str, Any]) -> Item:
    text = str(token["token"])
    told = token.get("bytes")
    return {"token": text, "logprob": token["logprob"], "bytes": list(text.encode()) if told is None else told}


def _output(content: JSON) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_output_part(part) for part in content)


def _output_part(part: JSON) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type") == "text":
        return str(part["text"])
    return json.dumps(part, ensure_ascii=False)


def _call_error(content: JSON, error: Mapping[str, JSON]) -> Item:
    match error["kind"]:
        case "protocol":
            return {"type": "mcp_protocol_error", "code": error["code"], "message": error["message"]}
        case "http":
            return {"type": "http_error", "code": error["code"], "message": error["message"]}
        case _:
            shown = [{"type": "text", "text": content}] if isinstance(content, str) else content
            return {"type": "mcp_tool_execution_error", "content": shown}


# --- the items of a turn


def output_items(turn: Turn, *, alias: bool = False) -> list[Item]:
    """The finished output items of a turn in their order; of a turn that has ended, all."""
    return list(_Output(turn, alias).items())


def input_items(turn: Turn, taken: AbstractSet[str] = frozenset()) -> list[Item]:
    """The turn's own new input as items are listed: with id, type and status, and content in parts.

    An id of the client's is kept unless it is among the `taken` ones, or given twice.
    """
    used = set(taken)
    items: list[Item] = []
    for place, given in enumerate(turn.input):
        kind = given["type"]
        identifier = given.get("id") or ""
        if identifier in used or not 0 < len(identifier) <= MOST_ID_CHARACTERS:
            identifier = item_id(kind, turn.id, INPUT_POSITION + place)
        used.add(identifier)
        items.append({"id": "", "type": kind, "status": "completed", **_filled(given)} | {"id": identifier})
    return items


class _Output:
    """One walk over the steps of a turn, counting positions as the encoder does."""

    def __init__(self, turn: Turn, alias: bool) -> None:
        self._turn = turn
        self._alias = alias
        self._position = 0
        self._runs = {step.call.call_id: step for step in turn.steps if isinstance(step, ToolRun)}

    def items(self) -> Iterator[Item]:
        for step in self._turn.steps:
            if isinstance(step, Listing):
                status: Status = "completed" if step.error is None else "failed"
                yield mcp_list_tools(self._id("mcp_list_tools"), status, step.server, step.tools, step.error)
            elif isinstance(step, Inference):
                yield from self._inferred(step)

    def _inferred(self, inference: Inference) -> Iterator[Item]:
        """The items of one model message. While the turn is at it, what is not done is not shown.

        A model call that was cut by a crash has an end but no finish reason.
        """
        cut = inference.finish is None and inference.completed_at is not None
        current = self._turn.running and inference is self._turn.last_inference and not cut
        whole = inference.finish in ("stop", "tool_calls")
        waiting = False
        for blocks in _item_blocks(inference):
            last = blocks[-1] is inference.blocks[-1]
            call = blocks[0]
            if isinstance(call, Call) and call.runner == "server":
                item, done = self._mcp_call(call, whole or not last, cut)
                waiting = waiting or not done
                shown = not (current and waiting)
            else:
                item = self._written(blocks, whole or not last, "commentary" if cut else None)
                shown = not (current and last and inference.completed_at is None)
            if shown:
                yield item

    def _written(self, blocks: Sequence[Said | Call], whole: bool, phase: str | None) -> Item:
        status: Status = "completed" if whole else "incomplete"
        first = blocks[0]
        if isinstance(first, Call):
            arguments = arguments_text(first, whole)
            return function_call(self._id("function_call"), status, first.call_id, first.name, arguments)
        said = [block for block in blocks if isinstance(block, Said)]
        if first.block == "reasoning":
            return reasoning(self._id("reasoning"), status, [summary_text(first.text)])
        return message(self._id("message"), status, [_part(block) for block in said], None if whole else phase)

    def _mcp_call(self, call: Call, whole: bool, cut: bool) -> tuple[Item, bool]:
        """The item, and whether the server has answered: a call of a message that was cut is never made."""
        label = call.group or ""
        item = mcp_call(self._id("mcp_call"), "incomplete", label, call.name, arguments_text(call, whole))
        run = None if cut else self._runs.get(call.call_id)
        if run is None:
            return item, False
        return with_outcome(item, run.content, run.error, alias=self._alias), True

    def _id(self, kind: str) -> str:
        self._position += 1
        return item_id(kind, self._turn.id, self._position - 1)


def arguments_text(call: Call, whole: bool) -> str:
    """The arguments as the item shows them: a call that the model finished without any has none, as JSON."""
    return call.arguments or ("{}" if whole else "")


def _item_blocks(inference: Inference) -> Iterator[list[Said | Call]]:
    """The blocks of each item: text and refusals next to each other are one message; unknown calls are no item."""
    group: list[Said | Call] = []
    for block in inference.blocks:
        joins = group and _in_message(group[-1]) and _in_message(block)
        if group and not joins:
            yield group
            group = []
        if not isinstance(block, Call) or block.runner != "unknown":
            group.append(block)
    if group:
        yield group


def _in_message(block: Said | Call) -> bool:
    return isinstance(block, Said) and block.block != "reasoning"


def _part(said: Said) -> Item:
    return refusal(said.text) if said.block == "refusal" else output_text(said.text, said.logprobs)


# --- listed input


def _filled(item: Mapping[str, Any]) -> Item:
    """The item with what every reader of a list expects to be there."""
    match item["type"]:
        case "message":
            return {**item, "content": _listed_content(item["content"], item["role"])}
        case "mcp_call":
            return {"output": None, "error": None, "approval_request_id": None, **item}
        case "reasoning":
            return {"summary": [], **item}
        case _:
            return dict(item)


def _listed_content(content: JSON, role: str) -> list[Item]:
    if isinstance(content, str):
        kind = "output_text" if role == "assistant" else "input_text"
        content = [{"type": kind, "text": content}]
    return [_listed_part(part) for part in content]


def _listed_part(part: Mapping[str, Any]) -> Item:
    match part["type"]:
        case "output_text":
            return {"annotations": [], "logprobs": [], **part}
        case "input_image":
            return {"detail": "auto", **part}
        case _:
            return dict(part)
