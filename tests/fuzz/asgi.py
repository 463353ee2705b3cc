"""An ASGI application called with any bytes, where HTTP clients and servers would put them right."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Message

SECONDS = 20
"""How long an answer may take before it counts as none."""


@dataclass(frozen=True)
class Request:
    """A request by its parts; without `complete` the client leaves before it has sent all of the body."""

    method: str
    path: str
    query: str = ""
    headers: Sequence[tuple[str, str]] = ()
    chunks: Sequence[bytes] = ()
    complete: bool = True

    def about(self, ids: Mapping[str, str]) -> Request:
        """The request with `<name>` replaced by the id of that name."""
        path, query, chunks = self.path, self.query, list(self.chunks)
        for name, identifier in ids.items():
            path, query = (text.replace(f"<{name}>", identifier) for text in (path, query))
            chunks = [chunk.replace(f"<{name}>".encode(), identifier.encode()) for chunk in chunks]
        return replace(self, path=path, query=query, chunks=chunks)

    def scope(self) -> dict[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": unquote(self.path),
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": self.query.encode("latin-1", "replace"),
            "headers": [(b"host", b"127.0.0.1"), *((n.lower().encode(), v.encode("utf-8")) for n, v in self.headers)],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


async def call(app: ASGIApp, request: Request) -> Answer:
    """The whole answer. Raises what the application raises, and TimeoutError."""
    answer, over = Answer(), asyncio.Event()
    ahead = list(request.chunks) or [b""]

    async def receive() -> Message:
        if ahead:
            chunk = ahead.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(ahead) or not request.complete}
        if request.complete:
            await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode("latin-1") for name, value in message["headers"]}
        else:
            answer.body += message.get("body", b"")
            if not message.get("more_body"):
                over.set()

    async with asyncio.timeout(SECONDS):
        await app(request.scope(), receive, send)
    return answer
