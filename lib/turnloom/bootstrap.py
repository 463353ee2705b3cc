"""The one place where ports meet adapters. Everything is made when it is first needed: an import costs a cold start."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from turnloom.adapters.clock import SystemClock, random_bits
from turnloom.adapters.guard import Guard, hosts_in
from turnloom.adapters.logs import structured
from turnloom.adapters.meter import EmbeddedMeter, FailureLog
from turnloom.adapters.openai_model import OpenAIModel
from turnloom.adapters.retriever import DocumentRetriever
from turnloom.adapters.shields import NoShields
from turnloom.adapters.stepfunctions import StepFunctions
from turnloom.adapters.tools import ToolRunners
from turnloom.adapters.tools.builtin import BUILTIN_GROUPS
from turnloom.adapters.vault import SivVault, secret_in_file
from turnloom.engine.engine import Brief, Engine, Pace
from turnloom.engine.scene import World
from turnloom.ports import Clock
from turnloom.storage import blob_store, data_folder, storage
from turnloom.store.agents import Agents, Sessions
from turnloom.store.claims import Claims
from turnloom.store.conversations import Conversations
from turnloom.store.disposal import Disposal
from turnloom.store.registry import Registry
from turnloom.store.turns import Record, Turns
from turnloom.usecases.briefs import brief_of
from turnloom.usecases.services import Limits, Services
from turnloom.usecases.trail import trail

LOCAL_PACE = Pace(logged=0.05, poll=(0.01, 0.1), lease=10.0)


@cache
def services() -> Services:
    """The services of this process, by its environment; where it is deployed, its log lines become JSON."""
    env = dict(os.environ)
    if "TURNLOOM_TABLES_PREFIX" in env:
        structured(_service(env), env.get("TURNLOOM_LOG_LEVEL", "INFO"), trail)
    return build(env)


def build(env: dict[str, str]) -> Services:
    """Services for these settings: DynamoDB and S3 where a state is deployed or asked for, one folder otherwise."""
    folder = data_folder(env)
    local = "TURNLOOM_TABLES_PREFIX" not in env
    table, blobs, clock = storage(env), blob_store(env), SystemClock()
    stores = {
        "agents": Turns("agents", table("turns"), table("events"), blobs, clock),
        "responses": Turns("responses", table("responses"), table("events"), blobs, clock, listed=True),
    }

    async def brief(record: Record) -> Brief:
        return await brief_of(made, record)

    engine = Engine(
        world=_world(env, local, clock),
        stores=stores,
        brief=brief,
        orchestrator=StepFunctions(env.get("TURNLOOM_STATE_MACHINE_ARN", "")),
        pace=LOCAL_PACE if local else Pace(),
        meter=FailureLog() if local else EmbeddedMeter(_service(env)),
    )
    vault = SivVault(_seal_secret(env, folder))
    made = Services(
        agents=Agents(table("agents"), blobs),
        sessions=Sessions(table("sessions")),
        registry=Registry(table("registry"), vault),
        disposal=Disposal(table("registry")),
        conversations=Conversations(table("registry")),
        claims=Claims(table("registry")),
        turns=stores["agents"],
        responses=stores["responses"],
        engine=engine,
        clock=clock,
        entropy=random_bits,
        vault=vault,
        builtin_groups=BUILTIN_GROUPS,
        limits=Limits(
            inferences=int(env.get("TURNLOOM_MAX_INFER_ITERS", "50")),
            session_days=int(env.get("TURNLOOM_SESSION_DAYS", "30")),
            retention_days=int(days) if (days := env.get("TURNLOOM_RETENTION_DAYS")) else None,
        ),
    )
    return made


def _service(env: dict[str, str]) -> str:
    return env.get("POWERTOOLS_SERVICE_NAME", "turnloom")


def _world(env: dict[str, str], local: bool, clock: Clock) -> World:
    # Where callers are told apart, one of them must not reach what this machine tells itself.
    trusts_callers = local and env.get("TURNLOOM_AUTH", "none") == "none"
    guard = Guard(allow_loopback=trusts_callers, allow_hosts=hosts_in(env.get("TURNLOOM_HOSTS", "")))
    model = OpenAIModel(
        env.get("OPENAI_BASE_URL") or "https://api.openai.com/v1",
        _upstream_key(env),
        takes_files={"yes": True, "no": False}.get(env.get("TURNLOOM_UPSTREAM_FILES", "")),
        sends_reasoning=env.get("TURNLOOM_UPSTREAM_REASONING") == "yes",
    )
    return World(model, ToolRunners(guard, clock), NoShields(), DocumentRetriever(guard), clock)


def _upstream_key(env: dict[str, str]) -> Callable[[], str]:
    def key() -> str:
        if secret := env.get("TURNLOOM_UPSTREAM_SECRET"):
            return _secret(secret).decode()
        return env.get("OPENAI_API_KEY", "")

    return key


def _seal_secret(env: dict[str, str], folder: Path) -> Callable[[], bytes]:
    name = env.get("TURNLOOM_SEAL_SECRET")
    return (lambda: _secret(name)) if name else lambda: secret_in_file(folder / "seal.key")


def _secret(name: str) -> bytes:
    from aws_lambda_powertools.utilities import parameters

    found: Any = parameters.get_secret(name, max_age=900)
    return found if isinstance(found, bytes) else str(found).encode()
