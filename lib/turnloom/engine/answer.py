"""Reading a model's answer: chunks as the upstream cuts them, events as a turn needs them.

Every call gets an id that is distinct among all that the model has seen, and is opened only when its name is known, so
that it never changes its kind. Calls come one after the other: fragments of a later one, and text, wait until the
earlier one is whole, which it is at the latest when the answer ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field

from turnloom.domain import ids
from turnloom.domain.errors import UpstreamBroken
from turnloom.domain.event import CallStarted, Delta
from turnloom.domain.json_scanner import JsonScanner
from turnloom.domain.message import JSON, Tool
from turnloom.domain.turn import Turn
from turnloom.engine.custom_input import CustomInput
from turnloom.ports import CallChunk, Finished, TextChunk

MOST_CHARACTERS = 8 * 1024 * 1024
"""Of one answer, its text and its calls: an endpoint may go on for ever."""


@dataclass(slots=True)
class AnswerReader:
    """The state of reading one answer. `known_calls` are call ids in use; `characters` counts what the model wrote.
    More than `most_characters` raises UpstreamBroken.

    Without `parallel_calls` only the first call of the answer counts, and further ones are not read. More calls than
    `hosted_left` (None: no limit) for tools that are run here are turned down.
    """

    turn: Turn
    tools: tuple[Tool, ...]
    known_calls: Set[str]
    parallel_calls: bool
    hosted_left: int | None = None
    characters: int = 0
    most_characters: int = MOST_CHARACTERS
    _custom: CustomInput | None = None
    _open_index: int | None = None
    _written: JsonScanner = field(default_factory=JsonScanner)
    _named_yet: bool = False
    _waiting: dict[int, list[CallChunk]] = field(default_factory=dict)
    _seen: list[int] = field(default_factory=list)
    _waiting_text: list[TextChunk] = field(default_factory=list)
    _unnamed: list[CallChunk] = field(default_factory=list)
    _named: set[str] = field(default_factory=set)
    _call_ids: dict[int, str] = field(default_factory=dict)

    def text(self, chunk: TextChunk) -> Iterator[CallStarted | Delta]:
        """The text; while a call is open whose arguments need more, it waits for them."""
        self._count(chunk.text)
        if self._open_index is not None and not self._written.is_complete():
            self._waiting_text.append(chunk)
            return
        yield from self._end()
        self._open_index = None
        yield Delta(chunk.block, chunk.text, chunk.logprobs)

    def call(self, chunk: CallChunk) -> Iterator[CallStarted | Delta]:
        """What the fragment adds to its call; of several that come mixed, the later ones wait for the earlier."""
        self._count(chunk.call_id + chunk.name + chunk.arguments)
        if chunk.index == self._open_index:
            yield from self._go_on(chunk)
        elif chunk.index not in self._seen:
            self._waiting.setdefault(chunk.index, []).append(chunk)
        elif chunk.name or chunk.arguments.strip():
            raise UpstreamBroken("The model endpoint went on with a tool call that was whole.")
        while (self._waiting or self._waiting_text) and (self._open_index is None or self._written.is_complete()):
            yield from self._release_text()
            if self._waiting:
                yield from self._next()

    def close(self) -> Iterator[CallStarted | Delta]:
        """Say that all calls are whole. Raises UpstreamBroken when the name of one never came."""
        yield from self._end()
        while self._waiting:
            yield from self._next()
        yield from self._release_text()
        yield from self._end()

    def _count(self, written: str) -> None:
        self.characters += len(written)
        if self.characters > self.most_characters:
            raise UpstreamBroken(f"The model's answer is longer than {self.most_characters} characters.")

    def _release_text(self) -> Iterator[Delta]:
        """The text that came while a call was open, which is closed by it."""
        if self._waiting_text:
            yield from self._end()
            self._open_index = None
        for chunk in self._waiting_text:
            yield Delta(chunk.block, chunk.text, chunk.logprobs)
        self._waiting_text.clear()

    def extras(self, end: Finished) -> dict[str, JSON]:
        """What goes back to the endpoint with this message and its calls, as `InferenceCompleted` holds it."""
        calls = {self._call_ids[index]: extra for index, extra in end.call_extras.items() if index in self._call_ids}
        return {"": end.extra, **calls} if end.extra and calls else calls

    def _next(self) -> Iterator[CallStarted | Delta]:
        yield from self._end()
        index = next(iter(self._waiting))
        self._open_index, self._written = index, JsonScanner()
        self._seen.append(index)
        for chunk in self._waiting.pop(index):
            yield from self._go_on(chunk)

    def _go_on(self, chunk: CallChunk) -> Iterator[CallStarted | Delta]:
        self._written.add(chunk.arguments)
        if not self._named_yet:
            self._unnamed.append(chunk)
            if name := "".join(fragment.name for fragment in self._unnamed):
                self._named_yet = True
                yield from self._open(name)
        elif self._counts:
            yield from self._argue(chunk.arguments)

    def _end(self) -> Iterator[Delta]:
        if self._unnamed:
            raise UpstreamBroken("The model endpoint sent a tool call without a name.")
        self._named_yet = False
        custom, self._custom = self._custom, None
        if custom is not None and (rest := custom.rest()):
            yield Delta("arguments", rest)

    def _argue(self, arguments: str) -> Iterator[Delta]:
        text = self._custom.take(arguments) if self._custom is not None else arguments
        if text:
            yield Delta("arguments", text)

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
        call_id = self._distinct(given)
        if self._open_index is not None:
            self._call_ids[self._open_index] = call_id
        yield self._started(call_id, name, tool)
        if tool is not None and tool.kind == "custom":
            self._custom = CustomInput()
        yield from self._argue(arguments)

    def _started(self, call_id: str, name: str, tool: Tool | None) -> CallStarted:
        """The call under the name that whoever answers it knows, whatever the model was told to call it."""
        if tool is None:
            return CallStarted(call_id, name, "unknown")
        source = tool.source
        if source is None:
            return CallStarted(call_id, tool.called or name, "client", tool.namespace, tool.kind)
        if self.hosted_left == 0:
            return CallStarted(call_id, source.name, "unknown")
        if tool.approval:
            return CallStarted(call_id, source.name, "approval", source.group)
        if self.hosted_left is not None:
            self.hosted_left -= 1
        return CallStarted(call_id, source.name, "server", source.group)

    def _distinct(self, given: str) -> str:
        taken = given in self._named or given in self.known_calls
        identifier = (
            given if given and not taken else ids.call_id(self.turn.id, len(self.turn.inferences), len(self._seen))
        )
        self._named.add(identifier)
        return identifier
