"""Reading the text of a custom tool out of the JSON in which a model has to write it."""

from __future__ import annotations


class CustomInput:
    """The text in the arguments of one call, `{"input": "..."}` as they come in, or `"..."` once they are whole.

    What the model writes in any other shape is taken for the text itself, once it is whole.
    """

    def __init__(self) -> None:
        self._written = ""
        self._told = ""

    def take(self, fragment: str) -> str:
        """What the next fragment of the arguments adds to the text."""
        self._written += fragment
        return self._news(self._read(whole=False))

    def rest(self) -> str:
        """What is left to tell when the arguments are whole."""
        text = self._read(whole=True)
        if text is None:
            text = self._read(whole=False)
        if text is None and not self._told:
            return self._written
        return self._news(text)

    def _news(self, text: str | None) -> str:
        if text is None or not text.startswith(self._told):
            return ""
        news = text[len(self._told) :]
        self._told = text
        return news

    def _read(self, *, whole: bool) -> str | None:
        # Of the packages that come with `openai`: imported where a model is called anyway.
        import jiter

        try:
            value = jiter.from_json(self._written.encode(), partial_mode=False if whole else "trailing-strings")
        except ValueError:
            return None
        # A text that only begins like a JSON string is known for what it is when it has ended.
        text = value.get("input") if isinstance(value, dict) else value if whole else None
        return text if isinstance(text, str) else None
