"""What one owner of a laptop, or a web page on it, tries to get at another owner's data; every way is shut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.conftest import ROOT, Laptop, children, laptop_in

SECRET_TEXT = "sesame-7f3a"
INVOCATIONS = "2015-03-31/functions/{}/invocations"
EVENT = {"requestContext": {"authorizer": {"owner": "a"}}, "path": "/v1/responses", "httpMethod": "GET"}


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    with laptop_in(tmp_path_factory.mktemp("laptop"), TURNLOOM_AUTH="keys") as running:
        yield running


@pytest.fixture(scope="module")
def keys(laptop: Laptop) -> dict[str, str]:
    """An API key for each of the owners a and b."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "lib"), "TURNLOOM_DATA_DIR": str(laptop.folder)}
    command = [sys.executable, "-m", "turnloom", "keys", "create", "--owner"]
    output = {name: subprocess.check_output([*command, name], env=env, cwd=ROOT).decode() for name in "ab"}
    return {name: text.split()[-1] for name, text in output.items()}


def client(laptop: Laptop, key: str) -> httpx2.Client:
    return httpx2.Client(base_url=laptop.url, headers={"authorization": f"Bearer {key}"}, timeout=30)


@pytest.fixture(scope="module")
def response_id(laptop: Laptop, keys: dict[str, str]) -> str:
    """A response of owner a's, with the text that b is after."""
    laptop.upstream.say("Noted.")
    with client(laptop, keys["a"]) as a:
        return str(a.post("/v1/responses", json={"model": "m", "input": SECRET_TEXT}).raise_for_status().json()["id"])


def port_of(laptop: Laptop, part: str) -> str:
    assert laptop.process is not None
    for pid in children(laptop.process.pid):
        arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if f"turnloom.local.{part}" in arguments:
            return arguments[arguments.index("--port") + 1]
    raise AssertionError(f"there is no {part}")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0"])
def test_no_tool_of_an_owner_reaches_the_state_machine_engine(laptop: Laptop, keys: dict[str, str], host: str) -> None:
    uri = f"http://{host}:{port_of(laptop, 'engine')}/{INVOCATIONS.format('list_openai_responses')}"
    tools: list[Any] = [{"name": "x", "uri": uri}]
    with client(laptop, keys["b"]) as b:
        group = {"toolgroup_id": f"evil-{host}", "provider_id": "http", "args": {"tools": tools}}
        assert b.post("/v1/toolgroups", json=group).status_code == 400
        group = {"toolgroup_id": f"mcp-{host}", "provider_id": "model-context-protocol", "mcp_endpoint": {"uri": uri}}
        assert b.post("/v1/toolgroups", json=group).status_code == 400
        mcp = {"type": "mcp", "server_label": "s", "server_url": uri, "require_approval": "never"}
        assert b.post("/v1/responses", json={"model": "m", "input": "x", "tools": [mcp]}).status_code == 400


@pytest.mark.parametrize("function", ["list_openai_responses", "delete_agent", "turn_call_tool", "turn_sweep"])
def test_the_engine_runs_no_function_for_a_stranger(laptop: Laptop, response_id: str, function: str) -> None:
    url = f"http://127.0.0.1:{port_of(laptop, 'engine')}/{INVOCATIONS.format(function)}"
    answer = httpx2.post(url, content=json.dumps(EVENT), headers={"content-type": "text/plain"})
    assert answer.status_code == 403 and SECRET_TEXT not in answer.text


def test_the_engine_cannot_be_reset_by_a_stranger(laptop: Laptop, keys: dict[str, str]) -> None:
    assert httpx2.post(f"http://127.0.0.1:{port_of(laptop, 'engine')}/moto-api/reset").status_code == 403
    laptop.upstream.call(("calculator", {"expression": "6*7"}))
    laptop.upstream.say("42")
    config = {"model": "m", "instructions": "", "toolgroups": ["builtin::calculator"]}
    with client(laptop, keys["a"]) as a:
        agent = a.post("/v1/agents", json={"agent_config": config}).json()["agent_id"]
        session = a.post(f"/v1/agents/{agent}/session", json={"session_name": "s"}).json()["session_id"]
        messages = [{"role": "user", "content": "6*7?"}]
        turn = a.post(f"/v1/agents/{agent}/session/{session}/turn", json={"messages": messages}).json()
    assert turn["output_message"]["content"] == "42", "the state machine is still there"


def test_an_owner_sees_nothing_of_another(laptop: Laptop, keys: dict[str, str], response_id: str) -> None:
    with client(laptop, keys["b"]) as b:
        assert b.get("/v1/responses").json()["data"] == []
        assert b.get(f"/v1/responses/{response_id}").status_code == 404
        assert b.delete(f"/v1/responses/{response_id}").status_code == 404
        chained = {"model": "m", "input": "x", "previous_response_id": response_id}
        assert b.post("/v1/responses", json=chained).status_code == 400
    with client(laptop, keys["a"]) as a:
        assert SECRET_TEXT in a.get("/v1/responses").text
