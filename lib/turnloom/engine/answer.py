"""Reading a model's answer: chunks as the upstream cuts them, events as a turn needs them.

Every call gets an id that is distinct among all that the model has seen, and is opened only when its name is known, so
that it never changes its kind. The upstream writes one call after the other; a fragment for an earlier one is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field

from turnloom.domain import ids
from turnloom.domain.errors import UpstreamBroken
from turnloom.domain.event import CallStarted, Delta, Runner
from turnloom.domain.message import Tool
from turnloom.domain.turn import Turn
from turnloom.ports import CallChunk, TextChunk


@dataclass(slots=True)
class AnswerReader:
    """The state of reading one answer. `known_calls` are call ids in use; `characters` counts what the model wrote.

    Without `parallel_calls` only the first call of the answer counts, and further ones are not read.
    """

    turn: Turn
    tools: tuple[Tool, ...]
    known_calls: Set[str]
    parallel_calls: bool
    characters: int = 0
    _seen: list[int] = field(default_factory=list)
    _unnamed: list[CallChunk] = field(default_factory=list)
    _named: set[str] = field(default_factory=set)

    def text(self, chunk: TextChunk) -> Delta:
        self.characters += len(chunk.text)
        return Delta(chunk.block, chunk.text, chunk.logprobs)

    def call(self, chunk: CallChunk) -> Iterator[CallStarted | Delta]:
        self.characters += len(chunk.arguments)
        if chunk.index not in self._seen:
            self.close()
            self._seen.append(chunk.index)
            self._unnamed = [chunk]
        elif chunk.index != self._seen[-1]:
            raise UpstreamBroken("The model endpoint mixed up the fragments of its tool calls.")
        elif self._unnamed:
            self._unnamed.append(chunk)
        elif chunk.arguments and self._counts:
            yield Delta("arguments", chunk.arguments)
        if name := "".join(fragment.name for fragment in self._unnamed):
            yield from self._open(name)

    def close(self) -> None:
        """Say that the current call, if any, is whole. Raises UpstreamBroken when its name never came."""
        if self._unnamed:
            raise UpstreamBroken("The model endpoint sent a tool call without a name.")

    @property
    def _counts(self) -> bool:
        return self.parallel_calls or len(self._seen) == 1

    def _open(self, name: str) -> Iterator[CallStarted | Delta]:
        given = next((fragment.call_id for fragment in self._unnamed if fragment.call_id), "")
        arguments = "".join(fragment.arguments for fragment in self._unnamed)
        self._unnamed = []
        if not self._counts:
            return
        tool = next((tool for tool in self.tools if tool.name == name), None)
        source = tool.source if tool else None
        runner: Runner = "unknown" if tool is None else "client" if source is None else "server"
        # A server's tool goes by the name that its server knows, whatever the model was told to call it.
        shown, group = (source.name, source.group) if source else (name, None)
        yield CallStarted(self._distinct(given), shown, runner, group)
        if arguments:
            yield Delta("arguments", arguments)

    def _distinct(self, given: str) -> str:
        taken = given in self._named or given in self.known_calls
        identifier = (
            given if given and not taken else ids.call_id(self.turn.id, len(self.turn.inferences), len(self._seen))
        )
        self._named.add(identifier)
        return identifier
