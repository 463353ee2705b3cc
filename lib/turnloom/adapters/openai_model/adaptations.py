"""What models refuse of a request, and the form of it that they take instead.

An endpoint is asked in the usual way first. When its refusal speaks of something that an adaptation can change, the
request is sent once more in that form, and what was answered is remembered for the model. `ADAPTATIONS` is the whole
of what is known of endpoints' dialects: a new one is a new row.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from turnloom.adapters.openai_model.request import Draft
from turnloom.domain.message import JSON
from turnloom.domain.transcript import PART_OF_RESULT

MOST_MODELS = 1000
"""How many models are remembered; the one that was asked least recently is forgotten first."""

_SHORT_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")

Messages = list[dict[str, JSON]]


@dataclass(frozen=True, slots=True, eq=False)
class Adaptation:
    """One form of a request for models that refuse the usual one."""

    name: str
    refusal: re.Pattern[str]
    """Words of a refusal that may be about it."""
    applies: Callable[[Draft], bool]
    """Whether the request holds what such a refusal is about."""
    adapt: Callable[[Draft], Draft]
    server_error: bool = False
    """Whether the refusal may also come with a status of 500, as templates of chats fail with it."""
    beside_tools: bool = False
    """Whether a model may refuse it only beside tools, so that it is remembered for requests with and without them."""


def adapted(draft: Draft, adaptations: frozenset[Adaptation]) -> Draft:
    """The draft in the form that all of these give it."""
    for adaptation in ADAPTATIONS:
        if adaptation in adaptations:
            draft = adaptation.adapt(draft)
    return draft


def next_adaptation(draft: Draft, tried: frozenset[Adaptation], status: int, words: str) -> Adaptation | None:
    """The form that a refusal of the draft asks for; None when it asks for none that was not tried."""
    form = adapted(draft, tried)
    for adaptation in ADAPTATIONS:
        is_excluded = adaptation in tried or (status >= 500 and not adaptation.server_error)
        if not is_excluded and adaptation.applies(form) and adaptation.refusal.search(words):
            return adaptation
    return None


class LearnedAdaptations:
    """What has been learned of the models of one endpoint, while the process lives."""

    def __init__(self) -> None:
        self._models: OrderedDict[tuple[str, str], frozenset[Adaptation]] = OrderedDict()

    def of(self, draft: Draft) -> frozenset[Adaptation]:
        """The adaptations that requests like this one need."""
        for key in _keys(draft):
            if key in self._models:
                self._models.move_to_end(key)
        everywhere, here = (self._models.get(key, frozenset()) for key in _keys(draft))
        return everywhere | here

    def add(self, draft: Draft, adaptations: frozenset[Adaptation]) -> None:
        """Remember that a request like this one was answered in this form."""
        everywhere, here = _keys(draft)
        for adaptation in adaptations:
            key = here if adaptation.beside_tools else everywhere
            self._models[key] = self._models.get(key, frozenset()) | {adaptation}
        while len(self._models) > MOST_MODELS:
            self._models.popitem(last=False)


def _keys(draft: Draft) -> tuple[tuple[str, str], tuple[str, str]]:
    """Where the memory of a model stands: for all of its requests, and for those with tools or without."""
    model = str(draft.body["model"])
    return (model, "always"), (model, "with tools" if "tools" in draft.body else "without tools")


# --- parameters


def _without(draft: Draft, name: str) -> Draft:
    return replace(draft, body={key: value for key, value in draft.body.items() if key != name})


def _with_max_completion_tokens(draft: Draft) -> Draft:
    if "max_tokens" not in draft.body:
        return draft
    return _with(_without(draft, "max_tokens"), max_completion_tokens=draft.body["max_tokens"])


def _without_optional_temperature(draft: Draft) -> Draft:
    return _without(draft, "temperature") if "temperature" in draft.optional else draft


def _with(draft: Draft, **keys: JSON) -> Draft:
    return replace(draft, body={**draft.body, **keys})


# --- answers by a schema


def _wants_schema(draft: Draft) -> bool:
    return draft.schema is not None and draft.body.get("response_format", {}).get("type") == "json_schema"


def _in_json_mode(draft: Draft) -> Draft:
    """The model is told the schema in a message, and asked for JSON."""
    if not _wants_schema(draft):
        return draft
    messages = _with_schema(_messages(draft), draft.schema)
    return _with(draft, messages=messages, response_format={"type": "json_object"})


def _by_instruction(draft: Draft) -> Draft:
    """The model is told the schema in a message, and nothing else speaks of JSON."""
    return _without(_in_json_mode(draft), "response_format") if draft.schema is not None else draft


def _with_schema(messages: Messages, schema: JSON) -> Messages:
    """The messages with the schema behind the first system message, or in front."""
    place = next((place for place, message in enumerate(messages, 1) if message["role"] == "system"), 0)
    about = f" ({schema['description']})" if schema.get("description") else ""
    text = (
        f"Answer with JSON and nothing else: no text around it, no code fence. The JSON must be valid by this"
        f" JSON Schema{about}:\n{json.dumps(schema.get('schema', {}), ensure_ascii=False)}"
    )
    return [*messages[:place], {"role": "system", "content": text}, *messages[place:]]


# --- messages


def _messages(draft: Draft) -> Messages:
    messages: Messages = draft.body["messages"]
    return messages


def _has_later_system_message(draft: Draft) -> bool:
    return any(message["role"] == "system" for message in _messages(draft)[1:])


def _with_one_system_message(draft: Draft) -> Draft:
    """All system messages joined in order as the first message."""
    system = [message["content"] for message in _messages(draft) if message["role"] == "system"]
    if not system:
        return draft
    others = [message for message in _messages(draft) if message["role"] != "system"]
    return _with(draft, messages=[{"role": "system", "content": _joined(system)}, *others])


def _neighbours(draft: Draft) -> Iterator[tuple[dict[str, JSON], dict[str, JSON]]]:
    """The pairs of messages that follow each other, system messages left out."""
    messages = [message for message in _messages(draft) if message["role"] != "system"]
    return pairwise(messages)


def _repeats_role(draft: Draft) -> bool:
    return any(_mergeable(first, second) for first, second in _neighbours(draft))


def _mergeable(first: Mapping[str, JSON], second: Mapping[str, JSON]) -> bool:
    return first["role"] == second["role"] != "tool" and not first.get("tool_calls")


def _with_alternating_roles(draft: Draft) -> Draft:
    """Neighbours of one role as one message; a system message between them stays in front of it."""
    messages: Messages = []
    last: int | None = None
    for message in _messages(draft):
        if message["role"] == "system":
            messages.append(message)
        elif last is not None and _mergeable(messages[last], message):
            content = _joined([messages[last]["content"], message["content"]])
            messages[last] = {**messages[last], **message, "content": content}
        else:
            last = len(messages)
            messages.append(message)
    return _with(draft, messages=messages)


def _joined(contents: Sequence[JSON]) -> JSON:
    """Contents as one: texts with a blank line between them, or all parts where any of them has parts."""
    if any(isinstance(content, list) for content in contents):
        return [part for content in contents for part in _as_parts(content)]
    return "\n\n".join(content for content in contents if content)


def _as_parts(content: JSON) -> list[JSON]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def _has_user_behind_tool(draft: Draft) -> bool:
    return any((first["role"], second["role"]) == ("tool", "user") for first, second in _neighbours(draft))


def _with_bridges(draft: Draft) -> Draft:
    """A short answer of the assistant between the result of a tool and what the user says next."""
    messages: Messages = []
    for message in _messages(draft):
        if message["role"] == "user" and messages and messages[-1]["role"] == "tool":
            messages.append({"role": "assistant", "content": "OK."})
        messages.append(message)
    return _with(draft, messages=messages)


def _has_images_in_results(draft: Draft) -> bool:
    return any(_shows_images_of_result(message) for message in _messages(draft))


def _shows_images_of_result(message: Mapping[str, JSON]) -> bool:
    parts = _as_parts(message["content"]) if message["role"] == "user" else []
    first = str(parts[0].get("text", "")) if parts else ""
    return first.startswith(PART_OF_RESULT) and any(part["type"] == "image_url" for part in parts)


def _without_images_in_results(draft: Draft) -> Draft:
    """The word `[image]` for each, in the result that it belongs to."""
    messages: Messages = []
    for message in _messages(draft):
        if _shows_images_of_result(message):
            _name_images(message, messages)
        else:
            messages.append(message)
    return _with(draft, messages=messages)


def _name_images(message: Mapping[str, JSON], before: Messages) -> None:
    """Put what is left of a message with parts of a result at the end of those before it, among which the result is."""
    heading, *parts = message["content"]
    others = [part for part in parts if part["type"] != "image_url"]
    names = "\n".join("[image]" for part in parts if part["type"] == "image_url")
    call_id = heading["text"].removeprefix(PART_OF_RESULT).strip(" :")
    result = next((shown for shown in reversed(before) if shown.get("tool_call_id") == call_id), None)
    if result is None:
        others = [{"type": "text", "text": names}, *others]
    else:
        place = before.index(result)
        before[place] = {**result, "content": f"{result['content']}\n{names}".lstrip("\n")}
    if others:
        before.append({**message, "content": [heading, *others]})


# --- keys that an endpoint gave to its own messages and calls

_MESSAGE_KEYS = frozenset(("role", "content", "tool_calls", "tool_call_id", "reasoning_content"))
_CALL_KEYS = frozenset(("id", "type", "function"))


def _has_extras(draft: Draft) -> bool:
    messages = _messages(draft)
    return any(message.keys() - _MESSAGE_KEYS for message in messages) or any(
        call.keys() - _CALL_KEYS for message in messages for call in message.get("tool_calls") or ()
    )


def _without_extras(draft: Draft) -> Draft:
    return _with(draft, messages=[_without_keys(message) for message in _messages(draft)])


def _without_keys(message: dict[str, JSON]) -> dict[str, JSON]:
    bare = {key: value for key, value in message.items() if key in _MESSAGE_KEYS}
    if bare.get("tool_calls"):
        calls = bare["tool_calls"]
        bare["tool_calls"] = [{key: call[key] for key in call if key in _CALL_KEYS} for call in calls]
    return bare


# --- ids of calls


def _has_long_call_ids(draft: Draft) -> bool:
    return any(not _SHORT_CALL_ID.fullmatch(identifier) for identifier in _call_ids(draft))


def _call_ids(draft: Draft) -> Iterator[str]:
    for message in _messages(draft):
        yield from (call["id"] for call in message.get("tool_calls") or ())
        if "tool_call_id" in message:
            yield message["tool_call_id"]


def _with_short_call_ids(draft: Draft) -> Draft:
    return _with(draft, messages=[_with_short_ids(message) for message in _messages(draft)])


def _with_short_ids(message: dict[str, JSON]) -> dict[str, JSON]:
    if message.get("tool_calls"):
        return {**message, "tool_calls": [{**call, "id": _short_id(call["id"])} for call in message["tool_calls"]]}
    if "tool_call_id" in message:
        return {**message, "tool_call_id": _short_id(message["tool_call_id"])}
    return message


def _short_id(identifier: str) -> str:
    """Nine letters and digits, the same for the same id; an id of the endpoint's own stays as it is."""
    if _SHORT_CALL_ID.fullmatch(identifier):
        return identifier
    return hashlib.sha256(identifier.encode()).hexdigest()[:9]


# --- reasoning


def _hides_reasoning(draft: Draft) -> bool:
    return not draft.sends_reasoning and any(message["role"] == "assistant" for message in _messages(draft))


def _with_reasoning(draft: Draft) -> Draft:
    return replace(draft, sends_reasoning=True)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE | re.DOTALL)


_SCHEMA_REFUSAL = _pattern(
    r"\A(?!.*invalid[ _](json[ _])?schema)"  # that one is about the caller's own schema
    r".*(response[ _]?format|json[ _]?(schema|object|mode)|mime[ _]?type|structured[ _]?output)"
)

NO_STREAM_OPTIONS = Adaptation(
    "no stream_options",
    _pattern("stream_options"),
    lambda draft: "stream_options" in draft.body,
    lambda draft: _without(draft, "stream_options"),
)
MAX_COMPLETION_TOKENS = Adaptation(
    "max_completion_tokens",
    _pattern(
        r"max_completion_tokens"
        r"|max_tokens.{0,120}(unsupported|not supported|unknown|unrecognized|not (permitted|allowed)|deprecated)"
        r"|(unsupported|unknown|unrecognized)[^.]{0,60}max_tokens"
    ),
    lambda draft: "max_tokens" in draft.body,
    _with_max_completion_tokens,
)
NO_OPTIONAL_TEMPERATURE = Adaptation(
    "no temperature of ours",
    _pattern("temperature"),
    lambda draft: "temperature" in draft.optional and "temperature" in draft.body,
    _without_optional_temperature,
)
JSON_MODE = Adaptation("JSON mode", _SCHEMA_REFUSAL, _wants_schema, _in_json_mode, beside_tools=True)
INSTRUCTION = Adaptation(
    "schema as an instruction",
    _SCHEMA_REFUSAL,
    lambda draft: draft.schema is not None and "response_format" in draft.body and not _wants_schema(draft),
    _by_instruction,
    beside_tools=True,
)
SEND_REASONING = Adaptation("reasoning_content", _pattern("reasoning_content"), _hides_reasoning, _with_reasoning)
TEXT_FOR_IMAGES_IN_RESULTS = Adaptation(
    "no images in results",
    _pattern("image"),
    _has_images_in_results,
    _without_images_in_results,
    server_error=True,
)
ONE_SYSTEM_MESSAGE = Adaptation(
    "one system message",
    _pattern(
        r"system[^.]{0,60}\b(beginning|first|start|one|single)\b|\b(one|single|multiple)\b[^.]{0,20}\bsystem"
        r"|role[^.]{0,20}system[^.]{0,40}(not|only|unexpected)|unexpected role '?system"
    ),
    _has_later_system_message,
    _with_one_system_message,
    server_error=True,
)
BRIDGED_RESULTS = Adaptation(
    "no user behind tool",
    _pattern(r"'?user'?[^.]{0,20}(after|following|behind)[^.]{0,20}'?tool"),
    _has_user_behind_tool,
    _with_bridges,
    server_error=True,
)
ALTERNATING_ROLES = Adaptation(
    "alternating roles",
    _pattern(r"roles?[^.]{0,40}\balternat|\balternat[^.]{0,40}\b(roles?|user|assistant)"),
    _repeats_role,
    _with_alternating_roles,
    server_error=True,
)
NO_EXTRAS = Adaptation(
    "no keys of its own",
    _pattern(
        r"extra (inputs|fields?|keys?)"
        r"|(unknown|unrecognized|unexpected|additional)[^.]{0,30}(field|key|propert|argument|parameter)"
    ),
    _has_extras,
    _without_extras,
)
SHORT_CALL_IDS = Adaptation(
    "short call ids",
    _pattern(r"tool[ _]?call[ _]?id[^.]{0,160}(length of 9|9 characters|a-z)"),
    _has_long_call_ids,
    _with_short_call_ids,
    server_error=True,
)

ADAPTATIONS = (
    NO_STREAM_OPTIONS,
    MAX_COMPLETION_TOKENS,
    NO_OPTIONAL_TEMPERATURE,
    JSON_MODE,
    INSTRUCTION,
    SEND_REASONING,
    TEXT_FOR_IMAGES_IN_RESULTS,
    ONE_SYSTEM_MESSAGE,
    BRIDGED_RESULTS,
    ALTERNATING_ROLES,
    NO_EXTRAS,
    SHORT_CALL_IDS,
)
"""Every form, in the order in which a request takes them; a refusal is understood as the first that it may mean."""
