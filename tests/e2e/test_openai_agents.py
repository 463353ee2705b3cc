"""The OpenAI Agents SDK against the laptop: its loop on our responses, sessions on our conversations."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest
from agents import (
    Agent,
    CustomTool,
    HostedMCPTool,
    MCPToolApprovalFunctionResult,
    MCPToolApprovalRequest,
    OpenAIConversationsSession,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    SQLiteSession,
    function_tool,
    tool_namespace,
)
from agents.memory import OpenAIResponsesCompactionSession
from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.e2e.conftest import Laptop
from tests.mcp_servers import McpServer
from tests.upstream import Answer, Received, call, say

UNTRACED = RunConfig(tracing_disabled=True)


class Sounding(BaseModel):
    """How deep it is somewhere."""

    place: str
    fathoms: int


@function_tool
def fathom(place: str) -> str:
    """Sound the depth.

    Args:
        place: where to sound it
    """
    return f"{len(place)} fathoms at {place}"


@pytest.fixture
async def client(laptop: Laptop) -> AsyncIterator[AsyncOpenAI]:
    laptop.upstream.forget()
    async with AsyncOpenAI(base_url=f"{laptop.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def agent(client: AsyncOpenAI) -> Any:
    """Makes an agent of the scripted model."""
    return partial(Agent, "Pilot", model=OpenAIResponsesModel("scripted", client), instructions="Sound the depth.")


@pytest.fixture
def run() -> Any:
    return partial(Runner.run, run_config=UNTRACED)


@pytest.fixture(scope="module")
def tool_server() -> Iterator[McpServer]:
    with McpServer() as server:
        yield server


@pytest.fixture
def server(tool_server: McpServer) -> McpServer:
    tool_server.forget()
    return tool_server


def told(laptop: Laptop) -> list[tuple[str, Any]]:
    """What the model was last told: role and content of each message, without calls and instructions."""
    messages = [(each["role"], each["content"]) for each in laptop.upstream.bodies[-1]["messages"]]
    return [(role, content) for role, content in messages if content and role != "system"]


def sounds_first(request: Received) -> Answer:
    """Call the tool for two places at once, then tell what it said about the last."""
    last = request.body["messages"][-1]
    if last["role"] == "tool":
        return say("It is ", last["content"], reasoning=["So ", "be it."])
    return call(("fathom", {"place": "Oslo"}), ("fathom", {"place": last["content"]}))


@pytest.mark.parametrize("streamed", [True, False])
async def test_function_tools_are_run_between_responses(laptop: Laptop, agent: Any, run: Any, streamed: bool) -> None:
    laptop.upstream.answer = sounds_first
    pilot = agent(tools=[fathom])
    if streamed:
        result: Any = Runner.run_streamed(pilot, "Bergen", run_config=UNTRACED)
        raw = [event.data async for event in result.stream_events() if event.type == "raw_response_event"]
        assert "".join(each.delta for each in raw if each.type == "response.output_text.delta") == result.final_output
    else:
        result = await run(pilot, "Bergen")
    assert result.final_output == "It is 6 fathoms at Bergen"
    assert told(laptop) == [("user", "Bergen"), ("tool", "4 fathoms at Oslo"), ("tool", "6 fathoms at Bergen")]
    assert result.context_wrapper.usage.requests == 2 and result.context_wrapper.usage.total_tokens > 20
    laptop.upstream.answer = lambda request: say("Aye.")
    assert (await run(pilot, [*result.to_input_list(), {"role": "user", "content": "Thanks."}])).final_output == "Aye."
    assert told(laptop)[-2:] == [("assistant", "It is 6 fathoms at Bergen"), ("user", "Thanks.")]


async def test_a_run_goes_on_from_a_response_or_in_a_conversation(
    laptop: Laptop, client: AsyncOpenAI, agent: Any, run: Any
) -> None:
    laptop.upstream.answer = sounds_first
    pilot = agent(tools=[fathom])
    first = await run(pilot, "Bergen", auto_previous_response_id=True)
    second = await run(pilot, "Vardø", previous_response_id=first.last_response_id)
    assert second.final_output == "It is 5 fathoms at Vardø"
    whole = [
        ("user", "Bergen"),
        ("tool", "4 fathoms at Oslo"),
        ("tool", "6 fathoms at Bergen"),
        ("assistant", "It is 6 fathoms at Bergen"),
        ("user", "Vardø"),
        ("tool", "4 fathoms at Oslo"),
        ("tool", "5 fathoms at Vardø"),
    ]
    assert told(laptop) == whole
    conversation = (await client.conversations.create()).id
    for place in ("Bergen", "Vardø"):
        await run(pilot, place, conversation_id=conversation)
    assert told(laptop) == whole
    kept = [item.type async for item in client.conversations.items.list(conversation, order="asc")]
    turn = ["message", *["function_call"] * 2, *["function_call_output"] * 2, "reasoning", "message"]
    assert kept == turn * 2


async def test_a_session_keeps_its_items_in_a_conversation(
    laptop: Laptop, client: AsyncOpenAI, agent: Any, run: Any
) -> None:
    laptop.upstream.answer = sounds_first
    pilot, session = agent(tools=[fathom]), OpenAIConversationsSession(openai_client=client)
    await run(pilot, "Bergen", session=session)
    items: list[Any] = await session.get_items()
    calls, outputs = ["function_call"] * 2, ["function_call_output"] * 2
    assert [item["type"] for item in items] == ["message", *calls, *outputs, "reasoning", "message"]
    popped: Any = await session.pop_item()
    assert popped["id"] == items[-1]["id"] and await session.get_items() == items[:-1]
    await session.add_items([popped])
    assert (await run(pilot, "Vardø", session=session)).final_output == "It is 5 fathoms at Vardø"
    assert [text for role, text in told(laptop) if role != "tool"] == ["Bergen", "It is 6 fathoms at Bergen", "Vardø"]
    latest: list[Any] = await session.get_items(limit=1)
    assert latest[0]["content"][0]["text"] == "It is 5 fathoms at Vardø"
    many: list[Any] = [{"role": "user", "content": str(number)} for number in range(45)]
    await session.add_items(many)
    listed: list[Any] = await session.get_items(limit=45)
    assert [item["content"][0]["text"] for item in listed] == [str(number) for number in range(45)]
    await session.clear_session()
    assert await session.get_items() == []


@pytest.mark.parametrize("way", ["previous_response_id", "input"])
async def test_a_session_that_grows_long_is_compacted(
    laptop: Laptop, client: AsyncOpenAI, agent: Any, run: Any, way: Any
) -> None:
    def answer(request: Received) -> Answer:
        question = request.body["messages"][-1]["content"]
        return say(f"Re: {question}") if len(question) < 10 else say("SUMMARY")

    laptop.upstream.answer = answer
    session = OpenAIResponsesCompactionSession(
        "log",
        SQLiteSession("log"),
        client=client,
        model="gpt-scripted",
        compaction_mode=way,
        should_trigger_compaction=lambda found: len(found["compaction_candidate_items"]) >= 2,
    )
    for number in range(3):
        assert (await run(agent(), str(number), session=session)).final_output == f"Re: {number}"
    assert told(laptop) == [("user", "2")]
    assert "SUMMARY" in laptop.upstream.bodies[-1]["messages"][1]["content"]
    assert [item.get("type", "message") for item in await session.get_items()] == [
        "message",
        "message",
        "compaction",
        "message",
        "message",
    ]


async def test_custom_tools_and_tools_of_a_namespace_are_run(
    laptop: Laptop, client: AsyncOpenAI, agent: Any, run: Any
) -> None:
    async def query(_: Any, statement: str) -> str:
        return f"rows of {statement}"

    def answer(request: Received) -> Answer:
        names = [tool["function"]["name"] for tool in request.body["tools"]]
        results = [message["content"] for message in request.body["messages"] if message["role"] == "tool"]
        return (
            say(", ".join(results)) if results else call((names[0], {"input": "SELECT"}), (names[1], {"place": "Oslo"}))
        )

    laptop.upstream.answer = answer
    custom = CustomTool(name="sql", description="Runs SQL.", on_invoke_tool=query)
    sounding = tool_namespace(name="sea", description="About the sea.", tools=[fathom])
    session = OpenAIConversationsSession(openai_client=client)
    result = await run(agent(tools=[custom, *sounding]), "Go.", session=session)
    assert result.final_output == "rows of SELECT, 4 fathoms at Oslo"
    again = await run(agent(tools=[custom, *sounding]), "Go.", session=session)
    assert again.final_output == result.final_output


@pytest.mark.parametrize("history", ["sent again", "chained", "in a conversation"])
@pytest.mark.parametrize("approve", [True, False])
async def test_a_hosted_tool_asks_for_approval(
    laptop: Laptop, client: AsyncOpenAI, agent: Any, run: Any, server: McpServer, approve: bool, history: str
) -> None:
    asked: list[MCPToolApprovalRequest] = []

    def decide(request: MCPToolApprovalRequest) -> MCPToolApprovalFunctionResult:
        asked.append(request)
        return {"approve": True} if approve else {"approve": False, "reason": "too loud"}

    laptop.upstream.call(("echo", {"text": "hi"}))
    laptop.upstream.say("Done.")
    config: Any = {"type": "mcp", "server_label": "test", "server_url": server.url, "require_approval": "always"}
    pilot = agent(tools=[HostedMCPTool(tool_config=config, on_approval_request=decide)])
    conversation = (await client.conversations.create()).id if history == "in a conversation" else None
    chained = history == "chained"
    result = await run(pilot, "Say hi.", auto_previous_response_id=chained, conversation_id=conversation)
    assert result.final_output == "Done."
    assert [(each.data.name, json.loads(each.data.arguments)) for each in asked] == [("echo", {"text": "hi"})]
    assert server.methods.count("tools/call") == approve
    # What a client sends again may be the list of any server.
    assert server.methods.count("tools/list") == 1 or history == "sent again"
    assert json.loads(told(laptop)[-1][1]) == {"text": "hi"} if approve else "too loud" in json.dumps(told(laptop))


async def test_a_hosted_tool_that_never_asks_runs_in_one_response(
    laptop: Laptop, agent: Any, run: Any, server: McpServer
) -> None:
    laptop.upstream.call(("echo", {"text": "hi"}), ("lines", {}))
    laptop.upstream.say("Done.")
    config: Any = {"type": "mcp", "server_label": "test", "server_url": server.url, "require_approval": "never"}
    result = await run(agent(tools=[HostedMCPTool(tool_config=config)]), "Say hi.")
    assert result.final_output == "Done." and len(result.raw_responses) == 1
    kinds = [item.type for item in result.raw_responses[0].output]
    assert kinds == ["mcp_list_tools", "mcp_call", "mcp_call", "message"]


async def test_one_agent_hands_over_to_another(laptop: Laptop, agent: Any, run: Any) -> None:
    def answer(request: Received) -> Answer:
        names = [tool["function"]["name"] for tool in request.body.get("tools") or []]
        return call((names[0], {})) if names else say(request.body["messages"][0]["content"])

    laptop.upstream.answer = answer
    mate = agent(instructions="I am the mate.")
    mate.name = "Mate"
    result = await run(agent(handoffs=[mate]), "Who are you?")
    assert (result.last_agent.name, result.final_output) == ("Mate", "I am the mate.")


async def test_an_output_type_goes_upstream_as_a_schema_and_comes_back_parsed(
    laptop: Laptop, agent: Any, run: Any
) -> None:
    laptop.upstream.say(json.dumps({"place": "Oslo", "fathoms": 4}))
    result = await run(agent(output_type=Sounding), "How deep?")
    assert result.final_output == Sounding(place="Oslo", fathoms=4)
    asked = laptop.upstream.bodies[-1]["response_format"]
    assert asked["type"] == "json_schema" and "fathoms" in asked["json_schema"]["schema"]["properties"]
