"""Doing one action: the only place where a turn touches the world. Yields the events that the action brought about.

Times are stamped here and never run backwards within one action; `Stamp` makes each later than the one before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import assert_never

from turnloom.domain.action import Action, AwaitClient, CallModel, CallTools, Finish, Gather, RunShields
from turnloom.domain.errors import UpstreamRejected
from turnloom.domain.event import (
    Event,
    InferenceCompleted,
    InferenceStarted,
    InputAwaited,
    ShieldsRun,
    TurnCompleted,
)
from turnloom.domain.message import AssistantMessage, Spec
from turnloom.domain.turn import Inference
from turnloom.engine.answer import AnswerReader
from turnloom.engine.calls import call_tools
from turnloom.engine.compact import known_usage, shorter
from turnloom.engine.gather import gather
from turnloom.engine.offer import Offer, hosted_calls_left, offer
from turnloom.engine.scene import Scene, Stamp, World
from turnloom.ports import CallChunk, Chunk, Finished, Model, ModelRequest, TextChunk, Violation


async def perform(action: Action, scene: Scene, world: World) -> AsyncGenerator[Event]:
    """Do the action. Raises a Problem when the turn cannot go on; a failing tool is an event, not an error."""
    stamp = Stamp(world.clock, scene.turn.last_at)
    match action:
        case Gather():
            events = gather(scene, world, stamp)
        case CallModel():
            events = _call_model(action, scene, world, stamp)
        case CallTools():
            events = call_tools(action.call_ids, scene, world, stamp)
        case RunShields():
            events = _run_shields(action, scene, world, stamp)
        case AwaitClient():
            events = _just(InputAwaited(stamp()))
        case Finish():
            events = _just(TurnCompleted(stamp(), action.reason))
        case _:
            assert_never(action)
    async with aclosing(events):
        async for event in events:
            yield event


async def _just(event: Event) -> AsyncGenerator[Event]:
    yield event


# --- the model


async def _call_model(action: CallModel, scene: Scene, world: World, stamp: Stamp) -> AsyncGenerator[Event]:
    offered = offer(scene.spec, scene.turn, forced=action.forced)
    yield InferenceStarted(stamp())
    left = hosted_calls_left(scene.spec, scene.turn)
    reader = AnswerReader(scene.turn, offered.tools, _known_calls(scene), scene.spec.parallel_calls, left)
    request, answer = await _begun(_request(offered, scene), scene.spec, world.model)
    async with aclosing(answer) as chunks:
        async for chunk in chunks:
            for event in _read(chunk, reader, request, stamp):
                yield event


def _read(chunk: Chunk, reader: AnswerReader, request: ModelRequest, stamp: Stamp) -> Iterator[Event]:
    match chunk:
        case TextChunk():
            yield from reader.text(chunk)
        case CallChunk():
            yield from reader.call(chunk)
        case Finished():
            yield from reader.close()
            usage = known_usage(chunk.usage, request, reader.characters)
            yield InferenceCompleted(stamp(), chunk.reason, usage, reader.extras(chunk))
        case _:
            assert_never(chunk)


def _known_calls(scene: Scene) -> set[str]:
    """The ids of calls that the model has been told of; a new one must not be among them."""
    told = {call.call_id for m in scene.messages if isinstance(m, AssistantMessage) for call in m.calls}
    return told | {call.call_id for step in scene.turn.steps if isinstance(step, Inference) for call in step.calls}


async def _begun(request: ModelRequest, spec: Spec, model: Model) -> tuple[ModelRequest, AsyncGenerator[Chunk]]:
    """The model's answer, begun, and the request that it answers.

    Of a context that is too long for the model, the oldest turns are left out if the spec says so; behind the first
    chunk nothing is asked again.
    """
    while True:
        chunks = model.stream(request)
        try:
            return request, _all(await anext(chunks), chunks)
        except UpstreamRejected as refusal:
            request = shorter(request, refusal, truncates=spec.truncates)


async def _all(first: Chunk, rest: AsyncGenerator[Chunk]) -> AsyncGenerator[Chunk]:
    async with aclosing(rest):
        yield first
        async for chunk in rest:
            yield chunk


def _request(offered: Offer, scene: Scene) -> ModelRequest:
    spec, spent = scene.spec, scene.turn.usage.output_tokens
    return ModelRequest(
        model=spec.model,
        messages=scene.messages,
        tools=offered.tools,
        tool_choice=offered.choice,
        sampling=spec.sampling,
        optional_sampling=spec.optional_sampling,
        response_format=spec.response_format,
        parallel_calls=spec.parallel_calls,
        max_tokens=None if spec.max_tokens is None else max(1, spec.max_tokens - spent),
        patience=scene.patience,
    )


# --- shields


async def _run_shields(action: RunShields, scene: Scene, world: World, stamp: Stamp) -> AsyncGenerator[Event]:
    started = stamp()
    checks = (world.shields.check(shield, scene.messages, scene.scope) for shield in action.shields)
    verdicts = await asyncio.gather(*checks)
    blocking = next((verdict for verdict in verdicts if verdict is not None and verdict.level == "error"), None)
    yield ShieldsRun(stamp(), started, action.touchpoint, _violation(blocking) if blocking else None)


def _violation(verdict: Violation) -> dict[str, object]:
    return {
        "violation_level": verdict.level,
        "user_message": verdict.user_message,
        "metadata": dict(verdict.metadata),
    }
