"""JSON of a model endpoint, read within bounds of time and memory."""

from __future__ import annotations

import json

from turnloom.adapters.openai_model.errors import AnswerTooLarge
from turnloom.domain.message import JSON

MOST_VALUES = 256 * 1024
"""Of one document, counted by the marks that begin a value: about 100 ms of the event loop, and 50 MB."""

_MARKS = ("[", "{", ",")


def parse_document(text: str) -> JSON:
    """The JSON value of a text. Raises AnswerTooLarge for one that may hold more than `MOST_VALUES` values.

    Marks inside of strings count too: to tell them apart takes as long as to parse the text.
    """
    if sum(map(text.count, _MARKS)) > MOST_VALUES:
        raise AnswerTooLarge(MOST_VALUES, "values")
    return json.loads(text)
