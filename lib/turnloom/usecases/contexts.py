"""The context that a response would have, without making one: how long it is, and a summary of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from turnloom.domain import ids
from turnloom.domain.message import Message, Usage
from turnloom.domain.responses_input import RESPONSES, check_calls
from turnloom.domain.transcript import transcript
from turnloom.domain.turn import Turn
from turnloom.engine.compact import summed_up, tokens
from turnloom.engine.offer import names, offer
from turnloom.ports import ModelRequest
from turnloom.usecases.approvals import with_calls
from turnloom.usecases.response_rules import rules
from turnloom.usecases.responses import ResponseRequest, hide_addresses, standing
from turnloom.usecases.services import Services


@dataclass(frozen=True, slots=True)
class SummedUp:
    """A context that was summed up: the turns of which it consisted, the newest being what the request brought."""

    turns: Sequence[Turn]
    summary: str
    usage: Usage


async def count_tokens(services: Services, owner: str, asked: ResponseRequest) -> int:
    """How many tokens the model would read first. Raises what `create_response` raises."""
    request, (*history, new) = await _request(services, owner, asked)
    check_calls(history, new.input)
    return await tokens(services.engine.world.model, request)


async def compact(services: Services, owner: str, asked: ResponseRequest) -> SummedUp:
    """Let the model sum up the context. Raises what `create_response` raises, and UpstreamError."""
    request, turns = await _request(services, owner, asked)
    summary, usage = await summed_up(services.engine.world.model, request)
    return SummedUp(turns, summary, usage)


async def _request(services: Services, owner: str, asked: ResponseRequest) -> tuple[ModelRequest, Sequence[Turn]]:
    asked, addresses = hide_addresses(services, owner, asked)
    chain = await standing(services, owner, asked.settings)
    items = with_calls(chain.turns, asked.input)
    spec = rules(services, asked.settings, chain.turns, items, addresses)
    now = services.clock.now()
    turn = Turn(ids.response_id(now, 0, ids.new_thread(services.entropy)), input=tuple(items))
    messages: tuple[Message, ...] = transcript(spec, chain.turns, turn, RESPONSES, names(spec, turn))
    tools = offer(replace(spec, choice_group=None), turn, forced=False).tools
    return ModelRequest(spec.model, messages, tools, response_format=spec.response_format), (*chain.turns, turn)
