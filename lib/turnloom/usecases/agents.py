"""Agents and sessions: made, found, listed, deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from turnloom.domain.agent import Agent, Session
from turnloom.domain.errors import ContentLost, NotFound
from turnloom.domain.ids import new_id
from turnloom.domain.message import JSON
from turnloom.store.disposal import Disposable
from turnloom.usecases.disposal import DAY, remove
from turnloom.usecases.services import Services


async def create_agent(services: Services, owner: str, config: Mapping[str, JSON]) -> Agent:
    now = services.clock.now()
    agent = Agent(new_id(now, services.entropy), config, now)
    await services.agents.put(owner, agent)
    return agent


async def get_agent(services: Services, owner: str, agent_id: str) -> Agent:
    """The agent. Raises NotFound, and ContentLost when its configuration is missing."""
    agent = await _find_agent(services, owner, agent_id)
    check_config(agent)
    return agent


def check_config(agent: Agent) -> None:
    """Raises ContentLost when the configuration is missing."""
    if agent.content_lost:
        hint = "Its sessions can still be read; create another agent to go on."
        raise ContentLost("agent", agent.agent_id, hint=hint)


async def _find_agent(services: Services, owner: str, agent_id: str) -> Agent:
    """The agent, also one whose configuration is lost. Raises NotFound."""
    agent = await services.agents.get(owner, agent_id)
    if agent is None:
        raise NotFound("agent", agent_id)
    return agent


async def delete_agent(services: Services, owner: str, agent_id: str) -> None:
    """Hide the agent at once, then remove its sessions and turns; a repeat within the hour is no error."""
    await remove(services, Disposable(owner, agent_id))


async def create_session(services: Services, owner: str, agent_id: str, name: str) -> Session:
    """Open a session; without persistence it is put down for removal once it has been silent long enough."""
    agent = await get_agent(services, owner, agent_id)
    now = services.clock.now()
    session = Session(new_id(now, services.entropy), name, agent_id, now)
    if not agent.config["enable_session_persistence"]:
        due = now + services.limits.session_days * DAY
        await services.disposal.put(Disposable(owner, agent_id, session.session_id, expiring=True), due)
    await services.sessions.put(owner, session)
    return session


async def get_session(services: Services, owner: str, agent_id: str, session_id: str) -> tuple[Agent, Session]:
    """The session and its agent, read at the same time; the agent's configuration may be lost."""
    agent, session = await asyncio.gather(
        services.agents.get(owner, agent_id), services.sessions.get(owner, agent_id, session_id)
    )
    if agent is None:
        raise NotFound("agent", agent_id)
    if session is None:
        raise NotFound("session", session_id)
    return agent, session


async def list_sessions(services: Services, owner: str, agent_id: str) -> list[Session]:
    await _find_agent(services, owner, agent_id)
    return await services.sessions.all(owner, agent_id)


async def delete_session(services: Services, owner: str, agent_id: str, session_id: str) -> None:
    """Hide the session at once, then remove its turns; a repeat within the hour is no error."""
    await _find_agent(services, owner, agent_id)
    await remove(services, Disposable(owner, agent_id, session_id))
