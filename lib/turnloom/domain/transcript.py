"""What the model gets to see: instructions, earlier turns, this turn, as chat messages that strict upstreams accept.

Two promises hold for every list that leaves this module: each tool message stands right behind the assistant message
that made its call, in the order of the calls, and no call is left without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from types import MappingProxyType
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
    ToolKey,
    ToolMessage,
    UserMessage,
    distinct_name,
    flat_name,
)
from turnloom.domain.tool_result import images_of, text_of
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


Names = Mapping[ToolKey, str]
"""What the tools of a request are called upstream."""


def transcript(
    spec: Spec, history: Iterable[Turn], turn: Turn, dialect: Dialect, names: Names = MappingProxyType({})
) -> tuple[Message, ...]:
    """The messages for the next model call of `turn`, the history given oldest first.

    A summary, made by the server or brought along by the client, takes the place of all that came before it. Calls are
    told by the `names` under which their tools are offered now.
    """
    messages: list[Message] = []
    for earlier in history:
        told = _told(earlier, dialect)
        if told.summed_up:
            messages.clear()
        if earlier.status != "failed" or dialect.replays_failed:
            messages += told.messages if _is_of(spec.model, earlier) else map(_without_extras, told.messages)
    if _summed_up(turn):
        messages.clear()
    messages += _turn_messages(turn, dialect, current=True)
    instructions = [SystemMessage(spec.instructions)] if spec.instructions else []
    return (*instructions, *_arranged(messages, names))


def _is_of(model: str, turn: Turn) -> bool:
    """Whether the turn was this model's; the turns of an agent, which do not say, all are."""
    return bool((turn.settings or {}).get("model", model) == model)


def _without_extras(message: Message) -> Message:
    """The message without what only the model that wrote it understands."""
    if not isinstance(message, AssistantMessage) or not (message.extra or any(call.extra for call in message.calls)):
        return message
    return replace(message, extra={}, calls=tuple(replace(call, extra={}) for call in message.calls))


def summary_message(summary: str) -> SystemMessage:
    """The summary as the model is told it."""
    return SystemMessage(f"{SUMMARY}\n\n{summary}")


def part_of_result(call_id: str, parts: Sequence[Part]) -> UserMessage:
    """What a tool message cannot hold of a result, as a message behind it."""
    return UserMessage((TextPart(f"{PART_OF_RESULT} {call_id}:"), *parts))


def result_messages(call_id: str, result: JSON, name: str) -> list[Message]:
    """The result of a call as a tool message, and its images as a message behind it."""
    images = images_of(result)
    told = ToolMessage(call_id, text_of(result), name)
    return [told, part_of_result(call_id, images)] if images else [told]


def begins_exchange(message: Message) -> bool:
    """Whether a user speaks here, and it is no part of a tool's result."""
    if not isinstance(message, UserMessage):
        return False
    first = message.content[0] if message.content else ""
    return not (isinstance(first, TextPart) and first.text.startswith(PART_OF_RESULT))


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
    matched = _matched(messages)
    kept = (_outlasting(place, messages[place], matched, start) for place in range(start))
    return [*(message for message in kept if message), *(m for m in messages[start:] if not _is_summary(m))]


def _outlasting(place: int, message: Message, matched: _Matched, start: int) -> Message | None:
    """What stays of a message before `start`."""
    if isinstance(message, SystemMessage):
        return None if _is_summary(message) else message
    if isinstance(message, AssistantMessage):
        calls = tuple(c for number, c in enumerate(message.calls) if matched.results.get((place, number), -1) >= start)
        return replace(message, calls=calls) if calls else None
    return None


def _is_summary(message: Message) -> bool:
    return isinstance(message, SystemMessage) and str(message.content).startswith(SUMMARY)


def _tell(step: Step, messages: list[Message]) -> None:
    match step:
        case Inference():
            if (said := _assistant(step)) is not None:
                messages.append(said)
            # What the client says of these calls comes later, and counts instead.
            asked = (call for call in step.whole_calls if call.runner == "approval")
            messages.extend(ToolMessage(call.call_id, NOT_ALLOWED, call.name) for call in asked)
        case ToolRun():
            messages.extend(result_messages(step.call.call_id, step.content, step.call.name))
        case ClientRun():
            for given in step.responses:
                messages.extend(
                    result_messages(str(given["call_id"]), given["content"], str(given.get("tool_name", "")))
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
    extras = inference.extras
    calls = tuple(replace(call.as_message(), extra=extras.get(call.call_id, {})) for call in inference.whole_calls)
    reasoning = inference.said("reasoning")
    return AssistantMessage(text, calls, reasoning, extras.get("", {})) if text or calls else None


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


def _arranged(messages: Sequence[Message], names: Names) -> Iterator[Message]:
    """Put every call beside its results, answer the calls that have none, and retell results without a call.

    A message with calls moves down to the last of its results if anything else stands between them, so that what is
    newest in the conversation stays the newest.
    """
    if not any(_has_calls_or_results(message) for message in messages):
        yield from messages
        return
    matched = _matched(messages)
    parts = _parts_of_results(messages)
    moved = _moved(messages, matched, parts)
    elsewhere = {*moved.values(), *(part for places in parts.values() for part in places)}
    for place in range(len(messages)):
        origin = moved.get(place, place)
        message = messages[origin]
        match message:
            case _ if origin in elsewhere and origin == place:
                continue
            case AssistantMessage():
                yield from _with_results(message, origin, messages, matched, parts, names)
            case ToolMessage():
                if place in matched.orphans:
                    yield UserMessage(f"Result of {message.name or 'a tool'}: {message.content}")
                    yield from (messages[part] for part in parts.get(place, ()))
            case SystemMessage() | UserMessage():
                yield message
            case _:
                assert_never(message)


def _has_calls_or_results(message: Message) -> bool:
    return isinstance(message, ToolMessage) or (isinstance(message, AssistantMessage) and bool(message.calls))


def _parts_of_results(messages: Sequence[Message]) -> dict[int, list[int]]:
    """For the place of a result the places of the messages that hold the rest of it, which stand right behind it."""
    parts: dict[int, list[int]] = {}
    result: int | None = None
    for place, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            result = place
        elif result is not None and isinstance(message, UserMessage) and not begins_exchange(message):
            parts.setdefault(result, []).append(place)
        else:
            result = None
    return parts


def _moved(messages: Sequence[Message], matched: _Matched, parts: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """For the places that messages with calls move down to, where these stand now."""
    moved: dict[int, int] = {}
    for place, message in enumerate(messages):
        if not isinstance(message, AssistantMessage) or not message.calls:
            continue
        results = [found for n in range(len(message.calls)) if (found := matched.results.get((place, n))) is not None]
        last = max(results, default=place)
        own = sum(1 + len(parts.get(result, ())) for result in results if place < result < last)
        if last - place - 1 > own:
            moved[last] = place
    return moved


def _with_results(
    message: AssistantMessage,
    place: int,
    messages: Sequence[Message],
    matched: _Matched,
    parts: Mapping[int, Sequence[int]],
    names: Names,
) -> Iterator[Message]:
    """The message, the results of its calls in the order of the calls, then what these could not hold."""
    yield _with_names(message, names)
    results = [matched.results.get((place, number)) for number in range(len(message.calls))]
    for call, result in zip(message.calls, results, strict=True):
        yield _answer(call, messages, result)
    yield from (messages[part] for result in results if result is not None for part in parts.get(result, ()))


def _with_names(message: AssistantMessage, names: Names) -> AssistantMessage:
    if not message.calls:
        return message
    return replace(message, calls=tuple(_named(call, names) for call in message.calls))


def _named(call: ToolCall, names: Names) -> ToolCall:
    """The call by the name of its tool upstream; a tool that is gone has the one that it would have alone."""
    alone = call.name if call.hosted else flat_name(call.group, call.name)
    return ToolCall(call.call_id, names.get(call.tool) or distinct_name(alone, ()), call.arguments, extra=call.extra)


def _answer(call: ToolCall, messages: Sequence[Message], place: int | None) -> ToolMessage:
    given = None if place is None else messages[place]
    return ToolMessage(call.call_id, given.content if isinstance(given, ToolMessage) else NO_RESULT, call.name)


@dataclass(frozen=True, slots=True)
class _Matched:
    """Where the result of each call stands, by the call's message and its number in there, and the results of no call.

    What is in neither was said of a call before something newer was.
    """

    results: Mapping[tuple[int, int], int]
    orphans: Set[int]


def _matched(messages: Sequence[Message]) -> _Matched:
    """Match results to calls, whose ids may come again: small models number the calls of each answer anew.

    A call has the newest result before the next call of its id; of calls with none between them, each has one of those
    behind the last, in order. The first call of an id, if it has none so far, has what stands before it.
    """
    results: dict[tuple[int, int], int] = {}
    first: dict[str, tuple[int, int]] = {}
    behind: dict[str, list[int]] = {}
    spare: dict[str, list[int]] = {}
    for place, number, call_id in _mentions_backwards(messages):
        if number is None:
            behind.setdefault(call_id, []).append(place)
            continue
        first[call_id] = (place, number)
        spare[call_id] = behind.pop(call_id, []) or spare.get(call_id, [])
        if spare[call_id]:
            results[place, number] = spare[call_id].pop(0)
    for call_id, call in first.items():
        if call not in results and call_id in behind:
            results[call] = behind[call_id].pop(0)
    return _Matched(results, {place for places in behind.values() for place in places})


def _mentions_backwards(messages: Sequence[Message]) -> Iterator[tuple[int, int | None, str]]:
    """Where calls and results stand, from the last one on: the place, that of a call in its message, and the id."""
    for place in reversed(range(len(messages))):
        message = messages[place]
        if isinstance(message, ToolMessage):
            yield place, None, message.call_id
        elif isinstance(message, AssistantMessage):
            for number in reversed(range(len(message.calls))):
                yield place, number, message.calls[number].call_id
