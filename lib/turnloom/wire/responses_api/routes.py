"""The Responses API: HTTP in, use case, JSON or events out. The same methods under `/v1` and `/v1/openai/v1`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from turnloom.domain import ids
from turnloom.domain.errors import InvalidRequest, NotFound, Problem, ServerFault
from turnloom.domain.event import Event, Gathered, InferenceStarted, TurnFailed, TurnStarted
from turnloom.domain.message import JSON
from turnloom.domain.turn import Turn
from turnloom.engine.follow import Followed
from turnloom.engine.inline import Run
from turnloom.store.turns import Record
from turnloom.usecases import responses
from turnloom.usecases.callers import Caller
from turnloom.usecases.responses import ResponseRequest
from turnloom.usecases.services import Services
from turnloom.wire import sse
from turnloom.wire.app import Home, Owner, Route, application
from turnloom.wire.json_text import JSONAnswer
from turnloom.wire.patience import patiently
from turnloom.wire.problems import headers_of, responses_envelope, responses_status
from turnloom.wire.responses_api.encode import ResponseEncoder, response_json
from turnloom.wire.responses_api.items import input_items, output_items
from turnloom.wire.responses_api.models import parse_create

FIRST_FRAME_SECONDS = 1.0
"""How long the first frame waits for the upstream's verdict, which may still become an HTTP error."""


def responses_app(function: str, services: Callable[[], Services]) -> FastAPI:
    """The app of the function that serves one method of the Responses API, on both of its paths."""
    return application(function, ROUTES, services, envelope)


def envelope(request: Request, problem: Problem) -> JSONAnswer:
    """A failure as the Responses API tells it."""
    alias = _is_alias(request)
    body = responses_envelope(problem.code, problem.message, problem.param, alias=alias)
    return JSONAnswer(body, responses_status(problem.code, alias=alias), headers_of(problem))


async def create_openai_response(request: Request, services: Home, owner: Owner) -> Response:
    alias = _is_alias(request)
    asked = parse_create(await request.body(), alias)
    caller = Caller(owner, asked.secrets)
    items = [await _resolved(services, owner, item) for item in asked.input]
    run = await responses.create_response(services, caller, ResponseRequest(items, asked.settings, asked.store))
    if not asked.stream:
        return await patiently(
            run.settled(), lambda turn: _outcome(turn, run, alias), partial(response_json, alias=alias)
        )
    encoder = ResponseEncoder(run.record.turn.id, alias=alias, obfuscation=asked.include_obfuscation)
    early = await _until_spoken(run)
    frames = _frames(encoder, run, early, alias=alias, stop=not asked.store)
    return _stream(frames)


async def get_openai_response(
    request: Request,
    response_id: str,
    services: Home,
    owner: Owner,
    starting_after: str | None = None,
) -> Response:
    alias = _is_alias(request)
    stream = _flag(request, "stream", default=False)
    obfuscation = _flag(request, "include_obfuscation", default=True)
    record = await responses.get_response(services, owner, response_id)
    if not stream:
        return JSONAnswer(response_json(record.turn, alias=alias))
    after = _integer("starting_after", starting_after, least=0) if starting_after is not None else -1
    encoder = ResponseEncoder(response_id, alias=alias, obfuscation=obfuscation)
    return _stream(_frames(encoder, Followed(services.engine, record), [], alias=alias, after=after))


async def list_openai_responses(request: Request, services: Home, owner: Owner) -> JSONAnswer:
    query = request.query_params
    limit = _integer("limit", query.get("limit", "50"), least=1, most=100)
    records, more = await responses.list_responses(
        services,
        owner,
        after=query.get("after"),
        descending=_descending(query.get("order")),
        limit=limit,
        model=query.get("model"),
    )
    alias = _is_alias(request)
    data = [{**response_json(record.turn, alias=alias), "input": input_items(record.turn)} for record in records]
    return JSONAnswer(_page(data, more))


async def list_openai_response_input_items(
    request: Request, response_id: str, services: Home, owner: Owner
) -> JSONAnswer:
    query = request.query_params
    limit = _integer("limit", query.get("limit", "20"), least=1, most=100)
    descending = _descending(query.get("order"))
    records = await responses.response_context(services, owner, response_id)
    items = _context_items(records, alias=_is_alias(request))
    items = items[::-1] if descending else items
    items = _cut(items, query.get("after"), query.get("before"))
    return JSONAnswer(_page(items[:limit], len(items) > limit))


async def delete_openai_response(response_id: str, services: Home, owner: Owner) -> JSONAnswer:
    await responses.delete_response(services, owner, response_id)
    return JSONAnswer({"id": response_id, "object": "response", "deleted": True})


def _routes(prefix: str) -> tuple[Route, ...]:
    one = f"{prefix}/responses/{{response_id}}"
    return (
        Route("create_openai_response", "POST", f"{prefix}/responses", create_openai_response),
        Route("list_openai_responses", "GET", f"{prefix}/responses", list_openai_responses),
        Route("get_openai_response", "GET", one, get_openai_response),
        Route("delete_openai_response", "DELETE", one, delete_openai_response),
        Route("list_openai_response_input_items", "GET", f"{one}/input_items", list_openai_response_input_items),
    )


ROUTES = _routes("/v1") + _routes("/v1/openai/v1")


# --- telling a response


def _outcome(turn: Turn, run: Run, alias: bool) -> JSON:
    """The body of a call that did not stream; a failure is an error only while there is nothing to show for it."""
    if turn.failure is not None and not output_items(turn):
        raise _problem(turn.failure, run)
    return response_json(turn, alias=alias)


def _problem(failure: TurnFailed, run: Run) -> Problem:
    known = run.problem
    extra = known.extra if known is not None else {}
    return ServerFault(failure.message, code=failure.code, param=known.param if known else None, extra=extra)


async def _until_spoken(run: Run) -> list[Event]:
    """The first events, up to the model's first word or the end of patience; raises what failed before any of it."""
    early: list[Event] = []
    try:
        async with asyncio.timeout(FIRST_FRAME_SECONDS):
            while not early or isinstance(early[-1], TurnStarted | Gathered | InferenceStarted):
                event = await run.next_event()
                if event is None:
                    break
                early.append(event)
    except TimeoutError:
        pass
    if early and isinstance(early[-1], TurnFailed) and all(_opens(event) for event in early[:-1]):
        raise _problem(early[-1], run)
    return early


def _opens(event: Event) -> bool:
    return isinstance(event, TurnStarted | Gathered | InferenceStarted)


async def _frames(
    encoder: ResponseEncoder,
    told: Run | Followed,
    early: list[Event],
    *,
    alias: bool,
    after: int = -1,
    stop: bool = False,
) -> AsyncIterator[bytes]:
    """The events after number `after`; a run that is not stored stops with its reader."""
    try:
        async for event in _events(told, early):
            for data in encoder.encode(event):
                if data["sequence_number"] > after:
                    yield sse.frame(data, data["type"])
        if not alias:
            yield sse.DONE
    except Problem:
        yield sse.RECONNECT
    finally:
        if stop and isinstance(told, Run):
            told.stop()


async def _events(told: Run | Followed, early: list[Event]) -> AsyncIterator[Event]:
    """All events of a turn: those known, those read already, and those to come."""
    for event in (*told.record.events, *early):
        yield event
    async with aclosing(told.events()) as coming:
        async for event in coming:
            yield event


def _stream(frames: AsyncIterator[bytes]) -> StreamingResponse:
    headers = {"cache-control": "no-cache"}
    return StreamingResponse(sse.with_heartbeat(frames), media_type="text/event-stream", headers=headers)


# --- lists


def _context_items(records: list[Record], *, alias: bool) -> list[dict[str, JSON]]:
    """All items that the newest of these responses saw, oldest first: its own input, and what it inherited."""
    items: list[dict[str, JSON]] = []
    for record in records:
        items += input_items(record.turn, {item["id"] for item in items})
        if record is not records[-1]:
            items += output_items(record.turn, alias=alias)
    return items


def _cut(items: list[dict[str, JSON]], after: str | None, before: str | None) -> list[dict[str, JSON]]:
    if after is not None and before is not None:
        raise InvalidRequest("Give 'after' or 'before', not both", code="invalid_value", param="before")
    if after is not None:
        return items[_index(items, after, "after") + 1 :]
    return items[: _index(items, before, "before")] if before is not None else items


def _index(items: list[dict[str, JSON]], item_id: str, param: str) -> int:
    for place, item in enumerate(items):
        if item["id"] == item_id:
            return place
    raise InvalidRequest(f"No item '{item_id}' in this list", code="invalid_value", param=param)


def _page(data: list[dict[str, JSON]], more: bool) -> dict[str, JSON]:
    first, last = (data[0]["id"], data[-1]["id"]) if data else ("", "")
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}


# --- reading requests


async def _resolved(services: Services, owner: str, item: Mapping[str, Any]) -> JSON:
    """The item, or the stored one that it refers to. Raises NotFound naming the id."""
    if item.get("type") != "item_reference":
        return item
    place = ids.item_place(item["id"])
    try:
        record = await responses.get_response(services, owner, place[0] if place else "")
    except NotFound:
        raise NotFound("item", item["id"], param="input") from None
    found = (*input_items(record.turn), *output_items(record.turn))
    for known in found:
        if known["id"] == item["id"]:
            return known
    raise NotFound("item", item["id"], param="input")


def _flag(request: Request, name: str, *, default: bool) -> bool:
    given = request.query_params.get(name)
    if given is None:
        return default
    if given.lower() not in ("true", "false", "1", "0"):
        raise InvalidRequest(f"{name} is 'true' or 'false', not '{given}'", code="invalid_value", param=name)
    return given.lower() in ("true", "1")


def _is_alias(request: Request) -> bool:
    return str(request.scope["path"]).startswith("/v1/openai/")


def _descending(order: str | None) -> bool:
    if order not in (None, "asc", "desc"):
        raise InvalidRequest(f"order is 'asc' or 'desc', not '{order}'", code="invalid_value", param="order")
    return order != "asc"


def _integer(name: str, text: str, *, least: int, most: int | None = None) -> int:
    try:
        value = int(text)
    except ValueError:
        raise InvalidRequest(f"{name} is not an integer: '{text}'", code="invalid_type", param=name) from None
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise InvalidRequest(f"{name} must be {limits}, not {value}", code="invalid_value", param=name)
    return value
