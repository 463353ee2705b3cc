"""The tool runners: what goes wrong becomes an answer; the calculator, the clock, and endpoints over real HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from tests.server import LoopbackServer
from tests.upstream import Signal

from turnloom.adapters.guard import MIB, Guard
from turnloom.adapters.tools import ToolRunners
from turnloom.adapters.tools.builtin import BUILTIN_GROUPS, calculated
from turnloom.adapters.tools.failure import ToolFailed, illegal_header
from turnloom.adapters.tools.http import http_group_tools
from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import Tool, ToolSource
from turnloom.ports import ToolResult, ToolScope
from turnloom.testing import FrozenClock

SCOPE = ToolScope("owner")
CALCULATOR = ToolSource("builtin", "builtin::calculator", "calculator")
CLOCK = ToolSource("builtin", "builtin::clock", "current_time")


def runners(guard: Guard | None = None, seconds: float = 10.0) -> ToolRunners:
    return ToolRunners(guard or Guard(allow_loopback=True), FrozenClock(), seconds=seconds)


def failure(result: ToolResult) -> tuple[str, int]:
    """The kind and code of a result's error; its content tells the model the same as its message tells the client."""
    assert result.error is not None
    assert result.content == result.error.message
    return result.error.kind, result.error.code


# --- the calculator


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 2", "4"),
        ("1/2", "0.5"),
        ("4/2", "2"),
        ("0.1 + 0.2", "0.3"),
        ("7 // 2 * 2 + 7 % 2", "7"),
        ("-(3 - 5)", "2"),
        ("2^10", "1024"),
        ("2^3 + 1", "9"),
        ("6 × 7 − 2 ÷ 2", "41"),
        ("2**0.5 - sqrt(2)", "0"),
        ("10**20", "100000000000000000000"),
        ("2**4000 // 2**3999 + (-1)**10**9 + 0**10**9", "3"),
        ("factorial(20)", "2432902008176640000"),
        ("round(2.567, 2)", "2.57"),
        ("round(2.4)", "2"),
        ("max(1, 2, 3) * min(4, 5)", "12"),
        ("sin(pi / 2) + log10(1000)", "4"),
        ("gcd(12, 18)", "6"),
        ("1e-7", "1e-07"),
        ("  1 +\t1 ", "2"),
    ],
)
def test_arithmetic_is_calculated(expression: str, value: str) -> None:
    assert calculated(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "open('/etc/passwd')",
        "().__class__",
        "(1).bit_length()",
        "'a' * 10",
        "'a'",
        "f'{1:9999999999}'",
        "[1, 2][0]",
        "[x for x in (1, 2)]",
        "lambda: 1",
        "x = 1",
        "1; 2",
        "1\n2",
        "import os",
        "True",
        "None",
        "1 if 1 else 2",
        "print(1)",
        "e()",
        "sqrt",
    ],
)
def test_nothing_but_arithmetic_is_taken(expression: str) -> None:
    with pytest.raises(ToolFailed):
        calculated(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9",
        "10**5000",
        "(2**4000)**2",
        "*".join(["2**4000"] * 2),
        "-".join(["(-2)**4095"] + ["2**4095"] * 2),
        "factorial(10**9)",
        "factorial(501)",
        "round(5, -10**9)",
        "pow(9, 9**9)",
        "-" * 499 + "1",
        "(" * 249 + "1" + ")" * 249,
        "1+" * 250 + "1",
        "9" * 501,
    ],
)
def test_what_would_grow_without_end_is_refused(expression: str) -> None:
    with pytest.raises(ToolFailed):
        calculated(expression)


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("1/0", "division by zero"),
        ("(-1)**0.5", "real numbers"),
        ("1e308 * 10", "finite"),
        ("10**400 / 3", "too large"),
        ("sqrt(-1)", "math domain error|nonnegative"),
        ("2 +", "not an arithmetic expression"),
        ("cube(2)", "'cube' not defined"),
        ("apples * 2", "'apples' is not defined"),
        ("factorial(2.5)", "not a whole number"),
        ("min()", "argument"),
    ],
)
async def test_a_calculation_that_fails_says_why(expression: str, fault: str) -> None:
    result = await runners().call(CALCULATOR, {"expression": expression}, SCOPE)
    assert failure(result) == ("tool", 1)
    with pytest.raises(ToolFailed, match=fault):
        calculated(expression)


@pytest.mark.parametrize("arguments", [{}, {"expression": ""}, {"expression": "  "}, {"expression": ["1"]}])
async def test_a_call_without_an_expression_is_told_so(arguments: dict[str, Any]) -> None:
    result = await runners().call(CALCULATOR, arguments, SCOPE)
    assert failure(result) == ("arguments", 1)
    assert "'expression'" in result.content


async def test_a_number_is_an_expression_too() -> None:
    assert (await runners().call(CALCULATOR, {"expression": 4.5}, SCOPE)).content == "4.5"


# --- the clock


@pytest.mark.parametrize(
    ("arguments", "time"),
    [
        ({}, "2025-06-15T15:06:40+00:00"),
        ({"timezone": None}, "2025-06-15T15:06:40+00:00"),
        ({"timezone": "UTC"}, "2025-06-15T15:06:40+00:00"),
        ({"timezone": "Europe/Berlin"}, "2025-06-15T17:06:40+02:00"),
        ({"timezone": "Asia/Kathmandu"}, "2025-06-15T20:51:40+05:45"),
    ],
)
async def test_the_clock_tells_the_time_of_a_zone(arguments: dict[str, Any], time: str) -> None:
    assert (await runners().call(CLOCK, arguments, SCOPE)).content == time


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "America", "../../etc/passwd", "/etc/localtime", "CEST?", "\0"])
async def test_an_unknown_zone_is_named_in_the_answer(zone: str) -> None:
    result = await runners().call(CLOCK, {"timezone": zone}, SCOPE)
    assert failure(result) == ("tool", 1)
    assert zone in result.content


async def test_a_zone_that_is_no_text_is_a_wrong_argument() -> None:
    assert failure(await runners().call(CLOCK, {"timezone": 2}, SCOPE)) == ("arguments", 1)


# --- the groups


async def test_a_builtin_group_offers_its_tools_as_data() -> None:
    for group, tools in BUILTIN_GROUPS.items():
        assert await runners().offered(ToolSource("builtin", group, ""), SCOPE) == list(tools)
        for tool in tools:
            assert tool.source == ToolSource("builtin", group, tool.name, repeatable=True)
            assert tool.parameters["type"] == "object"
            json.dumps(tool.parameters)
    assert [tool.name for tools in BUILTIN_GROUPS.values() for tool in tools] == ["calculator", "current_time"]


async def test_an_unknown_builtin_group_is_refused_and_its_tool_unknown() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await runners().offered(ToolSource("builtin", "builtin::magic", ""), SCOPE)
    assert refusal.value.code == "unknown_toolgroup"
    result = await runners().call(ToolSource("builtin", "builtin::magic", "wand"), {}, SCOPE)
    assert failure(result) == ("unknown", 1)


def test_importing_the_runners_imports_none_of_their_libraries() -> None:
    script = (
        "import sys, turnloom.adapters.tools, turnloom.adapters.tools.builtin, turnloom.adapters.tools.http,"
        " turnloom.adapters.guard, turnloom.adapters.retriever;"
        "print(*sorted({'mcp', 'mcp_types', 'httpx2', 'httpcore2', 'simpleeval', 'zoneinfo'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.split() == []


# --- what goes wrong


async def test_args_of_the_source_win_over_the_models() -> None:
    source = ToolSource("builtin", "builtin::calculator", "calculator", args={"expression": "6*7"})
    assert (await runners().call(source, {"expression": "1"}, SCOPE)).content == "42"


async def test_an_exception_becomes_an_answer_that_keeps_its_words(caplog: pytest.LogCaptureFixture) -> None:
    class BrokenClock(FrozenClock):
        def now(self) -> int:
            raise RuntimeError("Bearer very-secret-token")

    tools = ToolRunners(Guard(), BrokenClock())
    with caplog.at_level(logging.DEBUG):
        result = await tools.call(CLOCK, {}, SCOPE)
    assert failure(result) == ("tool", 1)
    assert "RuntimeError" in result.content
    assert "secret" not in f"{result.content} {caplog.text}"


def test_illegal_headers_are_named_without_their_value() -> None:
    assert illegal_header({"X-Fine": "a b\tc", "Empty": ""}) is None
    for value in ("a\r\nb", "a\n", "grün", " a", "a\0"):
        assert illegal_header({"X-Token": value}) == "X-Token"
    assert illegal_header({"X Token": "a"}) == "X Token"


# --- HTTP: registration


def test_a_group_without_tools_is_one_tool_of_its_name() -> None:
    (tool,) = http_group_tools("weather::v2", "https://api.example/forecast", {})
    assert tool == Tool(
        "weather_v2",
        source=ToolSource("http", "weather::v2", "weather_v2", "https://api.example/forecast", {}, {"method": "POST"}),
    )


def test_tools_are_described_by_parameters_or_by_a_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {}}, "required": ["a"]}
    parameters = [
        {"name": "city", "parameter_type": "string", "description": "A city"},
        {"name": "days", "parameter_type": "int", "required": False, "default": 3},
        {"name": "tags", "parameter_type": "list[str]", "required": True},
        {"name": "any", "parameter_type": "Union", "required": None},
    ]
    described = [
        {
            "name": "one",
            "description": "First",
            "parameters": parameters,
            "method": "get",
            "uri": "https://b.example/x",
        },
        {"name": "two", "parameters": schema, "method": "PUT", "headers": {"x-key": "k"}},
        {"name": "three", "parameters": None, "method": "patch"},
    ]
    one, two, three = http_group_tools("g", "https://a.example/", {"tools": described, "unit": "C"})
    assert one.description == "First"
    assert one.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "A city"},
            "days": {"type": "integer", "default": 3},
            "tags": {"type": "array", "items": {"type": "string"}},
            "any": {},
        },
        "required": ["city", "tags", "any"],
    }
    assert one.source == ToolSource(
        "http", "g", "one", "https://b.example/x", {"unit": "C"}, {"method": "GET"}, repeatable=True
    )
    assert two.parameters == schema
    assert two.source is not None
    assert (two.source.endpoint, two.source.repeatable) == ("https://a.example/", True)
    assert two.source.settings == {"method": "PUT", "headers": {"x-key": "k"}}
    assert three.source is not None
    assert (three.source.repeatable, three.parameters) == (False, {"type": "object", "properties": {}})


@pytest.mark.parametrize(
    ("described", "place"),
    [
        ("no list", "args.tools"),
        ([], "args.tools"),
        (["no object"], "args.tools[0]"),
        ([{}], "args.tools[0].name"),
        ([{"name": "two words"}], "args.tools[0].name"),
        ([{"name": "x" * 65}], "args.tools[0].name"),
        ([{"name": "ok"}, {"name": ""}], "args.tools[1].name"),
        ([{"name": "ok", "description": 7}], "args.tools[0].description"),
        ([{"name": "ok", "method": "TRACE"}], "args.tools[0].method"),
        ([{"name": "ok", "uri": "file:///x"}], "args.tools[0].uri"),
        ([{"name": "ok", "uri": 7}], "args.tools[0].uri"),
        ([{"name": "ok", "uri": "http://[::1"}], "args.tools[0].uri"),
        ([{"name": "ok", "uri": "https://{host}/x"}], "args.tools[0].uri"),
        ([{"name": "ok", "uri": "https://api.{zone}.example/x"}], "args.tools[0].uri"),
        ([{"name": "ok", "headers": ["x"]}], "args.tools[0].headers"),
        ([{"name": "ok", "headers": {"x": 1}}], "args.tools[0].headers"),
        ([{"name": "ok", "headers": {"x": "secret\n"}}], "args.tools[0].headers"),
        ([{"name": "ok", "parameters": "none"}], "args.tools[0].parameters"),
        ([{"name": "ok", "parameters": {"type": "string"}}], "args.tools[0].parameters"),
        ([{"name": "ok", "parameters": [{"type": "string"}]}], "args.tools[0].parameters"),
        ([{"name": "ok", "parameters": {"properties": "x"}}], "args.tools[0].parameters.properties"),
        ([{"name": "ok", "parameters": {"required": 5}}], "args.tools[0].parameters.required"),
        ([{"name": "ok", "parameters": {"$defs": "x"}}], "args.tools[0].parameters.$defs"),
        (
            [{"name": "ok", "parameters": {"properties": {"a": {"items": {"required": "a"}}}}}],
            "args.tools[0].parameters.properties.a.items.required",
        ),
        ([{"name": "ok", "parameters": {"enum": [0] * 30_000}}], "args.tools[0].parameters"),
        (
            [{"name": "ok", "parameters": [{"name": "a", "parameter_type": 5}]}],
            "args.tools[0].parameters[0].parameter_type",
        ),
        ([{"name": "ok"}, {"name": "ok"}], "args.tools"),
    ],
)
def test_a_malformed_group_is_refused_where_it_is_malformed(described: Any, place: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        http_group_tools("g", "https://a.example/", {"tools": described})
    assert refusal.value.param == place
    assert "secret" not in refusal.value.message


def test_a_group_without_any_address_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="address"):
        http_group_tools("g", None, {"tools": [{"name": "ok"}]})


async def test_a_group_is_offered_only_if_the_guard_permits_all_its_addresses() -> None:
    settings = {"tools": [{"name": "one"}, {"name": "two", "uri": "http://10.0.0.1/"}]}
    with pytest.raises(InvalidRequest, match="not public"):
        await runners().offered(ToolSource("http", "g", "", "http://127.0.0.1/", settings=settings), SCOPE)
    fine = {"tools": settings["tools"][:1]}
    offered = await runners().offered(ToolSource("http", "g", "", "http://127.0.0.1/", settings=fine), SCOPE)
    assert [tool.name for tool in offered] == ["one"]


# --- HTTP: calls


class Api:
    """Endpoints of all sorts, and the requests that came."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.headers: dict[str, str] = {}
        self.reached = Signal()
        self.gate = Signal()
        every = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        self.app = Starlette(
            routes=[
                Route("/echo/{rest:path}", self.echo, methods=every),
                Route("/say", self.say, methods=every),
                Route("/slow", self.slow, methods=every),
            ]
        )

    async def echo(self, request: Request) -> Response:
        body = await request.body()
        path = request.scope["raw_path"].decode().partition("?")[0]
        target = f"{path}?{request.url.query}" if request.url.query else path
        self.asked.append((request.method, target, json.loads(body) if body else None))
        self.headers = dict(request.headers)
        return JSONResponse({"ok": True, "naïve": [1, 2.5, None]})

    async def say(self, request: Request) -> Response:
        query = request.query_params
        headers = {name: query[name] for name in ("content-type", "location") if name in query}
        body = b"\xff\xfe\xfd" if "binary" in query else query.get("text", "").encode() * int(query.get("times", 1))
        return Response(body, int(query.get("status", 200)), {"content-type": "text/plain", **headers})

    async def slow(self, _: Request) -> Response:
        self.reached.set()
        await self.gate.wait(None)
        return PlainTextResponse("too late")


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def url(api: Api) -> Iterator[str]:
    with LoopbackServer(api.app) as server:
        yield server.url
        api.gate.set()


def http(endpoint: str, method: str = "POST", **rest: Any) -> ToolSource:
    headers = rest.pop("headers", None)
    settings = {"method": method, "headers": headers} if headers else {"method": method}
    return ToolSource("http", "g", "tool", endpoint, settings=settings, **rest)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
async def test_arguments_go_as_a_json_body(api: Api, url: str, method: str) -> None:
    given = {"city": "Oslo", "deep": {"n": [1, None]}}
    result = await runners().call(http(f"{url}/echo/x?v=1", method, args={"unit": "C"}), given, SCOPE)
    assert result == ToolResult('{"ok":true,"naïve":[1,2.5,null]}')
    assert api.asked == [(method, "/echo/x?v=1", {**given, "unit": "C"})]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_arguments_go_into_the_query(api: Api, url: str, method: str) -> None:
    given = {"q": "a&b c", "n": 3, "on": True, "none": None, "tags": ["x", "y"], "deep": {"a": 1}}
    await runners().call(http(f"{url}/echo/x?v=1", method), given, SCOPE)
    (asked,) = api.asked
    assert asked == (method, "/echo/x?v=1&q=a%26b+c&n=3&on=true&tags=x&tags=y&deep=%7B%22a%22%3A1%7D", None)


async def test_placeholders_are_filled_in_and_cannot_lead_elsewhere(api: Api, url: str) -> None:
    source = http(f"{url}/echo/{{city}}/days?unit={{unit}}", "GET")
    await runners().call(source, {"city": "São Paulo/../x?y#z", "unit": "°C&k=v", "n": 1}, SCOPE)
    (asked,) = api.asked
    assert asked == ("GET", "/echo/S%C3%A3o%20Paulo%2F..%2Fx%3Fy%23z/days?unit=%C2%B0C%26k%3Dv&n=1", None)
    for city in ("..", "."):
        assert failure(await runners().call(source, {"city": city, "unit": "C"}, SCOPE)) == ("arguments", 1)
    missing = await runners().call(source, {"city": "Oslo"}, SCOPE)
    assert failure(missing) == ("arguments", 1)
    assert "'unit'" in missing.content
    assert len(api.asked) == 1


async def test_registered_headers_are_sent(api: Api, url: str) -> None:
    await runners().call(http(f"{url}/echo/x", headers={"X-Key": "k1"}), {}, SCOPE)
    assert api.headers["x-key"] == "k1"
    assert api.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("query", "content"),
    [
        ("text=plain words", "plain words"),
        ("text={ %22a%22 : 1 }", '{ "a" : 1 }'),
        ("text={ %22a%22 : 1 }&content-type=application/problem%2Bjson; charset=utf-8", '{"a":1}'),
        ("text=[1,&content-type=application/json", "[1,"),
        ("text=ok&status=201", "ok"),
    ],
)
async def test_the_body_of_a_success_is_the_answer(url: str, query: str, content: str) -> None:
    assert await runners().call(http(f"{url}/say?{query}", "GET"), {}, SCOPE) == ToolResult(content)


@pytest.mark.parametrize("status", [204, 200])
async def test_an_empty_answer_is_an_error(url: str, status: int) -> None:
    result = await runners().call(http(f"{url}/say?status={status}", "GET"), {}, SCOPE)
    assert failure(result) == ("tool", 1)
    assert "empty" in result.content


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_another_status_is_an_error_with_the_first_part_of_the_body(url: str, status: int) -> None:
    result = await runners().call(http(f"{url}/say?status={status}&text=no.&times=2000", "GET"), {}, SCOPE)
    assert failure(result) == ("http", status)
    assert "no.no." in result.content
    assert len(result.content) < 600


async def test_a_redirect_is_not_followed(api: Api, url: str) -> None:
    result = await runners().call(http(f"{url}/say?status=307&location={url}/echo/x"), {}, SCOPE)
    assert failure(result) == ("http", 307)
    assert api.asked == []


async def test_the_answer_may_have_one_mebibyte(url: str) -> None:
    full = await runners().call(http(f"{url}/say?text=x&times={MIB}", "GET"), {}, SCOPE)
    assert full.error is None
    assert len(full.content) == MIB
    over = await runners().call(http(f"{url}/say?text=x&times={MIB + 1}", "GET"), {}, SCOPE)
    assert failure(over) == ("http", 200)


@pytest.mark.parametrize("query", ["binary=1", "text=x&content-type=text/plain; charset=klingon"])
async def test_an_answer_that_is_no_text_is_an_error(url: str, query: str) -> None:
    result = await runners().call(http(f"{url}/say?{query}", "GET"), {}, SCOPE)
    assert failure(result) == ("http", 200)
    assert "not text" in result.content


async def test_an_endpoint_that_repeats_its_headers_in_an_error_tells_no_secret(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = http(
        f"{url}/say?status=403&times=50&text=token abcd-efgh-1234 is out, ", headers={"X-Key": "abcd-efgh-1234"}
    )
    with caplog.at_level(logging.DEBUG, "turnloom"):
        result = await runners().call(source, {}, SCOPE)
    assert failure(result) == ("http", 403)
    assert "is out" in result.content
    assert "abcd" not in f"{result.content} {caplog.text}"


async def test_a_header_that_cannot_be_sent_is_named_and_not_quoted(api: Api, url: str) -> None:
    result = await runners().call(http(f"{url}/echo/x", headers={"X-Key": "abcd\r\nefgh"}), {}, SCOPE)
    assert failure(result) == ("http", 1)
    assert "X-Key" in result.content
    assert "efgh" not in result.content
    assert api.asked == []


async def test_an_endpoint_that_cannot_be_reached_is_an_error() -> None:
    result = await runners().call(http("http://127.0.0.1:1/"), {}, SCOPE)
    assert failure(result) == ("http", 1)
    assert "could not be reached" in result.content


async def test_the_guard_is_asked_at_each_call() -> None:
    for endpoint in ("http://10.0.0.1/", "http://user:secret@example.com/", "file:///etc/passwd", "http://[::1", ""):
        result = await runners().call(http(endpoint), {}, SCOPE)
        assert failure(result) == ("http", 1)
        assert "may not be called" in result.content
        assert "secret" not in result.content
    result = await runners(Guard()).call(http("http://127.0.0.1:1/"), {}, SCOPE)
    assert "may not be called" in result.content


async def test_a_tool_that_does_not_answer_in_time_is_an_error(url: str) -> None:
    result = await runners(seconds=0.05).call(http(f"{url}/slow"), {}, SCOPE)
    assert failure(result) == ("timeout", 1)


async def test_a_call_can_be_cancelled(url: str, api: Api) -> None:
    calling = asyncio.create_task(runners().call(http(f"{url}/slow"), {}, SCOPE))
    await api.reached.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
