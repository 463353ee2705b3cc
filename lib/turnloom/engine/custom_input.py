"""Reading the text of a custom tool out of the JSON in which a model has to write it."""

from __future__ import annotations

import json
import re

from turnloom.domain.surrogates import repair

_OPENING = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_MOST_OPENING = 100
"""Characters within which the text begins, if the arguments are written as they were asked for."""

_HALF = r"u[0-9a-fA-F]{0,3}\Z|u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z"
_WHOLE = re.compile(rf'(?:[^"\\]++|\\(?!{_HALF})[\s\S])*+')
"""As much of a JSON string as cannot read otherwise whatever follows: no half escape, no half of a surrogate pair."""
_BACKSLASH = re.compile(r'(\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))|\\')


class CustomInput:
    """The text in the arguments of one call, `{"input": "..."}` as they come in, or `"..."` once they are whole.

    What the model writes in any other shape is taken for the text itself, once it is whole. An escape that JSON does
    not know stands for itself: models forget to double the backslashes of a pattern, and half a text would be run.
    """

    def __init__(self) -> None:
        self._written: list[str] = []
        self._ahead = ""
        self._inside = False

    def take(self, fragment: str) -> str:
        """What the next fragment of the arguments adds to the text."""
        if self._inside:
            return self._more(fragment)
        self._written.append(fragment)
        if len(self._ahead) > _MOST_OPENING:
            return ""
        self._ahead += fragment
        opening = _OPENING.match(self._ahead)
        if opening is None:
            return ""
        self._inside = True
        begun, self._ahead = self._ahead[opening.end() :], ""
        return self._more(begun)

    def rest(self) -> str:
        """What is left to tell when the arguments are whole."""
        if self._inside:
            return ""
        written = "".join(self._written)
        text = _text_of(written)
        return written if text is None else text

    def _more(self, fragment: str) -> str:
        if self._ahead.startswith('"'):
            return ""  # the text has ended
        written = self._ahead + fragment
        whole = _WHOLE.match(written)
        assert whole is not None, "the pattern matches nothing at all, too"
        self._ahead = written[whole.end() :]
        return repair(_unescaped(whole[0]))


def _unescaped(written: str) -> str:
    try:
        return str(json.loads(f'"{written}"', strict=False))
    except ValueError:
        known = _BACKSLASH.sub(lambda found: found[1] or r"\\", written)
        return str(json.loads(f'"{known}"', strict=False))


def _text_of(written: str) -> str | None:
    """The text in arguments that are whole; None when they have another shape."""
    try:
        value = json.loads(written, strict=False)
    except (ValueError, RecursionError):
        return None
    text = value.get("input") if isinstance(value, dict) else value
    return repair(text) if isinstance(text, str) else None
