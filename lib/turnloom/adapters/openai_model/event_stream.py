"""Server-sent events as endpoints really send them, for which the HTTP library's reader is too strict.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import AsyncIterator, Iterator

from turnloom.adapters.openai_model.errors import AnswerTooLarge

_LINE_END = re.compile(r"\r\n|\n|\r")


async def event_data(pieces: AsyncIterator[bytes], most_bytes: int) -> AsyncIterator[str]:
    """The data of each event, as soon as its blank line has come.

    A byte order mark is skipped. What the body ends with counts as an event if it is whole JSON, with a blank line
    behind it or without. Raises AnswerTooLarge for an event of more than `most_bytes` characters.
    """
    reader = _EventReader(most_bytes)
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    async for piece in pieces:
        for data in reader.read(decoder.decode(piece)):
            yield data
    for data in reader.read(f"{decoder.decode(b'', final=True)}\n"):
        yield data
    if (rest := reader.rest()) and _is_json(rest):
        yield rest


class _EventReader:
    """Text as it comes, put together to lines, and lines to events."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._size = 0
        self._line: list[str] = []
        self._data: list[str] = []
        self._ended_with_return = False

    def read(self, text: str) -> Iterator[str]:
        if self._ended_with_return and text.startswith("\n"):
            # The second half of a line end that was cut in two.
            text = text[1:]
        self._ended_with_return = text.endswith("\r")
        first, *others = _LINE_END.split(text)
        self._add(first)
        for other in others:
            line = "".join(self._line)
            self._line.clear()
            if not line and self._data:
                yield self.rest()
            elif not line:
                self._size = 0
            self._take(line)
            self._add(other)

    def rest(self) -> str:
        """The data of the lines since the last event, which begin no other one."""
        data = "\n".join(self._data)
        self._data.clear()
        self._size = 0
        return data

    def _add(self, text: str) -> None:
        self._size += len(text)
        if self._size > self._most_bytes:
            raise AnswerTooLarge(self._most_bytes)
        self._line.append(text)

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))
        else:
            # Comments and other fields of a stream are not kept, however long it is.
            self._size -= len(line)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
