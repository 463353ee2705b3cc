"""Scripted conversations that every driver must play alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from turnloom.domain.errors import UpstreamBroken, UpstreamRejected
from turnloom.ports import Chunk, Finished, ModelRequest, TextChunk
from turnloom.testing import USAGE, call_chunks


def says(*texts: str, finish: Any = "stop") -> list[Any]:
    return [*map(TextChunk, texts), Finished(finish, USAGE)]


def calls(*asked: tuple[str, Any], text: str = "") -> list[Any]:
    spoken = [TextChunk(text)] if text else []
    return [*spoken, *call_chunks(*asked), Finished("tool_calls", USAGE)]


@dataclass(frozen=True)
class Conversation:
    """What the model answers, call by call, and what the client sends: input, then results for each awaited leg."""

    name: str
    answers: list[list[Chunk | Exception]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    replies: list[str] = field(default_factory=list)

    def rule(self) -> Callable[[ModelRequest], list[Any]]:
        """The answers as a rule: which one is due follows from the request alone, so that any process can tell."""

        def answer(request: ModelRequest) -> list[Any]:
            spoken = sum(type(message).__name__ == "AssistantMessage" for message in request.messages)
            return list(self.answers[spoken])

        return answer


def echo(text: str = "") -> str:
    return f"echo: {text}"


def add(a: int = 0, b: int = 0) -> str:
    return json.dumps(a + b)


def broken() -> str:
    raise RuntimeError("no luck")


FUNCTIONS = {"echo": echo, "add": add, "broken": broken}

CLIENT_TOOL = {"name": "lookup", "description": "Looks up.", "parameters": [], "metadata": None}

CONVERSATIONS = [
    Conversation("plain text", [says("Hel", "lo")]),
    Conversation("one server tool", [calls(("echo", {"text": "a"})), says("done")]),
    Conversation(
        "two server tools in one message", [calls(("add", {"a": 1, "b": 2}), ("echo", {"text": "b"})), says("3")]
    ),
    Conversation("text beside a call", [calls(("echo", {"text": "a"}), text="Let me see."), says("done")]),
    Conversation(
        "three rounds of server tools",
        [calls(("echo", {"text": str(n)})) for n in range(3)] + [says("after three")],
    ),
    Conversation("a failing tool", [calls(("broken", {})), says("it failed")]),
    Conversation("an unknown tool", [calls(("nonsense", {"x": 1})), says("never mind")]),
    Conversation("arguments that are no JSON", [calls(("echo", '{"text": ')), says("sorry")]),
    Conversation("a client tool", [calls(("lookup", {})), says("found")], replies=["42"]),
    Conversation(
        "server and client tools in one message",
        [calls(("echo", {"text": "s"}), ("lookup", {})), says("both")],
        replies=["42"],
    ),
    Conversation(
        "client tools twice, then a server tool",
        [calls(("lookup", {})), calls(("lookup", {})), calls(("echo", {"text": "x"})), says("end")],
        replies=["1", "2"],
    ),
    Conversation(
        "the iteration limit",
        [calls(("echo", {"text": str(n)})) for n in range(3)],
        config={"max_infer_iters": 2},
    ),
    Conversation("out of tokens", [says("never end", finish="length")]),
    Conversation("content filter", [says("hm", finish="content_filter")]),
    Conversation(
        "documents", [says("read")], settings={"documents": [{"content": "A text.", "mime_type": "text/plain"}]}
    ),
    Conversation("an upstream that refuses", [[UpstreamRejected("no such thing")]]),
    Conversation("an upstream that breaks off", [[TextChunk("Hel"), UpstreamBroken("gone")]]),
    Conversation(
        "an upstream that breaks off after a tool", [calls(("echo", {})), [TextChunk("x"), UpstreamBroken("gone")]]
    ),
]
