"""The addresses of MCP servers: all but the origin may be secret, so nothing else of them is stored.

A stored tool has the public form of its address and a fingerprint. By the fingerprint a driver finds the address among
the secrets of the turn, and a later turn recognizes the server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from turnloom.domain.message import JSON
from turnloom.domain.redaction import public_address
from turnloom.usecases.services import Services

FINGERPRINT = "server_fingerprint"
"""The key of the fingerprint in a stored tool; no reader is shown it."""


@dataclass(frozen=True, slots=True)
class ServerAddresses:
    """Takes secret addresses out of what one owner sends, and collects them by fingerprint."""

    services: Services
    owner: str
    secrets: dict[str, str] = field(default_factory=dict)

    def hide_in_tools(self, tools: Iterable[JSON]) -> list[JSON]:
        return [self._public_tool(tool) if tool["type"] == "mcp" else tool for tool in tools]

    def hide_in_items(self, items: Iterable[JSON]) -> list[JSON]:
        return [self._public_item(item) for item in items]

    def _public_item(self, item: JSON) -> JSON:
        match item:
            case {"type": "additional_tools"}:
                return {**item, "tools": self.hide_in_tools(item["tools"])}
            case {"type": "mcp_list_tools", "server": server}:
                return {**item, "server": self._public_tool(server)}
            case _:
                return item

    def _public_tool(self, tool: Mapping[str, JSON]) -> JSON:
        url = tool["server_url"]
        public = public_address(url)
        if FINGERPRINT in tool or url.rstrip("/") == public:
            return tool
        fingerprint = self._fingerprint(url)
        self.secrets[fingerprint] = url
        return {**tool, "server_url": public, FINGERPRINT: fingerprint}

    def _fingerprint(self, url: str) -> str:
        """A digest that only this deployment can compute: without its key, short secrets could be guessed from it."""
        sealed = self.services.vault.seal(url.encode(), f"address:{self.owner}")
        return hashlib.sha256(sealed.encode()).hexdigest()
