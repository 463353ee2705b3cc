"""The items of a turn as JSON: those it has put out, and those it was given.

`encode.py` tells the same output items event by event.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, assert_never

from turnloom.domain.layout import CALL_OUTPUTS, Placed, input_ids, item_id, placed
from turnloom.domain.message import JSON
from turnloom.domain.responses_input import hidden
from turnloom.domain.turn import (
    Call,
    ClientRun,
    Compaction,
    Inference,
    Listing,
    Resumption,
    Retrieval,
    Said,
    ShieldCheck,
    ToolRun,
    Turn,
)
from turnloom.wire.responses_api import shapes
from turnloom.wire.responses_api.sealing import Seal
from turnloom.wire.responses_api.shapes import Item, Status
from turnloom.wire.responses_api.tools import tool_json

__all__ = ["Item", "input_items", "output_items"]


def output_items(turn: Turn, *, alias: bool = False, seal: Seal | None = None) -> list[Item]:
    """The finished output items of a turn in their order; of a turn that has ended, all."""
    return list(_Output(turn, alias, seal).items())


def input_items(turn: Turn, taken: AbstractSet[str] = frozenset()) -> list[Item]:
    """The turn's own new input as items are listed: with id, type and status, and content in parts.

    An id of the client's is kept unless it is among the `taken` ones, or given twice.
    """
    named = zip(input_ids(turn, taken), turn.input, strict=True)
    filled = {"id": "", "type": "", "status": "completed"}
    return [filled | _listed(given) | {"id": identifier} for identifier, given in named]


# --- output


class _Output:
    """The items of a turn, as far as they are finished.

    Hosted calls close in the order of the calls: while one is `awaited`, those behind it wait, answered or not.
    """

    def __init__(self, turn: Turn, alias: bool, seal: Seal | None) -> None:
        self._turn = turn
        self._alias = alias
        self._seal = seal
        self._thought_seal = shapes.thought_seal(turn.settings or {}, seal)
        self._logprobs = shapes.shows_logprobs(turn.settings or {})
        self._runs = {step.call.call_id: step for step in turn.steps if isinstance(step, ToolRun)}
        self._awaited = False

    def items(self) -> Iterator[Item]:
        for place in placed(self._turn):
            item = self._item(place, item_id(place.kind, self._turn.id, place.position))
            if item is not None:
                yield item

    def _item(self, place: Placed, identifier: str) -> Item | None:
        step = place.step
        match step:
            case Listing():
                status: Status = "completed" if step.error is None else "failed"
                return shapes.mcp_list_tools(identifier, status, step.server, step.tools, step.error)
            case Compaction():
                return shapes.compaction(identifier, "completed", shapes.sealed_summary(step.summary, self._seal))
            case Resumption():
                [call] = (block for block in place.blocks if isinstance(block, Call))
                return self._hosted(identifier, call, whole=True, cut=False)
            case Inference():
                return self._inferred(identifier, place, step)
            case ToolRun() | ClientRun() | Retrieval() | ShieldCheck():
                return None
            case _:
                assert_never(step)

    def _inferred(self, identifier: str, place: Placed, inference: Inference) -> Item | None:
        """An item of a model message. A model call that was cut by a crash has an end but no finish reason."""
        whole = inference.finish in ("stop", "tool_calls") or place.blocks[-1] is not inference.blocks[-1]
        cut = inference.finish is None and inference.completed_at is not None
        first = place.blocks[0]
        if isinstance(first, Call) and first.runner == "server":
            return self._hosted(identifier, first, whole=whole, cut=cut)
        if not whole and inference.completed_at is None and self._turn.running:
            return None
        status: Status = "completed" if whole else "incomplete"
        if isinstance(first, Call):
            return shapes.call_item(identifier, status, first, shapes.call_text(first, first.arguments, whole))
        if place.kind == "reasoning":
            return shapes.reasoning(identifier, status, first.text, self._thought_seal)
        content = [self._part(block) for block in place.blocks if isinstance(block, Said)]
        return shapes.message(identifier, status, content, "commentary" if cut and not whole else None)

    def _hosted(self, identifier: str, call: Call, *, whole: bool, cut: bool) -> Item | None:
        """A call that is run here; one in a message that was cut never is."""
        run = self._runs.get(call.call_id)
        self._awaited = self._awaited or (run is None and not cut and self._turn.running)
        if self._awaited:
            return None
        item = shapes.call_item(identifier, "incomplete", call, shapes.call_text(call, call.arguments, whole))
        return item if run is None else shapes.with_outcome(item, run.content, run.error, alias=self._alias)

    def _part(self, said: Said) -> Item:
        if said.block == "refusal":
            return shapes.refusal(said.text)
        return shapes.output_text(said.text, said.logprobs if self._logprobs else ())


# --- listed input


def _listed(item: Mapping[str, Any]) -> Item:
    """The item with what every reader of a list expects to be there, and without what is the server's own."""
    shown = {key: value for key, value in item.items() if key not in hidden(item)}
    match item["type"]:
        case "message":
            return {**shown, "content": _listed_content(item["content"], item["role"])}
        case "mcp_call":
            return {"output": None, "error": None, "approval_request_id": None, **shown}
        case "reasoning":
            return {"summary": [], **shown}
        case "additional_tools":
            return {"role": "developer", **shown, "tools": [tool_json(tool) for tool in item["tools"]]}
        case kind if kind in CALL_OUTPUTS and isinstance(item["output"], list):
            return {**shown, "output": [_without_read(part) for part in item["output"]]}
        case _:
            return shown


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
            return _without_read(part)


def _without_read(part: Mapping[str, Any]) -> Item:
    """The part without what the server has read from a file, or fetched from where the client said."""
    if part["type"] != "input_file":
        return dict(part)
    read = ("text", "file_data") if "file_url" in part else ("text",)
    return {key: value for key, value in part.items() if key not in read}
