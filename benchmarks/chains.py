"""Counts what chains of responses, and conversations, read and store as they grow.

    .venv/bin/python benchmarks/chains.py [--lengths 10 100 1000]

Each response has 230 bytes of input and 230 of output. Reads and writes are calls of the Table port, a query counting
one for each megabyte that it reads, as DynamoDB pages; bytes are those of the rows, keys included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from turnloom.adapters.blobs import FolderBlobs
from turnloom.adapters.clock import SystemClock, random_bits
from turnloom.adapters.sqlite import SqliteDatabase
from turnloom.engine.engine import Brief, Engine
from turnloom.engine.scene import World
from turnloom.ports import Condition, Finished, ModelRequest, Page, Row, Table, TextChunk, Version
from turnloom.store.agents import Agents, Sessions
from turnloom.store.claims import Claims
from turnloom.store.conversations import Conversations
from turnloom.store.disposal import Disposal
from turnloom.store.registry import Registry
from turnloom.store.turns import Record, Turns
from turnloom.testing import (
    Answer,
    FakeShields,
    FakeTools,
    InlineDocuments,
    PlainVault,
    ScriptedModel,
    SteppedOrchestrator,
)
from turnloom.usecases.briefs import brief_of
from turnloom.usecases.callers import Caller
from turnloom.usecases.conversations import create_conversation
from turnloom.usecases.responses import ResponseRequest, create_response, response_context
from turnloom.usecases.services import Services

TEXT = ("Tell me something about the sea, please. " * 6)[:230]
PAGE_BYTES = 1_000_000
OWNER = "bench"


@dataclass
class Counts:
    reads: int = 0
    writes: int = 0
    rows: dict[tuple[str, str, str], int] = field(default_factory=dict)

    @property
    def stored(self) -> int:
        return sum(self.rows.values())


class CountingTable:
    """A table that is looked at while it works."""

    def __init__(self, name: str, table: Table, counts: Counts) -> None:
        self._name = name
        self._table = table
        self._counts = counts

    async def get(self, partition: str, sort: str) -> Row | None:
        self._counts.reads += 1
        return await self._table.get(partition, sort)

    async def get_many(self, keys: Sequence[tuple[str, str]]) -> list[Row]:
        self._counts.reads += 1
        return await self._table.get_many(keys)

    async def put(self, row: Row, when: Condition | None = None) -> None:
        self._counts.writes += 1
        await self._table.put(row, when)
        self._counts.rows[self._name, row.partition, row.sort] = size(row)

    async def delete(self, partition: str, sort: str, when: Version | None = None) -> None:
        self._counts.writes += 1
        await self._table.delete(partition, sort, when)
        self._counts.rows.pop((self._name, partition, sort), None)

    async def query(self, partition: str, **bounds: Any) -> Page:
        page = await self._table.query(partition, **bounds)
        self._counts.reads += 1 + sum(map(size, page.rows)) // PAGE_BYTES
        return page


def size(row: Row) -> int:
    return len(row.partition) + len(row.sort) + len(json.dumps(row.value, separators=(",", ":")).encode())


def services_in(folder: Path, counts: Counts) -> Services:
    database = SqliteDatabase(folder / "chains.db")

    def table(name: str) -> Table:
        return CountingTable(name, database.table(name), counts)

    blobs, clock = FolderBlobs(folder / "blobs"), SystemClock()
    stores = {
        "agents": Turns("agents", table("turns"), table("events"), blobs, clock),
        "responses": Turns("responses", table("responses"), table("events"), blobs, clock, listed=True),
    }
    model = ScriptedModel(answer)

    async def brief(record: Record) -> Brief:
        return await brief_of(made, record)

    world = World(model, FakeTools(), FakeShields(), InlineDocuments(), clock)
    made = Services(
        agents=Agents(table("agents"), blobs),
        sessions=Sessions(table("sessions")),
        registry=Registry(table("registry"), PlainVault()),
        disposal=Disposal(table("registry")),
        conversations=Conversations(table("registry")),
        claims=Claims(table("registry")),
        turns=stores["agents"],
        responses=stores["responses"],
        engine=Engine(world, stores, brief, SteppedOrchestrator()),
        clock=clock,
        entropy=random_bits,
        vault=PlainVault(),
        builtin_groups={},
    )
    return made


def answer(request: ModelRequest) -> Answer:
    return [TextChunk(TEXT), Finished("stop")]


async def grown(length: int, *, conversation: bool) -> None:
    """Let a chain grow to this length, and print what its last response cost."""
    counts = Counts()
    with tempfile.TemporaryDirectory() as folder:
        services = services_in(Path(folder), counts)
        settings: dict[str, Any] = {"model": "m"}
        if conversation:
            made = await create_conversation(services, OWNER, [], {})
            settings["conversation"] = {"id": made.conversation_id}
        before, response = Counts(), ""
        for _ in range(length):
            before = replace(counts)
            response = await one(services, settings)
            if not conversation:
                settings["previous_response_id"] = response
        created = (counts.reads - before.reads, counts.writes - before.writes)
        reads = counts.reads
        await response_context(services, OWNER, response)
        kind = "conversation" if conversation else "chain"
        print(
            f"{kind:13}{length:6} responses  {counts.stored:9,} bytes stored ({counts.stored // length} each)   "
            f"the last one: {created[0]} reads, {created[1]} writes   its input items: {counts.reads - reads} reads"
        )


async def one(services: Services, settings: dict[str, Any]) -> str:
    item = {"type": "message", "role": "user", "content": TEXT}
    run = await create_response(services, Caller(OWNER), ResponseRequest([item], settings))
    return (await run.settled()).id


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[10, 100, 1000])
    for length in parser.parse_args().lengths:
        for conversation in (False, True):
            asyncio.run(grown(length, conversation=conversation))


if __name__ == "__main__":
    main()
