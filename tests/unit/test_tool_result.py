"""Results of tools: what the model reads and sees of them, and how the Responses API writes them down."""

from __future__ import annotations

import json
from typing import Any

import pytest

from turnloom.domain.message import ImagePart
from turnloom.domain.tool_result import as_output, from_output, images_of, text_of

SEE = {"type": "text", "text": "see"}
IMAGE = {"type": "image", "data": "aGk=", "mimeType": "image/jpeg"}
RESOURCE = {"type": "resource", "resource": {"uri": "file:///x", "mimeType": "image/png", "blob": "aGk="}}


@pytest.mark.parametrize(
    ("item", "url"),
    [
        (IMAGE, "data:image/jpeg;base64,aGk="),
        (RESOURCE, "data:image/png;base64,aGk="),
        ({"type": "image", "image": {"url": {"uri": "https://x/y.png"}}}, "https://x/y.png"),
        ({"type": "image", "image": {"data": "/9j/4AAQ"}}, "data:image/jpeg;base64,/9j/4AAQ"),
    ],
)
def test_an_image_is_seen_and_not_read(item: Any, url: str) -> None:
    assert images_of([SEE, item]) == (ImagePart(url),)
    assert text_of([SEE, item]) == "see"


@pytest.mark.parametrize(
    ("block", "read"),
    [
        ({"type": "audio", "data": "aGk=", "mimeType": "audio/wav"}, {"type": "audio", "mimeType": "audio/wav"}),
        (
            {"type": "resource", "resource": {"uri": "file:///x", "mimeType": "application/zip", "blob": "aGk="}},
            {"type": "resource", "resource": {"uri": "file:///x", "mimeType": "application/zip"}},
        ),
        ({"type": "resource", "resource": {"uri": "u", "text": "t"}}, None),
        ({"type": "resource_link", "name": "map", "uri": "https://x"}, None),
    ],
)
def test_other_blocks_are_read_without_data_that_no_model_can_read(block: Any, read: Any) -> None:
    assert images_of([block]) == ()
    assert json.loads(text_of([block])) == (read or block)


@pytest.mark.parametrize("result", ["plain", "", None, {"type": "image"}, {}, [], [{"type": "image", "image": {}}], 5])
def test_anything_can_be_read(result: Any) -> None:
    assert isinstance(text_of(result), str)
    assert images_of(result) == ()


def test_a_result_is_written_as_text_and_json_and_its_images_are_found_again() -> None:
    output = as_output([SEE, IMAGE, {"type": "text", "text": "two\nlines"}])
    first, second, *rest = output.split("\n")
    assert (first, json.loads(second), rest) == ("see", IMAGE, ["two", "lines"])
    again = from_output(output)
    assert images_of(again) == images_of([IMAGE])
    assert text_of(again) == "see\ntwo\nlines"


@pytest.mark.parametrize("output", ["plain", '{"type": "text", "text": "x"}', '{"type": "image", "data"', "[" * 90_000])
def test_an_output_without_images_is_the_text_that_it_is(output: str) -> None:
    assert from_output(output) == output
