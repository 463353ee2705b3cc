"""Secrets of MCP servers, from the request to the end of the response: in clear they are nowhere but in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.wire.conftest import Agents
from turnloom.ports import Blobs, Condition, Row, Table
from turnloom.testing import FaultyTable

SECRETS = ("Zr1-user", "Zr1-path", "Zr1-query", "Zr1-fragment", "Zr1-header", "Zr1-token", "Zr1-item")
URL = "https://Zr1-user:x@tools.example/Zr1-path/mcp?key=Zr1-query#Zr1-fragment"
SERVER = {
    "type": "mcp",
    "server_label": "s",
    "server_url": URL,
    "headers": {"x-key": "Zr1-header"},
    "authorization": "Zr1-token",
    "require_approval": "always",
}
ITEM = {
    "type": "additional_tools",
    "tools": [{"type": "mcp", "server_label": "i", "server_url": "https://more.example/Zr1-item"}],
}
LONG = "x" * 400_000
"""A text that no row can hold."""


@dataclass
class Writes:
    """Every row and blob that is written, as text, and the rows that are there now by their keys."""

    texts: list[str] = field(default_factory=list)
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    blobs: int = 0

    @property
    def sealed(self) -> list[str]:
        """The sealed secrets that are there now."""
        return [row.value["secrets"] for row in self.rows.values() if "secrets" in row.value]


class RecordingTable(FaultyTable):
    def __init__(self, table: Table, writes: Writes) -> None:
        super().__init__(table)
        self._recorded = writes

    async def put(self, row: Row, when: Condition | None = None) -> None:
        self._recorded.texts.append(str(row))
        await super().put(row, when)
        self._recorded.rows[row.partition, row.sort] = row


class RecordingBlobs:
    def __init__(self, blobs: Blobs, writes: Writes) -> None:
        self._blobs = blobs
        self._writes = writes
        self.get, self.delete = blobs.get, blobs.delete

    async def put(self, key: str, content: bytes) -> None:
        self._writes.texts.append(content.decode())
        self._writes.blobs += 1
        await self._blobs.put(key, content)


@pytest.fixture
def writes(api: Agents) -> Iterator[Writes]:
    recorded = Writes()
    services = api.house.services
    for store in (services.responses, services.claims, services.conversations):
        store._table = RecordingTable(store._table, recorded)
    services.responses._log = RecordingTable(services.responses._log, recorded)
    services.responses._blobs = RecordingBlobs(services.responses._blobs, recorded)
    yield recorded


def scan(*texts: str) -> None:
    for text in texts:
        assert not [secret for secret in SECRETS if secret in text]


def respond(api: Agents, *items: Any, **body: Any) -> Any:
    """The response once it has ended, as it is read; neither its answer nor any reading of it has a secret."""
    answer = api.http.post("/v1/responses", json={"model": "m", "tools": [SERVER], "input": items, **body})
    assert answer.status_code == 200, answer.text
    listed = api.http.get("/v1/responses").json()["data"]
    identifier = listed[0]["id"]
    followed = api.http.get(f"/v1/responses/{identifier}?stream=true").text
    read = api.http.get(f"/v1/responses/{identifier}")
    lists = [api.http.get(path).text for path in ("/v1/responses", f"/v1/responses/{identifier}/input_items")]
    scan(answer.text, followed, read.text, *lists)
    assert "server_fingerprint" not in "".join((answer.text, followed, read.text, *lists))
    assert read.json()["tools"][0]["server_url"] == "https://tools.example/<redacted>"
    assert read.json()["status"] == "completed", read.text
    return read.json()


def output(response: Any, kind: str) -> Any:
    return next(item for item in response["output"] if item["type"] == kind)


@pytest.mark.parametrize(
    "delivery", [{}, {"stream": True}, {"background": True}], ids=["plain", "stream", "background"]
)
def test_no_secret_of_a_server_is_stored_logged_or_sent_in_clear(
    api: Agents, writes: Writes, caplog: pytest.LogCaptureFixture, delivery: dict[str, Any]
) -> None:
    caplog.set_level(logging.DEBUG)
    model, tools = api.house.model, api.house.tools
    model.calls(("echo", {"text": "a"}))
    asking = respond(api, {"role": "user", "content": LONG}, ITEM, **delivery)
    request = output(asking, "mcp_approval_request")["id"]
    assert [tool["name"] for tool in output(asking, "mcp_list_tools")["tools"]] == list(tools.functions)
    model.calls(("echo", {"text": "b"}))
    model.says("Done.")
    approval = {"type": "mcp_approval_response", "approval_request_id": request, "approve": True}
    going_on = {"tools": [{**SERVER, "require_approval": "never"}], "previous_response_id": asking["id"]}
    approved = respond(api, approval, output(asking, "mcp_list_tools"), **going_on, **delivery)
    assert [item["type"] for item in approved["output"]] == ["mcp_call", "mcp_call", "message"]
    for _, _, scope in tools.ran:
        assert scope.headers == {URL: {"x-key": "Zr1-header", "Authorization": "Bearer Zr1-token"}}
    for asked in model.requests:
        assert URL in {tool.source.endpoint for tool in asked.tools if tool.source is not None}
    assert writes.blobs and any("'secrets': '" in text for text in writes.texts) and writes.sealed == []
    scan(*writes.texts, caplog.text)
