"""Text that others wrote, made fit to be stored and sent on."""

from __future__ import annotations


def repaired(text: str) -> str:
    """Return the text with U+FFFD in place of halves of surrogate pairs, which have no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
