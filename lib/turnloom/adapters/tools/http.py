"""Tools that are HTTP endpoints: how a group of them is registered, and how one is called."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from turnloom.adapters.guard import MIB, Guard
from turnloom.adapters.masking import mask
from turnloom.adapters.tools.failure import ToolFailed, illegal_header, secrets_of
from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import JSON, Tool, ToolSource
from turnloom.domain.surrogates import repair
from turnloom.domain.text_decoding import decode_text
from turnloom.domain.tool_schema import parameters_schema, schema_fault

if TYPE_CHECKING:
    import httpx2

_WITH_BODY = ("POST", "PUT", "PATCH")
_METHODS = (*_WITH_BODY, "GET", "DELETE")
_REPEATABLE = ("GET", "PUT", "DELETE")  # safe or idempotent: RFC 9110, section 9.2
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # what chat-completions endpoints take for the name of a function
_PLACE = re.compile(r"\{(\w+)\}")
_MOST_BYTES = MIB
_TOLD_CHARACTERS = 500


# --- registration


def http_group_tools(group: str, endpoint: str | None, args: Mapping[str, JSON]) -> tuple[Tool, ...]:
    """The tools of an HTTP group, as `args["tools"]` describes them; without it one, named after the group.

    Each of `tools` is `{name, description?, parameters?, uri?, method?, headers?}`: `parameters` a list of
    ToolParameters or a JSON schema, `uri` with `{argument}` placeholders in path and query (default: the endpoint),
    `method` by default POST. The rest of `args` is laid over every call. Raises InvalidRequest.
    """
    described = args.get("tools")
    if described is None:
        described = [{"name": re.sub(r"[^A-Za-z0-9_-]+", "_", group)[:64]}]
    if not isinstance(described, list) or not described:
        raise _malformed("args.tools", "must be a list of tools")
    laid_over = {name: value for name, value in args.items() if name != "tools"}
    tools = [_tool(f"args.tools[{at}]", tool, group, endpoint, laid_over) for at, tool in enumerate(described)]
    names = Counter(tool.name for tool in tools)
    if doubled := next((name for name, count in names.items() if count > 1), None):
        raise InvalidRequest(f"Two tools are named '{doubled}'", code="duplicate_tool", param="args.tools")
    return tuple(tools)


def _tool(place: str, described: JSON, group: str, endpoint: str | None, args: Mapping[str, JSON]) -> Tool:
    if not isinstance(described, dict):
        raise _malformed(place, "must be an object")
    name, description = described.get("name"), described.get("description") or ""
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise _malformed(f"{place}.name", "must be 1 to 64 letters, digits, '_' or '-'")
    if not isinstance(description, str):
        raise _malformed(f"{place}.description", "must be a text")
    method = str(described.get("method") or "POST").upper()
    if method not in _METHODS:
        raise _malformed(f"{place}.method", f"must be one of {', '.join(_METHODS)}")
    uri = _checked_uri(f"{place}.uri", described.get("uri") or endpoint)
    settings: dict[str, JSON] = {"method": method}
    if headers := _checked_headers(f"{place}.headers", described.get("headers")):
        settings["headers"] = headers
    source = ToolSource("http", group, name, uri, args, settings, repeatable=method in _REPEATABLE)
    return Tool(name, description, _schema(f"{place}.parameters", described.get("parameters")), source)


def _checked_uri(place: str, uri: JSON) -> str:
    if not isinstance(uri, str) or not uri.lower().startswith(("http://", "https://")):
        raise _malformed(place, "must be an http or https address (or mcp_endpoint.uri must be one)")
    try:
        host = urlsplit(uri).netloc
    except ValueError:
        raise _malformed(place, "is malformed") from None
    if "{" in host:
        # Whoever chooses the host gets the headers.
        raise _malformed(place, "may have placeholders in its path and query only")
    return uri


def _checked_headers(place: str, headers: JSON) -> dict[str, str]:
    if headers is None:
        return {}
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise _malformed(place, "must be an object of texts")
    if (name := illegal_header(headers)) is not None:
        raise _malformed(place, f"has an illegal name or value for '{name}'")
    return headers


def _schema(place: str, parameters: JSON) -> Mapping[str, JSON]:
    if parameters is None:
        return {"type": "object", "properties": {}}
    if isinstance(parameters, dict):
        if parameters.get("type", "object") != "object":
            raise _malformed(place, "must be a schema of type object")
        if (fault := schema_fault(parameters)) is not None:
            raise _malformed(f"{place}{fault.path}", fault.message)
        return {"type": "object", "properties": {}, **parameters}
    if not isinstance(parameters, list) or not all(isinstance(p, dict) and _named(p) for p in parameters):
        raise _malformed(place, "must be a JSON schema, or a list of objects with a name each")
    for number, parameter in enumerate(parameters):
        if not isinstance(parameter.get("parameter_type") or "", str):
            raise _malformed(f"{place}[{number}].parameter_type", "must be a text")
    return parameters_schema(parameters)


def _named(parameter: Mapping[str, JSON]) -> bool:
    return isinstance(parameter.get("name"), str) and bool(parameter["name"])


def _malformed(place: str, fault: str) -> InvalidRequest:
    return InvalidRequest(f"{place} {fault}", param=place)


# --- a call


async def call_http(source: ToolSource, arguments: Mapping[str, JSON], guard: Guard, seconds: float) -> str:
    """What the endpoint answers to the arguments: its text, or its JSON in compact form; raises ToolFailed.

    Redirects are not followed: the arguments and headers were meant for the endpoint that is registered.
    """
    import httpx2

    headers = source.settings.get("headers") or {}
    if (illegal := illegal_header(headers)) is not None:
        raise ToolFailed("http", f"'{source.name}' cannot be called: its header '{illegal}' is illegal.")
    url, rest = _filled(source, arguments)
    method = str(source.settings.get("method") or "POST").upper()
    try:
        guard.check_form(url)
        async with httpx2.AsyncClient(transport=guard.transport(), timeout=seconds) as client:
            request = _request(client, method, url, rest, {"accept-encoding": "identity", **headers})
            async with aclosing(await client.send(request, stream=True)) as response:
                return await _answer(source, response, headers)
    except httpx2.TimeoutException:
        raise ToolFailed("timeout", f"'{source.name}' did not answer in time.") from None
    except (httpx2.HTTPError, httpx2.InvalidURL):
        raise ToolFailed("http", f"'{source.name}' could not be reached.") from None
    except InvalidRequest as refusal:
        raise ToolFailed("http", f"'{source.name}' may not be called: {refusal.message}.") from None


def _filled(source: ToolSource, arguments: Mapping[str, JSON]) -> tuple[str, dict[str, JSON]]:
    """The address with its placeholders filled in, and the arguments that were not needed for that."""
    used: set[str] = set()

    def fill(place: re.Match[str]) -> str:
        name = place[1]
        used.add(name)
        value = arguments.get(name)
        if value is None:
            raise ToolFailed("arguments", f"'{source.name}' needs the argument '{name}'.")
        text = _plain(value)
        if text in (".", ".."):
            # Percent-encoding leaves dots alone, and as segments they would lead to another path.
            raise ToolFailed("arguments", f"The argument '{name}' must not be '{text}'.")
        return quote(text, safe="")

    url = _PLACE.sub(fill, source.endpoint or "")
    return url, {name: value for name, value in arguments.items() if name not in used}


def _request(
    client: httpx2.AsyncClient, method: str, url: str, arguments: Mapping[str, JSON], headers: Mapping[str, str]
) -> httpx2.Request:
    import httpx2

    if method in _WITH_BODY:
        return client.build_request(method, url, json=dict(arguments), headers=headers)
    address = httpx2.URL(url)
    for name, given in arguments.items():
        for value in _each(given):
            address = address.copy_add_param(name, _plain(value))
    return client.build_request(method, address, headers=headers)


def _each(value: JSON) -> Iterable[JSON]:
    """A list gives a query parameter several times, null not at all."""
    if value is None:
        return ()
    return value if isinstance(value, list) else (value,)


def _plain(value: JSON) -> str:
    return value if isinstance(value, str) else _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def _answer(source: ToolSource, response: httpx2.Response, headers: Mapping[str, str]) -> str:
    from turnloom.adapters.tools.pinned import first_bytes

    content, whole = await first_bytes(response, _MOST_BYTES)
    status = response.status_code
    try:
        text = repair(decode_text(content, response.headers.get("content-type", "")))
    except UnicodeError:
        text = ""
    if not response.is_success:
        told = mask(text, secrets_of(source, headers))[:_TOLD_CHARACTERS].strip()
        raise ToolFailed(
            "http", f"'{source.name}' answered with status {status}" + (f": {told}" if told else "."), status
        )
    if not whole:
        raise ToolFailed("http", f"'{source.name}' answered with more than {_MOST_BYTES} bytes.", status)
    if content and not text:
        raise ToolFailed("http", f"'{source.name}' answered with something that is not text.", status)
    text = _compact_json(text) if _is_json(response) else text
    return mask(text, secrets_of(source, headers, named=True))


def _is_json(response: httpx2.Response) -> bool:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def _compact_json(text: str) -> str:
    try:
        return repair(_compact(json.loads(text)))
    except (ValueError, RecursionError):
        return text
