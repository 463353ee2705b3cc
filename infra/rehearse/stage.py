"""What scenes are played with: clients of the deployed API, the model endpoint and the tool server that it uses."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from infra.rehearse.deployment import Deployment
from llama_stack_client import LlamaStackClient
from openai import OpenAI
from tests.mcp_servers import McpServer
from tests.upstream import ScriptedUpstream

T = TypeVar("T")

MODEL = "scripted"
PATIENCE = 60.0
UPSTREAM_KEY = "upstream-key"


class Unexpected(Exception):
    """The deployed API did something else than was expected of it."""


@dataclass(frozen=True)
class Stage:
    """The deployment, what it uses, and an owner's clients of it."""

    deployment: Deployment
    upstream: ScriptedUpstream
    tools: McpServer
    openai: OpenAI
    llama: LlamaStackClient

    def get(self, path: str) -> Any:
        """What a path answers, as JSON."""
        return self.llama.get(path, cast_to=object)

    def post(self, path: str) -> Any:
        """What a path answers to an empty body, as JSON."""
        return self.llama.post(path, cast_to=object)

    def turn(self, agent_id: str, session_id: str, text: str) -> Any:
        """A turn that does not stream."""
        messages: Any = [{"role": "user", "content": text}]
        create = self.llama.agents.turn.create
        return create(session_id, agent_id=agent_id, messages=messages, stream=False)

    def ended(self, turn_id: str) -> str:
        """How the one execution of the state machine ended that ran a turn or response."""

        def found() -> list[str]:
            return [status for name, status in self.deployment.executions() if turn_id in name]

        [status] = until(found, lambda statuses: "RUNNING" not in statuses)
        return status


def clients(deployment: Deployment, key: str) -> tuple[OpenAI, LlamaStackClient]:
    """The official clients of the deployed API with this key; they ask nothing twice, so that a failure is seen."""
    openai = OpenAI(base_url=f"{deployment.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)
    llama = LlamaStackClient(base_url=deployment.url, api_key=key, max_retries=0, timeout=PATIENCE)
    return openai, llama


def expect(found: object, wanted: object) -> None:
    """Raises Unexpected when they are not equal."""
    if found != wanted:
        raise Unexpected(f"{found!r} instead of {wanted!r}")


def expect_error(kind: type[Exception], call: Callable[[], object]) -> None:
    """Raises Unexpected when the call succeeds; another error than of this kind stays what it is."""
    try:
        answer = call()
    except kind:
        return
    raise Unexpected(f"{answer!r} instead of {kind.__name__}")


def until(ask: Callable[[], T], enough: Callable[[T], bool]) -> T:
    """Ask again every quarter of a second until the answer is enough. Raises Unexpected after a minute."""
    deadline = time.monotonic() + PATIENCE
    while not enough(answer := ask()):
        if time.monotonic() > deadline:
            raise Unexpected(f"still {answer!r} after {PATIENCE:g} s")
        time.sleep(0.25)
    return answer
