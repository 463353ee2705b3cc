"""LangChain and LangGraph against the laptop, on the Responses API."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, custom_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import create_react_agent
from pydantic import BaseModel

from tests.e2e.conftest import Laptop
from tests.mcp_servers import McpServer
from tests.upstream import Answer, Received, call, say


class Sounding(BaseModel):
    """How deep it is somewhere."""

    place: str
    fathoms: int


@tool
def fathom(place: str) -> str:
    """Sound the depth of a place."""
    return f"{len(place)} fathoms at {place}"


@pytest.fixture
def chat(laptop: Laptop) -> Any:
    """Makes a chat model on the Responses API of the laptop."""
    laptop.upstream.forget()
    address = {"base_url": f"{laptop.url}/v1", "api_key": "none"}
    return partial(ChatOpenAI, model="scripted", use_responses_api=True, max_retries=0, timeout=60, **address)


def told(laptop: Laptop) -> list[tuple[str, Any]]:
    """What the model was last told: role and content of each message that says something."""
    messages = [(each["role"], each["content"]) for each in laptop.upstream.bodies[-1]["messages"]]
    return [(role, content) for role, content in messages if content]


def sounds_first(request: Received) -> Answer:
    """Call the tool, then tell what it said."""
    last = request.body["messages"][-1]
    if last["role"] == "tool":
        return say("It is ", last["content"])
    return call(("fathom", {"place": last["content"]}), text="Let me see.", size=4)


def test_invoke_and_stream_say_the_same_and_count_tokens(laptop: Laptop, chat: Any) -> None:
    laptop.upstream.answer = lambda request: say("Good ", "morning.")
    messages = [SystemMessage("Be brief."), HumanMessage("Hello.")]
    said = chat().invoke(messages)
    assert told(laptop) == [("system", "Be brief."), ("user", "Hello.")]
    streamed = None
    for piece in chat().stream(messages):
        streamed = piece if streamed is None else streamed + piece
    assert streamed is not None and said.text == streamed.text == "Good morning."
    counted = {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12}
    for message in (said, streamed):
        assert (
            message.response_metadata["id"].startswith("resp_") and message.response_metadata["status"] == "completed"
        )
        assert message.usage_metadata is not None and counted.items() <= message.usage_metadata.items()


@pytest.mark.parametrize("streamed", [True, False])
def test_bound_tools_go_round(laptop: Laptop, chat: Any, streamed: bool) -> None:
    laptop.upstream.answer = sounds_first
    model = chat(streaming=streamed).bind_tools([fathom])
    question = HumanMessage("Bergen")
    asked = model.invoke([question])
    assert asked.text == "Let me see." and [each["args"] for each in asked.tool_calls] == [{"place": "Bergen"}]
    result = fathom.invoke(asked.tool_calls[0])
    assert isinstance(result, ToolMessage)
    assert model.invoke([question, asked, result]).text == "It is 6 fathoms at Bergen"
    assert told(laptop) == [("user", "Bergen"), ("assistant", "Let me see."), ("tool", "6 fathoms at Bergen")]


def test_structured_output_is_parsed(laptop: Laptop, chat: Any) -> None:
    laptop.upstream.answer = lambda request: say(json.dumps({"place": "Oslo", "fathoms": 4}))
    assert chat().with_structured_output(Sounding).invoke("How deep?") == Sounding(place="Oslo", fathoms=4)
    assert laptop.upstream.bodies[-1]["response_format"]["json_schema"]["name"] == "Sounding"
    laptop.upstream.answer = lambda request: call(("Sounding", {"place": "Oslo", "fathoms": 4}))
    by_call = chat().with_structured_output(Sounding, method="function_calling")
    assert by_call.invoke("How deep?") == Sounding(place="Oslo", fathoms=4)


def test_the_server_keeps_the_history_by_previous_response_id(laptop: Laptop, chat: Any) -> None:
    laptop.upstream.answer = sounds_first
    model = chat(use_previous_response_id=True).bind_tools([fathom])
    history: list[Any] = [HumanMessage("Bergen")]
    history.append(model.invoke(history))
    history.append(fathom.invoke(history[-1].tool_calls[0]))
    history.append(model.invoke(history))
    assert history[-1].text == "It is 6 fathoms at Bergen"
    history[0] = HumanMessage("Never sent again")
    model.invoke([*history, HumanMessage("Vardø")])
    assert [text for _, text in told(laptop)] == [
        "Bergen",
        "Let me see.",
        "6 fathoms at Bergen",
        "It is 6 fathoms at Bergen",
        "Vardø",
    ]


@pytest.mark.parametrize("streamed", [True, False])
def test_reasoning_is_shown_and_goes_back_sealed(laptop: Laptop, chat: Any, streamed: bool) -> None:
    laptop.upstream.answer = lambda request: say("Four.", reasoning=["Two ", "and two."])
    reasoning = {"effort": "low", "summary": "auto"}
    model = chat(reasoning=reasoning, include=["reasoning.encrypted_content"], store=False, streaming=streamed)
    said: AIMessage = model.invoke([HumanMessage("2+2?")])
    (thought,) = [block for block in said.content_blocks if block["type"] == "reasoning"]
    assert thought["reasoning"] == "Two and two."
    (raw,) = [block for block in said.content if isinstance(block, dict) and block["type"] == "reasoning"]
    assert raw["encrypted_content"] and "and two" not in raw["encrypted_content"]
    assert model.invoke([HumanMessage("2+2?"), said, HumanMessage("Sure?")]).text == "Four."
    assert told(laptop) == [("user", "2+2?"), ("assistant", "Four."), ("user", "Sure?")]


def test_a_custom_tool_takes_free_text(laptop: Laptop, chat: Any) -> None:
    @custom_tool
    def sql(statement: str) -> str:
        """Run SQL."""
        return f"rows of {statement}"

    laptop.upstream.call(("sql", {"input": "SELECT"}))
    laptop.upstream.say("Two rows.")
    model = chat().bind_tools([sql])
    asked = model.invoke("Go.")
    result = sql.invoke(asked.tool_calls[0])
    assert model.invoke([HumanMessage("Go."), asked, result]).text == "Two rows."
    assert told(laptop)[-1] == ("tool", "rows of SELECT")


@pytest.mark.parametrize("chained", [True, False])
def test_a_hosted_tool_is_approved_by_a_message(laptop: Laptop, chat: Any, chained: bool) -> None:
    laptop.upstream.call(("echo", {"text": "hi"}))
    laptop.upstream.say("It said hi.")
    with McpServer() as server:
        tools = [{"type": "mcp", "server_label": "test", "server_url": server.url, "require_approval": "always"}]
        model = chat(use_previous_response_id=chained).bind_tools(tools)
        history: list[Any] = [HumanMessage("Say hi."), model.invoke("Say hi.")]
        (request,) = [block for block in history[1].content if block["type"] == "mcp_approval_request"]
        answer = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": True}
        told_all = None
        for piece in model.stream([*history, HumanMessage([answer])]):
            told_all = piece if told_all is None else told_all + piece
        assert told_all is not None and told_all.text == "It said hi."
        assert server.methods.count("tools/call") == 1
    assert told(laptop)[-1] == ("tool", '{"text": "hi"}')


# It moves on to a package of its own, with the same graph.
@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
@pytest.mark.parametrize("chained", [True, False])
def test_an_agent_of_langgraph_calls_its_tools_over_many_turns(laptop: Laptop, chat: Any, chained: bool) -> None:
    laptop.upstream.answer = sounds_first
    model = chat(use_previous_response_id=chained)
    agent = create_react_agent(model, [fathom], prompt="Sound the depth.", checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    for place in ("Bergen", "Vardø"):
        state = agent.invoke({"messages": [HumanMessage(place)]}, thread)
        assert state["messages"][-1].text == f"It is {len(place)} fathoms at {place}"
    assert [role for role, _ in told(laptop)].count("tool") == 2
    asked: Any = {"messages": [HumanMessage("Oslo")]}
    pieces = [piece for piece, _ in agent.stream(asked, thread, stream_mode="messages")]
    spoken = "".join(piece.text for piece in pieces if isinstance(piece, AIMessage))
    assert spoken == "Let me see.It is 4 fathoms at Oslo"
