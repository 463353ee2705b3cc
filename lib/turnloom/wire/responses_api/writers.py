"""Telling one item: the frames that open it, add to it and close it.

A writer keeps what it has told, so that the closing frames repeat exactly the text of the deltas. Frames come without
their numbers; the encoder counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from turnloom.domain.event import Delta, ToolCompleted
from turnloom.domain.message import JSON
from turnloom.domain.turn import Call
from turnloom.wire.responses_api import shapes
from turnloom.wire.responses_api.sealing import Seal
from turnloom.wire.responses_api.shapes import Item, Status

Frame = dict[str, Any]


def frame(kind: str, **fields: JSON) -> Frame:
    """A frame of the type `response.<kind>`, still without its number."""
    return {"type": f"response.{kind}", "sequence_number": 0, **fields}


class Writer(ABC):
    """An item being told. `item` is the finished item once its last frame is out.

    `blocks` names the deltas that go into it.
    """

    blocks: ClassVar[tuple[str, ...]]

    def __init__(self, identifier: str, position: int) -> None:
        self.id = identifier
        self.position = position
        self.item: Item | None = None

    def start(self) -> list[Frame]:
        """Open the item, empty."""
        return [frame("output_item.added", output_index=self.position, item=self._empty())]

    @abstractmethod
    def add(self, delta: Delta) -> list[Frame]:
        """Tell what the model added; the delta's block is one of `blocks`."""

    @abstractmethod
    def end(self, whole: bool, *, cut: bool = False) -> list[Frame]:
        """Close what the model wrote; `cut` says that a crash ended it, and the model is asked again."""

    @abstractmethod
    def _empty(self) -> Item: ...

    def _frame(self, kind: str, **fields: JSON) -> Frame:
        return frame(kind, item_id=self.id, output_index=self.position, **fields)

    def _done(self, item: Item) -> Frame:
        self.item = item
        return frame("output_item.done", output_index=self.position, item=item)


class MessageWriter(Writer):
    """A message: one part for each run of text or of refusal."""

    blocks = ("text", "refusal")

    def __init__(self, identifier: str, position: int) -> None:
        super().__init__(identifier, position)
        self._content: list[Item] = []
        self._block = ""
        self._texts: list[str] = []
        self._logprobs: list[JSON] = []

    def add(self, delta: Delta) -> list[Frame]:
        opening: list[Frame] = []
        if delta.block != self._block:
            opening = [*self._end_part(), self._start_part(delta.block)]
        self._texts.append(delta.text)
        told: Frame = {
            "type": "response.refusal.delta" if delta.block == "refusal" else "response.output_text.delta",
            "sequence_number": 0,
            "item_id": self.id,
            "output_index": self.position,
            "content_index": len(self._content),
            "delta": delta.text,
        }
        if delta.block == "text":
            told["logprobs"] = shapes.logprobs_json(delta.logprobs) if delta.logprobs else []
            self._logprobs += delta.logprobs
        return [*opening, told] if opening else [told]

    def end(self, whole: bool, *, cut: bool = False) -> list[Frame]:
        closing = self._end_part()
        status: Status = "completed" if whole else "incomplete"
        item = shapes.message(self.id, status, self._content, "commentary" if cut and not whole else None)
        return [*closing, self._done(item)]

    def _empty(self) -> Item:
        return shapes.message(self.id, "in_progress", [])

    def _start_part(self, block: str) -> Frame:
        self._block = block
        part = shapes.refusal("") if block == "refusal" else shapes.output_text("")
        return self._frame("content_part.added", content_index=len(self._content), part=part)

    def _end_part(self) -> list[Frame]:
        if not self._block:
            return []
        place, text, refused = len(self._content), "".join(self._texts), self._block == "refusal"
        part = shapes.refusal(text) if refused else shapes.output_text(text, self._logprobs)
        if refused:
            done = self._frame("refusal.done", content_index=place, refusal=text)
        else:
            done = self._frame("output_text.done", content_index=place, text=text, logprobs=part["logprobs"])
        self._content.append(part)
        self._block, self._texts, self._logprobs = "", [], []
        return [done, self._frame("content_part.done", content_index=place, part=part)]


class ReasoningWriter(Writer):
    """A reasoning item: what the model shows of its thoughts, as one summary; with a `seal`, sealed as well."""

    blocks = ("reasoning",)

    def __init__(self, identifier: str, position: int, seal: Seal | None) -> None:
        super().__init__(identifier, position)
        self._seal = seal
        self._texts: list[str] = []

    def start(self) -> list[Frame]:
        part = self._frame("reasoning_summary_part.added", summary_index=0, part=shapes.summary_text(""))
        return [*super().start(), part]

    def add(self, delta: Delta) -> list[Frame]:
        self._texts.append(delta.text)
        told: Frame = {
            "type": "response.reasoning_summary_text.delta",
            "sequence_number": 0,
            "item_id": self.id,
            "output_index": self.position,
            "summary_index": 0,
            "delta": delta.text,
        }
        return [told]

    def end(self, whole: bool, *, cut: bool = False) -> list[Frame]:
        text = "".join(self._texts)
        return [
            self._frame("reasoning_summary_text.done", summary_index=0, text=text),
            self._frame("reasoning_summary_part.done", summary_index=0, part=shapes.summary_text(text)),
            self._done(shapes.reasoning(self.id, "completed" if whole else "incomplete", text, self._seal)),
        ]

    def _empty(self) -> Item:
        return shapes.opened_reasoning(self.id)


class CallWriter(Writer):
    """A call for the client to answer. Of `call` the arguments are not read: they come as deltas."""

    blocks = ("arguments",)
    stem: ClassVar[str] = "function_call_arguments"
    key: ClassVar[str] = "arguments"

    def __init__(self, identifier: str, position: int, call: Call) -> None:
        super().__init__(identifier, position)
        self.call = call
        self._delta_type = f"response.{self.stem}.delta"
        self._texts: list[str] = []

    def add(self, delta: Delta) -> list[Frame]:
        return [self._add(delta.text)]

    def end(self, whole: bool, *, cut: bool = False) -> list[Frame]:
        return [*self._end_text(whole), self._done(self._shown("completed" if whole else "incomplete"))]

    def _add(self, text: str) -> Frame:
        self._texts.append(text)
        return {
            "type": self._delta_type,
            "sequence_number": 0,
            "item_id": self.id,
            "output_index": self.position,
            "delta": text,
        }

    def _end_text(self, whole: bool) -> list[Frame]:
        text = self._text(whole)
        missing = [self._add(text)] if text and not self._texts else []
        return [*missing, self._frame(f"{self.stem}.done", **{self.key: text})]

    def _text(self, whole: bool = False) -> str:
        return shapes.call_text(self.call, "".join(self._texts), whole)

    def _shown(self, status: Status) -> Item:
        return shapes.call_item(self.id, status, self.call, self._text())

    def _empty(self) -> Item:
        return self._shown("in_progress")


class CustomCallWriter(CallWriter):
    """A call of a client's tool that takes a text, which may be empty."""

    stem = "custom_tool_call_input"
    key = "input"


class ApprovalRequestWriter(CallWriter):
    """A call that the client must allow: told when it is whole, with nothing in between."""

    def add(self, delta: Delta) -> list[Frame]:
        self._texts.append(delta.text)
        return []

    def end(self, whole: bool, *, cut: bool = False) -> list[Frame]:
        item = shapes.call_item(self.id, "completed" if whole else "incomplete", self.call, self._text(whole))
        return [self._done(item)]


class HostedCallWriter(CallWriter):
    """A call that an MCP server answers: the item stays open while it runs, and `close` ends it."""

    stem = "mcp_call_arguments"

    def __init__(self, identifier: str, position: int, call: Call, *, alias: bool) -> None:
        super().__init__(identifier, position, call)
        self._alias = alias
        self.answer: ToolCompleted | None = None

    def start(self) -> list[Frame]:
        return [*super().start(), self._frame("mcp_call.in_progress")]

    def end(self, whole: bool, *, cut: bool = False) -> list[Frame]:
        return self._end_text(whole)

    def close(self) -> list[Frame]:
        """The call's outcome; a call without an answer is left incomplete."""
        item = self._shown("incomplete")
        if self.answer is None:
            return [self._done(item)]
        item = shapes.with_outcome(item, self.answer.content, self.answer.error, alias=self._alias)
        return [self._frame(f"mcp_call.{item['status']}"), self._done(item)]
