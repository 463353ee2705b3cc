"""What the model gets to see: instructions, earlier turns, this turn, as chat messages that strict upstreams accept.

Two promises hold for every list that leaves this module: each tool message stands right behind the assistant message
that made its call, in the order of the calls, and no call is left without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import assert_never

from turnloom.domain.event import ShieldsRun
from turnloom.domain.message import (
    JSON,
    AssistantMessage,
    Content,
    Message,
    Part,
    Spec,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from turnloom.domain.turn import (
    ClientRun,
    Compaction,
    Inference,
    Listing,
    Resumption,
    Retrieval,
    ShieldCheck,
    Step,
    ToolRun,
    Turn,
    remembered,
)

NO_RESULT = "There is no result: this call was never answered."
NOT_ALLOWED = "The user did not approve this call; it was not run."
SUMMARY = "Summary of the conversation so far:"
WITHHELD = "[A message was withheld because it violated a safety policy.]"
REFUSAL = "I can't help with that."
PART_OF_RESULT = "Part of the result of"


@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """How one API writes input, and whether what a failed turn said is shown to the turns after it.

    `read` turns the input of a turn into messages, tool results as `ToolMessage`; its second argument says whether
    the turn is the current one.
    """

    read: Callable[[Sequence[JSON], bool], list[Message]]
    replays_failed: bool


def transcript(spec: Spec, history: Iterable[Turn], turn: Turn, dialect: Dialect) -> tuple[Message, ...]:
    """The messages for the next model call of `turn`, the history given oldest first.

    A summary, made by the server or brought along by the client, takes the place of all that came before it.
    """
    messages: list[Message] = []
    for earlier in history:
        told = _told(earlier, dialect)
        if told.summed_up:
            messages.clear()
        if earlier.status != "failed" or dialect.replays_failed:
            messages += told.messages
    if _summed_up(turn):
        messages.clear()
    messages += _turn_messages(turn, dialect, current=True)
    instructions = [SystemMessage(spec.instructions)] if spec.instructions else []
    return (*instructions, *_arranged(messages))


def summary_message(summary: str) -> SystemMessage:
    """The summary as the model is told it."""
    return SystemMessage(f"{SUMMARY}\n\n{summary}")


def part_of_result(call_id: str, parts: Sequence[Part]) -> UserMessage:
    """What a tool message cannot hold of a result, as a message behind it."""
    return UserMessage((TextPart(f"{PART_OF_RESULT} {call_id}:"), *parts))


def begins_exchange(message: Message) -> bool:
    """Whether a user speaks here, and it is no part of a tool's result."""
    if not isinstance(message, UserMessage):
        return False
    first = message.content[0] if message.content else ""
    return not (isinstance(first, TextPart) and first.text.startswith(PART_OF_RESULT))


def content_text(content: JSON) -> str:
    """The text of a string, a content item, or a list of these; what is no text is named by its type."""
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple):
        return "\n".join(content_text(item) for item in content)
    if isinstance(content, dict):
        return str(content["text"]) if "text" in content else f"[{content.get('type', 'content')}]"
    return "" if content is None else str(content)


def refusal(check: ShieldCheck | ShieldsRun) -> str:
    """What the user is told when this check has blocked the turn."""
    return str((check.violation or {}).get("user_message") or REFUSAL)


@dataclass(frozen=True, slots=True)
class _Told:
    """A turn of the history as messages, and whether these take the place of all that came before."""

    messages: tuple[Message, ...]
    summed_up: bool


def _told(turn: Turn, dialect: Dialect) -> _Told:
    """A turn of the history, remembered: the same turns are told again with every turn that follows them."""
    known = _told_in(turn)
    told = known.get(dialect)
    if told is None:
        told = known[dialect] = _Told(tuple(_turn_messages(turn, dialect, current=False)), _summed_up(turn))
    return told


@remembered
def _told_in(turn: Turn) -> dict[Dialect, _Told]:
    """What the turn was told as, by dialect, as far as somebody has asked."""
    return {}


def _summed_up(turn: Turn) -> bool:
    """Whether the turn begins with, or was given, a summary of all that came before it."""
    given = any(isinstance(item, dict) and item.get("type") == "compaction" for item in turn.input)
    return given or any(isinstance(step, Compaction) for step in turn.steps)


def _turn_messages(turn: Turn, dialect: Dialect, *, current: bool) -> list[Message]:
    violation = turn.violation
    if violation is not None and violation.touchpoint == "user-input":
        return [UserMessage(WITHHELD), AssistantMessage(refusal(violation))]
    messages = dialect.read(turn.input, current)
    for step in turn.steps:
        # What a lost driver left half said is not shown to the model that is asked again.
        if isinstance(step, Inference) and step.finish is None and (current or not dialect.replays_failed):
            continue
        _tell(step, messages)
    if violation is not None:
        messages.append(AssistantMessage(refusal(violation)))
    summaries = [summary_message(step.summary) for step in turn.steps if isinstance(step, Compaction)]
    return [*summaries, *_newest(messages)] if summaries else messages


def _newest(messages: Sequence[Message]) -> list[Message]:
    """What a summary of all these does not stand for: instructions, and all from the user's newest message on.

    Clients that keep their history themselves send all of it with every turn. A call that is answered only then stays.
    """
    start = next((place for place in reversed(range(len(messages))) if begins_exchange(messages[place])), 0)
    answered = {message.call_id for message in messages[start:] if isinstance(message, ToolMessage)}
    return [*_outlasting(messages[:start], answered), *messages[start:]]


def _outlasting(messages: Sequence[Message], answered: Set[str]) -> Iterator[Message]:
    for message in messages:
        if isinstance(message, SystemMessage) and not str(message.content).startswith(SUMMARY):
            yield message
        if isinstance(message, AssistantMessage):
            calls = tuple(call for call in message.calls if call.call_id in answered)
            if calls:
                yield replace(message, calls=calls)


def _tell(step: Step, messages: list[Message]) -> None:
    match step:
        case Inference():
            if (said := _assistant(step)) is not None:
                messages.append(said)
            # What the client says of these calls comes later, and counts instead.
            asked = (call for call in step.whole_calls if call.runner == "approval")
            messages.extend(ToolMessage(call.call_id, NOT_ALLOWED, call.name) for call in asked)
        case ToolRun():
            messages.append(ToolMessage(step.call.call_id, content_text(step.content), step.call.name))
        case ClientRun():
            messages.extend(
                ToolMessage(str(given["call_id"]), content_text(given["content"]), str(given.get("tool_name", "")))
                for given in step.responses
            )
        case Retrieval():
            _insert_context(step.text, messages)
        case Listing():
            if step.error is not None:
                messages.append(SystemMessage(f"The tools of '{step.server}' are not available: {step.error}"))
        case ShieldCheck() | Resumption() | Compaction():
            pass
        case _:
            assert_never(step)


def _assistant(inference: Inference) -> AssistantMessage | None:
    text = inference.said("text") + inference.said("refusal")
    calls = tuple(call.as_message() for call in inference.whole_calls)
    reasoning = inference.said("reasoning")
    return AssistantMessage(text, calls, reasoning) if text or calls else None


def _insert_context(text: str, messages: list[Message]) -> None:
    """Put the text of documents behind the turn's last user message."""
    place = max((i for i, m in enumerate(messages) if isinstance(m, UserMessage)), default=None)
    if place is None:
        messages.append(UserMessage(text))
        return
    message = messages[place]
    assert isinstance(message, UserMessage)
    content: Content = (
        f"{message.content}\n\n{text}" if isinstance(message.content, str) else (*message.content, TextPart(text))
    )
    messages[place] = UserMessage(content)


def _arranged(messages: Sequence[Message]) -> Iterator[Message]:
    """Put every tool message behind its call, answer the calls that have none, and retell results without a call."""
    results = {message.call_id: message for message in messages if isinstance(message, ToolMessage)}
    called = {call.call_id for message in messages if isinstance(message, AssistantMessage) for call in message.calls}
    for message in messages:
        match message:
            case AssistantMessage():
                yield message
                yield from (_answer(call, results) for call in message.calls)
            case ToolMessage():
                if message.call_id not in called:
                    yield UserMessage(f"Result of {message.name or 'a tool'}: {message.content}")
            case SystemMessage() | UserMessage():
                yield message
            case _:
                assert_never(message)


def _answer(call: ToolCall, results: dict[str, ToolMessage]) -> ToolMessage:
    given = results.get(call.call_id)
    return ToolMessage(call.call_id, given.content if given else NO_RESULT, call.name)
