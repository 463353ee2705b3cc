"""The FastAPI application of one function: its routes, and around them what every answer of its API has.

One envelope for every failure, a trace id on every answer, a limit on the bytes of a request.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from turnloom.domain.errors import (
    InvalidRequest,
    NotFound,
    Problem,
    ServerFault,
    StoreUnavailable,
    TooLarge,
    Unauthenticated,
)
from turnloom.usecases.authorization import ANYONE
from turnloom.usecases.callers import Caller
from turnloom.usecases.services import Services
from turnloom.usecases.trail import begin, mark_of, note
from turnloom.wire.authorizer import REFUSAL
from turnloom.wire.body import MAX_BODY_BYTES, decode_body, json_object
from turnloom.wire.json_text import JSONAnswer
from turnloom.wire.problems import agents_envelope, headers_of, status_of

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5
"""How long a client is asked to wait for a store that is unavailable."""

Envelope = Callable[[Request, Problem], JSONAnswer]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of an API: `function` is the folder in functions/ that serves it."""

    function: str
    method: str
    path: str
    endpoint: Callable[..., Awaitable[Any]]


def application(
    function: str, routes: Iterable[Route], services: Callable[[], Services], envelope: Envelope
) -> FastAPI:
    """The app of one function, holding its routes alone. `services` is called once a request needs them."""
    app = FastAPI(
        openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, default_response_class=JSONAnswer
    )
    app.state.services = services
    app.state.open = _open(os.environ)
    app.state.adapted = "AWS_LWA_PORT" in os.environ
    for route in routes:
        if route.function == function:
            app.router.add_api_route(
                route.path,
                route.endpoint,
                methods=[route.method],
                response_model=None,
                route_class_override=StrictRoute,
            )

    async def failed(request: Request, failure: Exception) -> Response:
        return envelope(request, _as_problem(request, failure))

    for kind in (Problem, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, failed)
    app.add_middleware(Edge, answer=envelope)
    share(app, os.environ.get("TURNLOOM_CORS_ORIGINS", ""))
    return app


def _open(env: Mapping[str, str]) -> bool:
    """Whether requests need no owner: where that is asked for, and on a laptop that says nothing of it."""
    return env.get("TURNLOOM_AUTH", "" if "TURNLOOM_TABLES_PREFIX" in env else "none") == "none"


def share(app: Starlette, origins: str) -> None:
    """Lets web pages of these origins read what the app answers: a list with commas, `*` for all, empty for none.

    In the cloud API Gateway answers the preflights. Cookies are not in use and not asked for.
    """
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[origin.strip().rstrip("/") for origin in origins.split(",")],
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["*"],
            max_age=7200,
        )


async def services_of(request: Request) -> Services:
    found: Services = request.app.state.services()
    return found


Home = Annotated[Services, Depends(services_of)]


async def owner_of(request: Request, services: Home) -> str:
    """The authenticated caller, as the authorizer names it; `default` where no credential is asked for.

    Raises Unauthenticated where one is and the authorizer named nobody, or the credential has expired since.
    """
    found = _context(request).get("authorizer") or {}
    owner = found.get("owner") or (ANYONE if request.app.state.open else None)
    # The gateway keeps the authorizer's answer for a while, which may be longer than a credential is good for.
    expired = "expires" in found and services.clock.now() >= int(found["expires"]) * 1_000_000
    if owner is None or expired:
        raise Unauthenticated(REFUSAL)
    note(owner=mark_of(str(owner)))
    return str(owner)


def _context(request: Request) -> Mapping[str, Any]:
    """What API Gateway and its authorizer say of the request, as Mangum hands it on, or Lambda Web Adapter.

    The adapter writes its header over any that a client sent. Where it does not run a client's would come through, so
    there it is not read. Its functions have a handler for Mangum as well.
    """
    context: Mapping[str, Any] = {}
    if "aws.event" in request.scope:
        context = request.scope["aws.event"].get("requestContext", {})
    elif request.app.state.adapted:
        # Written in UTF-8, which headers are not read as.
        context = json.loads(request.headers.get("x-amzn-request-context", "{}").encode("latin-1"))
    return context


Owner = Annotated[str, Depends(owner_of)]


def caller_of(request: Request, owner: str) -> Caller:
    """The caller with the secrets of `X-LlamaStack-Provider-Data`; these are never logged and never in a turn's log."""
    given = request.headers.get("x-llamastack-provider-data")
    if not given:
        return Caller(owner)
    data = json_object(given.encode(), "The header X-LlamaStack-Provider-Data")
    headers = data.get("mcp_headers") or {}
    if not isinstance(headers, dict) or not all(_are_headers(given) for given in headers.values()):
        raise InvalidRequest("mcp_headers in X-LlamaStack-Provider-Data maps addresses to objects of header texts")
    return Caller(owner, headers, data)


def _are_headers(given: object) -> bool:
    return isinstance(given, dict) and all(isinstance(value, str) for value in given.values())


def envelope(_request: Request, problem: Problem) -> JSONAnswer:
    """A failure as the Agents API and its neighbours tell it."""
    body = agents_envelope(problem.code, problem.message, problem.extra, param=problem.param)
    return JSONAnswer(body, status_of(problem.code), headers_of(problem))


class StrictRequest(Request):
    """A request whose body is decoded, and whose JSON can be stored and sent on.

    Reading it raises InvalidBody, UnsupportedEncoding or TooLarge.
    """

    _decoded: bytes | None = None

    async def body(self) -> bytes:
        if self._decoded is None:
            try:
                self._decoded = decode_body(await super().body(), self.headers.get("content-encoding", ""))
            except InvalidRequest as problem:
                raise InvalidBody(problem.message) from None
        return self._decoded

    async def json(self) -> Any:
        try:
            return json_object(await self.body())
        except InvalidRequest as problem:
            raise InvalidBody(problem.message) from None


class StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strictly


class InvalidBody(InvalidRequest):
    """A body that is no JSON object."""

    def __init__(self, message: str) -> None:
        errors = [{"loc": ["body"], "msg": message, "type": "json_invalid"}]
        super().__init__(message, extra={"detail": {"errors": errors}})


class InvalidFields(InvalidRequest):
    """A request that does not fit its model; `errors` are pydantic's, with `loc`, `msg` and `type` each."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        first = errors[0]
        place = ".".join(str(part) for part in first["loc"])
        super().__init__(f"{place}: {first['msg']}", extra={"detail": {"errors": errors}})


class Edge:
    """ASGI middleware: ids on every answer, a log line of it, and 413 for a body over the limit, however it is sent."""

    def __init__(self, app: ASGIApp, answer: Envelope) -> None:
        self._app = app
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace, since = uuid.uuid4().hex, time.monotonic()
        begin(request_id=f"req_{trace}", **_gateway_ids(Request(scope)))
        status = 0

        async def send_with_ids(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-trace-id"] = trace
                headers["x-request-id"] = f"req_{trace}"
            await send(message)

        try:
            await self._app(scope, _limited(receive), send_with_ids)
        except ClientDisconnect:
            return
        except Exception as failure:
            # Answered here and not raised on: the server would close a connection that the client means to use again.
            if status:
                raise
            request = Request(scope)
            await self._answer(request, _as_problem(request, failure))(scope, receive, send_with_ids)
        finally:
            _log(scope, status, time.monotonic() - since)


def _gateway_ids(request: Request) -> dict[str, str]:
    """The id that API Gateway's access log has for the request, if it came from there."""
    found = _context(request).get("requestId")
    return {"gateway_request_id": str(found)} if found else {}


def _log(scope: Scope, status: int, seconds: float) -> None:
    """A line for the request: what was asked for by ids alone, and how that went; status 0 is a client that left."""
    route = getattr(scope.get("route"), "path", None)
    found = {name: str(value)[:100] for name, value in scope.get("path_params", {}).items()}
    timed = {"status": status, "milliseconds": round(seconds * 1000)}
    logger.info("request", extra={"method": scope["method"], "route": route, **found, **timed})


def _limited(receive: Receive) -> Receive:
    taken = 0

    async def receive_within_limit() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MAX_BODY_BYTES:
            raise TooLarge(f"The request body is larger than {MAX_BODY_BYTES} bytes")
        return message

    return receive_within_limit


def _as_problem(request: Request, failure: Exception) -> Problem:
    match failure:
        case Problem():
            return failure
        case RequestValidationError(body=bytes() as body):
            return _unread(body)
        case RequestValidationError():
            return InvalidFields([{"loc": e["loc"], "msg": e["msg"], "type": e["type"]} for e in failure.errors()])
        case HTTPException(__cause__=Problem() as cause):
            # FastAPI hides in a 400 of its own whatever goes wrong while it reads a body.
            return cause
        case HTTPException(status_code=404):
            return NotFound("route", f"{request.method} {request.url.path}")
        case HTTPException(status_code=405):
            return NotFound("route", f"{request.method} {request.url.path}")
        case HTTPException():
            return InvalidRequest(str(failure.detail))
        case StoreUnavailable():
            logger.warning("the store is unavailable: %s", failure)
            return ServerFault(failure.message, code=failure.code, extra={"retry_after": RETRY_SECONDS})
    logger.error("a request broke down", exc_info=failure)
    return ServerFault("The request failed because of an internal error.")


def _unread(body: bytes) -> Problem:
    """Why FastAPI took a body for bytes: its type is not said to be JSON, which is of no interest if it is none.

    The type is insisted on because web pages may send every other to any site without its leave.
    """
    try:
        json_object(body)
    except InvalidRequest as problem:
        return InvalidBody(problem.message)
    return InvalidBody("The body of the request must be sent as 'content-type: application/json'.")
