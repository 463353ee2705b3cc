"""The Codex CLI with the laptop as its model provider, non-interactive, each test in a home and a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.conftest import Laptop
from tests.e2e.node.install import installed
from tests.server import LoopbackServer
from tests.upstream import Answer, BreakOff, Received, call, fail, say

PATIENCE = 60.0
CONFIG = """
model = "scripted"
model_provider = "turnloom"
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false
web_search = "disabled"

[features]
plugins = false
apps = false

[analytics]
enabled = false

[feedback]
enabled = false

[otel]
exporter = "none"

[model_providers.turnloom]
name = "Turnloom"
base_url = "{url}/v1"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""
# Nothing listens there: what would leave this machine all the same, fails at once.
NOWHERE = "http://127.0.0.1:9"
PATCH = "*** Begin Patch\n*** Add File: note.txt\n+patched\n*** End Patch\n"


@dataclass
class Recorder:
    """Passes requests on to the laptop, piece by piece, and keeps what Codex sent."""

    url: str
    bodies: list[Any] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(json.loads(body))
        headers = {"content-type": "application/json"}
        async with (
            httpx2.AsyncClient(timeout=PATIENCE) as client,
            client.stream(scope["method"], self.url + scope["path"], content=body, headers=headers) as answer,
        ):
            kind = (b"content-type", answer.headers["content-type"].encode())
            await send({"type": "http.response.start", "status": answer.status_code, "headers": [kind]})
            async for piece in answer.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})


@dataclass
class Codex:
    """The program and where it works; `sent` holds the bodies of the requests it made."""

    program: Path
    laptop: Laptop
    recorder: Recorder
    home: Path
    folder: Path

    @property
    def sent(self) -> list[Any]:
        return self.recorder.bodies

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The messages of the last model call."""
        messages: list[dict[str, Any]] = self.laptop.upstream.bodies[-1]["messages"]
        return messages

    def run(self, *arguments: str) -> list[dict[str, Any]]:
        """The events of one `codex exec`."""
        ways = {name: NOWHERE for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}
        homes = {"HOME": str(self.home), "CODEX_HOME": str(self.home)}
        env = {"PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1", **homes, **ways}
        command = [str(self.program), "exec", "--json", "--skip-git-repo-check", "--strict-config", *arguments]
        captured: dict[str, Any] = {"capture_output": True, "text": True, "timeout": PATIENCE}
        done = subprocess.run(command, env=env, cwd=self.folder, stdin=subprocess.DEVNULL, **captured)
        events = [json.loads(line) for line in done.stdout.splitlines()]
        assert events, done.stderr
        assert (done.returncode == 0) is (events[-1]["type"] == "turn.completed"), done.stderr
        return events


@pytest.fixture(scope="module")
def program() -> Path:
    found = installed() / ".bin" / "codex"
    if not found.exists() or subprocess.run([found, "--version"], capture_output=True).returncode:
        pytest.skip("there is no Codex for this machine")
    return found


@pytest.fixture(scope="module")
def recorder(laptop: Laptop) -> Iterator[tuple[Recorder, str]]:
    recording = Recorder(laptop.url)
    with LoopbackServer(recording) as server:
        yield recording, server.url


@pytest.fixture
def codex(program: Path, laptop: Laptop, recorder: tuple[Recorder, str], tmp_path: Path) -> Codex:
    recording, url = recorder
    laptop.upstream.forget()
    recording.bodies.clear()
    home, folder = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    folder.mkdir()
    (home / "config.toml").write_text(CONFIG.format(url=url))
    return Codex(program, laptop, recording, home, folder)


def items(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The finished items of one kind."""
    found = [event["item"] for event in events if event["type"] == "item.completed"]
    return [item for item in found if item["type"] == kind]


def failure(events: list[dict[str, Any]]) -> str:
    assert events[-1]["type"] == "turn.failed"
    message: str = events[-1]["error"]["message"]
    return message


def kinds(tools: list[dict[str, Any]]) -> set[str]:
    return {tool["type"] for tool in tools}


def results(codex: Codex) -> list[str]:
    return [message["content"] for message in codex.asked if message["role"] == "tool"]


def test_codex_gets_its_answer_and_its_usage(codex: Codex) -> None:
    codex.laptop.upstream.say("Hello", " there")
    events = codex.run("Say hello.")
    assert [item["text"] for item in items(events, "agent_message")] == ["Hello there"]
    usage = events[-1]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (10, 2)
    (sent,) = codex.sent
    assert (sent["store"], sent["include"]) == (False, ["reasoning.encrypted_content"])
    assert sent["client_metadata"] and {"function", "namespace"} <= kinds(sent["tools"])
    assert [item["role"] for item in sent["input"]] == ["developer", "developer", "user", "user"]
    assert [message["role"] for message in codex.asked] == ["system", "system", "user", "user"]
    assert codex.asked[-1]["content"] == "Say hello."


@pytest.mark.parametrize(
    ("model", "odd"), [("gpt-5.5", {"custom", "tool_search"}), ("gpt-6-sol", {"additional_tools"})]
)
def test_what_codex_sends_for_the_models_it_knows_is_accepted(codex: Codex, model: str, odd: set[str]) -> None:
    codex.laptop.upstream.say("Hello")
    events = codex.run("-m", model, "Say hello.")
    assert [item["text"] for item in items(events, "agent_message")] == ["Hello"]
    sent = codex.sent[0]
    assert odd <= kinds([*sent.get("tools", []), *sent["input"]])


def test_codex_runs_the_command_that_the_model_calls_for(codex: Codex) -> None:
    codex.laptop.upstream.call(("exec_command", {"cmd": "echo from the shell > note.txt; cat note.txt"}))
    codex.laptop.upstream.say("It is written.")
    events = codex.run("Write a note.")
    (command,) = items(events, "command_execution")
    assert (command["aggregated_output"], command["exit_code"]) == ("from the shell\n", 0)
    assert [item["text"] for item in items(events, "agent_message")] == ["It is written."]
    assert (codex.folder / "note.txt").read_text() == "from the shell\n"
    (result,) = results(codex)
    assert result.endswith("from the shell\n")


def test_codex_shows_what_the_model_thought(codex: Codex) -> None:
    codex.laptop.upstream.say("Hello", reasoning=["Hm", "m."])
    events = codex.run("Say hello.")
    assert [item["text"] for item in items(events, "reasoning")] == ["Hmm."]


def test_codex_sends_sealed_reasoning_back_with_the_result_of_a_command(codex: Codex) -> None:
    thought = say(reasoning=["Hmm."], reason=None)
    called = call(("exec_command", {"cmd": "true"}))
    codex.laptop.upstream.add(Answer([*thought.parts, *called.parts], usage=called.usage, done=True), say("Done."))
    events = codex.run("Do it.")
    assert [item["text"] for item in items(events, "agent_message")] == ["Done."]
    (reasoning,) = [item for item in codex.sent[1]["input"] if item["type"] == "reasoning"]
    assert reasoning["encrypted_content"]


def test_codex_goes_on_with_an_earlier_session(codex: Codex) -> None:
    codex.laptop.upstream.add(say("A"), say("B"))
    codex.run("One?")
    events = codex.run("resume", "--last", "Two?")
    assert [item["text"] for item in items(events, "agent_message")] == ["B"]
    texts = [message["content"] for message in codex.asked]
    assert [text for text in texts if text in ("One?", "A", "Two?")] == ["One?", "A", "Two?"]


def test_codex_finds_its_tool_by_namespace_again(codex: Codex) -> None:
    def answer(request: Received) -> Answer:
        if request.body["messages"][-1]["role"] == "tool":
            return say("There is none.")
        offered = [tool["function"]["name"] for tool in request.body["tools"]]
        (name,) = [name for name in offered if name.endswith("close_agent")]
        return call((name, {"target": "nobody"}))

    codex.laptop.upstream.answer = answer
    events = codex.run("Close it.")
    assert [item["text"] for item in items(events, "agent_message")] == ["There is none."]
    (called,) = [item for item in codex.sent[1]["input"] if item["type"] == "function_call"]
    assert (called["namespace"], called["name"]) == ("multi_agent_v1", "close_agent")
    (result,) = results(codex)
    assert "unsupported call" not in result


def test_codex_applies_the_patch_that_the_model_writes(codex: Codex) -> None:
    codex.laptop.upstream.add(call(("apply_patch", {"input": PATCH})), say("Patched."))
    events = codex.run("-m", "gpt-5.5", "Patch it.")
    assert [item["text"] for item in items(events, "agent_message")] == ["Patched."]
    assert (codex.folder / "note.txt").read_text() == "patched\n"


def test_codex_says_that_the_model_broke_off(codex: Codex) -> None:
    codex.laptop.upstream.say("Hel", BreakOff())
    assert "The model endpoint broke off its answer." in failure(codex.run("Say hello."))


def test_codex_says_what_the_model_refused(codex: Codex) -> None:
    codex.laptop.upstream.fail(400, "No such thing.")
    assert "No such thing." in failure(codex.run("Say hello."))


def test_codex_says_that_the_model_is_busy(codex: Codex) -> None:
    codex.laptop.upstream.add(*[fail(429, "Slow down.", headers={"retry-after": "0"})] * 3)
    assert failure(codex.run("Say hello.")) == "exceeded retry limit, last status: 429 Too Many Requests"


def test_codex_knows_that_its_context_is_full(codex: Codex) -> None:
    full = {"error": {"message": "The context is too long.", "code": "context_length_exceeded"}}
    codex.laptop.upstream.fail(400, full)
    assert "ran out of room" in failure(codex.run("Say hello."))


def test_codex_says_that_its_answer_was_cut(codex: Codex) -> None:
    codex.laptop.upstream.say("Hel", reason="length")
    assert "max_output_tokens" in failure(codex.run("Say hello."))
