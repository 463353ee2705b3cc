"""The Responses API: HTTP in, use case, JSON or events out. The same methods under `/v1` and `/v1/openai/v1`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from fastapi import FastAPI, Request
from fastapi.responses import Response

from turnloom.domain.errors import InvalidRequest, NotFound, Problem, ServerFault, TurnGoesOn
from turnloom.domain.event import Event, Gathered, InferenceStarted, TurnCancelled, TurnFailed, TurnStarted
from turnloom.domain.message import JSON
from turnloom.domain.turn import Turn
from turnloom.engine.follow import Followed
from turnloom.engine.inline import Run
from turnloom.usecases import contexts, responses
from turnloom.usecases.attachments import prepared
from turnloom.usecases.chains import get_response
from turnloom.usecases.idempotency import give_up, join
from turnloom.usecases.responses import ResponseRequest
from turnloom.usecases.services import Services
from turnloom.wire import sse
from turnloom.wire.app import Home, Owner, Route, application, caller_of
from turnloom.wire.json_text import JSONAnswer
from turnloom.wire.patience import patiently, while_connected
from turnloom.wire.problems import headers_of, responses_envelope, responses_status
from turnloom.wire.responses_api.compaction import compaction_json
from turnloom.wire.responses_api.encode import ResponseEncoder
from turnloom.wire.responses_api.items import input_items, output_items
from turnloom.wire.responses_api.models import (
    CreateRequest,
    fingerprint_of,
    parse_compact,
    parse_count,
    parse_create,
)
from turnloom.wire.responses_api.pages import context_items, descending, integer, items_page, page
from turnloom.wire.responses_api.references import resolved
from turnloom.wire.responses_api.response import response_json
from turnloom.wire.responses_api.sealing import Seal, sealer

FIRST_FRAME_SECONDS = 1.0
"""How long the first frame waits for the upstream's verdict, which may still become an HTTP error."""


def responses_app(function: str, services: Callable[[], Services]) -> FastAPI:
    """The app of the function that serves one method of the Responses API, on both of its paths."""
    return application(function, ROUTES, services, envelope)


def envelope(request: Request, problem: Problem) -> JSONAnswer:
    """A failure as the Responses API tells it."""
    alias = _is_alias(request)
    return JSONAnswer(
        _told_problem(problem, alias=alias), responses_status(problem.code, alias=alias), headers_of(problem)
    )


def _told_problem(problem: Problem, *, alias: bool) -> JSON:
    theirs = problem.extra.get("upstream_code")
    return responses_envelope(problem.code, problem.message, problem.param, alias=alias, upstream_code=theirs)


async def create_openai_response(request: Request, services: Home, owner: Owner) -> Response:
    alias = _is_alias(request)
    body = await request.body()
    asked = parse_create(body, alias)
    key = request.headers.get("idempotency-key")
    fingerprint = fingerprint_of(request.url.path, body) if key is not None else ""
    run: Run | Followed | None = await join(services, owner, key, fingerprint)
    if run is None:
        wanted = await _wanted(services, owner, asked, key=key, fingerprint=fingerprint)
        caller = replace(caller_of(request, owner), headers=asked.secrets)
        run = await responses.create_response(services, caller, wanted)
    view = View(alias, sealer(services, owner), asked.include_obfuscation)
    try:
        return await _answer(request, asked, run, view)
    except TurnGoesOn:
        raise
    except Problem:
        # The client was told of no response that it could come back to: the key is free for another try.
        await give_up(services, owner, key, run.record.turn.id)
        raise


async def _answer(request: Request, asked: CreateRequest, run: Run | Followed, view: View) -> Response:
    if asked.stream:
        told, early = await _until_spoken(run)
        return sse.EventStream(_frames(view, told, early, stop=not asked.store))
    if asked.background:
        return JSONAnswer(view.response(run.record.turn))
    work = run.settled() if asked.store else while_connected(request, run)
    return await patiently(work, lambda turn: _outcome(turn, run, view), view.response, view.problem)


async def get_openai_response(
    request: Request,
    response_id: str,
    services: Home,
    owner: Owner,
    starting_after: str | None = None,
) -> Response:
    stream = _flag(request, "stream", default=False)
    obfuscation = _flag(request, "include_obfuscation", default=True)
    view = View(_is_alias(request), sealer(services, owner), obfuscation)
    record = await get_response(services, owner, response_id)
    if not stream:
        included = [*request.query_params.getlist("include"), *request.query_params.getlist("include[]")]
        return JSONAnswer(view.response(_including(record.turn, included)))
    after = integer("starting_after", starting_after, least=0) if starting_after is not None else -1
    return sse.EventStream(_frames(view, Followed(services.engine, record), [], after=after))


def _including(turn: Turn, included: Sequence[str]) -> Turn:
    """The turn as if its request had asked for these to be included too."""
    settings = dict(turn.settings or {})
    return replace(turn, settings={**settings, "include": [*settings.get("include", ()), *included]})


async def list_openai_responses(request: Request, services: Home, owner: Owner) -> JSONAnswer:
    if request.headers.get("upgrade", "").lower() == "websocket" or "sec-websocket-key" in request.headers:
        raise InvalidRequest("There is no WebSocket mode: send POST /v1/responses.", code="websocket_not_supported")
    query = request.query_params
    limit = integer("limit", query.get("limit", "50"), least=1, most=100)
    records, more = await responses.list_responses(
        services,
        owner,
        after=query.get("after"),
        descending=descending(query.get("order")),
        limit=limit,
        model=query.get("model"),
    )
    view = View(_is_alias(request), sealer(services, owner))
    data = ({**view.response(record.turn), "input": input_items(record.turn)} for record in records)
    return JSONAnswer(page(data, more))


async def list_openai_response_input_items(
    request: Request, response_id: str, services: Home, owner: Owner
) -> JSONAnswer:
    records = await responses.response_context(services, owner, response_id)
    return items_page(request, context_items(records, alias=_is_alias(request), seal=sealer(services, owner)))


async def cancel_openai_response(request: Request, response_id: str, services: Home, owner: Owner) -> JSONAnswer:
    record = await responses.cancel_response(services, owner, response_id)
    return JSONAnswer(View(_is_alias(request), sealer(services, owner)).response(record.turn))


async def delete_openai_response(response_id: str, services: Home, owner: Owner) -> JSONAnswer:
    await responses.delete_response(services, owner, response_id)
    return JSONAnswer({"id": response_id, "object": "response", "deleted": True})


async def count_openai_input_tokens(request: Request, services: Home, owner: Owner) -> JSONAnswer:
    asked = parse_count(await request.body(), _is_alias(request))
    counted = await contexts.count_tokens(services, owner, await _wanted(services, owner, asked))
    return JSONAnswer({"object": "response.input_tokens", "input_tokens": counted})


async def compact_openai_response(request: Request, services: Home, owner: Owner) -> Response:
    asked = parse_compact(await request.body())
    items = await resolved(services, owner, asked.input, previous=asked.previous_response_id)
    settings = {"model": asked.model, "instructions": asked.instructions or ""}
    if asked.previous_response_id is not None:
        settings["previous_response_id"] = asked.previous_response_id
    wanted = ResponseRequest(await prepared(services, owner, items), settings)
    seal, now = sealer(services, owner), services.clock.now()

    told = partial(compaction_json, now=now, seal=seal)
    work = contexts.compact(services, owner, wanted)
    return await patiently(work, told, told, partial(_told_problem, alias=_is_alias(request)))


def _routes(prefix: str) -> tuple[Route, ...]:
    every, one = f"{prefix}/responses", f"{prefix}/responses/{{response_id}}"
    return (
        Route("create_openai_response", "POST", every, create_openai_response),
        Route("list_openai_responses", "GET", every, list_openai_responses),
        Route("count_openai_input_tokens", "POST", f"{every}/input_tokens", count_openai_input_tokens),
        Route("compact_openai_response", "POST", f"{every}/compact", compact_openai_response),
        Route("get_openai_response", "GET", one, get_openai_response),
        Route("delete_openai_response", "DELETE", one, delete_openai_response),
        Route("cancel_openai_response", "POST", f"{one}/cancel", cancel_openai_response),
        Route("list_openai_response_input_items", "GET", f"{one}/input_items", list_openai_response_input_items),
    )


ROUTES = _routes("/v1") + _routes("/v1/openai/v1")


# --- telling a response


@dataclass(frozen=True, slots=True)
class View:
    """How a reader sees responses: by which path it came, what seals texts for it, whether deltas are padded."""

    alias: bool
    seal: Seal
    obfuscation: bool = True

    def response(self, turn: Turn) -> JSON:
        return response_json(turn, alias=self.alias, seal=self.seal)

    def problem(self, problem: Problem) -> JSON:
        return _told_problem(problem, alias=self.alias)

    def encoder(self, turn: Turn) -> ResponseEncoder:
        return ResponseEncoder(turn.id, alias=self.alias, obfuscation=self.obfuscation, seal=self.seal)


def _outcome(turn: Turn, run: Run | Followed, view: View) -> JSON:
    """The body of a call that did not stream; a failure is an error only while there is nothing to show for it."""
    if turn.failure is not None and not output_items(turn):
        raise _problem(turn.failure, run)
    return view.response(turn)


def _problem(failure: TurnFailed, run: Run | Followed) -> Problem:
    known = run.problem
    extra = known.extra if known is not None else {}
    return ServerFault(failure.message, code=failure.code, param=known.param if known else None, extra=extra)


async def _until_spoken(run: Run | Followed) -> tuple[Run | Followed, list[Event]]:
    """What to tell, and its first events, up to the model's first word or the end of patience.

    Raises what failed before any of it.
    """
    if isinstance(run, Followed):
        return run, []
    early: list[Event] = []
    try:
        async with asyncio.timeout(FIRST_FRAME_SECONDS):
            await _read_opening(run, early)
    except TimeoutError:
        pass
    except TurnGoesOn:
        # Nobody has been told anything yet.
        return run.followed(), []
    if early and isinstance(early[-1], TurnFailed) and all(_opens(event) for event in early[:-1]):
        raise _problem(early[-1], run)
    return run, early


async def _read_opening(run: Run, early: list[Event]) -> None:
    while (event := await run.next_event()) is not None:
        early.append(event)
        if not _opens(event):
            return


def _opens(event: Event) -> bool:
    return isinstance(event, TurnStarted | Gathered | InferenceStarted)


async def _frames(
    view: View, told: Run | Followed, early: list[Event], *, after: int = -1, stop: bool = False
) -> AsyncIterator[bytes]:
    """The events after number `after`; a run that is not stored stops with its reader."""
    encoder = view.encoder(told.record.turn)
    try:
        async for event in _events(told, early):
            for frame in _encoded(encoder, event, after):
                yield frame
    except NotFound:
        # Deleted while it ran: as cancelled as a response can be.
        for frame in _encoded(encoder, TurnCancelled(0), after):
            yield frame
    except Problem:
        yield sse.RECONNECT
        return
    finally:
        if stop and isinstance(told, Run):
            told.abandon()
    if not view.alias:
        yield sse.DONE


def _encoded(encoder: ResponseEncoder, event: Event, after: int) -> list[bytes]:
    return [sse.frame(data, data["type"]) for data in encoder.encode(event) if data["sequence_number"] > after]


async def _events(told: Run | Followed, early: list[Event]) -> AsyncIterator[Event]:
    """All events of a turn: those known, those read already, and those to come."""
    for event in (*told.record.events, *early):
        yield event
    async with aclosing(told.events()) as coming:
        async for event in coming:
            yield event


# --- reading requests


async def _wanted(
    services: Services, owner: str, asked: CreateRequest, *, key: str | None = None, fingerprint: str = ""
) -> ResponseRequest:
    """The request with everything that its items refer to."""
    previous = asked.settings.get("previous_response_id")
    items = await resolved(services, owner, asked.input, conversation=asked.conversation, previous=previous)
    files = await prepared(services, owner, items)
    return ResponseRequest(files, asked.settings, asked.store, key, fingerprint, asked.stream)


def _flag(request: Request, name: str, *, default: bool) -> bool:
    given = request.query_params.get(name)
    if given is None:
        return default
    if given.lower() not in ("true", "false", "1", "0"):
        raise InvalidRequest(f"{name} is 'true' or 'false', not '{given}'", code="invalid_value", param=name)
    return given.lower() in ("true", "1")


def _is_alias(request: Request) -> bool:
    return str(request.scope["path"]).startswith("/v1/openai/")
