"""The neighbours of the Agents API over HTTP: bodies, statuses, and what the official clients make of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from llama_stack_client import BadRequestError, LlamaStackClient, NotFoundError
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.conftest import House, build_house
from tests.server import LoopbackServer
from turnloom import __version__
from turnloom.adapters.guard import Guard
from turnloom.adapters.tools import ToolRunners
from turnloom.domain.errors import UpstreamBroken, UpstreamRejected, UpstreamTimeout
from turnloom.domain.message import Tool, ToolSource
from turnloom.domain.redaction import redacted_url
from turnloom.local import template
from turnloom.ports import ModelInfo, ToolScope
from turnloom.testing import FakeTools, ScriptedModel
from turnloom.usecases.services import Services
from turnloom.wire.neighbours import ROUTES, neighbours_app
from turnloom.wire.neighbours.objects import parameters_json

SERVER = "http://127.0.0.1:9/mcp"
MINE = {"toolgroup_id": "mine", "provider_id": "model-context-protocol", "mcp_endpoint": {"uri": SERVER}}
SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "description": "What to say."},
        "times": {"type": "integer", "default": 1},
    },
    "required": ["text"],
}


class Tools(FakeTools):
    """A server at SERVER with one tool, `shout`, and nothing anywhere else; keeps the headers it was asked with."""

    def __init__(self, inherited: FakeTools) -> None:
        super().__init__({**inherited.functions, "shout": shout})
        self.headers: list[Any] = []

    async def offered(self, source: ToolSource, scope: ToolScope) -> list[Tool]:
        self.headers.append(scope.headers)
        if source.endpoint != SERVER:
            raise UpstreamBroken(f"No server at {source.endpoint}", code="toolgroup_unreachable")
        return [Tool("shout", "Says it loudly.", SCHEMA, ToolSource("mcp", source.group, "shout", SERVER))]


class Upstream(ScriptedModel):
    """An endpoint that lists its models, or fails."""

    failure: Exception | None = None

    async def models(self) -> list[ModelInfo]:
        if self.failure is not None:
            raise self.failure
        return [ModelInfo("scripted", 1_700_000_000, "me"), ModelInfo("meta/llama:8b")]


def shout(text: str, times: int = 1) -> str:
    return text.upper() * times


def echo(text: str) -> str:
    return f"echo: {text}"


def neighbours(services: Services) -> Starlette:
    """Every function of the neighbours behind its routes, as the gateway has them."""
    apps = {function: neighbours_app(function, lambda: services) for function in {route.function for route in ROUTES}}
    return Starlette(routes=[Route(route.path, apps[route.function], methods=[route.method]) for route in ROUTES])


@pytest.fixture
def home(tmp_path: Path) -> House:
    house = build_house(tmp_path, echo=echo)
    engine = house.services.engine
    model, tools = Upstream(), Tools(house.tools)
    services = replace(house.services, engine=replace(engine, world=replace(engine.world, model=model, tools=tools)))
    return replace(house, services=services, model=model, tools=tools)


@pytest.fixture
def http(home: House) -> Iterator[TestClient]:
    with TestClient(neighbours(home.services)) as client:
        yield client


@pytest.fixture
def url(home: House) -> Iterator[str]:
    with LoopbackServer(neighbours(home.services)) as server:
        yield server.url


def found(http: TestClient, path: str, key: str = "identifier") -> list[str]:
    answer = http.get(path)
    assert answer.status_code == 200, answer.text
    return [entry[key] for entry in answer.json()["data"]]


def refused(answer: Any, status: int, code: str) -> str:
    """The message of an answer that must be this error, in the envelope of the Agents API."""
    body = answer.json()
    assert (answer.status_code, body["status"], body["error"]["code"]) == (status, status, code), body
    assert body["detail"] == body["error"]["message"]
    return str(body["detail"])


# --- tool groups


def test_a_registered_group_is_answered_with_null_and_listed(http: TestClient) -> None:
    answer = http.post("/v1/toolgroups", json={**MINE, "args": {"times": 2}})
    assert (answer.status_code, answer.json()) == (200, None)
    assert found(http, "/v1/toolgroups") == ["test::tools", "mine"]
    assert http.get("/v1/toolgroups/mine").json() == {
        "identifier": "mine",
        "provider_id": "model-context-protocol",
        "provider_resource_id": "mine",
        "type": "tool_group",
        "mcp_endpoint": {"uri": SERVER},
        "args": {"times": 2},
    }
    assert "x-trace-id" in answer.headers


def test_a_builtin_group_has_no_endpoint_and_stays(http: TestClient) -> None:
    group = http.get("/v1/toolgroups/test::tools").json()
    assert (group["provider_id"], group["mcp_endpoint"], group["args"]) == ("builtin", None, {})
    assert "cannot be deleted" in refused(http.delete("/v1/toolgroups/test::tools"), 400, "invalid_request")
    replaced = http.post("/v1/toolgroups", json={**MINE, "toolgroup_id": "test::tools"})
    assert "cannot be replaced" in refused(replaced, 400, "invalid_request")


def test_a_group_whose_id_has_a_slash_is_found_and_deleted(http: TestClient) -> None:
    http.post("/v1/toolgroups", json={**MINE, "toolgroup_id": "team/mine"})
    assert http.get("/v1/toolgroups/team/mine").json()["identifier"] == "team/mine"
    answer = http.delete("/v1/toolgroups/team/mine")
    assert (answer.status_code, answer.content) == (204, b"")
    refused(http.get("/v1/toolgroups/team/mine"), 404, "toolgroup_not_found")
    refused(http.delete("/v1/toolgroups/team/mine"), 404, "toolgroup_not_found")


def test_a_server_that_cannot_be_reached_is_502(http: TestClient) -> None:
    body = {**MINE, "mcp_endpoint": {"uri": "http://127.0.0.1:9/elsewhere"}}
    refused(http.post("/v1/toolgroups", json=body), 502, "toolgroup_unreachable")
    assert found(http, "/v1/toolgroups") == ["test::tools"]


@pytest.mark.parametrize(
    "body",
    [
        {**MINE, "mcp_endpoint": None},
        {**MINE, "provider_id": "nobody", "mcp_endpoint": None},
        {**MINE, "toolgroup_id": ""},
        {"provider_id": "http"},
    ],
)
def test_a_group_without_what_it_needs_is_400(http: TestClient, body: dict[str, Any]) -> None:
    refused(http.post("/v1/toolgroups", json=body), 400, "invalid_request")


def test_a_server_gets_the_headers_that_the_request_brings_for_it(home: House, http: TestClient) -> None:
    secret = {SERVER: {"Authorization": "Bearer x"}}
    headers = {"x-llamastack-provider-data": json.dumps({"mcp_headers": secret})}
    http.post("/v1/toolgroups", json=MINE, headers=headers)
    http.get("/v1/tool-runtime/list-tools", params={"mcp_endpoint[uri]": SERVER}, headers=headers)
    http.post("/v1/tool-runtime/invoke", json={"tool_name": "shout", "kwargs": {"text": "a"}}, headers=headers)
    assert isinstance(home.tools, Tools)
    assert [*home.tools.headers, home.tools.ran[0][2].headers] == [{}, secret, secret]


def test_secrets_of_a_group_are_masked_in_answers(http: TestClient) -> None:
    tool = {"name": "x", "headers": {"X-Key": "abc"}, "uri": "http://127.0.0.1:9/x"}
    args = {"tools": [tool], "api_key": "abc", "unit": "C", "auth": {"user": ["abc"]}, "max_tokens": 5}
    assert http.post("/v1/toolgroups", json={**MINE, "args": args}).status_code == 200
    answer = http.get("/v1/toolgroups/mine").json()
    assert answer["args"] == {
        "tools": [{**tool, "headers": {"X-Key": "<redacted>"}}],
        "api_key": "<redacted>",
        "unit": "C",
        "auth": {"user": ["<redacted>"]},
        "max_tokens": 5,
    }
    assert redacted_url("http://u:p@a.example/mcp?k=abc&plain#f") == (
        "http://<redacted>@a.example/mcp?k=<redacted>&<redacted>#<redacted>"
    )


# --- tools


@pytest.mark.parametrize(
    "query",
    [
        {"toolgroup_id": "mine"},
        {"toolgroup_id": "mine/shout"},
        {"toolgroup_id[name]": "mine", "toolgroup_id[args][k]": "v"},
    ],
)
def test_tools_of_a_group_are_listed_in_every_spelling(http: TestClient, query: dict[str, str]) -> None:
    http.post("/v1/toolgroups", json=MINE)
    answer = http.get("/v1/tools", params=query).json()
    assert answer == {
        "data": [
            {
                "identifier": "shout",
                "toolgroup_id": "mine",
                "description": "Says it loudly.",
                "parameters": [
                    {
                        "name": "text",
                        "parameter_type": "string",
                        "description": "What to say.",
                        "required": True,
                        "default": None,
                    },
                    {"name": "times", "parameter_type": "integer", "description": "", "required": False, "default": 1},
                ],
                "metadata": {"endpoint": SERVER},
                "provider_id": "model-context-protocol",
                "provider_resource_id": "shout",
                "type": "tool",
            }
        ]
    }
    assert http.get("/v1/tools/shout").json() == answer["data"][0]


def test_without_a_group_all_tools_are_listed(http: TestClient) -> None:
    http.post("/v1/toolgroups", json=MINE)
    assert found(http, "/v1/tools") == ["echo", "shout"]


def test_unknown_groups_and_tools_are_404(http: TestClient) -> None:
    refused(http.get("/v1/tools?toolgroup_id=nowhere/x"), 404, "toolgroup_not_found")
    refused(http.get("/v1/tool-runtime/list-tools?tool_group_id=nowhere"), 404, "toolgroup_not_found")
    refused(http.get("/v1/tools/nothing"), 404, "tool_not_found")
    refused(http.post("/v1/tool-runtime/invoke", json={"tool_name": "x", "kwargs": {}}), 404, "tool_not_found")


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        ({"type": "number"}, "number"),
        ({"type": ["null", "integer"]}, "integer"),
        ({"anyOf": [{"type": "null"}, {"type": "array"}]}, "array"),
        ({"oneOf": [{"type": "boolean"}, {"type": "null"}]}, "boolean"),
        ({"$ref": "#/$defs/Place"}, "object"),
        ({"$ref": "#/$defs/Missing"}, "any"),
        ({"$ref": "https://elsewhere.example/schema"}, "any"),
        ({"enum": ["a"]}, "any"),
        (True, "any"),
    ],
)
def test_a_parameter_is_named_by_its_json_type(parameter: Any, name: str) -> None:
    schema = {"properties": {"p": parameter}, "$defs": {"Place": {"type": "object", "description": "A place."}}}
    found = parameters_json(schema)
    assert [(p["name"], p["parameter_type"], p["required"]) for p in found] == [("p", name, False)]
    assert found[0]["description"] == ("A place." if name == "object" else "")


def test_a_tool_without_parameters_has_none() -> None:
    assert parameters_json({}) == parameters_json({"type": "object", "properties": None}) == []


# --- tool runtime


def test_runtime_lists_a_group_a_live_server_or_everything(http: TestClient) -> None:
    assert found(http, "/v1/tool-runtime/list-tools?tool_group_id=test::tools", "name") == ["echo"]
    assert found(http, f"/v1/tool-runtime/list-tools?mcp_endpoint[uri]={SERVER}", "name") == ["shout"]
    assert found(http, "/v1/tool-runtime/list-tools", "name") == ["echo"], "listing a server registers nothing"
    gone = http.get("/v1/tool-runtime/list-tools?mcp_endpoint[uri]=http://127.0.0.1:9/elsewhere")
    refused(gone, 502, "toolgroup_unreachable")


def test_a_tool_is_invoked_by_its_name(http: TestClient) -> None:
    answer = http.post("/v1/tool-runtime/invoke", json={"tool_name": "echo", "kwargs": {"text": "hi"}})
    expected: dict[str, Any] = {"content": "echo: hi", "error_message": None, "error_code": None, "metadata": {}}
    assert (answer.status_code, answer.json()) == (200, expected)


def test_a_tool_that_fails_is_200_with_the_error_fields(http: TestClient) -> None:
    answer = http.post("/v1/tool-runtime/invoke", json={"tool_name": "echo", "kwargs": {"nothing": 1}})
    body = answer.json()
    assert answer.status_code == 200 and body["error_code"] == 1
    assert "nothing" in body["error_message"] and body["content"].startswith("echo failed")


# --- models


def test_models_are_those_of_the_upstream_and_the_registered_ones(home: House, http: TestClient) -> None:
    body = {"model_id": "guard", "provider_model_id": "meta/guard", "provider_id": "vllm", "metadata": {"a": 1}}
    registered = {
        "id": "guard",
        "object": "model",
        "created": home.clock.time // 1_000_000,
        "owned_by": "default",
        "identifier": "guard",
        "provider_resource_id": "meta/guard",
        "provider_id": "vllm",
        "type": "model",
        "metadata": {"a": 1},
        "model_type": "llm",
    }
    assert [http.post("/v1/models", json=body).json() for _ in range(2)] == [registered, registered]
    assert found(http, "/v1/models") == ["scripted", "meta/llama:8b", "guard"]
    assert http.get("/v1/models/guard").json() == registered
    assert http.get("/v1/models/meta/llama:8b").json()["provider_resource_id"] == "meta/llama:8b"


def test_a_registered_model_stands_in_for_the_upstreams_until_it_is_deleted(http: TestClient) -> None:
    http.post("/v1/models", json={"model_id": "meta/llama:8b", "metadata": {"mine": True}})
    assert found(http, "/v1/models").count("meta/llama:8b") == 1
    assert http.get("/v1/models/meta/llama:8b").json()["metadata"] == {"mine": True}
    answer = http.delete("/v1/models/meta/llama:8b")
    assert (answer.status_code, answer.content) == (204, b"")
    assert http.get("/v1/models/meta/llama:8b").json()["metadata"] == {}


def test_models_that_were_not_registered_cannot_be_deleted(http: TestClient) -> None:
    refused(http.delete("/v1/models/meta/llama:8b"), 400, "invalid_request")


def test_unknown_models_are_404(http: TestClient) -> None:
    refused(http.get("/v1/models/nobody/knows"), 404, "model_not_found")
    refused(http.delete("/v1/models/nobody/knows"), 404, "model_not_found")
    refused(http.get("/v1/openai/v1/models/nobody/knows"), 404, "model_not_found")


@pytest.mark.parametrize("metadata", [None, {}, {"embedding_dimension": "384"}, {"embedding_dimension": 0}])
def test_an_embedding_model_needs_its_dimension(http: TestClient, metadata: Any) -> None:
    body = {"model_id": "e5", "model_type": "embedding", "metadata": metadata}
    assert "embedding_dimension" in refused(http.post("/v1/models", json=body), 400, "invalid_request")
    body["metadata"] = {"embedding_dimension": 768}
    assert http.post("/v1/models", json=body).json()["metadata"] == {"embedding_dimension": 768}


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (UpstreamBroken("down"), 502, "upstream_error"),
        (UpstreamRejected("no such path", code="model_not_found"), 502, "upstream_error"),
        (UpstreamTimeout("slow"), 504, "upstream_timeout"),
    ],
)
def test_an_upstream_that_does_not_list_its_models_is_not_the_callers_fault(
    home: House, http: TestClient, failure: Exception, status: int, code: str
) -> None:
    http.post("/v1/models", json={"model_id": "mine"})
    assert isinstance(home.model, Upstream)
    home.model.failure = failure
    refused(http.get("/v1/models"), status, code)
    refused(http.get("/v1/openai/v1/models"), status, code)
    refused(http.get("/v1/models/other"), status, code)
    assert http.get("/v1/models/mine").status_code == 200, "what is known here needs no upstream"


# --- providers, inspect


def test_every_api_has_a_provider_that_is_found_by_its_id(http: TestClient) -> None:
    providers = http.get("/v1/providers").json()["data"]
    assert {provider["api"] for provider in providers} == {"inference", "tool_runtime", "agents"}
    for provider in providers:
        assert (provider["config"], provider["health"]) == ({}, {"status": "OK"})
        assert http.get(f"/v1/providers/{provider['provider_id']}").json() == provider
    refused(http.get("/v1/providers/nobody"), 404, "provider_not_found")


@pytest.mark.parametrize(
    ("failure", "health"),
    [
        (UpstreamBroken("It is down."), {"status": "Error", "message": "It is down."}),
        (UpstreamTimeout("It is slow."), {"status": "Error", "message": "It is slow."}),
        (
            UpstreamRejected("No such key.", code="upstream_authentication_error"),
            {"status": "Error", "message": "No such key."},
        ),
        (UpstreamRejected("No such path.", code="model_not_found"), {"status": "OK"}),
    ],
)
def test_the_upstream_provider_has_the_health_of_the_upstream(
    home: House, http: TestClient, failure: Exception, health: dict[str, str]
) -> None:
    assert isinstance(home.model, Upstream)
    home.model.failure = failure
    assert http.get("/v1/providers/upstream").json()["health"] == health
    assert http.get("/v1/providers/builtin").json()["health"] == {"status": "OK"}


def test_there_are_no_shields_yet(http: TestClient) -> None:
    assert http.get("/v1/shields").json() == {"data": []}
    refused(http.get("/v1/shields/llama-guard"), 404, "shield_not_found")


def test_groups_and_models_name_providers_that_exist(http: TestClient) -> None:
    known = found(http, "/v1/providers", "provider_id")
    http.post("/v1/toolgroups", json=MINE)
    named = found(http, "/v1/toolgroups", "provider_id") + found(http, "/v1/models", "provider_id")
    assert set(named) <= set(known)


def test_the_server_tells_its_health_and_version(http: TestClient) -> None:
    assert http.get("/v1/health").json() == {"status": "OK"}
    assert http.get("/v1/version").json() == {"version": "0.2.20", "server": f"turnloom {__version__}"}


def test_every_route_that_is_deployed_is_told(http: TestClient) -> None:
    routes = http.get("/v1/inspect/routes").json()["data"]
    told = {(route["method"], route["route"]): route["provider_types"] for route in routes}
    deployed = [(method, path.replace("+}", "}")) for each in template.functions() for method, path in each.routes]
    assert sorted((route["method"], route["route"]) for route in routes) == sorted(deployed)
    assert told["POST", "/v1/agents"] == ["inline::turnloom"]
    assert told["GET", "/v1/responses/{response_id}"] == ["inline::turnloom"]
    assert told["DELETE", "/v1/models/{model_id}"] == ["remote::openai"]
    assert told["GET", "/v1/health"] == []


# --- the official clients


def test_llama_stack_client_registers_lists_and_invokes(url: str) -> None:
    with LlamaStackClient(base_url=url, max_retries=0) as client:
        client.toolgroups.register(
            toolgroup_id="mine",
            provider_id="model-context-protocol",
            mcp_endpoint={"uri": SERVER},
            args={"times": 2},
        )
        assert [group.identifier for group in client.toolgroups.list()] == ["test::tools", "mine"]
        group = client.toolgroups.get("mine")
        assert group.mcp_endpoint is not None and group.mcp_endpoint.uri == SERVER
        tools = client.tools.list(toolgroup_id="mine/shout")
        assert [(tool.identifier, tool.parameters[0].parameter_type) for tool in tools] == [("shout", "string")]
        assert client.tools.get("shout").toolgroup_id == "mine"
        assert [tool.name for tool in client.tool_runtime.list_tools(tool_group_id="mine")] == ["shout"]
        assert [tool.name for tool in client.tool_runtime.list_tools(mcp_endpoint={"uri": SERVER})] == ["shout"]
        result = client.tool_runtime.invoke_tool(tool_name="shout", kwargs={"text": "hi"})
        assert (result.content, result.error_message) == ("HIHI", None)
        client.toolgroups.unregister("mine")
        with pytest.raises(NotFoundError, match="not found"):
            client.toolgroups.get("mine")
        with pytest.raises(BadRequestError, match="built in"):
            client.toolgroups.unregister("test::tools")


def test_llama_stack_client_registers_an_http_endpoint_as_a_tool(home: House) -> None:
    engine = home.services.engine
    runners = ToolRunners(Guard(allow_loopback=True), home.clock)
    services = replace(home.services, engine=replace(engine, world=replace(engine.world, tools=runners)))
    with LoopbackServer(neighbours(services)) as server, LlamaStackClient(base_url=server.url, max_retries=0) as client:
        parameters = [{"name": "provider_id", "parameter_type": "str"}]
        tool = {"name": "who_is", "method": "GET", "parameters": parameters}
        client.toolgroups.register(
            toolgroup_id="self",
            provider_id="http",
            mcp_endpoint={"uri": f"{server.url}/v1/providers/{{provider_id}}"},
            args={"tools": [tool]},
        )
        listed = client.tools.list(toolgroup_id="self")[0]
        assert (listed.identifier, listed.parameters[0].parameter_type) == ("who_is", "string")
        result = client.tool_runtime.invoke_tool(tool_name="who_is", kwargs={"provider_id": "http"})
        assert json.loads(str(result.content))["provider_type"] == "remote::http"
        failed = client.tool_runtime.invoke_tool(tool_name="who_is", kwargs={"provider_id": "nobody"})
        assert failed.error_code == 404
        with pytest.raises(BadRequestError, match="method"):
            client.toolgroups.register(
                toolgroup_id="bad", provider_id="http", args={"tools": [{**tool, "method": "X"}]}
            )


def test_llama_stack_client_reads_models_providers_and_the_server(url: str) -> None:
    with LlamaStackClient(base_url=url, max_retries=0) as client:
        client.models.register(model_id="e5", model_type="embedding", metadata={"embedding_dimension": 8})
        kinds = {model.identifier: model.api_model_type for model in client.models.list()}
        assert (kinds["scripted"], kinds["e5"]) == ("llm", "embedding")
        assert client.models.retrieve("meta/llama:8b").identifier == "meta/llama:8b"
        client.models.unregister("e5")
        with pytest.raises(NotFoundError):
            client.models.retrieve("e5")
        assert client.providers.retrieve("builtin").api == "tool_runtime"
        assert {provider.api for provider in client.providers.list()} >= {"inference", "agents"}
        assert client.shields.list() == []
        assert client.inspect.health().status == "OK"
        assert client.inspect.version().version == "0.2.20"
        assert "/v1/tools" in {route.route for route in client.routes.list()}


@pytest.mark.parametrize("path", ["/v1", "/v1/openai/v1"])
def test_openai_client_lists_and_reads_models(url: str, path: str) -> None:
    with openai.OpenAI(base_url=f"{url}{path}", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["scripted", "meta/llama:8b"]
        model = client.models.retrieve("scripted")
        assert (model.created, model.owned_by, model.object) == (1_700_000_000, "me", "model")
        with pytest.raises(openai.NotFoundError) as failure:
            client.models.retrieve("nobody")
        assert failure.value.code == "model_not_found"
