"""The Tools port: each tool is run by the runner of its source's kind, and whatever goes wrong becomes its answer.

The runners are imported by the first tool that needs them: the MCP client alone takes longer to import than a buffered
function may take to start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, assert_never

from turnloom.adapters.guard import Guard
from turnloom.adapters.threads import Threads
from turnloom.adapters.tools.failure import ToolFailed
from turnloom.domain.errors import InvalidRequest, UpstreamBroken
from turnloom.domain.message import JSON, Tool, ToolSource
from turnloom.ports import Clock, ToolError, ToolResult, ToolScope

if TYPE_CHECKING:
    from turnloom.adapters.tools.mcp import McpRunner

_log = logging.getLogger(__name__)
_importer = Threads("import", 1)


class ToolRunners:
    """Runs built-in tools, HTTP endpoints and tools of MCP servers, each call within `seconds`."""

    def __init__(self, guard: Guard, clock: Clock, *, seconds: float = 60.0) -> None:
        self._guard = guard
        self._clock = clock
        self._seconds = seconds
        self._mcp_runner: McpRunner | None = None

    def check(self, endpoint: str) -> None:
        """Refuse an address that no request may bring along: without TLS, or not public. Raises InvalidRequest."""
        replace(self._guard, https_only=True).check_form(endpoint, code="invalid_value")

    async def call(self, source: ToolSource, arguments: Mapping[str, JSON], scope: ToolScope) -> ToolResult:
        """Run one tool. One that fails, or an agent's that gives nothing, is a result with `error`, no exception."""
        try:
            async with asyncio.timeout(self._seconds):
                result = await self._run(source, {**arguments, **source.args}, scope)
        except TimeoutError:
            return _failed(ToolError("timeout", f"'{source.name}' did not answer within {self._seconds:g} seconds."))
        except ToolFailed as failure:
            return _failed(failure.error)
        except Exception as failure:
            # By its type alone, as its words are not ours and may quote a header.
            _log.warning("The %s tool %s raised %s", source.kind, source.name, type(failure).__name__)
            return _failed(ToolError("tool", f"'{source.name}' failed: {type(failure).__name__}."))
        # A response, which has no session, shows an MCP server's empty result as what it is.
        nothing = scope.session is not None or source.kind != "mcp"
        if result.error is None and nothing and _empty(result.content):
            return _failed(ToolError("tool", f"'{source.name}' gave an empty result."))
        return result

    async def offered(self, source: ToolSource, scope: ToolScope) -> list[Tool]:
        """The tools of a group; those of an HTTP group are described by `settings`, those of an MCP server it lists.

        Raises InvalidRequest, Unauthenticated (`mcp_unauthenticated`), UpstreamBroken (`toolgroup_unreachable`).
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await self._offered(source, scope)
        except TimeoutError:
            message = f"The tool server did not answer within {self._seconds:g} seconds"
            raise UpstreamBroken(message, code="toolgroup_unreachable") from None

    async def _mcp(self) -> McpRunner:
        if self._mcp_runner is None:
            # In a thread, since the SDK takes half a second to import and other turns go on.
            module = await _importer.run(import_module, "turnloom.adapters.tools.mcp")
            self._mcp_runner = self._mcp_runner or module.McpRunner(self._guard, self._seconds)
        return self._mcp_runner

    async def _run(self, source: ToolSource, arguments: Mapping[str, JSON], scope: ToolScope) -> ToolResult:
        match source.kind:
            case "builtin":
                from turnloom.adapters.tools.builtin import run_builtin

                return ToolResult(run_builtin(source, arguments, self._clock))
            case "http":
                from turnloom.adapters.tools.http import call_http

                return ToolResult(await call_http(source, arguments, self._guard, self._seconds))
            case "mcp":
                return await (await self._mcp()).call(source, arguments, scope)
            case _:
                assert_never(source.kind)

    async def _offered(self, source: ToolSource, scope: ToolScope) -> list[Tool]:
        match source.kind:
            case "builtin":
                from turnloom.adapters.tools.builtin import BUILTIN_GROUPS

                if source.group not in BUILTIN_GROUPS:
                    raise InvalidRequest(f"There is no built-in toolgroup '{source.group}'", code="unknown_toolgroup")
                return list(BUILTIN_GROUPS[source.group])
            case "http":
                from turnloom.adapters.tools.http import http_group_tools

                tools = http_group_tools(source.group, source.endpoint, source.settings)
                for endpoint in {tool.source.endpoint for tool in tools if tool.source and tool.source.endpoint}:
                    await self._guard.check(endpoint)
                return list(tools)
            case "mcp":
                return await (await self._mcp()).offered(source, scope)
            case _:
                assert_never(source.kind)


def _failed(error: ToolError) -> ToolResult:
    return ToolResult(error.message, error=error)


def _empty(content: str | list[JSON]) -> bool:
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return all(block["type"] == "text" and not block["text"].strip() for block in blocks)
