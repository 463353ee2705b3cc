"""Whether JSON that comes in pieces, such as the arguments of a call, is complete."""

from __future__ import annotations

import json
import re
from collections import deque

_MARK = re.compile(r'["\\{}\[\]]')


class JsonScanner:
    """Reads a JSON text as it comes; all of it is read once, however many pieces it has."""

    def __init__(self) -> None:
        self._read: list[str] = []
        self._unread: deque[str] = deque()
        self._depth = 0
        self._quoted = False
        self._escaped = -1
        self._whole: bool | None = None

    def add(self, fragment: str) -> None:
        """Take the next fragment."""
        self._unread.append(fragment)

    def is_complete(self) -> bool:
        """Whether the text is a JSON object or list that needs nothing more; what is neither may always go on."""
        while self._unread and self._whole is None:
            fragment = self._unread.popleft()
            self._read.append(fragment)
            if self._closes(fragment):
                self._whole = _is_json("".join((*self._read, *self._unread)))
        return bool(self._whole)

    def _closes(self, fragment: str) -> bool:
        """Whether what was opened first is closed in this fragment."""
        for found in _MARK.finditer(fragment):
            if found.start() != self._escaped and self._ends_with(found[0], found.start()):
                return True
        # The escaped character may be the first of the next fragment.
        self._escaped = 0 if self._escaped == len(fragment) else -1
        return False

    def _ends_with(self, mark: str, place: int) -> bool:
        """Whether this mark, at its place in the fragment, closes what was opened first."""
        if mark == "\\":
            self._escaped = place + 1
        elif mark == '"':
            self._quoted = not self._quoted
        elif not self._quoted:
            self._depth += 1 if mark in "{[" else -1
            return self._depth <= 0
        return False


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
