"""A model endpoint that answers at once, so that a measurement shows nothing but our own time.

    python benchmarks/upstream.py --port 9000 [--tokens 8] [--split] [--tool NAME [--arguments JSON]]

Every answer is the same text of so many tokens. With `--tool`, a request that offers tools and ends with a user message
is answered by one call of that tool. It speaks HTTP/1.1 with keep-alive, on a bare asyncio protocol.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_HEAD: dict[str, Any] = {"id": "chatcmpl-bench", "created": 0, "model": "bench"}
_SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_END = b"0\r\n\r\n"


@dataclass(frozen=True)
class Answer:
    """One prepared answer: the writes of its stream, and the reply of a request that does not stream."""

    stream: tuple[bytes, ...]
    whole: bytes


def answer(pieces: list[dict[str, Any]], message: dict[str, Any], reason: str, *, split: bool) -> Answer:
    """Prepare an answer from its deltas and from the message that they add up to."""
    usage = {"prompt_tokens": 10, "completion_tokens": len(pieces), "total_tokens": 10 + len(pieces)}
    deltas: list[tuple[dict[str, Any], str | None]] = [*((piece, None) for piece in pieces), ({}, reason)]
    choices = [{"index": 0, "delta": delta, "finish_reason": ending} for delta, ending in deltas]
    chunks = [{**_HEAD, "object": "chat.completion.chunk", "choices": [choice]} for choice in choices]
    chunks.append({**_HEAD, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    frames = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks] + [b"data: [DONE]\n\n"]
    parts = [b"%x\r\n%s\r\n" % (len(frame), frame) for frame in frames]
    writes = (_SSE, *parts, _END) if split else (_SSE + b"".join(parts) + _END,)
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    return Answer(writes, reply({**_HEAD, "object": "chat.completion", "choices": [choice], "usage": usage}))


def reply(content: dict[str, Any], status: str = "200 OK") -> bytes:
    """A whole JSON answer with its head."""
    body = json.dumps(content).encode()
    return b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        status.encode(),
        len(body),
        body,
    )


_MODELS = reply({"object": "list", "data": [{"id": "bench", "object": "model", "created": 0, "owned_by": "bench"}]})
_UNKNOWN = reply({"error": {"message": "no such path"}}, "404 Not Found")


def text_answer(tokens: int, *, split: bool) -> Answer:
    words = ["word" if place == 0 else f" word{place}" for place in range(tokens)]
    pieces = [{"role": "assistant", "content": ""}, *({"content": word} for word in words)]
    return answer(pieces, {"content": "".join(words)}, "stop", split=split)


def tool_answer(name: str, arguments: str, *, split: bool) -> Answer:
    call = {"id": "call_bench", "type": "function", "function": {"name": name, "arguments": arguments}}
    pieces = [{"role": "assistant", "content": None, "tool_calls": [{"index": 0, **call}]}]
    return answer(pieces, {"content": None, "tool_calls": [call]}, "tool_calls", split=split)


class Connection(asyncio.Protocol):
    """One client: answers the requests in its buffer one after the other."""

    def __init__(self, text: Answer, tool: Answer | None) -> None:
        self.text, self.tool = text, tool
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        for path, body in self.requests():
            for part in self.respond(path, body):
                self.transport.write(part)

    def requests(self) -> Iterator[tuple[bytes, bytes]]:
        """The whole requests received so far, as (path, body)."""
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            _, found, length = head.partition(b"\r\ncontent-length:")
            stop = end + 4 + (int(length.split(b"\r\n", 1)[0]) if found else 0)
            if len(self.buffer) < stop:
                return
            body, self.buffer = self.buffer[end + 4 : stop], self.buffer[stop:]
            yield head.split(b" ", 2)[1], body

    def respond(self, path: bytes, body: bytes) -> tuple[bytes, ...]:
        if path.endswith(b"/models"):
            return (_MODELS,)
        if not path.endswith(b"/chat/completions"):
            return (_UNKNOWN,)
        request = json.loads(body)
        calls = self.tool and request.get("tools") and request["messages"][-1]["role"] == "user"
        chosen = self.tool if calls and self.tool else self.text
        return chosen.stream if request.get("stream") else (chosen.whole,)


async def serve(port: int, text: Answer, tool: Answer | None) -> None:
    """Serve until cancelled, and say on which port (0 means any)."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(text, tool), "127.0.0.1", port, backlog=512)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=8, help="length of the text answer, one chunk per token")
    parser.add_argument("--split", action="store_true", help="one write per chunk instead of one for all")
    parser.add_argument("--tool", help="first call this tool, then answer in text")
    parser.add_argument("--arguments", default="{}", help="JSON text of the tool call's arguments")
    given = parser.parse_args()
    tool = tool_answer(given.tool, given.arguments, split=given.split) if given.tool else None
    try:
        asyncio.run(serve(given.port, text_answer(given.tokens, split=given.split), tool))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
