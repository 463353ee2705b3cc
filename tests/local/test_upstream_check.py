"""The model endpoint is asked for its models before the banner, and one sentence says what is wrong with it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from tests.server import LoopbackServer

from turnloom.local.upstream_check import OPENAI, UpstreamCheck, address_of, can_chat, check_upstream


class Endpoint:
    """Lists its models by `answer`, on /v1/models alone."""

    def __init__(self) -> None:
        self.answer: Response = models("gpt-4o")
        self.authorization = ""
        self.app = Starlette(routes=[Route("/v1/models", self._models)])

    async def _models(self, request: Request) -> Response:
        self.authorization = request.headers["authorization"]
        return self.answer


def models(*names: str) -> Response:
    return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Endpoint, str]]:
    endpoint = Endpoint()
    with LoopbackServer(endpoint.app) as server:
        yield endpoint, server.url


def check(served: tuple[Endpoint, str], answer: Response, key: str = "sk-secret") -> UpstreamCheck:
    endpoint, url = served
    endpoint.answer = answer
    return check_upstream({"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": key})


def test_the_first_model_that_can_chat_is_chosen(served: tuple[Endpoint, str]) -> None:
    listed = models("text-embedding-3-small", "whisper-1", "gpt-4o", "gpt-4o-mini")
    assert check(served, listed) == UpstreamCheck("gpt-4o")
    assert served[0].authorization == "Bearer sk-secret"


@pytest.mark.parametrize(
    ("answer", "key", "words"),
    [
        (models("text-embedding-3-small"), "sk-secret", "lists no model that can chat."),
        (models(), "sk-secret", "lists no model that can chat."),
        (JSONResponse({}, 401), "sk-secret", "does not accept the key in OPENAI_API_KEY (401)."),
        (JSONResponse({}, 403), "", "asks for a key: set OPENAI_API_KEY (403)."),
        (JSONResponse({}, 404), "sk-secret", "has no list of models (404): is the address right?"),
        (JSONResponse({}, 500), "sk-secret", "answers 500 to who asks for its models."),
        (PlainTextResponse("<html>"), "", "sends something other than a list of models: is the address right?"),
        (JSONResponse("models"), "", "sends something other than a list of models: is the address right?"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    served: tuple[Endpoint, str], answer: Response, key: str, words: str
) -> None:
    assert check(served, answer, key) == UpstreamCheck(problem=f"The model endpoint {served[1]}/v1 {words}")


def test_an_address_without_its_version_is_asked_about(served: tuple[Endpoint, str]) -> None:
    problem = check_upstream({"OPENAI_BASE_URL": served[1]}).problem
    assert problem == f"The model endpoint {served[1]} has no list of models (404): does the address end in /v1?"


def test_an_endpoint_that_does_not_listen_is_named() -> None:
    with LoopbackServer(Starlette()) as server:
        pass
    problem = check_upstream({"OPENAI_BASE_URL": server.url}).problem
    assert problem == f"The model endpoint {server.url} cannot be reached: {os.strerror(errno.ECONNREFUSED)}."


@pytest.mark.parametrize("address", ["localhost", "ftp://localhost/v1", "http://[/v1"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    assert address in (check_upstream({"OPENAI_BASE_URL": address}).problem or "")


def test_the_address_is_shown_without_secrets() -> None:
    assert address_of({"OPENAI_API_KEY": "sk-secret"}) == OPENAI
    assert address_of({"OPENAI_BASE_URL": "https://me:secret@host/v1?key=secret"}) == "https://host/v1"


@pytest.mark.parametrize(
    "model",
    [
        {"id": "nomic-embed-text"},
        {"id": "BAAI/bge-m3"},
        {"id": "tts-1"},
        {"id": "gpt-image-1"},
        {"id": "omni-moderation-latest"},
        {"id": "x", "type": "embedding"},
        {"id": "mistral-x", "capabilities": {"completion_chat": False}},
    ],
)
def test_models_for_other_things_cannot_chat(model: dict[str, Any]) -> None:
    assert not can_chat(model)


@pytest.mark.parametrize("name", ["gpt-4o", "llama3.1:8b", "mistralai/Mixtral-8x7B-Instruct-v0.1", "o3", "gemma3"])
def test_other_models_can(name: str) -> None:
    assert can_chat({"id": name})
