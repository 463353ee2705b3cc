"""The input of a response, read as chat messages, and the check that its tool calls and outputs match.

Items that one model message was split into (reasoning, text, calls) are put together again, whatever their order. A
hosted call (`mcp_call` and its like) brings its own result, so text behind it begins the next message. Items without
meaning to the model, and types that are not known here, make no message.

Some items carry what only the server could know, put in when they were accepted: a compaction its opened `summary`, an
approval's answer the `call_id` that it is about, a list of tools the `server` as it was described when it was asked,
a file the `text` that was read out of it. See `hidden`.
"""

from __future__ import annotations

import base64
import json
import mimetypes
import string
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote_to_bytes

from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import (
    JSON,
    AssistantMessage,
    Content,
    FilePart,
    ImagePart,
    Message,
    Part,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from turnloom.domain.text_decoding import decode_text
from turnloom.domain.tool_result import from_output, text_of
from turnloom.domain.transcript import NOT_ALLOWED, Dialect, part_of_result, result_messages, summary_message
from turnloom.domain.turn import Call, Inference, Turn, remembered

Item = Mapping[str, Any]

UNKEPT = "The result of this call was not kept."

# What the client must answer, and the items that answer it.
_CLIENT_CALLS = ("function_call", "custom_tool_call")
_CLIENT_OUTPUTS = ("function_call_output", "custom_tool_call_output")

# Hosted calls, each with the key that holds its result.
_HOSTED = {"file_search_call": "results", "web_search_call": "sources", "code_interpreter_call": "outputs"}
_GENERIC_CALLS = ("computer_call", "shell_call", "local_shell_call", "apply_patch_call")
_GENERIC_OUTPUTS = tuple(f"{kind}_output" for kind in _GENERIC_CALLS)
_BOOKKEEPING = ("id", "type", "status", "call_id", "caller", "created_by", "pending_safety_checks")

_TEXT_MEDIA = ("application/json", "application/xml", "application/yaml", "application/toml", "application/javascript")
_UNTYPED_MEDIA = (None, "", "application/octet-stream", "binary/octet-stream")
PDF = "application/pdf"
_UNNAMED = "file"


def read(items: Sequence[JSON], current: bool) -> list[Message]:
    """The messages that these items stand for; whether they are the current turn's makes no difference."""
    reader = _Reader()
    for place, item in enumerate(items):
        reader.take(item, place)
    reader.end_message()
    return reader.messages


RESPONSES = Dialect(read, replays_failed=True)


def check_calls(history: Iterable[Turn], items: Sequence[JSON]) -> None:
    """Raise InvalidRequest when an output among the new `items` has no call, or a call of the client's has no output.

    The calls are those of the new items and of the whole history; one that the model did not finish needs no output.
    """
    noted = [*map(_noted_of, history), _noted(items)]
    known = {call_id for notes in noted for call_id in notes.known}
    answered = {call_id for notes in noted for call_id in notes.answered}
    for item in items:
        if item.get("type") in _CLIENT_OUTPUTS and "call_id" in item and item["call_id"] not in known:
            _mismatch(f"No tool call found for function call output with call_id {item['call_id']}.")
    for call_id in (call_id for notes in noted for call_id in notes.due if call_id not in answered):
        _mismatch(f"No tool output found for function call {call_id}.")


_MOST_HEAD_CHARACTERS = 1000
_MOST_ESCAPES = 100_000


def file_content(data: str) -> tuple[str | None, bytes]:
    """Content type, if it is told, and bytes of a data URL or of bare base64. Raises ValueError when it is neither."""
    head, comma, body = data.partition(",")
    if not (comma and head.startswith("data:")):
        return None, _unbase64(data)
    if len(head) > _MOST_HEAD_CHARACTERS:
        raise ValueError("the media type of a data URL is too long")
    media, *parameters = head.removeprefix("data:").split(";")
    told = ";".join([media, *(parameter for parameter in parameters if parameter != "base64")])
    if "base64" in parameters:
        return told, _unbase64(body)
    if body.count("%") > _MOST_ESCAPES:
        raise ValueError("a data URL with so many escapes takes long to decode")
    return told, unquote_to_bytes(body)


@dataclass(frozen=True, slots=True)
class File:
    """A file that was sent: `media` is its type, in lower case; only one of text has a `text`."""

    name: str
    media: str
    content: bytes
    text: str | None


def opened_file(part: Item, errors: str = "strict") -> File:
    """The file in the `file_data` of a part of content. Raises ValueError when that cannot be decoded.

    Raises InvalidRequest as `file_of` does, unless `errors` is "replace".
    """
    return file_of(part.get("filename"), *file_content(part["file_data"]), errors)


def file_of(name: str | None, told: str | None, content: bytes, errors: str = "strict") -> File:
    """The file with this content and name, if it has one, and the content type that was told for it, if any was.

    Raises InvalidRequest (`unsupported_file`) for a text whose bytes do not fit its charset, unless `errors` is
    "replace": then U+FFFD stands for what does not fit.
    """
    media = _file_media(told, name or "", content)
    try:
        text = _file_text(media, told or "", content, errors)
    except UnicodeError:
        message = f"'{name or _UNNAMED}' is no text in the charset that it declares, or in UTF-8"
        raise InvalidRequest(message, code="unsupported_file") from None
    return File(name or _UNNAMED, media or "application/octet-stream", content, text)


def hidden(item: Item) -> frozenset[str]:
    """The keys of an item that the server has added for itself, and shows to nobody."""
    return _HIDDEN.get(item["type"], frozenset())


_HIDDEN = {
    "mcp_list_tools": frozenset({"server"}),
    "compaction": frozenset({"summary"}),
    "mcp_approval_response": frozenset({"call_id"}),
    "reasoning": frozenset({"opened"}),
}


@dataclass(slots=True)
class _Reader:
    """Messages so far, and the parts of the assistant's message that is being put together.

    `answers` are the results of hosted calls in that message, `asked` the ids of the approval requests so far.
    """

    messages: list[Message] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    answers: list[Message] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)

    def take(self, item: Item, place: int) -> None:
        match item.get("type", "message"):
            case "message":
                self._message(item)
            case "reasoning":
                self._say(self.thoughts, _reasoning(item))
            case "compaction":
                self._compaction(item)
            case "mcp_approval_request":
                self._approval_request(item)
            case "mcp_approval_response":
                self._approval_response(item)
            case str(kind) if kind in _CLIENT_CALLS or kind in _GENERIC_CALLS:
                self._call(item, kind)
            case str(kind) if kind == "mcp_call" or kind in _HOSTED:
                self._hosted(item, kind, place)
            case str(kind) if kind in _CLIENT_OUTPUTS or kind in _GENERIC_OUTPUTS:
                self._output(item)

    def end_message(self) -> None:
        """Put down the assistant's message that was being put together; reasoning alone is not worth one."""
        if self.texts or self.calls:
            said = AssistantMessage("\n\n".join(self.texts), tuple(self.calls), "\n\n".join(self.thoughts))
            self.messages.append(said)
        self.messages += self.answers
        for parts in (self.texts, self.thoughts, self.calls, self.answers):
            parts.clear()

    def _message(self, item: Item) -> None:
        if item["role"] == "assistant":
            self._say(self.texts, _plain_text(item["content"]))
            return
        self.end_message()
        content = _content(item["content"])
        self.messages.append(UserMessage(content) if item["role"] == "user" else SystemMessage(content))

    def _say(self, where: list[str], text: str) -> None:
        if self.answers:
            self.end_message()
        if text:
            where.append(text)

    def _call(self, item: Item, kind: str) -> None:
        if item.get("status") == "incomplete" or not item.get("call_id"):
            return
        match kind:
            case "function_call":
                name, arguments = item["name"], item["arguments"] or "{}"
            case "custom_tool_call":
                name, arguments = item["name"], _json({"input": item["input"]})
            case _:
                name, arguments = kind.removesuffix("_call"), _json(_payload(item))
        self.calls.append(ToolCall(item["call_id"], name, arguments, item.get("namespace")))

    def _hosted(self, item: Item, kind: str, place: int) -> None:
        if item.get("status") == "incomplete":
            return
        call_id = item.get("id") or _derived_id(item, place)
        if kind == "mcp_call":
            name, arguments, result = item["name"], item["arguments"] or "{}", _mcp_result(item)
        else:
            name, arguments = kind.removesuffix("_call"), _json(_payload(item, but=_HOSTED[kind]))
            found = item.get(_HOSTED[kind]) or (item.get("action") or {}).get(_HOSTED[kind])
            result = UNKEPT if found is None else _json(found)
        if item.get("approval_request_id") in self.asked:
            self.answers += result_messages(item["approval_request_id"], result, name)
            return
        self.calls.append(ToolCall(call_id, name, arguments, item.get("server_label"), hosted=True))
        self.answers += result_messages(call_id, result, name)

    def _compaction(self, item: Item) -> None:
        self.end_message()
        self.messages[:] = [summary_message(item.get("summary", ""))]

    def _approval_request(self, item: Item) -> None:
        """A call that counts as not allowed, unless something that comes later tells otherwise."""
        if not item.get("id"):
            return
        self.asked.add(item["id"])
        arguments = item["arguments"] or "{}"
        self.calls.append(ToolCall(item["id"], item["name"], arguments, item.get("server_label"), hosted=True))
        self.answers.append(ToolMessage(item["id"], NOT_ALLOWED, item["name"]))

    def _approval_response(self, item: Item) -> None:
        if item.get("approve") or not item.get("call_id"):
            return
        reason = f" The user says: {item['reason']}" if item.get("reason") else ""
        self.end_message()
        self.messages.append(ToolMessage(item["call_id"], NOT_ALLOWED + reason))

    def _output(self, item: Item) -> None:
        """A tool message, and what it cannot hold as a message of the user's behind it."""
        self.end_message()
        call_id = item.get("call_id") or item.get("id") or ""
        parts = _output_parts(item.get("output"))
        texts = [part.text for part in parts if isinstance(part, TextPart)]
        others = tuple(part for part in parts if not isinstance(part, TextPart))
        name = str(item.get("name", "")) if item["type"] in _CLIENT_OUTPUTS else ""
        self.messages.append(ToolMessage(call_id, "\n".join(texts), name))
        if others:
            self.messages.append(part_of_result(call_id, others))


# --- calls


@dataclass(frozen=True, slots=True)
class _Notes:
    """The ids of calls that exist, those among them that need an output, and those of outputs."""

    known: tuple[str, ...]
    due: tuple[str, ...]
    answered: tuple[str, ...]


def _noted(items: Sequence[Item]) -> _Notes:
    calls = [item for item in items if item.get("type") in _CLIENT_CALLS]
    return _Notes(
        known=tuple(item["call_id"] for item in calls),
        due=tuple(item["call_id"] for item in calls if item.get("status") != "incomplete" and not item.get("async")),
        answered=tuple(item.get("call_id", "") for item in items if item.get("type") in _CLIENT_OUTPUTS),
    )


@remembered
def _noted_of(turn: Turn) -> _Notes:
    """The notes of a turn of the history, remembered: each new turn of a chain asks for them again.

    A call that the model did not finish may be answered, but need not be.
    """
    given = _noted(turn.input)
    inferences = [step for step in turn.steps if isinstance(step, Inference)]
    made = tuple(_clients(call for inference in inferences for call in inference.calls))
    whole = _clients(call for step in inferences for call in step.whole_calls if call.name not in _async_tools(turn))
    return _Notes(given.known + made, given.due + tuple(whole), given.answered)


def _async_tools(turn: Turn) -> set[str]:
    """The names of the client's tools whose calls may stay open."""
    return {tool["name"] for tool in (turn.settings or {}).get("tools", ()) if tool.get("async")}


def _clients(calls: Iterable[Call]) -> Iterator[str]:
    return (call.call_id for call in calls if call.runner == "client")


def _mismatch(message: str) -> None:
    raise InvalidRequest(message, param="input")


def _payload(item: Item, *, but: str = "") -> dict[str, JSON]:
    return {key: value for key, value in item.items() if key not in _BOOKKEEPING and key != but and value is not None}


def _derived_id(item: Item, place: int) -> str:
    """A call id for an item that has none: the same whenever the same input is read."""
    return "call_" + uuid.uuid5(uuid.NAMESPACE_OID, f"{place}/{_json(item)}").hex[:24]


def _mcp_result(item: Item) -> JSON:
    error, output = item.get("error"), item.get("output")
    if error is None:
        return UNKEPT if output is None else from_output(str(output))
    if not isinstance(error, dict):
        return str(error)
    return str(error["message"]) if "message" in error else error.get("content")


def _json(value: JSON) -> str:
    return json.dumps(value, ensure_ascii=False)


# --- content


def _content(content: JSON) -> Content:
    """A string or parts; one part of text is a string, as the simpler upstreams prefer."""
    if isinstance(content, str):
        return content
    parts = tuple(_parts(content))
    if not parts:
        return ""
    only = parts[0]
    return only.text if len(parts) == 1 and isinstance(only, TextPart) else parts


def _plain_text(content: JSON) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text for part in _parts(content) if isinstance(part, TextPart))


def _output_parts(output: JSON) -> list[Part]:
    if isinstance(output, list):
        return list(_parts(output)) or [TextPart(_json(output))]
    if isinstance(output, dict) and output.get("image_url"):
        return [ImagePart(output["image_url"])]
    return [TextPart(text_of(output))]


def _parts(content: Iterable[Item]) -> Iterator[Part]:
    for part in content:
        match part.get("type"):
            case "input_text" | "output_text" | "text":
                yield TextPart(part["text"])
            case "refusal":
                yield TextPart(part["refusal"])
            case "input_image":
                yield ImagePart(part["image_url"], _DETAIL.get(part.get("detail"), part.get("detail")))
            case "input_file":
                yield _file(part)


# Chat completions know no `original`; its next best is `high`.
_DETAIL: dict[JSON, str] = {"original": "high"}


def _file(part: Item) -> TextPart | FilePart:
    if "text" in part:
        return TextPart(f"{part.get('filename') or _UNNAMED}\n\n{part['text']}")
    # What was taken once is read for good, also where it would be refused today.
    file = opened_file(part, "replace")
    if file.text is not None:
        return TextPart(f"{file.name}\n\n{file.text}")
    return FilePart(f"data:{file.media};base64,{base64.b64encode(file.content).decode()}", file.name)


def _file_media(told: str | None, name: str, content: bytes) -> str | None:
    """The media type by the first bytes, as it is told, or by the file's name; None when nothing tells it."""
    if content.startswith(b"%PDF-"):
        return PDF
    media = told.partition(";")[0].strip().lower() if told else None
    if media not in _UNTYPED_MEDIA:
        return media
    guessed, packed = mimetypes.guess_type(PurePosixPath(name).name)
    return None if packed else guessed


def _file_text(media: str | None, content_type: str, content: bytes, errors: str) -> str | None:
    """The text of a file of text; None for any other. What has no type is text if it reads like it.

    Raises UnicodeError.
    """
    if media in _UNTYPED_MEDIA:
        try:
            return None if b"\0" in content else content.decode("utf-8-sig")
        except UnicodeDecodeError:
            return None
    assert media is not None
    known = media.startswith("text/") or media in _TEXT_MEDIA or media.endswith(("+json", "+xml"))
    return decode_text(content, content_type, errors) if known else None


def _reasoning(item: Item) -> str:
    shown = item.get("content") or item.get("summary") or ()
    return "\n".join(part["text"] for part in shown) or str(item.get("opened", ""))


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text.encode().translate(None, string.whitespace.encode()), validate=True)
