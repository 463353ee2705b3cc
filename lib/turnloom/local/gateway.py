"""The laptop's API Gateway: the routes of template.yaml, each served by the app of its own function.

    python -m turnloom.local.gateway --host 127.0.0.1 --port 8321

What template.yaml does not route is missing here too. The gateway also keeps the schedule of the sweeper.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from turnloom.local.template import Function, functions, load
from turnloom.wire.problems import agents_envelope, responses_envelope

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 5.0
"""Sooner than in the cloud, where a sweep costs a little: here someone sits and waits."""


def gateway() -> Starlette:
    """The application with every route of the template."""
    found = functions()
    app = Starlette(routes=list(_routes(found)), lifespan=_lifespan)
    app.add_exception_handler(404, _no_route)
    app.add_exception_handler(405, _no_route)
    return app


def _routes(found: list[Function]) -> Iterator[Route]:
    routed = ((method, path, function) for function in found for method, path in function.routes)
    loaded: dict[str, Any] = {}
    # A greedy path matches what others match too, so it comes after all of these.
    for method, path, function in sorted(routed, key=lambda route: ("+}" in route[1], route[1].count("{"))):
        if function.folder not in loaded:
            loaded[function.folder] = load(function.folder).app
        yield Route(path.replace("+}", ":path}"), loaded[function.folder], methods=[method])


async def _no_route(request: Any, _failure: Exception) -> JSONResponse:
    path, trace = request.url.path, uuid.uuid4().hex
    message = f"Route '{request.method} {path}' not found"
    alias = path.startswith("/v1/openai/")
    told = responses_envelope("route_not_found", message, None, alias=alias)
    if path.startswith(("/v1/responses", "/v1/openai/v1/responses", "/v1/conversations")):
        body = told
    else:
        # Whose client asks cannot be seen from a path that is nobody's: both find what they look for.
        body = agents_envelope("route_not_found", message)
        body["error"] = {**told["error"], **body["error"]}
    return JSONResponse(body, 404, {"x-trace-id": trace, "x-request-id": f"req_{trace}"})


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
            await asyncio.to_thread(handler, {}, None)
        except Exception:
            logger.exception("the sweeper failed; it tries again")
        await asyncio.sleep(SWEEP_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8321)
    given = parser.parse_args()
    # Streams that nobody ends must not keep a Ctrl-C waiting: their turns go on when the laptop is up again.
    uvicorn.run(
        gateway(),
        host=given.host,
        port=given.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
    )


if __name__ == "__main__":
    main()
