"""Reading the text of a custom tool out of the JSON in which a model has to write it."""

from __future__ import annotations

import json
import re

_OPENING = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_MOST_OPENING = 100
"""Characters within which the text begins, if the arguments are written as they were asked for."""
_WHOLE = re.compile(
    r'(?:[^"\\]|\\["\\/bfnrt]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}'
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*"
)
"""As much of a JSON string as is written out: no half escape, and no half of a surrogate pair."""


class CustomInput:
    """The text in the arguments of one call, `{"input": "..."}` as they come in, or `"..."` once they are whole.

    What the model writes in any other shape is taken for the text itself, once it is whole.
    """

    def __init__(self) -> None:
        self._written: list[str] = []
        self._told: list[str] = []
        self._ahead = ""
        self._inside = False

    def take(self, fragment: str) -> str:
        """What the next fragment of the arguments adds to the text."""
        self._written.append(fragment)
        if not self._inside and len(self._ahead) > _MOST_OPENING:
            return ""
        self._ahead += fragment
        if not self._inside:
            opening = _OPENING.match(self._ahead)
            if opening is None:
                return ""
            self._inside = True
            self._ahead = self._ahead[opening.end() :]
        return self._news(self._whole_characters())

    def rest(self) -> str:
        """What is left to tell when the arguments are whole."""
        written, told = "".join(self._written), "".join(self._told)
        text = _text_of(written)
        if text is None:
            return "" if self._inside else written
        return self._news(text[len(told) :]) if text.startswith(told) else ""

    def _whole_characters(self) -> str:
        whole = _WHOLE.match(self._ahead)
        assert whole is not None, "the pattern matches nothing at all, too"
        self._ahead = self._ahead[whole.end() :]
        return str(json.loads(f'"{whole[0]}"', strict=False))

    def _news(self, text: str) -> str:
        self._told.append(text)
        return text


def _text_of(written: str) -> str | None:
    """The text in arguments that are whole; None when they have another shape."""
    try:
        value = json.loads(written, strict=False)
    except ValueError:
        return None
    text = value.get("input") if isinstance(value, dict) else value
    # Half of a surrogate pair cannot be sent or stored.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(text, str) else None
