"""Serves the embedded model.

    python -m turnloom.local.model --port 9000 --data-dir .turnloom

Listens at once; /health says `fetching`, `loading`, and at last answers 200. TURNLOOM_GGUF names another model file:
that one gets the tools natively, and no heuristic.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from turnloom.local.model import tools
from turnloom.local.model.weights import NotFetched, weights

CONTEXT = 8192
SLOTS = 2


@dataclass
class Embedded:
    """The model in this process: `url` is its own loopback endpoint once it is loaded, `phase` what it is at."""

    folder: Path
    gguf: Path | None
    phase: str = "starting"
    failure: str | None = None
    url: str | None = None
    http: httpx2.AsyncClient = field(default_factory=lambda: httpx2.AsyncClient(timeout=600))
    server: Any = None

    @property
    def name(self) -> str:
        return self.gguf.stem.lower() if self.gguf else "smollm2-135m-instruct"

    def load(self) -> None:
        """Fetch the weights if need be, and load them; runs in a thread of its own."""
        try:
            path = self.gguf or weights(self.folder / "models", self._report)
            self._report(f"loading {path.name}")
            self.server, self.url = _serve(path)
            self.phase = "ready"
        except (NotFetched, OSError, RuntimeError) as failure:
            self.failure = str(failure)
            print(failure, file=sys.stderr, flush=True)

    def _report(self, phase: str) -> None:
        if phase != self.phase:
            self.phase = phase


def _serve(path: Path) -> tuple[Any, str]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel = CONTEXT, SLOTS
    # One core is left to everybody else: threads that wait for each other spin, and on full cores that is slower than
    # one thread alone by far (1 against 49 tokens a second, with two threads on two cores).
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = max(1, min(4, (os.cpu_count() or 2) - 1))
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.verbosity, params.ui = 0, False
    server = xllamacpp.Server(params)
    return server, server.listening_address


def application(model: Embedded) -> Starlette:
    """The OpenAI-compatible front."""

    async def health(_: Request) -> Response:
        if model.failure is not None:
            return JSONResponse({"phase": "failed", "message": model.failure}, 500)
        return JSONResponse({"phase": model.phase}, 200 if model.url else 503)

    async def models(_: Request) -> Response:
        found = {"id": model.name, "object": "model", "created": 0, "owned_by": "turnloom"}
        return JSONResponse({"object": "list", "data": [found]})

    async def completions(request: Request) -> Response:
        if model.url is None:
            error = {
                "message": f"The embedded model is not ready: {model.failure or model.phase}",
                "type": "server_error",
            }
            return JSONResponse({"error": error}, 503)
        return await _complete(model, await request.json())

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/chat/completions", completions, methods=["POST"]),
        ]
    )


async def _complete(model: Embedded, body: dict[str, Any]) -> Response:
    if model.gguf is None:
        choice = tools.choose(body["messages"], body.get("tools") or [], body.get("tool_choice"))
        arguments = await _arguments(model, body, choice) if choice else None
        if choice is not None and arguments is not None:
            return _called(body, choice.name, arguments)
        body = {
            name: value for name, value in body.items() if name not in ("tools", "tool_choice", "parallel_tool_calls")
        }
        body["messages"] = tools.plain(body["messages"])
    return await _forwarded(model, body)


async def _arguments(model: Embedded, body: dict[str, Any], choice: tools.Choice) -> dict[str, Any] | None:
    if choice.complete:
        return choice.found
    asked = {
        "messages": tools.argument_messages(tools.text_of(body["messages"][-1]), choice),
        "response_format": {"type": "json_schema", "json_schema": {"name": "arguments", "schema": choice.schema}},
        "temperature": 0,
        "max_tokens": 128,
    }
    answer = await model.http.post(f"{model.url}/v1/chat/completions", json=asked)
    if answer.status_code != 200:
        return None
    written = tools.valid(answer.json()["choices"][0]["message"]["content"], choice.schema)
    return None if written is None else {**written, **choice.found}


def _called(body: dict[str, Any], name: str, arguments: dict[str, Any]) -> Response:
    """One tool call as an answer of its own, streamed or whole."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    call = {"index": 0, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
    head = {"id": f"chatcmpl-{uuid.uuid4().hex[:24]}", "created": 0, "model": body.get("model")}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    if not body.get("stream"):
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
    chunks: list[Any] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "tool_calls": [call]}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    ]
    lines = [f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', **chunk})}\n\n" for chunk in chunks]
    return Response("".join([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")


async def _forwarded(model: Embedded, body: dict[str, Any]) -> Response:
    """The model's own answer, passed on as it comes."""
    request = model.http.build_request("POST", f"{model.url}/v1/chat/completions", json=body)
    answer = await model.http.send(request, stream=True)
    return StreamingResponse(_parts(answer), answer.status_code, media_type=answer.headers.get("content-type"))


async def _parts(answer: httpx2.Response) -> AsyncIterator[bytes]:
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        # Also when the reader has gone: the model stops writing for nobody.
        await asyncio.shield(answer.aclose())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    given = parser.parse_args()
    own = os.environ.get("TURNLOOM_GGUF")
    model = Embedded(given.data_dir, Path(own) if own else None)
    threading.Thread(target=model.load, daemon=True).start()
    uvicorn.run(
        application(model),
        host="127.0.0.1",
        port=given.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    # The model's threads know no end of their own.
    os._exit(0)


if __name__ == "__main__":
    main()
