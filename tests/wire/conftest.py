"""A house behind a real loopback server, and the small vocabulary that tests of the wire speak."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import House, build_house
from tests.engine.conversations import FUNCTIONS
from tests.server import LoopbackServer
from tests.wire.apps import both_apis

Frame = dict[str, Any]
CONFIG: dict[str, Any] = {"model": "m", "instructions": "Be brief."}


@dataclass
class Agents:
    """The Agents API as a plain HTTP client sees it."""

    house: House
    url: str
    http: httpx.Client

    def agent(self, **config: Any) -> str:
        return str(self.http.post("/v1/agents", json={"agent_config": {**CONFIG, **config}}).json()["agent_id"])

    def session(self, agent: str) -> str:
        path = f"/v1/agents/{agent}/session"
        return f"{path}/{self.http.post(path, json={'session_name': 's'}).json()['session_id']}"

    def talk(self, **config: Any) -> str:
        """The path of a fresh session of a fresh agent."""
        return self.session(self.agent(**config))

    def turn(self, session: str, text: str = "Go.", **body: Any) -> httpx.Response:
        given = {"messages": [{"role": "user", "content": text}], **body}
        return self.http.post(f"{session}/turn", json=given)

    def stream(self, session: str, text: str = "Go.", **body: Any) -> list[Frame]:
        return frames(self.turn(session, text, stream=True, **body))

    def resume(self, session: str, turn_id: str, responses: list[Any], **body: Any) -> httpx.Response:
        return self.http.post(f"{session}/turn/{turn_id}/resume", json={"tool_responses": responses, **body})


def frames(response: httpx.Response) -> list[Frame]:
    """The frames of a stream, each checked for its form on the wire."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "\r" not in response.text
    parts = response.text.split("\n\n")
    assert parts.pop() == ""
    parts = [part for part in parts if not part.startswith(":")]
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    found = [json.loads(part.removeprefix("data: ")) for part in parts]
    numbers = [frame["sequence_number"] for frame in found]
    assert numbers == sorted(set(numbers))
    return found


SHORT = {"inference": "inf", "tool_execution": "tool", "shield_call": "shield", "memory_retrieval": "mem"}


def order(found: list[Frame]) -> str:
    """The order of frames in the notation of the contract."""
    return " ".join(map(_sign, found))


def _sign(frame: Frame) -> str:
    if "error" in frame:
        return "ERR"
    payload = frame["event"]["payload"]
    match payload["event_type"]:
        case "step_progress":
            return f"PR({SHORT[payload['step_type']]}:{payload['delta']['type']})"
        case "step_start" | "step_complete" as kind:
            return f"S{kind[5].upper()}({SHORT[payload['step_type']]})".replace("SS", "ST")
        case other:
            return {"turn_start": "TS", "turn_complete": "TC", "turn_awaiting_input": "TA"}[other]


def last_turn(found: list[Frame]) -> dict[str, Any]:
    turn: dict[str, Any] = found[-1]["event"]["payload"]["turn"]
    return turn


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Agents]:
    house = build_house(tmp_path, **FUNCTIONS)
    with LoopbackServer(both_apis(house.services)) as server, httpx.Client(base_url=server.url, timeout=20) as http:
        yield Agents(house, server.url, http)
