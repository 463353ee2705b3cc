"""The shapes of the chat-completions protocol that the front speaks for itself."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from turnloom.domain.message import JSON, ToolCall


class Refused(Exception):
    """An answer that is an error: an HTTP status and the protocol's error document."""

    def __init__(self, status: int, document: JSON) -> None:
        super().__init__(document)
        self.status = status
        self.document = document

    @property
    def kind(self) -> str:
        match self.document:
            case {"error": {"type": str(kind)}}:
                return kind
            case _:
                return ""


@dataclass(frozen=True, slots=True)
class Called:
    """A model's answer that is one tool call. `usage` is that of writing the arguments."""

    model: str
    call: ToolCall
    created: int
    usage: JSON
    completion_id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")

    def whole(self) -> JSON:
        """The answer as one document."""
        message = {"role": "assistant", "content": None, "tool_calls": [self._call(self.call.arguments)]}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self.usage}

    def frames(self, with_usage: bool) -> Iterator[bytes]:
        """The answer as server-sent events, the arguments in a frame of their own."""
        yield self._frame({"role": "assistant", "content": None, "tool_calls": [{"index": 0, **self._call("")}]})
        yield self._frame({"tool_calls": [{"index": 0, "function": {"arguments": self.call.arguments}}]})
        yield self._frame({}, "tool_calls")
        if with_usage:
            yield frame({**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage})
        yield b"data: [DONE]\n\n"

    def _call(self, arguments: str) -> JSON:
        function = {"name": self.call.name, "arguments": arguments}
        return {"id": self.call.call_id, "type": "function", "function": function}

    def _frame(self, delta: JSON, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return frame({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> JSON:
        return {"id": self.completion_id, "object": kind, "created": self.created, "model": self.model}


def frame(document: JSON) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n".encode()


def problem(
    message: str, kind: str = "invalid_request_error", code: str | None = None, param: str | None = None
) -> JSON:
    """The protocol's error document."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
