"""A model endpoint that misbehaves, in a process of its own so that its memory and time are not those of the tests.

with HostileServer("tests.hostile_upstream") as server:
    OpenAIModel(server.url("silent", "v1"), "key")

Every path below a behaviour's name is answered in the same way, the list of models too.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from tests.hostile_mcp import answer, bomb, drip, flood, head, run

_BLOCK = 65_536
_BLOCKS = 200 * 16
"""Of a body of 200 MB."""


@dataclass(frozen=True)
class Request:
    """A request: its path, the API key that came with it, and the port at which it came."""

    path: str
    key: str
    port: str


Behaviour = Callable[[Request], AsyncIterator[bytes]]
HOSTILE: dict[str, Behaviour] = {}
EVENTS = head("text/event-stream")


def hostile(behaviour: Behaviour) -> Behaviour:
    HOSTILE[behaviour.__name__] = behaviour
    return behaviour


# --- answers


def chunk(reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def event(document: Any) -> bytes:
    return b"data: " + (document if isinstance(document, bytes) else json.dumps(document).encode()) + b"\n\n"


def stream(*documents: Any, reason: str = "stop") -> bytes:
    """A whole answer of these chunks."""
    return EVENTS + b"".join(map(event, (*documents, chunk(reason)))) + b"data: [DONE]\n\n"


def call(arguments: str, index: Any = 0, name: str = "get_weather", identifier: str = "call_1") -> dict[str, Any]:
    return {"index": index, "id": identifier, "function": {"name": name, "arguments": arguments}}


def calls(*fragments: Any) -> bytes:
    return stream(chunk(tool_calls=list(fragments)), reason="tool_calls")


async def huge(start: bytes) -> AsyncIterator[bytes]:
    yield start
    for _ in range(_BLOCKS):
        yield b"x" * _BLOCK


async def endless(document: Any, *first: Any) -> AsyncIterator[bytes]:
    yield EVENTS + b"".join(map(event, first))
    async for block in flood(event(document)):
        yield block


# --- compressed


@hostile
async def compressed_stream(request: Request) -> AsyncIterator[bytes]:
    yield head("text/event-stream", 200, "content-encoding: gzip") + bomb()


@hostile
async def compressed_stream_twice(request: Request) -> AsyncIterator[bytes]:
    yield head("text/event-stream", 200, "content-encoding: gzip, gzip") + gzip.compress(bomb())


@hostile
async def compressed_answer(request: Request) -> AsyncIterator[bytes]:
    yield answer(bomb(), 200, "content-encoding: gzip")


@hostile
async def compressed_answer_twice(request: Request) -> AsyncIterator[bytes]:
    yield answer(gzip.compress(bomb()), 200, "content-encoding: gzip", "content-encoding: gzip")


@hostile
async def compressed_error(request: Request) -> AsyncIterator[bytes]:
    yield answer(bomb(), 400, "content-encoding: gzip")


@hostile
async def compressed_error_twice(request: Request) -> AsyncIterator[bytes]:
    yield answer(gzip.compress(bomb()), 500, "content-encoding: gzip, gzip")


# --- huge


@hostile
def huge_answer(request: Request) -> AsyncIterator[bytes]:
    return huge(head() + b'{"choices":[{"index":0,"message":{"content":"')


@hostile
def huge_listing(request: Request) -> AsyncIterator[bytes]:
    return huge(head() + b'{"object":"list","data":[{"id":"')


@hostile
def huge_error(request: Request) -> AsyncIterator[bytes]:
    return huge(head("application/json", 400) + b'{"error":{"message":"')


@hostile
def huge_line(request: Request) -> AsyncIterator[bytes]:
    return huge(EVENTS + b'data: {"choices":[{"index":0,"delta":{"content":"')


@hostile
async def huge_header(request: Request) -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nx-header: "
    async for block in flood(b"x"):
        yield block


@hostile
async def endless_headers(request: Request) -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    async for block in flood(b"x-header: and another\r\n"):
        yield block


@hostile
async def wide_event(request: Request) -> AsyncIterator[bytes]:
    yield EVENTS + event(b'{"choices":[' + b"[]," * 5_000_000 + b"[]]}")


@hostile
async def wide_answer(request: Request) -> AsyncIterator[bytes]:
    yield answer(b'{"choices":[],"data":[' + (b"[" * 500 + b"]" * 500 + b",") * 3_500 + b"[]]}")


@hostile
async def many_keys(request: Request) -> AsyncIterator[bytes]:
    yield stream(chunk(content="Hi", extra={str(number): 0 for number in range(300_000)}))


@hostile
async def many_errors(request: Request) -> AsyncIterator[bytes]:
    yield answer(b"[" + b"{}," * 20_000 + b"{}]", 400)


@hostile
async def huge_number(request: Request) -> AsyncIterator[bytes]:
    yield stream({**chunk(content="Hi"), "usage": {"prompt_tokens": "9" * 1_000_000}}, chunk(content="Hi", extra=1e308))


@hostile
async def huge_figure(request: Request) -> AsyncIterator[bytes]:
    yield answer(b'{"choices":[],"data":[{"id":"m","created":' + b"9" * 4_000 + b"}]}")


# --- without an end


@hostile
async def endless_comments(request: Request) -> AsyncIterator[bytes]:
    yield EVENTS
    async for block in flood(b": ping\n\n"):
        yield block


@hostile
async def dripping_comments(request: Request) -> AsyncIterator[bytes]:
    yield EVENTS
    async for block in drip(b": ping\n\n"):
        yield block


@hostile
def endless_empty_deltas(request: Request) -> AsyncIterator[bytes]:
    return endless(chunk(content=""))


@hostile
def endless_roles(request: Request) -> AsyncIterator[bytes]:
    return endless(chunk(role="assistant"))


@hostile
def endless_empty_calls(request: Request) -> AsyncIterator[bytes]:
    fragment = {"index": 0, "function": {"arguments": ""}}
    return endless(chunk(tool_calls=[fragment]), chunk(tool_calls=[call("{")]))


@hostile
def endless_usage(request: Request) -> AsyncIterator[bytes]:
    return endless({"choices": [], "usage": {"prompt_tokens": 1}}, chunk(content="Hi"))


@hostile
def endless_text(request: Request) -> AsyncIterator[bytes]:
    return endless(chunk(content="text " * 10_000))


@hostile
def endless_reasoning(request: Request) -> AsyncIterator[bytes]:
    return endless(chunk(reasoning_content="text " * 10_000))


@hostile
def endless_arguments(request: Request) -> AsyncIterator[bytes]:
    fragment = {"index": 0, "function": {"arguments": "[" * 50_000}}
    return endless(chunk(tool_calls=[fragment]), chunk(tool_calls=[call("")]))


@hostile
def endless_logprobs(request: Request) -> AsyncIterator[bytes]:
    entries = [{"token": "x", "logprob": 0, "bytes": [1], "top_logprobs": []}] * 1_000
    document = chunk(content="x")
    document["choices"][0]["logprobs"] = {"content": entries}
    return endless(document)


@hostile
async def endless_keys(request: Request) -> AsyncIterator[bytes]:
    yield EVENTS
    for number in range(100_000):
        yield event(chunk(**{f"{number}{'x' * 10_000}": 1}))


@hostile
async def endless_names(request: Request) -> AsyncIterator[bytes]:
    yield EVENTS
    for number in range(1_000):
        name = f"f{number}" + "x" * 1_000_000
        yield event(chunk(tool_calls=[call("{}", index=number, name=name, identifier=f"call_{number}")]))


@hostile
async def single_byte_chunks(request: Request) -> AsyncIterator[bytes]:
    yield head("text/event-stream", 200, "transfer-encoding: chunked")
    async for block in flood(b"1\r\n:\r\n"):
        yield block


# --- silence


@hostile
async def silent(request: Request) -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


@hostile
async def silent_after_headers(request: Request) -> AsyncIterator[bytes]:
    yield EVENTS
    await asyncio.Event().wait()


@hostile
async def silent_in_the_middle(request: Request) -> AsyncIterator[bytes]:
    yield EVENTS + event(chunk(content="Hi"))
    await asyncio.Event().wait()


@hostile
async def dripping_answer(request: Request) -> AsyncIterator[bytes]:
    yield head()
    async for block in drip(b" "):
        yield block


@hostile
async def dripping_line(request: Request) -> AsyncIterator[bytes]:
    yield EVENTS + event(chunk(content="Hi")) + b"data: "
    async for block in drip(b"x"):
        yield block


@hostile
async def dripping_error(request: Request) -> AsyncIterator[bytes]:
    yield head("application/json", 400)
    async for block in drip(b"x"):
        yield block


@hostile
async def dripping_headers(request: Request) -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    async for block in drip(b"x-header: and another\r\n"):
        yield block


# --- odd documents


@hostile
async def half_surrogates(request: Request) -> AsyncIterator[bytes]:
    reasoning = {"reasoning_content": "half \ud800"}
    yield stream(
        chunk(**reasoning, refusal="half \udfff"), chunk(content="half \ud800"), chunk(content="x", extra="\ud800")
    )


@hostile
async def half_surrogates_in_a_call(request: Request) -> AsyncIterator[bytes]:
    arguments = r'{"city": "half \ud800", "\udfff": "' + '\ud800"}'
    yield calls(call(arguments, identifier="call \ud800"))


@hostile
async def half_surrogates_in_a_name(request: Request) -> AsyncIterator[bytes]:
    yield calls(call("{}", name="get \ud800", identifier="call \udfff"))


@hostile
async def half_surrogates_in_an_error(request: Request) -> AsyncIterator[bytes]:
    yield answer({"error": {"message": "half \ud800", "code": "half_\ud800"}}, 400)


@hostile
async def half_surrogates_in_a_listing(request: Request) -> AsyncIterator[bytes]:
    yield answer({"data": [{"id": "half \ud800", "owned_by": "\udfff"}], **chunk(content="Hi", reason="\ud800")})


@hostile
async def half_surrogates_in_an_event_error(request: Request) -> AsyncIterator[bytes]:
    yield stream(chunk(content="Hi"), {"error": {"message": "half \ud800"}})


@hostile
async def deep_chunk(request: Request) -> AsyncIterator[bytes]:
    yield stream(b'{"choices":' + b"[" * 10_000 + b"]" * 10_000 + b"}")


@hostile
async def deep_extra(request: Request) -> AsyncIterator[bytes]:
    """As deep as JSON is read, and deeper than it can be written again or stored."""
    yield stream(b'{"choices":[{"index":0,"delta":{"content":"Hi","extra":' + b"[" * 900 + b"]" * 900 + b"}}]}")


@hostile
async def deep_arguments(request: Request) -> AsyncIterator[bytes]:
    yield calls(call('{"city":' + "[" * 10_000 + "]" * 10_000 + "}"))


@hostile
async def rather_deep_arguments(request: Request) -> AsyncIterator[bytes]:
    yield calls(call('{"city":' + "[" * 900 + "]" * 900 + "}"))


@hostile
async def deep_error(request: Request) -> AsyncIterator[bytes]:
    yield answer(b'{"error":' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400)


@hostile
async def rather_deep_error(request: Request) -> AsyncIterator[bytes]:
    yield answer(b'{"error":{"message":' + b"[" * 900 + b"]" * 900 + b"}}", 400)


@hostile
async def odd_error(request: Request) -> AsyncIterator[bytes]:
    yield answer({"error": {"message": 5, "code": ["x"], "type": {}, "details": 5, "status": True}}, 429)


@hostile
async def refusal_of_everything(request: Request) -> AsyncIterator[bytes]:
    """Words at which the patterns that read refusals try as much as they can."""
    words = "model system role user one max_tokens unsupported response_format prompt exceeds tool_call_id invalid "
    yield answer({"error": {"message": words * 600, "code": words * 20}}, 400)


@hostile
async def many_calls(request: Request) -> AsyncIterator[bytes]:
    yield calls(*(call("{}", index=number, identifier=f"call_{number}") for number in range(100_000)))


@hostile
async def odd_indexes(request: Request) -> AsyncIterator[bytes]:
    indexes = (10**9, -1, "first", 1.5, True, None)
    yield calls(*(call("{}", index, identifier=f"call_{number}") for number, index in enumerate(indexes)))


@hostile
async def index_that_is_no_key(request: Request) -> AsyncIterator[bytes]:
    yield calls(call("{}", index=[]), call("{}", index={}))


@hostile
async def odd_numbers(request: Request) -> AsyncIterator[bytes]:
    document = chunk(content="Hi", extra=float("nan"))
    document["choices"][0]["logprobs"] = {"content": [{"token": "Hi", "logprob": float("-inf")}]}
    yield stream({**document, "usage": {"prompt_tokens": float("nan"), "completion_tokens": float("inf")}})


@hostile
async def odd_logprobs(request: Request) -> AsyncIterator[bytes]:
    document = chunk(content="Hi")
    entries = [
        "Hi",
        5,
        {},
        {"token": 5, "logprob": "x"},
        {"token": "Hi", "logprob": 0, "bytes": "x", "top_logprobs": 5},
    ]
    document["choices"][0]["logprobs"] = {"content": entries}
    yield stream(document)


@hostile
async def logprobs_that_are_no_list(request: Request) -> AsyncIterator[bytes]:
    document = chunk(content="Hi")
    document["choices"][0]["logprobs"] = {"content": {"token": "Hi"}}
    yield stream(document)


@hostile
async def odd_numbers_in_arguments(request: Request) -> AsyncIterator[bytes]:
    yield calls(call('{"city": NaN, "size": -Infinity, "count": 1e999, "number": ' + "9" * 5_000 + "}"))


@hostile
async def no_numbers_in_arguments(request: Request) -> AsyncIterator[bytes]:
    yield calls(call('{"city": NaN}'), call('{"city": 1e999}', index=1, identifier="call_2"))


@hostile
async def odd_numbers_in_a_listing(request: Request) -> AsyncIterator[bytes]:
    models = [{"id": "m", "created": float("nan")}, {"id": 5, "created": "x", "owned_by": []}]
    yield answer({"data": models, "choices": [{"message": {"content": float("inf")}, "finish_reason": "stop"}]})


@hostile
async def invalid_utf8(request: Request) -> AsyncIterator[bytes]:
    yield stream(b'{"choices":[{"index":0,"delta":{"content":"\xff\xfe\xed\xa0\x80"}}]}')


@hostile
async def invalid_utf8_in_an_answer(request: Request) -> AsyncIterator[bytes]:
    yield answer(b'{"data":[{"id":"\xff"}],"choices":[{"message":{"content":"\xed\xa0\x80"},"finish_reason":"stop"}]}')


@hostile
async def invalid_utf8_in_an_error(request: Request) -> AsyncIterator[bytes]:
    yield answer(b'{"error":{"message":"\xff\xfe\xed\xa0\x80"}}', 400)


@hostile
async def slow_charset(request: Request) -> AsyncIterator[bytes]:
    yield head("application/json; charset=punycode", 400) + b"-" + b"a" * 500_000


@hostile
async def garbage(request: Request) -> AsyncIterator[bytes]:
    yield b"\x00\xff" * 1000


@hostile
async def nothing_at_all(request: Request) -> AsyncIterator[bytes]:
    yield b""


# --- the key


@hostile
async def redirect_to_another_host(request: Request) -> AsyncIterator[bytes]:
    """To the same server by another name, which answers with the key if it gets it."""
    yield answer(b"", 307, f"location: http://localhost:{request.port}/echo_in_text/v1/chat/completions")


@hostile
async def echo_in_text(request: Request) -> AsyncIterator[bytes]:
    """Not in the way of a masked error: text of the model goes through as it is."""
    yield stream(chunk(content="no key" if not request.key else "a key"))


@hostile
async def redirect_for_ever(request: Request) -> AsyncIterator[bytes]:
    yield answer(b"", 307, "location: completions")


def _spellings(key: str) -> str:
    return " / ".join((f"Bearer {key}", key[:14], key[9:], base64.b64encode(f"u:{key}".encode()).decode(), key))


def _echo(status: int) -> Behaviour:
    async def echo(request: Request) -> AsyncIterator[bytes]:
        error = {"message": f"refused: {_spellings(request.key)}", "code": request.key, "type": request.key[5:]}
        yield answer({"error": error, "request": request.key}, status, f"x-key: {request.key}")

    return echo


HOSTILE |= {f"echo_in_{status}": _echo(status) for status in (400, 401, 404, 429, 500)}


@hostile
async def echo_in_html(request: Request) -> AsyncIterator[bytes]:
    yield answer(f"no: {_spellings(request.key)}".encode(), 400)


@hostile
async def echo_in_an_event_error(request: Request) -> AsyncIterator[bytes]:
    yield EVENTS + event({"error": {"message": _spellings(request.key), "code": request.key}})


@hostile
async def echo_behind_text(request: Request) -> AsyncIterator[bytes]:
    yield stream(chunk(content="Hi"), {"error": {"message": _spellings(request.key), "code": request.key}})


@hostile
async def echo_as_finish_reason(request: Request) -> AsyncIterator[bytes]:
    yield stream(chunk(content="Hi"), reason=request.key)


@hostile
async def echo_as_content_type(request: Request) -> AsyncIterator[bytes]:
    yield head(f"text/{request.key}") + b"x"


@hostile
async def echo_as_no_json(request: Request) -> AsyncIterator[bytes]:
    yield EVENTS + event(f'{{"choices": {request.key}'.encode())


# --- the server


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        request = await _read(reader)
        async for block in HOSTILE[request.path.split("/")[1]](request):
            writer.write(block)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError, KeyError):
        pass
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> Request:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    await reader.readexactly(int(headers.get("content-length", 0)))
    key = headers.get("authorization", "").removeprefix("Bearer ")
    return Request(lines[0].split(" ")[1], key, headers["host"].rpartition(":")[2])


if __name__ == "__main__":
    bomb()
    asyncio.run(run(_serve))
