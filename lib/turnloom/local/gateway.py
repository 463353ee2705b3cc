"""The laptop's API Gateway: the routes of template.yaml, each served by the app of its own function.

    python -m turnloom.local.gateway --host 127.0.0.1 --port 8321 --part engine=http://127.0.0.1:8322/health

What template.yaml does not route is missing here too. With TURNLOOM_AUTH set, the authorizer of template.yaml is asked
before each, and nothing it says is kept. The gateway also keeps the schedule of the sweeper.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from turnloom.adapters.stepfunctions import stepfunctions_client
from turnloom.adapters.threads import Threads
from turnloom.local.hosts import is_loopback, is_own_name
from turnloom.local.libraries import import_libraries
from turnloom.local.protocol import BoundedProtocol
from turnloom.local.request_log import RequestLog, log_to_terminal
from turnloom.local.template import ACCOUNT, REGION, Function, authorizer, functions, load
from turnloom.usecases.trail import trail
from turnloom.wire.app import share
from turnloom.wire.authorizer import REFUSAL, RETRY_AFTER, UNAVAILABLE, Unavailable
from turnloom.wire.problems import agents_envelope, responses_envelope, status_of

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 5.0
"""Sooner than in the cloud, where a sweep costs a little: here someone sits and waits."""

_authorizers, _sweeper = Threads("authorizer", 64), Threads("sweeper", 1)
"""Tokens of unknown keys may wait for their issuer, each in a thread, and others must not wait for them."""


def gateway() -> Starlette:
    """The application with every route of the template."""
    found = functions()
    app = Starlette(routes=list(_routes(found)), lifespan=_lifespan)
    # As in the cloud, where another spelling of a path is another path.
    app.router.redirect_slashes = False
    app.add_exception_handler(404, _no_route)
    app.add_exception_handler(405, _no_route)
    # Once more than by the functions, which are not asked for a preflight.
    share(app, os.environ.get("TURNLOOM_CORS_ORIGINS", ""))
    return app


def _routes(found: list[Function]) -> Iterator[Route]:
    routed = ((method, path, function) for function in found for method, path in function.routes)
    authorize = load(authorizer().folder).handler if "TURNLOOM_AUTH" in os.environ else None
    loaded: dict[str, Any] = {}
    # A greedy path matches what others match too, so it comes after all of these.
    for method, path, function in sorted(routed, key=lambda route: ("+}" in route[1], route[1].count("{"))):
        if function.folder not in loaded:
            loaded[function.folder] = load(function.folder).app
        app = loaded[function.folder]
        guarded = authorize is not None and (method, path) not in function.open
        yield Route(path.replace("+}", ":path}"), Guarded(app, authorize) if guarded else app, methods=[method])


_OTHER_HOST = "This server answers to names of this machine alone; with TURNLOOM_AUTH=keys it answers to any."
_OTHER_ORIGIN = "Web pages of other origins may use this server if TURNLOOM_CORS_ORIGINS names them."


class LocalNames:
    """Refuses requests to and from any name that is not this machine's own, where nobody needs a credential.

    A web page whose name is made to mean 127.0.0.1 (DNS rebinding) is of the same origin as that name, so that it may
    read answers. What it cannot choose is the name that the browser sends. A page of another origin reads nothing, but
    it may send simple requests, with its `Origin`; those of `origins` are let through.
    """

    def __init__(self, app: ASGIApp, origins: str = "") -> None:
        self._app = app
        self._origins = {origin.strip().rstrip("/") for origin in origins.split(",")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http":
            headers = Request(scope).headers
            if not is_own_name(headers.get("host", "")):
                app = _refusal(Request(scope), "unknown_host", _OTHER_HOST)
            elif not self._is_known_origin(headers.get("origin", "")):
                app = _refusal(Request(scope), "unknown_origin", _OTHER_ORIGIN)
        await app(scope, receive, send)

    def _is_known_origin(self, origin: str) -> bool:
        if {origin, "*"} & self._origins:
            return True
        return not origin or is_own_name(origin.partition("://")[2] or origin)


class Readiness:
    """Answers /v1/health with 503 as long as another part of the laptop is not up; `parts` are their health routes."""

    def __init__(self, app: ASGIApp, parts: Mapping[str, str]) -> None:
        self._app = app
        self._parts = parts
        self._client = httpx2.AsyncClient(timeout=1, trust_env=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["path"] == "/v1/health" and (part := await self._missing()):
            app = _refusal(
                Request(scope), "not_ready", f"The {part} of this laptop is not up yet.", {"retry-after": "1"}
            )
        await app(scope, receive, send)

    async def _missing(self) -> str | None:
        """The name of a part that is not up."""
        for name, health in self._parts.items():
            try:
                up = (await self._client.get(health)).is_success
            except httpx2.TransportError:
                up = False
            if not up:
                return name
        return None


class Guarded:
    """A function's app behind the authorizer, whose answer comes to it as it does from API Gateway."""

    def __init__(self, app: ASGIApp, authorize: Any) -> None:
        self._app = app
        self._authorize = authorize

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        try:
            policy = await _authorizers.run(self._authorize, _question(request), None)
        except Exception as failure:
            await _not_authorized(request, failure)(scope, receive, send)
            return
        context = {"authorizer": policy["context"]}
        await self._app({**scope, "aws.event": {"requestContext": context}}, receive, send)


def _question(request: Request) -> dict[str, Any]:
    """The event of a REQUEST authorizer, as far as ours reads it."""
    arn = f"arn:aws:execute-api:{REGION}:{ACCOUNT}:laptop/live/{request.method}{request.url.path}"
    headers = {name: request.headers.getlist(name) for name in request.headers}
    return {"type": "REQUEST", "methodArn": arn, "multiValueHeaders": headers}


def _not_authorized(request: Request, failure: Exception) -> JSONResponse:
    """What API Gateway makes of an authorizer that fails: it takes this one text for a refusal.

    Our gateway responses make a 503 of all else, since API Gateway does not say why it failed.
    """
    if str(failure) == "Unauthorized":
        return _refusal(request, "unauthenticated", REFUSAL, {"www-authenticate": "Bearer"})
    if not isinstance(failure, Unavailable):
        logger.error("the authorizer failed", exc_info=failure)
    return _refusal(request, "authorizer_unavailable", UNAVAILABLE, {"retry-after": str(RETRY_AFTER)})


async def _no_route(request: Request, _failure: Exception) -> JSONResponse:
    return _refusal(request, "route_not_found", f"Route '{request.method} {request.url.path}' not found")


def _refusal(request: Request, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    path, trace = request.url.path, uuid.uuid4().hex
    alias = path.startswith("/v1/openai/")
    told = responses_envelope(code, message, None, alias=alias)
    if path.startswith(("/v1/responses", "/v1/openai/v1/responses", "/v1/conversations")):
        body = told
    else:
        # Whose client asks cannot be seen from other paths: both find what they look for.
        body = agents_envelope(code, message)
        body["error"] = {**told["error"], **body["error"]}
    return JSONResponse(body, status_of(code), {"x-trace-id": trace, "x-request-id": f"req_{trace}", **(headers or {})})


@asynccontextmanager
async def _lifespan(_app: Starlette) -> AsyncIterator[None]:
    sweeper = next(function for function in functions() if function.schedule)
    sweeping = asyncio.create_task(_sweep(load(sweeper.folder).handler))
    yield
    sweeping.cancel()
    with suppress(asyncio.CancelledError):
        await sweeping


async def _sweep(handler: Any) -> None:
    while True:
        try:
            await _sweeper.run(handler, {}, None)
        except Exception:
            logger.exception("the sweeper failed; it tries again")
        await asyncio.sleep(SWEEP_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8321)
    parser.add_argument("--part", action="append", default=[], metavar="NAME=URL", help="another part and its health")
    given = parser.parse_args()
    app = gateway()
    app.add_middleware(Readiness, parts=dict(part.split("=", 1) for part in given.part))
    if is_loopback(given.host) and os.environ.get("TURNLOOM_AUTH", "none") == "none":
        app.add_middleware(LocalNames, origins=os.environ.get("TURNLOOM_CORS_ORIGINS", ""))
    app.add_middleware(RequestLog)
    log_to_terminal(trail)
    import_libraries()
    # boto3 keeps the description of the service for the client that is made later.
    stepfunctions_client(REGION)
    # Streams that nobody ends must not keep a Ctrl-C waiting: their turns go on when the laptop is up again.
    uvicorn.run(
        app,
        host=given.host,
        port=given.port,
        http=BoundedProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
    )


if __name__ == "__main__":
    main()
