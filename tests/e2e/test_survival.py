"""Kill a part of the laptop in the middle of a turn: the turn finishes, or says why it did not."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from llama_stack_client import LlamaStackClient

from tests.e2e.conftest import Laptop, laptop_in
from tests.upstream import Gate, call, say

QUESTION: Any = [{"role": "user", "content": "Well?"}]
CALCULATOR = {"model": "m", "instructions": "", "toolgroups": ["builtin::calculator"]}


@pytest.fixture
def laptop(tmp_path: Any) -> Iterator[Laptop]:
    with laptop_in(tmp_path) as running:
        yield running


def opened(laptop: Laptop) -> tuple[LlamaStackClient, str, str]:
    client = LlamaStackClient(base_url=laptop.url, max_retries=0, timeout=60)
    agent_id = client.agents.create(agent_config=CALCULATOR).agent_id  # type: ignore[arg-type]
    return client, agent_id, client.agents.session.create(agent_id, session_name="s").session_id


def ask(client: LlamaStackClient, agent_id: str, session_id: str) -> Any:
    return client.agents.turn.create(session_id, agent_id=agent_id, messages=QUESTION, stream=False)


def test_a_turn_whose_gateway_is_killed_is_finished_by_the_state_machine(laptop: Laptop) -> None:
    client, agent_id, session_id = opened(laptop)
    laptop.upstream.say("Whole.")
    whole = ask(client, agent_id, session_id)
    gate = Gate()
    answers = iter([say("Cut ", gate, "off"), say("Done again.")])
    laptop.upstream.answer = lambda request: next(answers)
    with ThreadPoolExecutor(1) as pool:
        cut = pool.submit(ask, client, agent_id, session_id)
        gate.reached.join()
        laptop.kill("gateway")
        with suppress(Exception):
            cut.result(30)
    laptop.wait_until_ready()
    [first, second] = session_turns(laptop, agent_id, session_id)
    assert first == whole.to_dict(mode="json")
    followed = httpx2.post(
        f"{laptop.url}/v1/agents/{agent_id}/session/{session_id}/turn/{second['turn_id']}/resume",
        json={"tool_responses": [], "stream": False},
        timeout=120,
    ).json()
    assert (followed["status"], followed["output_message"]["content"]) == ("completed", "Done again.")
    laptop.upstream.answer = None
    laptop.upstream.say("Next.")
    assert ask(client, agent_id, session_id).output_message.content == "Next."


def test_a_turn_whose_engine_is_killed_goes_on_in_the_next_one(laptop: Laptop) -> None:
    client, agent_id, session_id = opened(laptop)
    gate = Gate()
    answers = iter([call(("calculator", {"expression": "6*7"})), say("Cut ", gate, "off"), say("It is 42.")])
    laptop.upstream.answer = lambda request: next(answers)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, client, agent_id, session_id)
        gate.reached.join(30)
        laptop.kill("engine")
        turn = asked.result(120)
    assert turn.output_message.content == "It is 42."
    assert [step.step_type for step in turn.steps] == ["inference", "tool_execution", "inference"]


def test_sessions_are_there_after_a_restart(laptop: Laptop) -> None:
    client, agent_id, session_id = opened(laptop)
    laptop.upstream.say("Before.")
    before = ask(client, agent_id, session_id)
    assert laptop.stop() == 0
    laptop.start()
    assert session_turns(laptop, agent_id, session_id) == [before.to_dict(mode="json")]
    laptop.upstream.say("After.")
    assert ask(client, agent_id, session_id).output_message.content == "After."
    assert [m["content"] for m in laptop.upstream.bodies[-1]["messages"]] == ["Well?", "Before.", "Well?"]


def session_turns(laptop: Laptop, agent_id: str, session_id: str) -> list[Any]:
    found: list[Any] = httpx2.get(f"{laptop.url}/v1/agents/{agent_id}/session/{session_id}").json()["turns"]
    return found
