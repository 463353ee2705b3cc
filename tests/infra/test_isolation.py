"""What one owner has is, to another, not there: on every route of the template, by every way to name it.

An owner has one of everything. A stranger, with a key as good, then asks for each by its id, and must be told what they
are told of an id that nobody has. Afterwards the owner's world is as it was.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from tests.mcp_servers import McpServer
from tests.server import LoopbackServer
from tests.upstream import Answer, Received, ScriptedUpstream, call, say
from turnloom import bootstrap, gate
from turnloom.adapters.clock import SystemClock, random_bits
from turnloom.local import template
from turnloom.local.gateway import gateway
from turnloom.usecases.authorization import create_key

MARK = "sesame"
"""Is in all that the owner has said or been told, and nowhere else."""
LOOKUP = {"name": "lookup", "description": MARK, "parameters": []}
Ids = dict[str, str]


@dataclass
class House:
    """The laptop's gateway, asking for keys, with an owner at home and a stranger at the door."""

    owner: httpx.Client
    stranger: httpx.Client
    upstream: ScriptedUpstream
    tools: str
    ids: Ids

    def world(self) -> dict[str, Any]:
        """All that the owner can see."""
        paths = [path.format(**self.ids) for path in SEEN]
        return {path: self.owner.get(path).raise_for_status().json() for path in paths}


SEEN = (
    "/v1/agents",
    "/v1/agents/{agent_id}",
    "/v1/agents/{agent_id}/sessions",
    "/v1/agents/{agent_id}/session/{session_id}",
    "/v1/responses",
    "/v1/responses/{response_id}",
    "/v1/responses/{running}",
    "/v1/responses/{response_id}/input_items",
    "/v1/conversations/{conversation_id}",
    "/v1/conversations/{conversation_id}/items",
    "/v1/models",
    "/v1/toolgroups",
    "/v1/tools",
)


def answer(request: Received) -> Answer:
    """The model: it calls the tool that is there to be called, and has a thought otherwise."""
    if any(tool["function"]["name"] == LOOKUP["name"] for tool in request.body.get("tools", ())):
        return call((str(LOOKUP["name"]), "{}"))
    mine = MARK in json.dumps(request.body)
    return say(f"{MARK}!" if mine else "Hello", reasoning=[MARK] if mine else ())


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder: Path = tmp_path_factory.mktemp("house")
    with ScriptedUpstream() as upstream, McpServer() as tools, pytest.MonkeyPatch.context() as patch:
        upstream.answer = answer
        environment = {
            "TURNLOOM_AUTH": "keys",
            "TURNLOOM_HOSTS": "127.0.0.1",
            "TURNLOOM_DATA_DIR": str(folder),
            "TURNLOOM_STATE_MACHINE_ARN": template.STATE_MACHINE_ARN,
            # Nobody listens there: what runs in the background stays in progress.
            "AWS_ENDPOINT_URL_STEPFUNCTIONS": "http://127.0.0.1:9",
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "OPENAI_BASE_URL": upstream.url,
            "OPENAI_API_KEY": "none",
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        bootstrap.services.cache_clear()
        gate.authorization.cache_clear()
        # Its routes alone: with its lifespan the sweeper would run.
        with LoopbackServer(Starlette(routes=gateway().routes)) as server:
            owner, stranger = (client(server.url, folder, name) for name in ("owner", "stranger"))
            made = House(owner, stranger, upstream, tools.url, {})
            made.ids = furnished(owner, tools.url)
            yield made
        bootstrap.services.cache_clear()
        gate.authorization.cache_clear()


def client(url: str, folder: Path, owner: str) -> httpx.Client:
    keys = gate.api_keys({"TURNLOOM_DATA_DIR": str(folder)})
    key = asyncio.run(create_key(keys, SystemClock(), random_bits, owner))
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30)


def furnished(http: httpx.Client, tools: str) -> Ids:
    """The ids of one of everything."""

    def post(path: str, body: Any, **headers: str) -> Any:
        answer = http.post(path, json=body, headers={name.replace("_", "-"): text for name, text in headers.items()})
        return answer.raise_for_status().json() if answer.content else None

    message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": MARK}]}
    post("/v1/models", {"model_id": f"{MARK}-model", "metadata": {"of": MARK}})
    post("/v1/toolgroups", group(tools))
    agent_id = post("/v1/agents", {"agent_config": {"model": "m", "instructions": MARK, "client_tools": [LOOKUP]}})
    agent = f"/v1/agents/{agent_id['agent_id']}"
    session = post(f"{agent}/session", {"session_name": MARK})["session_id"]
    turn = post(f"{agent}/session/{session}/turn", {"messages": [{"role": "user", "content": MARK}]})
    conversation = post("/v1/conversations", {"items": [message], "metadata": {"of": MARK}})["id"]
    [item] = http.get(f"/v1/conversations/{conversation}/items").json()["data"]
    response = post("/v1/responses", {"model": "m", "input": MARK}, idempotency_key=MARK)
    [thought, said] = response["output"]
    running = post("/v1/responses", {"model": "m", "input": MARK, "background": True})
    assert running["status"] in ("queued", "in_progress")
    compacted = post("/v1/responses/compact", {"model": "m", "input": MARK})
    [summary] = [found for found in compacted["output"] if found["type"] == "compaction"]
    return {
        "agent_id": agent_id["agent_id"],
        "session_id": session,
        "turn_id": turn["turn_id"],
        "step_id": turn["steps"][0]["step_id"],
        "response_id": response["id"],
        "running": running["id"],
        "thought": thought["id"],
        "said": said["id"],
        "conversation_id": conversation,
        "item_id": item["id"],
        "model_id": f"{MARK}-model",
        "toolgroup_id": f"mcp::{MARK}",
        "tool_name": "echo",
        "summary": summary["encrypted_content"],
    }


def group(tools: str) -> dict[str, Any]:
    provider = "model-context-protocol"
    return {"toolgroup_id": f"mcp::{MARK}", "provider_id": provider, "mcp_endpoint": {"uri": tools}}


# --- what is asked


@dataclass(frozen=True)
class Ask:
    """A request that names, in its path, query or body, something of the owner's: `{name}` stands for an id."""

    body: Any = None
    query: str = ""
    path: Mapping[str, str] | None = None

    def send(self, http: httpx.Client, route: tuple[str, str], ids: Ids) -> tuple[int, str]:
        """The status and the text of what is answered, with ids by their names."""
        method, template_path = route
        named = ids | {name: ids[other] for name, other in (self.path or {}).items()}
        address = (template_path.replace("+}", "}") + self.query).format(**named)
        body = None if self.body is None else json.loads(fill(json.dumps(self.body), ids))
        answer = http.request(method, address, json=body)
        text = answer.text
        for name, value in ids.items():
            text = text.replace(value, f"<{name}>")
        return answer.status_code, text


def fill(text: str, ids: Ids) -> str:
    for name, value in ids.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def unknown(ids: Ids) -> Ids:
    """Ids of the same make that nobody has."""
    return {name: value[:-1] + ("0" if value[-1] != "0" else "1") for name, value in ids.items()}


CONFIG = {"model": "m", "instructions": ""}
HELLO: dict[str, Any] = {"model": "m", "input": "Hello"}
MESSAGES = {"messages": [{"role": "user", "content": "Hello"}]}
RESULT = {"tool_responses": [{"call_id": "call_0", "tool_name": "lookup", "content": "1"}]}
ITEM = {"type": "message", "role": "user", "content": "Hello"}


def reference(name: str) -> list[dict[str, str]]:
    return [{"type": "item_reference", "id": f"{{{name}}}"}]


NAMED_IN_BODY = tuple(
    Ask({**HELLO, **rest})
    for rest in (
        {"previous_response_id": "{response_id}"},
        {"previous_response_id": "{running}"},
        {"conversation": "{conversation_id}"},
        {"conversation": {"id": "{conversation_id}"}},
        {"input": reference("said")},
        {"input": reference("thought")},
        {"input": reference("item_id")},
        {"input": [{"type": "compaction", "encrypted_content": "{summary}"}]},
    )
)
RESPONSE = (Ask(), Ask(path={"response_id": "running"}))
STREAMED = (Ask(query="?stream=true"), Ask(query="?stream=true&starting_after=1"), *RESPONSE)
CONVERSATION_ITEMS = "/v1/conversations/{conversation_id}/items"
SESSION = "/v1/agents/{agent_id}/session/{session_id}"


def both(method: str, path: str, asks: tuple[Ask, ...]) -> dict[tuple[str, str], tuple[Ask, ...]]:
    """A route of the Responses API, on both of its paths."""
    return {(method, f"/v1{path}"): asks, (method, f"/v1/openai/v1{path}"): asks}


HIDDEN: dict[tuple[str, str], tuple[Ask, ...]] = {
    ("GET", "/v1/agents/{agent_id}"): (Ask(),),
    ("DELETE", "/v1/agents/{agent_id}"): (Ask(),),
    ("POST", "/v1/agents/{agent_id}/session"): (Ask({"session_name": "s"}),),
    ("GET", "/v1/agents/{agent_id}/sessions"): (Ask(),),
    ("GET", SESSION): (Ask(),),
    ("DELETE", SESSION): (Ask(),),
    ("POST", f"{SESSION}/turn"): (Ask(MESSAGES), Ask({**MESSAGES, "stream": True})),
    ("GET", f"{SESSION}/turn/{{turn_id}}"): (Ask(),),
    ("POST", f"{SESSION}/turn/{{turn_id}}/resume"): (
        Ask(RESULT),
        Ask({**RESULT, "stream": True}),
        Ask({"tool_responses": [], "stream": True, "starting_after": 1}),
    ),
    ("POST", f"{SESSION}/turn/{{turn_id}}/cancel"): (Ask(),),
    ("GET", f"{SESSION}/turn/{{turn_id}}/step/{{step_id}}"): (Ask(),),
    **both("POST", "/responses", (*NAMED_IN_BODY, *(Ask({**ask.body, "stream": True}) for ask in NAMED_IN_BODY))),
    **both("GET", "/responses/{response_id}", STREAMED),
    **both("DELETE", "/responses/{response_id}", RESPONSE),
    **both("GET", "/responses/{response_id}/input_items", RESPONSE),
    **both("POST", "/responses/{response_id}/cancel", RESPONSE),
    **both("POST", "/responses/input_tokens", NAMED_IN_BODY),
    **both("POST", "/responses/compact", tuple(ask for ask in NAMED_IN_BODY if "conversation" not in ask.body)),
    ("POST", "/v1/conversations"): tuple(Ask({"items": reference(name)}) for name in ("item_id", "said")),
    ("GET", "/v1/conversations/{conversation_id}"): (Ask(),),
    ("POST", "/v1/conversations/{conversation_id}"): (Ask({"metadata": {"of": "me"}}),),
    ("DELETE", "/v1/conversations/{conversation_id}"): (Ask(),),
    ("POST", CONVERSATION_ITEMS): (Ask({"items": [ITEM]}), Ask({"items": reference("item_id")})),
    ("GET", CONVERSATION_ITEMS): (Ask(), Ask(query="?after={item_id}")),
    ("GET", f"{CONVERSATION_ITEMS}/{{item_id}}"): (Ask(),),
    ("DELETE", f"{CONVERSATION_ITEMS}/{{item_id}}"): (Ask(),),
    ("GET", "/v1/models/{model_id+}"): (Ask(),),
    ("DELETE", "/v1/models/{model_id+}"): (Ask(),),
    ("GET", "/v1/openai/v1/models/{model_id+}"): (Ask(),),
    ("GET", "/v1/toolgroups/{toolgroup_id+}"): (Ask(),),
    ("DELETE", "/v1/toolgroups/{toolgroup_id+}"): (Ask(),),
    ("GET", "/v1/tools"): (Ask(query="?toolgroup_id={toolgroup_id}"),),
    ("GET", "/v1/tools/{tool_name+}"): (Ask(),),
    ("GET", "/v1/tool-runtime/list-tools"): (Ask(query="?tool_group_id={toolgroup_id}"),),
    ("POST", "/v1/tool-runtime/invoke"): (Ask({"tool_name": "{tool_name}", "kwargs": {}}),),
}
"""What is told of the owner's things must be what is told of things that nobody has."""

LISTS = (
    "/v1/agents",
    "/v1/responses",
    "/v1/openai/v1/responses",
    "/v1/models",
    "/v1/openai/v1/models",
    "/v1/toolgroups",
    "/v1/tools",
    "/v1/tool-runtime/list-tools",
)
"""What is in them is the stranger's own, and everybody's."""

EVERYBODYS = (
    "/v1/providers",
    "/v1/providers/{provider_id}",
    "/v1/shields",
    "/v1/shields/{shield_id+}",
    "/v1/health",
    "/v1/version",
    "/v1/inspect/routes",
)
"""What is the same for all."""

CHOSEN = ("/v1/models", "/v1/toolgroups", "/v1/agents")
"""Where one chooses ids that may be the owner's too: of what one makes, or of tool groups for an agent to use."""


def test_every_route_of_the_template_is_walked() -> None:
    routes = {route for function in template.functions() for route in function.routes}
    gets = {("GET", path) for path in (*LISTS, *EVERYBODYS)}
    assert routes == {*HIDDEN, *gets, *(("POST", path) for path in CHOSEN)}


WALK = [(route, ask) for route, asks in HIDDEN.items() for ask in asks]


@pytest.mark.parametrize(("route", "ask"), WALK, ids=lambda part: " ".join(part) if isinstance(part, tuple) else "")
def test_what_an_owner_has_is_to_a_stranger_as_if_it_were_not(route: tuple[str, str], ask: Ask, house: House) -> None:
    before, asked = house.world(), len(house.upstream.bodies)
    told = ask.send(house.stranger, route, house.ids)
    assert told == ask.send(house.stranger, route, unknown(house.ids))
    assert told[0] in (400, 404), told
    assert MARK not in told[1].replace(f"mcp::{MARK}", "").replace(f"{MARK}-model", "")
    assert MARK not in json.dumps(house.upstream.bodies[asked:])
    assert house.world() == before


@pytest.mark.parametrize("path", LISTS)
def test_a_list_holds_nothing_of_anybody_else(path: str, house: House) -> None:
    listed = house.stranger.get(path)
    assert listed.status_code == 200
    assert MARK not in listed.text
    assert not any(value in listed.text for value in house.ids.values())
    mine = house.owner.get(path).text
    assert MARK in mine or house.ids["tool_name"] in mine


@pytest.mark.parametrize("name", ["response_id", "running"])
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/openai/v1/responses"])
def test_a_list_cannot_be_begun_at_what_somebody_else_has(path: str, name: str, house: House) -> None:
    ask = Ask(query=f"?after={{{name}}}")
    assert ask.send(house.stranger, ("GET", path), house.ids) == ask.send(
        house.stranger, ("GET", path), unknown(house.ids)
    )


@pytest.mark.parametrize("path", EVERYBODYS)
def test_what_is_everybodys_tells_of_nobody(path: str, house: House) -> None:
    asked = path.replace("{provider_id}", "upstream").replace("{shield_id+}", "llama-guard")
    answers = [http.get(asked) for http in (house.owner, house.stranger)]
    assert answers[0].status_code == answers[1].status_code == (404 if "shield_id" in path else 200)
    assert answers[0].text == answers[1].text and MARK not in answers[0].text


def test_one_id_may_be_registered_by_two_owners_each_for_themselves(house: House) -> None:
    before = house.world()
    for path, name, body in (
        ("/v1/models", "model_id", {"model_id": f"{MARK}-model", "metadata": {"of": "the stranger"}}),
        ("/v1/toolgroups", "toolgroup_id", {**group(house.tools), "args": {"of": "the stranger"}}),
    ):
        house.stranger.post(path, json=body).raise_for_status()
        one = f"{path}/{house.ids[name]}"
        assert "the stranger" in house.stranger.get(one).text
        assert "the stranger" not in house.owner.get(one).text
        house.stranger.delete(one).raise_for_status()
        assert house.stranger.get(one).status_code == 404
        assert house.owner.get(one).status_code == 200
    assert house.world() == before


def test_one_idempotency_key_may_be_used_by_two_owners_each_for_themselves(house: House) -> None:
    before = house.world()
    same = house.stranger.post(
        "/v1/responses", json={"model": "m", "input": MARK}, headers={"idempotency-key": MARK}
    ).raise_for_status()
    again = house.owner.post("/v1/responses", json={"model": "m", "input": MARK}, headers={"idempotency-key": MARK})
    assert same.json()["id"] != again.json()["id"] == house.ids["response_id"]
    house.stranger.delete(f"/v1/responses/{same.json()['id']}").raise_for_status()
    assert house.world() == before


def test_an_agent_finds_no_tools_of_another_owner(house: House) -> None:
    """Its tool groups are looked for when it has a turn."""
    config = {**CONFIG, "toolgroups": [house.ids["toolgroup_id"]]}
    asked, told = len(house.upstream.bodies), []
    for http in (house.stranger, house.owner):
        agent = f"/v1/agents/{http.post('/v1/agents', json={'agent_config': config}).json()['agent_id']}"
        session = http.post(f"{agent}/session", json={"session_name": "s"}).json()["session_id"]
        told.append(http.post(f"{agent}/session/{session}/turn", json=MESSAGES))
        http.delete(agent).raise_for_status()
    assert [answer.status_code for answer in told] == [400, 200]
    assert told[0].json()["error"]["code"] == "unknown_toolgroup"
    assert len(house.upstream.bodies) == asked + 1


def test_the_things_of_an_owner_stay_apart_in_a_strangers_own(house: House) -> None:
    """A stranger's conversation and session take in nothing by the id of an owner's item or turn."""
    conversation = house.stranger.post("/v1/conversations", json={}).json()["id"]
    for name in ("item_id", "said", "thought"):
        items = json.loads(fill(json.dumps({"items": reference(name)}), house.ids))
        assert house.stranger.post(f"/v1/conversations/{conversation}/items", json=items).status_code == 404
    assert house.stranger.get(f"/v1/conversations/{conversation}/items/{house.ids['item_id']}").status_code == 404
    agent = house.stranger.post("/v1/agents", json={"agent_config": CONFIG}).json()
    path = f"/v1/agents/{agent['agent_id']}/session"
    session = f"{path}/{house.stranger.post(path, json={'session_name': 's'}).json()['session_id']}"
    assert house.stranger.get(f"{session}/turn/{house.ids['turn_id']}").status_code == 404
    assert house.stranger.get(f"{path}/{house.ids['session_id']}").status_code == 404
    for gone in (f"/v1/conversations/{conversation}", f"/v1/agents/{agent['agent_id']}"):
        house.stranger.delete(gone).raise_for_status()


def test_a_thought_that_is_somebody_elses_is_not_thought_again(house: House) -> None:
    """Clients send reasoning back by its id alone; one that is not found is passed over, not refused."""
    thought = {"type": "reasoning", "id": house.ids["thought"], "summary": []}
    asked = len(house.upstream.bodies)
    made = house.stranger.post("/v1/responses", json={"model": "m", "input": [thought, ITEM], "store": False})
    assert made.status_code == 200, made.text
    assert MARK not in json.dumps(house.upstream.bodies[asked:])


def test_what_was_kept_from_the_stranger_its_owner_can_do(house: House) -> None:
    """Else a walk through locked doors would prove nothing."""
    ids = house.ids
    turn = f"{SESSION}/turn/{{turn_id}}".format(**ids)
    done = [
        house.owner.get(f"/v1/responses/{ids['response_id']}?stream=true&starting_after=1"),
        house.owner.post("/v1/responses", json={**HELLO, "previous_response_id": ids["response_id"]}),
        house.owner.post("/v1/responses", json={**HELLO, "conversation": ids["conversation_id"]}),
        house.owner.post("/v1/responses", json={**HELLO, "input": [{"type": "item_reference", "id": ids["said"]}]}),
        house.owner.post(
            f"/v1/conversations/{ids['conversation_id']}/items",
            json={"items": [{"type": "item_reference", "id": ids["item_id"]}]},
        ),
        house.owner.post(
            "/v1/responses/input_tokens",
            json={**HELLO, "input": [{"type": "compaction", "encrypted_content": ids["summary"]}]},
        ),
        house.owner.get(turn),
        house.owner.get(f"{turn}/step/{ids['step_id']}"),
        house.owner.post(f"{turn}/cancel"),
        house.owner.post(f"/v1/responses/{ids['running']}/cancel"),
        house.owner.get(f"/v1/tools/{ids['tool_name']}"),
        house.owner.post("/v1/tool-runtime/invoke", json={"tool_name": ids["tool_name"], "kwargs": {"text": "Hi"}}),
        house.owner.delete(f"/v1/agents/{ids['agent_id']}"),
        house.owner.delete(f"/v1/conversations/{ids['conversation_id']}"),
        house.owner.delete(f"/v1/responses/{ids['response_id']}"),
        house.owner.delete(f"/v1/models/{ids['model_id']}"),
        house.owner.delete(f"/v1/toolgroups/{ids['toolgroup_id']}"),
    ]
    assert [answer.text for answer in done if not answer.is_success] == []
