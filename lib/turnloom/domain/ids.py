"""Ids that sort by time and say where their object lives.

A turn lives in a *thread* (an agent's session, or one branch of a chain of responses) at an *ordinal*, counted from 0.
The ordinal is part of the turn's id, so that the id alone leads to the row without an index, and so that two turns
which want the same place in a thread collide on one key. RFC 9562 (section 6.2, method 1) reserves bits of a UUIDv7
for exactly such a counter.

Items and steps are named by the turn and their position: a replay names things alike.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

Entropy = Callable[[int], int]
"""Gives that many random bits as an unsigned integer."""

_ALPHABET = "0123456789abcdefghijklmnopqrstuv"
_VALUES = {letter: value for value, letter in enumerate(_ALPHABET)}
_RESPONSE = re.compile(r"resp_[0-9a-v]{32}")
_CONVERSATION = re.compile(r"conv_[0-9a-v]{32}")
_ITEM = re.compile(r"(?:msg|rs|fc|ctc|mcpl|mcp|mcpr|fs|ws|ci|cmp|cmpt|adt)_([0-9a-v]{32})([0-9a-v]{4})")
_ORDINAL_BITS = 32
_THREAD_BITS = 80


def new_id(now: int, entropy: Entropy) -> str:
    """Name a new object: UUIDv7 text of 36 characters; `now` in microseconds since the epoch."""
    return _uuid7(now // 1000, entropy(74))


def turn_id(now: int, ordinal: int, entropy: Entropy) -> str:
    """Name the turn at `ordinal` of a session: a UUIDv7 whose counter bits are the ordinal."""
    return _uuid7(now // 1000, ordinal << 42 | entropy(42))


def turn_ordinal(identifier: str) -> int | None:
    """The ordinal that `turn_id` put into the id, or None for text that is no such id."""
    try:
        value = uuid.UUID(identifier)
    except ValueError:
        return None
    if value.version != 7 or str(value) != identifier:
        return None
    random = (value.int >> 64 & 0xFFF) << 62 | value.int & (1 << 62) - 1
    return random >> 42


def response_id(now: int, ordinal: int, thread: str) -> str:
    """Name the response at `ordinal` of the branch `thread`."""
    value = (now // 1000) << (_ORDINAL_BITS + _THREAD_BITS) | ordinal << _THREAD_BITS | _decode(thread)
    return "resp_" + _encode(value, 32)


def response_place(identifier: str) -> tuple[str, int] | None:
    """The (thread, ordinal) that `response_id` put into the id, or None for text that is no such id."""
    if not _RESPONSE.fullmatch(identifier):
        return None
    value = _decode(identifier[5:])
    return _encode(value & (1 << _THREAD_BITS) - 1, 16), value >> _THREAD_BITS & (1 << _ORDINAL_BITS) - 1


def created_at(identifier: str) -> int:
    """The time that `turn_id` or `response_id` put into the id, in microseconds; 0 for other text."""
    if _RESPONSE.fullmatch(identifier):
        return (_decode(identifier[5:]) >> _ORDINAL_BITS + _THREAD_BITS) * 1000
    return (uuid.UUID(identifier).int >> 80) * 1000 if turn_ordinal(identifier) is not None else 0


def conversation_id(now: int, thread: str) -> str:
    """Name the conversation whose turns live in this thread."""
    return "conv_" + response_id(now, 0, thread).removeprefix("resp_")


def conversation_thread(identifier: str) -> str | None:
    """The thread that `conversation_id` put into the id, or None for text that is no such id."""
    return identifier[-16:] if _CONVERSATION.fullmatch(identifier) else None


def new_thread(entropy: Entropy) -> str:
    """Name a new branch of responses: 16 characters."""
    return _encode(entropy(_THREAD_BITS), 16)


def item_id(prefix: str, response: str, position: int) -> str:
    """Name the item at `position` of a response, e.g. `msg_...`; the id leads back to the response."""
    return f"{prefix}_{response.removeprefix('resp_')}{_encode(position, 4)}"


def item_place(identifier: str) -> tuple[str, int] | None:
    """The (response id, position) behind an item id made by `item_id`, or None."""
    match = _ITEM.fullmatch(identifier)
    return ("resp_" + match[1], _decode(match[2])) if match else None


def step_id(turn: str, position: int) -> str:
    """Name the step at `position` of a turn: UUID text derived from both (RFC 9562, version 5)."""
    return str(uuid.uuid5(uuid.UUID(turn), str(position)))


def call_id(turn: str, inference: int, index: int) -> str:
    """Name a tool call that the model left unnamed, by where it stands in the turn."""
    digest = uuid.uuid5(uuid.NAMESPACE_OID, f"{turn}/{inference}/{index}")
    return "call_" + digest.hex[:24]


def _uuid7(milliseconds: int, random: int) -> str:
    value = (milliseconds & (1 << 48) - 1) << 80 | 7 << 76 | (random >> 62) << 64 | 2 << 62 | random & (1 << 62) - 1
    return str(uuid.UUID(int=value))


def _encode(value: int, width: int) -> str:
    return "".join(_ALPHABET[value >> 5 * place & 31] for place in reversed(range(width)))


def _decode(text: str) -> int:
    value = 0
    for letter in text:
        value = value << 5 | _VALUES[letter]
    return value
