"""The official clients against the laptop: the helper of llama-stack-client, many sessions at once, both APIs."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from llama_stack_client import Agent, ConflictError, LlamaStackClient
from openai import OpenAI

from tests.e2e.conftest import Laptop
from tests.upstream import Answer, Gate, Received, call, say

README = Path(__file__).parents[2] / "README.md"


def shopping_list(item: str) -> int:
    """Look up how many of an item are on the shopping list.

    :param item: the name of the item
    """
    return len(item)


@pytest.fixture
def client(laptop: Laptop) -> LlamaStackClient:
    laptop.upstream.forget()
    return LlamaStackClient(base_url=laptop.url, max_retries=0, timeout=60)


def since_the_question(request: Received) -> list[dict[str, Any]]:
    """The tool messages behind the last user message."""
    messages = request.body["messages"]
    asked = max(place for place, message in enumerate(messages) if message["role"] == "user")
    return [message for message in messages[asked:] if message["role"] == "tool"]


def both_kinds_of_tools(request: Received) -> Answer:
    """Call the calculator and the clock at once, then the client's tool, then tell what they said."""
    results = since_the_question(request)
    if not results:
        return call(("calculator", {"expression": "6*7"}), ("current_time", {"timezone": "UTC"}))
    if len(results) == 2:
        return call(("shopping_list", {"item": "apples"}))
    return say("It is ", results[0]["content"], " and ", results[2]["content"])


def question(text: str = "Well?") -> Any:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("stream", [True, False])
def test_the_helper_runs_server_tools_and_its_own_in_one_turn(
    laptop: Laptop, client: LlamaStackClient, stream: bool
) -> None:
    laptop.upstream.answer = both_kinds_of_tools
    groups = ["builtin::calculator", "builtin::clock"]
    agent = Agent(client, model="scripted", instructions="Use the tools.", tools=[*groups, shopping_list])
    session_id = agent.create_session("helper")
    for _ in range(2):
        told: Any = agent.create_turn(question(), session_id, stream=stream)
        if stream:
            *_, last = told
            told = last.event.payload.turn
        assert told.output_message.content == "It is 42 and 6"
        kinds = [step.step_type for step in told.steps]
        assert kinds == ["inference", "tool_execution", "tool_execution", "inference", "tool_execution", "inference"]
    session = client.agents.session.retrieve(session_id, agent_id=agent.agent_id)
    assert len(session.turns) == 2 and session.turns[-1].to_dict() == told.to_dict()


def question_and_tool(request: Received) -> Answer:
    """Call the tool that the question of the README is about, then say what it said."""
    if results := since_the_question(request):
        return say(f"It is {results[0]['content']}.")
    asked = [message["content"] for message in request.body["messages"] if message["role"] == "user"][-1]
    apples = call(("shopping_list", {"item": "apples"}))
    return apples if "apples" in asked else call(("calculator", {"expression": "6*7"}))


def test_the_first_program_of_the_readme_prints_calls_and_answers(laptop: Laptop) -> None:
    laptop.upstream.answer = question_and_tool
    program = README.read_text().split("```python\n")[1].split("```")[0].replace("http://127.0.0.1:8321", laptop.url)
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.splitlines() == [
        'calculator {"expression": "6*7"} -> 42',
        "It is 42.",
        'shopping_list {"item": "apples"} -> 3',
        "It is 3.",
    ]


def test_an_infinite_tool_loop_is_stopped(laptop: Laptop, client: LlamaStackClient) -> None:
    laptop.upstream.answer = lambda request: call(("calculator", {"expression": "1+1"}))
    agent = Agent(client, model="m", instructions="", tools=["builtin::calculator"], max_infer_iters=3)
    turn: Any = agent.create_turn(question(), agent.create_session("loop"), stream=False)
    assert [step.step_type for step in turn.steps].count("inference") == 3
    assert turn.output_message.stop_reason == "end_of_turn"


def test_documents_reach_the_model(laptop: Laptop, client: LlamaStackClient) -> None:
    laptop.upstream.say("Read.")
    agent = Agent(client, model="m", instructions="")
    documents: Any = [{"content": "The sky is green.", "mime_type": "text/plain"}]
    turn: Any = agent.create_turn(question(), agent.create_session("d"), documents=documents, stream=False)
    assert turn.steps[0].step_type == "memory_retrieval"
    assert "The sky is green." in laptop.upstream.bodies[-1]["messages"][-1]["content"]


def test_twenty_sessions_at_once_keep_their_turns_apart(laptop: Laptop, client: LlamaStackClient) -> None:
    def answer(request: Received) -> Answer:
        if not since_the_question(request):
            return call(("calculator", {"expression": request.body["messages"][-1]["content"]}))
        return say("It is ", since_the_question(request)[0]["content"])

    laptop.upstream.answer = answer
    agent = Agent(client, model="m", instructions="", tools=["builtin::calculator"])
    agent_id = agent.agent_id

    def talk(number: int) -> list[str]:
        session_id = client.agents.session.create(agent_id, session_name=str(number)).session_id
        answers = []
        for turn in range(2):
            told: Any = client.agents.turn.create(
                session_id, agent_id=agent_id, messages=question(f"{number}*10+{turn}"), stream=False
            )
            answers.append(told.output_message.content)
        stored = client.agents.session.retrieve(session_id, agent_id=agent_id).turns
        assert [turn.output_message.content for turn in stored] == answers
        return answers

    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(talk, range(20)))
    assert found == [[f"It is {number * 10}", f"It is {number * 10 + 1}"] for number in range(20)]


def test_of_two_turns_at_once_in_a_session_one_meets_409(laptop: Laptop, client: LlamaStackClient) -> None:
    gate = Gate()
    laptop.upstream.say("slow", gate, "ly")
    agent = Agent(client, model="m", instructions="")
    session_id = agent.create_session("s")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(agent.create_turn, question(), session_id, stream=False)
        gate.reached.join()
        with pytest.raises(ConflictError):
            client.agents.turn.create(session_id, agent_id=agent.agent_id, messages=question(), stream=False)
        gate.open()
        turn: Any = first.result(30)
    assert turn.output_message.content == "slowly"
    assert len(client.agents.session.retrieve(session_id, agent_id=agent.agent_id).turns) == 1


def test_a_five_megabyte_message_comes_back_whole(laptop: Laptop, client: LlamaStackClient) -> None:
    laptop.upstream.say("Long.")
    text = "sea " * 1_250_000
    agent = Agent(client, model="m", instructions="")
    session_id = agent.create_session("s")
    agent.create_turn(question(text), session_id, stream=False)
    assert laptop.upstream.bodies[-1]["messages"][-1]["content"] == text
    stored = client.agents.session.retrieve(session_id, agent_id=agent.agent_id).turns[0]
    assert stored.input_messages[0].content == text


def test_both_clients_find_the_same_responses(laptop: Laptop, client: LlamaStackClient) -> None:
    laptop.upstream.say("Hello.")
    laptop.upstream.say("Again.")
    openai = OpenAI(base_url=f"{laptop.url}/v1", api_key="none")
    made = openai.responses.create(model="scripted", input="Hi.")
    assert client.responses.retrieve(made.id).id == made.id
    stream = client.responses.create(model="scripted", input="Hi.", previous_response_id=made.id, stream=True)
    kinds = [event.type for event in stream]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert made.id in [found.id for found in client.responses.list().data]
    openai.responses.delete(made.id)


def test_what_the_client_asks_on_the_way(laptop: Laptop, client: LlamaStackClient) -> None:
    assert "scripted" in [model.identifier for model in client.models.list()]
    assert {tool.identifier for tool in client.tools.list(toolgroup_id="builtin::clock")} == {"current_time"}
    invoked = client.tool_runtime.invoke_tool(tool_name="calculator", kwargs={"expression": "6*7"})
    assert invoked.content == "42"
    assert client.inspect.version().version == "0.2.20" and client.inspect.health().status == "OK"
    assert client.providers.list() and client.toolgroups.list()
