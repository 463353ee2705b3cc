"""What clients do with the deployed API: scenes, each a generator that names its next step and then does it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from infra.rehearse.stage import MODEL, PATIENCE, UPSTREAM_KEY, Stage, clients, expect, expect_error, until
from llama_stack_client import AuthenticationError as Unauthorized
from llama_stack_client import InternalServerError as ServerRefused
from llama_stack_client import NotFoundError as AgentNotFound
from openai import AuthenticationError, NotFoundError
from tests.upstream import Answer, Gate, Received, call, say

Scene = Callable[[Stage], Generator[str, None, None]]

_RUNNING = {"queued", "in_progress"}
_CLIENT_TOOL = {
    "name": "shopping_list",
    "description": "Look up how many of an item are on the shopping list.",
    "parameters": [{"name": "item", "parameter_type": "string", "description": "The item.", "required": True}],
}


def calculating(request: Received) -> Answer:
    """Give the last question to the calculator, then say what that found."""
    *_, last = request.body["messages"]
    if last["role"] == "tool":
        return say("It is ", last["content"], ".")
    return call(("calculator", {"expression": last["content"]}))


def neighbours(stage: Stage) -> Generator[str, None, None]:
    """What clients ask on the way."""
    yield "health and version"
    expect(stage.llama.inspect.health().status, "OK")
    expect(bool(stage.llama.inspect.version().version), True)
    yield "the models of the upstream, asked with the key that Secrets Manager keeps"
    expect(MODEL in [model.identifier for model in stage.llama.models.list()], True)
    expect(stage.upstream.requests[-1].headers["authorization"], f"Bearer {UPSTREAM_KEY}")
    yield "providers, tool groups and tools"
    expect(bool(stage.llama.providers.list()), True)
    expect("builtin::clock" in [group.identifier for group in stage.llama.toolgroups.list()], True)
    tools = stage.llama.tools.list(toolgroup_id="builtin::clock")
    expect([tool.identifier for tool in tools], ["current_time"])
    yield "a tool invoked by itself"
    invoked = stage.llama.tool_runtime.invoke_tool(tool_name="calculator", kwargs={"expression": "6*7"})
    expect(invoked.content, "42")


def callers(stage: Stage) -> Generator[str, None, None]:
    """Who is let in, and to what."""
    yield "health is told to everybody, and nothing else to who has no key"
    nobody, somebody = clients(stage.deployment, "none")
    expect(somebody.inspect.health().status, "OK")
    expect_error(AuthenticationError, lambda: nobody.responses.create(model=MODEL, input="Hi."))
    expect_error(Unauthorized, lambda: somebody.agents.create(agent_config={"model": MODEL, "instructions": ""}))
    expect(stage.upstream.requests, [])
    yield "another owner's key opens nothing of this owner's"
    stage.upstream.say("Hello.")
    mine = stage.openai.responses.create(model=MODEL, input="Hi.")
    key = stage.deployment.key("another owner")
    another, _ = clients(stage.deployment, key)
    expect_error(NotFoundError, lambda: another.responses.retrieve(mine.id))
    expect_error(NotFoundError, lambda: another.responses.delete(mine.id))
    stage.openai.responses.delete(mine.id)
    yield "a key that is revoked before it is used opens nothing"
    revoked = stage.deployment.key("another owner")
    stage.deployment.revoke(revoked)
    late, _ = clients(stage.deployment, revoked)
    expect_error(AuthenticationError, lambda: late.responses.retrieve(mine.id))


def agents(stage: Stage) -> Generator[str, None, None]:
    """Agents, sessions, and turns with a server tool through the state machine."""
    of = stage.llama.agents
    yield "an agent is created, found and listed"
    config: Any = {
        "model": MODEL,
        "instructions": "Use the tools.",
        "toolgroups": ["builtin::calculator"],
        "client_tools": [_CLIENT_TOOL],
    }
    agent_id = of.create(agent_config=config).agent_id
    expect(stage.get(f"/v1/agents/{agent_id}")["agent_id"], agent_id)
    expect([found["agent_id"] for found in stage.get("/v1/agents")["data"]], [agent_id])
    yield "a session is created and listed"
    session_id = of.session.create(agent_id, session_name="rehearsal").session_id
    listed = stage.get(f"/v1/agents/{agent_id}/sessions")["data"]
    expect([found["session_id"] for found in listed], [session_id])
    yield "a turn without tools"
    stage.upstream.say("Hello", " there.")
    expect(stage.turn(agent_id, session_id, "Hi.").output_message.content, "Hello there.")
    yield "a turn with a server tool, through the state machine"
    stage.upstream.answer = calculating
    turn = stage.turn(agent_id, session_id, "6*7")
    expect(turn.output_message.content, "It is 42.")
    expect([step.step_type for step in turn.steps], ["inference", "tool_execution", "inference"])
    expect(stage.ended(turn.turn_id), "SUCCEEDED")
    yield "a turn that waits for a tool of the client, and is resumed"
    stage.upstream.answer = None
    stage.upstream.call(("shopping_list", {"item": "apples"}))
    waiting = stage.turn(agent_id, session_id, "How many apples?")
    [asked] = waiting.output_message.tool_calls
    stage.upstream.say("Six.")
    told: Any = [{"call_id": asked.call_id, "tool_name": "shopping_list", "content": "6"}]
    where: Any = {"agent_id": agent_id, "session_id": session_id}
    resumed: Any = of.turn.resume(waiting.turn_id, **where, tool_responses=told, stream=False)
    expect(resumed.output_message.content, "Six.")
    yield "one that waits is cancelled"
    stage.upstream.call(("shopping_list", {"item": "pears"}))
    dropped = stage.turn(agent_id, session_id, "How many pears?")
    path = f"/v1/agents/{agent_id}/session/{session_id}/turn/{dropped.turn_id}/cancel"
    expect(stage.post(path)["turn_id"], dropped.turn_id)
    yield "session, turn and step are read again"
    stored = of.session.retrieve(session_id, agent_id=agent_id).turns
    expect([each.turn_id for each in stored][1:], [turn.turn_id, waiting.turn_id, dropped.turn_id])
    expect(of.turn.retrieve(turn.turn_id, **where).output_message.content, "It is 42.")
    step_id = turn.steps[1].step_id
    expect(of.steps.retrieve(step_id, turn_id=turn.turn_id, **where).step.step_id, step_id)
    yield "session and agent are deleted, and what was in them"
    of.session.delete(session_id, agent_id=agent_id)
    of.delete(agent_id)
    expect_error(AgentNotFound, lambda: of.session.retrieve(session_id, agent_id=agent_id))
    expect(stage.get("/v1/agents")["data"], [])


def responses(stage: Stage) -> Generator[str, None, None]:
    """Responses in one piece: chains, a tool server through the state machine, lists, deletions."""
    of = stage.openai.responses
    yield "a response"
    stage.upstream.say("Hello.")
    first = of.create(model=MODEL, input="Hi.")
    expect((first.status, first.output_text), ("completed", "Hello."))
    yield "one that follows it knows what was said"
    stage.upstream.say("Again.")
    second = of.create(model=MODEL, input="And now?", previous_response_id=first.id)
    contents = [message["content"] for message in stage.upstream.bodies[-1]["messages"]]
    expect((contents, second.output_text), (["Hi.", "Hello.", "And now?"], "Again."))
    yield "one with a tool server, through the state machine"
    stage.upstream.call(("echo", {"x": 1}))
    stage.upstream.say("Echoed.")
    server: Any = {"type": "mcp", "server_label": "test", "server_url": stage.tools.url, "require_approval": "never"}
    third = of.create(model=MODEL, input="Go.", tools=[server])
    expect([item.type for item in third.output], ["mcp_list_tools", "mcp_call", "message"])
    expect(stage.ended(third.id), "SUCCEEDED")
    yield "one that streams, though in one piece here"
    stage.upstream.say("Stre", "am.")
    events = list(of.create(model=MODEL, input="Hi.", stream=True))
    expect((events[0].type, events[-1].type), ("response.created", "response.completed"))
    fourth: Any = events[-1]
    yield "they are found, listed and read under both paths"
    ids = [first.id, second.id, third.id, fourth.response.id]
    expect([found["id"] for found in stage.get("/v1/responses")["data"]], ids[::-1])
    expect([found.id for found in stage.llama.responses.list().data], ids[::-1])
    expect(of.retrieve(second.id).output_text, "Again.")
    expect(stage.llama.responses.retrieve(second.id).id, second.id)
    expect([item.type for item in of.input_items.list(first.id)], ["message"])
    yield "tokens are counted, a window is compacted"
    expect(of.input_tokens.count(model=MODEL, input="Hi.").input_tokens > 0, True)
    stage.upstream.say("They greeted.")
    expect(bool(of.compact(model=MODEL, previous_response_id=second.id).output), True)
    yield "they are deleted"
    for id in ids:
        of.delete(id)
    expect_error(NotFoundError, lambda: of.retrieve(first.id))
    expect(stage.get("/v1/responses")["data"], [])


def background(stage: Stage) -> Generator[str, None, None]:
    """Responses in the background, which the state machine runs from their start."""
    of = stage.openai.responses
    yield "a response in the background, asked for until it is done"
    stage.upstream.say("Done.")
    made = of.create(model=MODEL, input="Hi.", background=True)
    expect(made.status in _RUNNING, True)
    done = until(lambda: of.retrieve(made.id), lambda found: found.status not in _RUNNING)
    expect((done.status, done.output_text), ("completed", "Done."))
    expect(stage.ended(made.id), "SUCCEEDED")
    yield "one that is cancelled in the middle of an answer"
    gate = Gate()
    stage.upstream.say("slow", gate, "ly")
    slow = of.create(model=MODEL, input="Hi.", background=True)
    gate.reached.join(PATIENCE)
    expect(of.cancel(slow.id).status, "cancelled")
    gate.open()
    expect(of.retrieve(slow.id).status, "cancelled")
    stage.ended(slow.id)
    yield "they are deleted"
    of.delete(made.id)
    of.delete(slow.id)


def conversations(stage: Stage) -> Generator[str, None, None]:
    """Conversations and the responses in them."""
    of = stage.openai.conversations
    yield "a conversation is created with an item"
    greeting: Any = {"type": "message", "role": "user", "content": "My name is Ann."}
    made = of.create(items=[greeting], metadata={"topic": "names"})
    expect(of.retrieve(made.id).metadata, {"topic": "names"})
    yield "a response in it adds to it"
    stage.upstream.say("You are Ann.")
    response = stage.openai.responses.create(model=MODEL, input="Who am I?", conversation=made.id)
    expect(stage.upstream.bodies[-1]["messages"][0]["content"], "My name is Ann.")
    items = list(of.items.list(made.id, order="asc"))
    expect([getattr(item, "role", None) for item in items], ["user", "user", "assistant"])
    yield "a response in it that runs in the background"
    stage.upstream.say("Still Ann.")
    later = stage.openai.responses.create(model=MODEL, input="And now?", conversation=made.id, background=True)
    expect(stage.ended(later.id), "SUCCEEDED")
    expect(len(list(of.items.list(made.id))), 5)
    yield "an item of it is deleted"
    of.items.delete(str(items[0].id), conversation_id=made.id)
    expect(len(list(of.items.list(made.id))), 4)
    yield "a response in it is deleted, and stays in it"
    stage.openai.responses.delete(response.id)
    expect(len(list(of.items.list(made.id))), 4)
    yield "it is deleted, and so is a response that was in it"
    of.delete(made.id)
    expect_error(NotFoundError, lambda: of.retrieve(made.id))
    stage.openai.responses.delete(later.id)


def operation(stage: Stage) -> Generator[str, None, None]:
    """What an operator relies on: the sweeper runs, and a role can do no more than its policies say."""
    yield "the sweeper runs with its own role"
    swept = stage.deployment.invoke("TurnSweep")
    expect(set(swept), {"woken", "removed"})
    yield "nothing that was deleted is left in the bucket"
    expect(stage.deployment.objects(), [])
    yield "a function without its policy is refused by the tables"
    stage.deployment.forbid("CreateAgent", "WriteAgents")
    config: Any = {"model": MODEL, "instructions": ""}
    expect_error(ServerRefused, lambda: stage.llama.agents.create(agent_config=config))
    *_, told = stage.deployment.errors()
    expect("AccessDeniedException" in told and "CreateAgentRole" in told, True)


def restoration(stage: Stage) -> Generator[str, None, None]:
    """Tables are restored, and used in place of the stack's own, as are a bucket and a secret of an earlier stack."""
    of = stage.openai.responses
    yield "tables are restored as they were, and what came later is not in them"
    stage.upstream.say("Kept.")
    kept = of.create(model=MODEL, input="Hi.")
    stage.deployment.restore("restored-")
    of.delete(kept.id)
    yield "they are deployed in place of the stack's own, with nothing else changed"
    before = stage.deployment.left_over()
    stage.deployment.change(TablesPrefix="restored-", **before)
    expect(of.retrieve(kept.id).output_text, "Kept.")
    yield "what follows is written there"
    stage.upstream.say("Going on.")
    expect(of.create(model=MODEL, input="And now?", previous_response_id=kept.id).output_text, "Going on.")
    yield "what no row can hold is written to the other bucket and read from there"
    stage.upstream.say("Large.")
    large = of.create(model=MODEL, input="x" * 500_000)
    [blob] = stage.deployment.objects(before["BucketName"])
    expect((blob.split("/")[0], stage.deployment.objects()), ("kept", []))
    expect(of.retrieve(large.id).output_text, "Large.")


SCENES: tuple[Scene, ...] = (neighbours, callers, agents, responses, background, conversations, operation, restoration)
