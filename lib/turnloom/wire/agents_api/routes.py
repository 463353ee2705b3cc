"""The methods of the Agents API, and one of ours to cancel a turn: HTTP in, use case, JSON or frames out."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import Response
from pydantic import BeforeValidator

from turnloom.domain.errors import NotFound, Problem, ServerFault
from turnloom.domain.event import InputAwaited
from turnloom.domain.message import JSON
from turnloom.domain.turn import Turn
from turnloom.store.turns import Record
from turnloom.usecases import agents, turns
from turnloom.usecases.services import Services
from turnloom.usecases.turns import Reading, TurnRequest
from turnloom.wire import sse
from turnloom.wire.agents_api.encode import AgentsEncoder
from turnloom.wire.agents_api.models import CreateAgent, CreateSession, CreateTurn, ResumeTurn
from turnloom.wire.agents_api.objects import agent_json, session_json, steps_json, turn_json
from turnloom.wire.app import Home, Owner, Route, application, caller_of, envelope
from turnloom.wire.fit import fitting
from turnloom.wire.patience import patiently
from turnloom.wire.problems import agents_envelope

PAGE = 1000

_NullAsText = BeforeValidator(lambda text: None if text in ("", "null") else text)
StartIndex = Annotated[Annotated[int, Query(ge=0)] | None, _NullAsText]
Limit = Annotated[Annotated[int, Query(ge=-1)] | None, _NullAsText]


def agents_app(function: str, services: Callable[[], Services]) -> FastAPI:
    """The app of the function that serves one method of the Agents API."""
    return application(function, ROUTES, services, envelope)


# --- agents


async def create_agent(body: CreateAgent, services: Home, owner: Owner) -> Any:
    agent = await agents.create_agent(services, owner, body.agent_config.model_dump())
    return {"agent_id": agent.agent_id}


async def list_agents(
    request: Request, services: Home, owner: Owner, start_index: StartIndex = None, limit: Limit = None
) -> Any:
    found = await services.agents.all(owner)
    return _page(request, [agent_json(agent) for agent in found], start_index, limit)


async def get_agent(agent_id: str, services: Home, owner: Owner) -> Any:
    return agent_json(await agents.get_agent(services, owner, agent_id))


async def delete_agent(agent_id: str, services: Home, owner: Owner) -> Response:
    await agents.delete_agent(services, owner, agent_id)
    return Response(status_code=204)


# --- sessions


async def create_agent_session(agent_id: str, body: CreateSession, services: Home, owner: Owner) -> Any:
    session = await agents.create_session(services, owner, agent_id, body.session_name)
    return {"session_id": session.session_id}


async def list_agent_sessions(
    request: Request,
    agent_id: str,
    services: Home,
    owner: Owner,
    start_index: StartIndex = None,
    limit: Limit = None,
) -> Any:
    found = await agents.list_sessions(services, owner, agent_id)
    return _page(request, [session_json(session, []) for session in found], start_index, limit)


async def get_agents_session(
    request: Request, agent_id: str, session_id: str, services: Home, owner: Owner, before: str | None = None
) -> Any:
    _, session = await agents.get_session(services, owner, agent_id, session_id)
    records = await turns.session_turns(services, owner, session_id)
    wanted = _turn_ids(request)
    chosen = [r for r in records if (wanted is None or r.turn.id in wanted) and (before is None or r.turn.id < before)]
    shown, cut = _newest_that_fit(chosen)
    return {**session_json(session, shown), **({"has_more": True} if cut else {})}


async def delete_agents_session(agent_id: str, session_id: str, services: Home, owner: Owner) -> Response:
    await agents.delete_session(services, owner, agent_id, session_id)
    return Response(status_code=204)


# --- turns


async def create_agent_turn(
    request: Request, agent_id: str, session_id: str, body: CreateTurn, services: Home, owner: Owner
) -> Response:
    given = body.model_dump(exclude_unset=True)
    settings = {name: given[name] for name in ("documents", "toolgroups") if given.get(name)}
    if body.tool_config is not None:
        settings["tool_config"] = body.tool_config.model_dump()
    asked = TurnRequest(
        messages=given["messages"],
        settings=settings,
        fingerprint=hashlib.sha256(await request.body()).hexdigest()[:32],
        key=request.headers.get("idempotency-key"),
        retried=request.headers.get("x-stainless-retry-count", "0") not in ("", "0"),
    )
    reading = await turns.create_turn(services, caller_of(request, owner), agent_id, session_id, asked)
    return await _told(reading, stream=bool(body.stream))


async def resume_agent_turn(
    request: Request, agent_id: str, session_id: str, turn_id: str, body: ResumeTurn, services: Home, owner: Owner
) -> Response:
    responses = [response.model_dump() for response in body.tool_responses]
    responses = [{**response, "metadata": response["metadata"] or {}} for response in responses]
    caller = caller_of(request, owner)
    reading = await turns.resume_turn(services, caller, agent_id, session_id, turn_id, responses)
    return await _told(reading, stream=bool(body.stream), after=body.starting_after or 0)


async def get_agents_turn(agent_id: str, session_id: str, turn_id: str, services: Home, owner: Owner) -> Any:
    return turn_json(await turns.get_turn(services, owner, agent_id, session_id, turn_id))


async def cancel_agents_turn(agent_id: str, session_id: str, turn_id: str, services: Home, owner: Owner) -> Any:
    return turn_json(await turns.cancel_turn(services, owner, agent_id, session_id, turn_id))


async def get_agents_step(
    agent_id: str, session_id: str, turn_id: str, step_id: str, services: Home, owner: Owner
) -> Any:
    record = await turns.get_turn(services, owner, agent_id, session_id, turn_id)
    for step in steps_json(record.turn):
        if step["step_id"] == step_id:
            return {"step": step}
    raise NotFound("step", step_id)


ROUTES = (
    Route("create_agent", "POST", "/v1/agents", create_agent),
    Route("list_agents", "GET", "/v1/agents", list_agents),
    Route("get_agent", "GET", "/v1/agents/{agent_id}", get_agent),
    Route("delete_agent", "DELETE", "/v1/agents/{agent_id}", delete_agent),
    Route("create_agent_session", "POST", "/v1/agents/{agent_id}/session", create_agent_session),
    Route("list_agent_sessions", "GET", "/v1/agents/{agent_id}/sessions", list_agent_sessions),
    Route("get_agents_session", "GET", "/v1/agents/{agent_id}/session/{session_id}", get_agents_session),
    Route("delete_agents_session", "DELETE", "/v1/agents/{agent_id}/session/{session_id}", delete_agents_session),
    Route("create_agent_turn", "POST", "/v1/agents/{agent_id}/session/{session_id}/turn", create_agent_turn),
    Route("get_agents_turn", "GET", "/v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}", get_agents_turn),
    Route(
        "resume_agent_turn",
        "POST",
        "/v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}/resume",
        resume_agent_turn,
    ),
    Route(
        "cancel_agents_turn",
        "POST",
        "/v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}/cancel",
        cancel_agents_turn,
    ),
    Route(
        "get_agents_step",
        "GET",
        "/v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}/step/{step_id}",
        get_agents_step,
    ),
)


# --- telling a turn


async def _told(reading: Reading, *, stream: bool, after: int = 0) -> Response:
    if stream:
        return sse.EventStream(_frames(reading, after))
    record = reading.run.record

    def in_time(turn: Turn) -> JSON:
        if turn.failure is not None:
            problem = reading.run.problem
            extra = {**(problem.extra if problem else {}), "turn_id": turn.id}
            raise ServerFault(turn.failure.message, code=turn.failure.code, extra=extra)
        return turn_json(record, turn)

    def failed(problem: Problem) -> JSON:
        return agents_envelope(problem.code, problem.message, problem.extra, param=problem.param)

    return await patiently(reading.run.settled(), in_time, lambda turn: turn_json(record, turn), failed)


async def _frames(reading: Reading, after: int) -> AsyncIterator[bytes]:
    """The frames of a leg, or of the whole turn; those that were answered or seen before are left out."""
    record = reading.run.record
    encoder = AgentsEncoder(record)
    for place, event in enumerate(record.events):
        answered = isinstance(event, InputAwaited) and place + 1 < len(record.events)
        for frame in encoder.encode(event):
            if place >= reading.start and frame["sequence_number"] > after and not answered:
                yield sse.frame(frame)
    try:
        async for event in reading.run.events():
            for frame in encoder.encode(event):
                if frame["sequence_number"] > after:
                    yield sse.frame(frame)
    except Problem as problem:
        yield sse.frame(encoder.broken_off(problem.code, problem.message))


# --- reading requests


def _turn_ids(request: Request) -> set[str] | None:
    """The `turn_ids` filter in any of its spellings: comma-joined, repeated, or `turn_ids[]`."""
    given = request.query_params.getlist("turn_ids") + request.query_params.getlist("turn_ids[]")
    return {turn_id for text in given for turn_id in text.split(",") if turn_id} if given else None


def _newest_that_fit(records: Sequence[Record]) -> tuple[list[dict[str, JSON]], bool]:
    shown, cut = fitting(turn_json(record) for record in reversed(records))
    return shown[::-1], cut


def _page(request: Request, items: list[dict[str, JSON]], start_index: int | None, limit: int | None) -> JSON:
    start = start_index or 0
    size = PAGE if limit is None or limit == -1 else limit
    shown, cut = fitting(items[start : start + size])
    return {"data": shown, "has_more": cut or start + size < len(items), "url": request.url.path}
