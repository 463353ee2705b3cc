"""Halves of surrogate pairs, which models do write, but which UTF-8 cannot hold: they become U+FFFD."""

from __future__ import annotations

import codecs
import re

_LOW = r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(rf"(\\u[dD][89abAB][0-9a-fA-F]{{2}}{_LOW})|(\\u[dD][89a-fA-F][0-9a-fA-F]{{2}})|\\[\s\S]")
_PART = r"u[0-9a-fA-F]{0,3}\Z|u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z"
_WHOLE = re.compile(rf"(?:[^\\]++|\\(?!{_PART})[\s\S])*+")
"""As much of a JSON text as has no part of an escape, or of a pair of escapes, at its end."""


def repair(text: str) -> str:
    """Return the text with U+FFFD in place of every half of a surrogate pair; two halves that meet are a pair."""
    return text if text.isascii() else _decoder().decode(_octets(text), final=True)


def repair_json(text: str) -> str:
    """Return the JSON text with U+FFFD in place of every escape that is half of a surrogate pair."""
    return _repair_escapes(text) if "\\ud" in text or "\\uD" in text else text


class TextRepair:
    """The repair of a text that comes in fragments: a pair may be split over two of them."""

    def __init__(self) -> None:
        self._halves = _decoder()

    def add(self, fragment: str) -> str:
        """Return what can be sent on; the first half of a pair waits for the next fragment."""
        return self._halves.decode(_octets(fragment))

    def rest(self) -> str:
        """Return U+FFFD if a half still waits, else an empty text."""
        rest = self._halves.decode(b"", final=True)
        self._halves.reset()
        return rest


class JSONRepair:
    """The repair of a JSON text that comes in fragments, in its characters and in its `\\u` escapes."""

    def __init__(self) -> None:
        self._text = TextRepair()
        self._tail = ""

    def add(self, fragment: str) -> str:
        """Return what can be sent on; part of an escape waits for the next fragment."""
        text = self._tail + self._text.add(fragment)
        if "\\" not in text:
            self._tail = ""
            return text
        whole = _WHOLE.match(text)
        assert whole is not None, "the pattern matches the empty text, too"
        self._tail = text[whole.end() :]
        return _repair_escapes(whole[0])

    def rest(self) -> str:
        """Return what still waits."""
        tail, self._tail = self._tail + self._text.rest(), ""
        return _repair_escapes(tail)


def _repair_escapes(text: str) -> str:
    return _ESCAPE.sub(lambda match: r"\ufffd" if match[2] else match[0], text)


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-16-le")("replace")


def _octets(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass")
