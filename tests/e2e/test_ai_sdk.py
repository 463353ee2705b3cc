"""The Vercel AI SDK, in two majors, against the laptop, both whole and streamed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.conftest import Laptop
from tests.e2e.node.install import HERE, installed
from tests.mcp_servers import McpServer
from tests.upstream import BreakOff, Gate, call, fail, say

PATIENCE = 60.0
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
RECIPE = {"name": "Soup", "steps": ["boil"]}


@dataclass
class Sdk:
    """One major of the SDK, used in one of its two ways; `sent` holds the bodies of its last run."""

    laptop: Laptop
    major: str
    stream: bool
    sent: list[Any]

    def command(self, scenario: str, options: dict[str, Any]) -> list[str]:
        given = json.dumps({"stream": self.stream, **options})
        return ["node", str(HERE / "ai_sdk.mjs"), self.major, f"{self.laptop.url}/v1", scenario, given]

    def run(self, scenario: str, **options: Any) -> Any:
        """What a scenario of ai_sdk.mjs finds."""
        command = self.command(scenario, options)
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0 and done.stdout, done.stderr
        told = json.loads(done.stdout)
        self.sent = told["sent"]
        return told["found"]

    def asked(self) -> list[list[dict[str, Any]]]:
        """The messages of each model call."""
        return [body["messages"] for body in self.laptop.upstream.bodies]

    def kinds(self, request: int) -> list[str]:
        """The types of the input items that the SDK sent in a request."""
        return [item.get("type", "message") for item in self.sent[request]["input"]]


@pytest.fixture(scope="module")
def packages() -> Path:
    return installed()


@pytest.fixture(params=[("6", False), ("6", True), ("7", False), ("7", True)], ids=["6", "6-stream", "7", "7-stream"])
def sdk(request: pytest.FixtureRequest, packages: Path, laptop: Laptop) -> Sdk:
    laptop.upstream.forget()
    major, stream = request.param
    return Sdk(laptop, major, stream, [])


streaming = pytest.mark.parametrize("sdk", [("6", True), ("7", True)], ids=["6-stream", "7-stream"], indirect=True)
crosswise = pytest.mark.parametrize("sdk", [("6", True), ("7", False)], ids=["6-stream", "7"], indirect=True)


@pytest.fixture
def mcp() -> Iterator[McpServer]:
    with McpServer() as server:
        yield server


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def outputs(messages: list[dict[str, Any]]) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "tool"]


def test_an_answer_comes_with_its_usage(sdk: Sdk) -> None:
    sdk.laptop.upstream.say("Hel", "lo")
    told = sdk.run("ask")
    assert (told["text"], told["finishReason"], told["warnings"]) == ("Hello", "stop", [])
    assert (told["usage"]["inputTokens"], told["usage"]["outputTokens"], told["usage"]["totalTokens"]) == (10, 2, 12)
    assert told["responseId"].startswith("resp_")
    assert told.get("deltas", ["Hel", "lo"]) == ["Hel", "lo"]


@streaming
def test_text_reaches_the_user_while_the_model_still_writes(sdk: Sdk) -> None:
    gate = Gate()
    sdk.laptop.upstream.say("Hel", gate, "lo")
    with subprocess.Popen(sdk.command("live", {}), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        gate.open()
        assert (first, process.stdout.readline()) == ("Hel\n", "lo\n")


def test_later_turns_name_earlier_answers_by_reference(sdk: Sdk) -> None:
    sdk.laptop.upstream.add(say("A"), say("B"), say("C"))
    turns = sdk.run("converse")
    assert [turn["text"] for turn in turns] == ["A", "B", "C"]
    assert sdk.kinds(2) == ["message", "item_reference", "message", "item_reference", "message"]
    assert sdk.asked()[2] == [user("One?"), assistant("A"), user("Two?"), assistant("B"), user("Three?")]


@crosswise
def test_reasoning_is_shown_and_named_by_reference_too(sdk: Sdk) -> None:
    sdk.laptop.upstream.add(say("A", reasoning=["Hm", "m."]), say("B"), say("C"))
    options = {"forceReasoning": True, "reasoningEffort": "low", "reasoningSummary": "auto"}
    turns = sdk.run("converse", settings={"providerOptions": {"openai": options}})
    assert [turn.get("reasoning") for turn in turns] == ["Hmm.", None, None]
    assert sdk.laptop.upstream.bodies[0]["reasoning_effort"] == "low"
    assert sdk.kinds(1) == ["message", "item_reference", "item_reference", "message"]
    assert [message["role"] for message in sdk.asked()[1]] == ["user", "assistant", "user"]


@crosswise
def test_a_conversation_that_is_not_stored_is_carried_by_the_client(sdk: Sdk) -> None:
    sdk.laptop.upstream.add(say("A"), say("B"), say("C"))
    turns = sdk.run("converse", settings={"providerOptions": {"openai": {"store": False}}})
    assert [turn["text"] for turn in turns] == ["A", "B", "C"]
    assert sdk.kinds(2) == ["message"] * 5
    assert sdk.asked()[2] == [user("One?"), assistant("A"), user("Two?"), assistant("B"), user("Three?")]
    stored = httpx2.get(f"{sdk.laptop.url}/v1/responses/{turns[0]['responseId']}")
    assert stored.status_code == 404


@crosswise
def test_reasoning_that_is_not_stored_comes_back_sealed(sdk: Sdk) -> None:
    sdk.laptop.upstream.add(say("A", reasoning=["Hmm."]), say("B"), say("C"))
    options = {"store": False, "forceReasoning": True, "reasoningSummary": "auto"}
    turns = sdk.run("converse", settings={"providerOptions": {"openai": options}})
    assert [turn["text"] for turn in turns] == ["A", "B", "C"]
    assert sdk.sent[0]["include"] == ["reasoning.encrypted_content"]
    sealed = next(item for item in sdk.sent[1]["input"] if item.get("type") == "reasoning")
    assert sealed["encrypted_content"] and "Hmm." not in sealed["encrypted_content"]
    assert all(turn["warnings"] == [] for turn in turns)


@crosswise
def test_a_turn_goes_on_from_the_response_it_names(sdk: Sdk) -> None:
    sdk.laptop.upstream.add(say("A"), say("B"))
    first, _ = sdk.run("previous")
    assert sdk.sent[1]["previous_response_id"] == first["responseId"]
    assert sdk.kinds(1) == ["message"]
    told = {"role": "system", "content": "Be brief."}
    assert sdk.asked()[1] == [told, user("One?"), assistant("A"), user("Two?")]


@crosswise
def test_a_turn_goes_on_in_the_conversation_it_names(sdk: Sdk) -> None:
    made = httpx2.post(f"{sdk.laptop.url}/v1/conversations", json={})
    assert made.status_code == 200
    sdk.laptop.upstream.add(say("A"), say("B"))
    sdk.run("conversation", conversation=made.json()["id"])
    assert sdk.asked()[1] == [user("One?"), assistant("A"), user("Two?")]


def test_tools_of_the_user_run_until_the_model_answers(sdk: Sdk) -> None:
    both = call(("weather", {"city": "Oslo"}), ("weather", {"city": "Paris"}), size=5)
    sdk.laptop.upstream.add(both, say("Mild."), say("Then."))
    turns = sdk.run("loop")
    assert [turn["text"] for turn in turns] == ["Mild.", "Then."]
    calls = [part for part in turns[0]["steps"][0] if part["type"] == "tool-call"]
    assert [part["input"] for part in calls] == [{"city": "Oslo"}, {"city": "Paris"}]
    results = ['{"city":"Oslo","degrees":4}', '{"city":"Paris","degrees":5}']
    assert outputs(sdk.asked()[1]) == results
    roles = [message["role"] for message in sdk.asked()[2]]
    assert roles == ["user", "assistant", "tool", "tool", "assistant", "user"]


@crosswise
@pytest.mark.parametrize("scenario", ["output", "object"])
def test_an_object_is_asked_for_by_its_schema(sdk: Sdk, scenario: str) -> None:
    text = json.dumps(RECIPE)
    sdk.laptop.upstream.say(text[:9], text[9:])
    assert sdk.run(scenario) == RECIPE
    asked = sdk.laptop.upstream.bodies[0]["response_format"]
    assert (asked["type"], asked["json_schema"]["strict"]) == ("json_schema", True)
    assert asked["json_schema"]["schema"]["required"] == ["name", "steps"]


@crosswise
def test_a_picture_reaches_the_model(sdk: Sdk) -> None:
    sdk.laptop.upstream.say("A dot.")
    told = sdk.run("look", parts=[{"type": "file", "mediaType": "image/png", "data": DOT}])
    assert told["text"] == "A dot."
    _, picture = sdk.asked()[0][0]["content"]
    assert picture["image_url"]["url"] == f"data:image/png;base64,{DOT}"


def test_a_tool_server_is_asked_by_turnloom_and_its_items_named_later(sdk: Sdk, mcp: McpServer) -> None:
    sdk.laptop.upstream.add(call(("echo", {"x": 1})), say("Said."), say("Then."))
    first, second = sdk.run("mcp", mcp=mcp.url)
    result = next(part for part in first["steps"][0] if part["type"] == "tool-result")
    assert (result["toolName"], result["output"]["output"]) == ("mcp.echo", '{"x": 1}')
    assert result["providerExecuted"]
    assert (first["text"], second["text"]) == ("Said.", "Then.")
    assert set(sdk.kinds(1)) == {"message", "item_reference"}
    assert outputs(sdk.asked()[2]) == ['{"x": 1}']


@crosswise
@pytest.mark.parametrize("approved", [True, False])
def test_a_call_to_a_tool_server_waits_for_approval(sdk: Sdk, mcp: McpServer, approved: bool) -> None:
    sdk.laptop.upstream.add(call(("echo", {"x": 1})), say("Said."), say("Then."))
    first, second, third = sdk.run("approval", mcp=mcp.url, approved=approved)
    assert [part["type"] for part in first["steps"][0]] == ["tool-call", "tool-approval-request"]
    assert (second["text"], third["text"]) == ("Said.", "Then.")
    assert (outputs(sdk.asked()[1]) == ['{"x": 1}']) is approved
    # The SDK sends its answer again with every later turn: that must not run the tool again.
    assert "mcp_approval_response" in sdk.kinds(2)
    assert mcp.methods.count("tools/call") == int(approved)


@crosswise
def test_a_custom_tool_takes_text_as_the_model_wrote_it(sdk: Sdk) -> None:
    sdk.laptop.upstream.add(call(("sql", {"input": "SELECT 1"})), say("One."), say("Then."))
    turns = sdk.run("custom")
    assert [turn["text"] for turn in turns] == ["One.", "Then."]
    called = next(part for part in turns[0]["steps"][0] if part["type"] == "tool-call")
    assert (called["toolName"], called["input"]) == ("sql", "SELECT 1")
    assert outputs(sdk.asked()[2]) == ["rows of SELECT 1"]


@crosswise
@pytest.mark.parametrize(("reason", "shown"), [("length", "length"), ("content_filter", "content-filter")])
def test_why_an_answer_is_incomplete_is_told(sdk: Sdk, reason: str, shown: str) -> None:
    sdk.laptop.upstream.say("Hel", reason=reason)
    told = sdk.run("ask")
    assert (told["text"], told["finishReason"]) == ("Hel", shown)


@crosswise
def test_a_refusal_is_told_as_one(sdk: Sdk) -> None:
    sdk.laptop.upstream.say(refusal=["No", "."])
    told = sdk.run("ask")
    assert (told["text"], told["finishReason"]) == ("No.", "content-filter")


@crosswise
def test_what_was_asked_wrongly_is_not_asked_again(sdk: Sdk) -> None:
    unknown = {"providerOptions": {"openai": {"previousResponseId": "resp_nope"}}}
    failure = sdk.run("ask", settings=unknown)["failure"]
    assert (failure["name"], failure["statusCode"], failure["isRetryable"]) == ("AI_APICallError", 400, False)
    assert "resp_nope" in failure["message"] and len(sdk.sent) == 1


@crosswise
def test_a_busy_model_is_told_with_the_time_it_wants(sdk: Sdk) -> None:
    sdk.laptop.upstream.fail(429, "Slow down.", headers={"retry-after": "120"})
    failure = sdk.run("ask", settings={"maxRetries": 0})["failure"]
    assert (failure["statusCode"], failure["isRetryable"], failure["retryAfter"]) == (429, True, "120")
    assert failure["message"] == "Slow down."


@streaming
def test_a_model_that_was_busy_is_asked_again_by_the_sdk(sdk: Sdk) -> None:
    busy = fail(429, "Slow down.", headers={"retry-after": "0"})
    sdk.laptop.upstream.add(busy, busy, busy, say("Now."))
    assert sdk.run("ask").get("text") == "Now."
    assert len(sdk.sent) == 2


def test_a_model_that_breaks_off_is_an_error_and_never_an_answer(sdk: Sdk) -> None:
    sdk.laptop.upstream.say("Hel", BreakOff())
    failure = sdk.run("ask")["failure"]
    assert failure["message"] == "The model endpoint broke off its answer."
    assert len(sdk.sent) == 1
    if sdk.stream:
        assert (failure["type"], failure["code"]) == ("response.failed", "server_error")
        assert failure["parts"].count("text-delta") == 1
