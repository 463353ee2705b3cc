"""Recomputes docs/cost.md: what requests cost on AWS, from the units that they are seen to use.

    .venv/bin/python benchmarks/cost.py [--model-seconds 2.0] [--dynamodb]

Every case runs in real time against a model that answers after so many seconds. Units of DynamoDB are counted from the
bytes of each row that is read or written, by the rules of on-demand tables; with `--dynamodb` they are what DynamoDB
itself calls consumed, in the account or at the AWS_ENDPOINT_URL of the environment, in tables that are made for it and
deleted afterwards. Transitions are the states that the definition enters; Lambda's time is that of the request and of
each task.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnloom.adapters.blobs import FolderBlobs
from turnloom.adapters.clock import SystemClock, random_bits
from turnloom.adapters.dynamodb import DynamoTable, create_tables, dump, dynamodb_client
from turnloom.adapters.sqlite import SqliteDatabase
from turnloom.engine.engine import Brief, Engine
from turnloom.engine.scene import World
from turnloom.engine.takeover import sweep
from turnloom.ports import (
    Chunk,
    Condition,
    ConditionFailed,
    Finished,
    ModelRequest,
    Page,
    Row,
    Table,
    TextChunk,
    Version,
)
from turnloom.storage import INDEXES
from turnloom.store.agents import Agents, Sessions
from turnloom.store.claims import Claims
from turnloom.store.conversations import Conversations
from turnloom.store.disposal import Disposal
from turnloom.store.registry import Registry
from turnloom.store.turns import Record, Turns
from turnloom.testing import (
    USAGE,
    FakeShields,
    FakeTools,
    InlineDocuments,
    PlainVault,
    ScriptedModel,
    SteppedOrchestrator,
    call_chunks,
)
from turnloom.usecases.briefs import brief_of
from turnloom.usecases.callers import Caller
from turnloom.usecases.disposal import dispose_due
from turnloom.usecases.responses import ResponseRequest, create_response
from turnloom.usecases.services import Services

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

PRICES_OF = "November 2026, us-east-1, USD, without any free tier"
API_REQUEST = 3.50e-6
LAMBDA_REQUEST = 0.20e-6
LAMBDA_GB_SECOND = 0.0000133334  # arm64
WRITE_UNIT = 0.625e-6
READ_UNIT = 0.125e-6
TRANSITION = 25e-6
SECRET_MONTH = 0.40
ALARM_MONTH = 0.10  # for each metric that it watches
METRIC_MONTH = 0.30
DASHBOARD_MONTH = 3.00
STORED_GB_MONTH = 0.25
RECOVERABLE_GB_MONTH = 0.20
TRACE = 5.00e-6

ALARM_METRICS = 27
"""What the alarms of template.yaml watch."""
METRICS = 19
"""What both APIs put with one model, if each kind of thing happens that they count."""
MEMORY_GB = 1.0
MINUTES_OF_A_MONTH = 30 * 24 * 60
SWEEP_SECONDS = 0.15
"""Of an idle sweep on Lambda, by estimate: some twenty queries one after the other."""
AUTHORIZER_SECONDS = 0.005
"""Of one answer of the authorizer that is not kept, by estimate: a read and a hash."""
TEXT = ("Tell me something about the sea, please. " * 6)[:230]


@dataclass
class Units:
    """What was used; Lambda in seconds of running."""

    requests: int = 0
    invocations: int = 0
    seconds: float = 0.0
    written: float = 0.0
    read: float = 0.0
    transitions: int = 0

    @property
    def price(self) -> float:
        lambdas = self.invocations * LAMBDA_REQUEST + self.seconds * MEMORY_GB * LAMBDA_GB_SECOND
        tables = self.written * WRITE_UNIT + self.read * READ_UNIT
        return self.requests * API_REQUEST + lambdas + tables + self.transitions * TRANSITION


Tables = Callable[[str], Table]
Counted = Callable[[Path, Units], Tables]
"""From a folder, and where to count, to the tables by their names."""


@dataclass
class MeteredTable:
    """A table that counts units as DynamoDB does, which rounds up each item that is written or got, and each query.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/read-write-operations.html
    """

    table: Table
    units: Units

    async def get(self, partition: str, sort: str) -> Row | None:
        row = await self.table.get(partition, sort)
        self.units.read += read_units(size(row))
        return row

    async def get_many(self, keys: Sequence[tuple[str, str]]) -> list[Row]:
        rows = await self.table.get_many(keys)
        found = {(row.partition, row.sort): row for row in rows}
        self.units.read += sum(read_units(size(found.get(key))) for key in set(keys))
        return rows

    async def put(self, row: Row, when: Condition | None = None) -> None:
        async with self._write(row.partition, row.sort, row):
            await self.table.put(row, when)

    async def delete(self, partition: str, sort: str, when: Version | None = None) -> None:
        async with self._write(partition, sort, None):
            await self.table.delete(partition, sort, when)

    async def query(self, partition: str, **bounds: Any) -> Page:
        page = await self.table.query(partition, **bounds)
        if bounds.get("index") is None:
            self.units.read += read_units(sum(map(size, page.rows)))
        else:
            # Half of it for the index, which is not read consistently; then each row is got from the table.
            self.units.read += read_units(sum(map(size_of_keys, page.rows))) / 2
            self.units.read += sum(read_units(size(row)) for row in page.rows)
        return page

    @asynccontextmanager
    async def _write(self, partition: str, sort: str, outcome: Row | None) -> AsyncGenerator[None]:
        """Count the write that is made within; one whose condition fails costs what it has met."""
        before = await self.table.get(partition, sort)
        try:
            yield
        except ConditionFailed:
            self.units.written += write_units(before, before)
            raise
        self.units.written += write_units(before, outcome)


def read_units(total: int) -> int:
    """The units of a consistent read of so many bytes, even of none."""
    return max(1, math.ceil(total / 4096))


def write_units(before: Row | None, after: Row | None) -> int:
    """The units of a write that finds the row `before`, and one for each entry of an index that goes or comes."""
    gone, come = (set(row.indexes.items()) if row else set() for row in (before, after))
    return max(1, math.ceil(max(size(before), size(after)) / 1024)) + len(gone ^ come)


def size(row: Row | None) -> int:
    """The bytes of the item, names of attributes included; a number takes one, and one for two digits."""
    if row is None:
        return 0
    expiry = len("ttl") + 6 if row.expires is not None else 0
    return size_of_keys(row) + len("v") + len(dump(row.value).encode()) + len("n") + 2 + expiry


def size_of_keys(row: Row) -> int:
    """The bytes of its keys in the table and in its indexes."""
    places = {"": (row.partition, row.sort)} | {f"{name}_": place for name, place in row.indexes.items()}
    return sum(len(f"{prefix}pk{partition}{prefix}sk{sort}".encode()) for prefix, (partition, sort) in places.items())


class CountingOrchestrator(SteppedOrchestrator):
    """Counts the states that the definition enters, and each task as a run of a function."""

    def __init__(self, units: Units) -> None:
        super().__init__()
        self.units = units

    async def _next(self, engine: Engine, state: Mapping[str, Any]) -> Mapping[str, Any]:
        calls = len(state["calls"]) if state["next"] == "call_tools" else 0
        # The Choice and the task; or the Choice, the Map, each call, and the model behind them without a Choice.
        self.units.transitions += 3 + calls if calls else 2
        self.units.invocations += 1 + calls
        began = time.monotonic()
        after = await super()._next(engine, state)
        self.units.seconds += time.monotonic() - began
        return after


class SlowModel(ScriptedModel):
    """Calls `lookup` in each of its first `rounds` answers, and takes its time for every one."""

    def __init__(self, seconds: float, rounds: int) -> None:
        super().__init__()
        self._seconds = seconds
        self._rounds = rounds

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Chunk]:
        await asyncio.sleep(self._seconds)
        self._rounds -= 1
        if self._rounds < 0:
            yield TextChunk(TEXT)
            yield Finished("stop", USAGE)
            return
        for chunk in call_chunks(("lookup", {"q": "sea"})):
            yield chunk
        yield Finished("tool_calls", USAGE)


def by_bytes(folder: Path, units: Units) -> Tables:
    """Tables of the laptop, whose units are counted here."""
    database = SqliteDatabase(folder / "cost.db")
    return lambda name: MeteredTable(database.table(name), units)


@contextmanager
def by_dynamodb() -> Iterator[Counted]:
    """Tables of DynamoDB, deleted in the end, whose units are what each answer says."""
    client = dynamodb_client()
    prefix = f"turnloom-cost-{uuid.uuid4().hex[:8]}-"

    def counted(_folder: Path, units: Units) -> Tables:
        metered = dynamodb_client()
        count_consumed(metered, units)
        return lambda name: DynamoTable(metered, prefix + name)

    with ExitStack() as made:
        for name, indexes in INDEXES.items():
            create_tables(client, {prefix + name: indexes})
            made.callback(client.delete_table, TableName=prefix + name)
        yield counted


def count_consumed(client: DynamoDBClient, units: Units) -> None:
    """Let the client ask for the capacity that each call consumes, and add it up.

    A write whose condition fails is not in it: DynamoDB bills that, but says nothing of it in the error.
    """
    one_at_a_time = threading.Lock()  # calls run in threads

    def ask(params: dict[str, Any], model: Any, **_: Any) -> None:
        if "ReturnConsumedCapacity" in model.input_shape.members:
            params["ReturnConsumedCapacity"] = "TOTAL"

    def count(parsed: dict[str, Any], model: Any, **_: Any) -> None:
        given = parsed.get("ConsumedCapacity", [])
        consumed = sum(each["CapacityUnits"] for each in (given if isinstance(given, list) else [given]))
        with one_at_a_time:
            if model.name in ("PutItem", "DeleteItem"):
                units.written += consumed
            else:
                units.read += consumed

    client.meta.events.register("provide-client-params.dynamodb.*", ask)
    client.meta.events.register("after-call.dynamodb.*", count)


def services_in(folder: Path, units: Units, model: SlowModel, counted: Counted) -> Services:
    table, blobs, clock = counted(folder, units), FolderBlobs(folder / "blobs"), SystemClock()
    log = table("events")
    stores = {
        "agents": Turns("agents", table("turns"), log, blobs, clock),
        "responses": Turns("responses", table("responses"), log, blobs, clock, listed=True),
    }

    async def brief(record: Record) -> Brief:
        return await brief_of(made, record)

    orchestrator = CountingOrchestrator(units)
    tools = FakeTools({"lookup": lambda q: "It is blue."})
    engine = Engine(World(model, tools, FakeShields(), InlineDocuments(), clock), stores, brief, orchestrator)
    orchestrator.engine = engine
    made = Services(
        agents=Agents(table("agents"), blobs),
        sessions=Sessions(table("sessions")),
        registry=Registry(table("registry"), PlainVault()),
        disposal=Disposal(table("registry")),
        conversations=Conversations(table("registry")),
        claims=Claims(table("registry")),
        turns=stores["agents"],
        responses=stores["responses"],
        engine=engine,
        clock=clock,
        entropy=random_bits,
        vault=PlainVault(),
        builtin_groups={},
    )
    return made


async def response(counted: Counted, model_seconds: float, rounds: int, *, background: bool = False) -> Units:
    """The units of one response whose model asks for a server tool in so many rounds before it answers."""
    units = Units(requests=1, invocations=1)
    with tempfile.TemporaryDirectory() as folder:
        services = services_in(Path(folder), units, SlowModel(model_seconds, rounds), counted)
        server = {
            "type": "mcp",
            "server_label": "s",
            "server_url": "https://tools.example",
            "require_approval": "never",
        }
        settings = {"model": "m", "background": background, "tools": [server] if rounds else []}
        item = {"type": "message", "role": "user", "content": TEXT}
        began = time.monotonic()
        run = await create_response(services, Caller("me"), ResponseRequest([item], settings))
        if not background:
            await run.settled()
        units.seconds += time.monotonic() - began
        orchestrator = services.engine.orchestrator
        assert isinstance(orchestrator, CountingOrchestrator)
        await orchestrator.finished()
    return units


async def idle_sweep(counted: Counted) -> Units:
    """The units of one run of the sweeper with nothing to do."""
    units = Units(invocations=1, seconds=SWEEP_SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        services = services_in(Path(folder), units, SlowModel(0, 0), counted)
        await sweep(services.engine)
        await dispose_due(services)
    return units


def idle_month(sweeping: Units) -> float:
    """The price of a month in which nobody asks anything: secrets, alarms, a dashboard, the sweeper."""
    return 2 * SECRET_MONTH + ALARM_METRICS * ALARM_MONTH + DASHBOARD_MONTH + MINUTES_OF_A_MONTH * sweeping.price


def line(what: str, units: Units) -> str:
    return (
        f"| {what} | {units.requests} | {units.invocations} | {units.seconds:.1f} | {units.written:g} | {units.read:g} "
        f"| {units.transitions} | {units.price * 1000:.3f} |"
    )


async def measured(counted: Counted, model_seconds: float) -> str:
    cases = {
        "plain response": response(counted, model_seconds, 0),
        "plain response in the background": response(counted, model_seconds, 0, background=True),
        "three rounds of a server tool": response(counted, model_seconds, 3),
        "the same in the background": response(counted, model_seconds, 3, background=True),
    }
    found = dict(zip(cases, await asyncio.gather(*cases.values()), strict=True))
    sweeping = await idle_sweep(counted)
    rows = [line(what, units) for what, units in found.items()] + [line("one idle sweep", sweeping)]
    head = "| | requests | Lambda runs | Lambda s | write units | read units | transitions | USD per 1,000 |"
    table = "\n".join([head, "|---|---|---|---|---|---|---|---|", *rows])
    authorized = Units(invocations=1, seconds=AUTHORIZER_SECONDS, read=1)
    told = [
        f"An idle month: USD {idle_month(sweeping):.2f}.",
        f"A month of all metrics: {METRICS * METRIC_MONTH:.2f}.",
        f"A GB for a month: {STORED_GB_MONTH:.2f}, and {RECOVERABLE_GB_MONTH:.2f} to be able to restore it.",
        f"1,000 answers of the authorizer: {1000 * authorized.price:.4f}.",
        f"A million traces: {1e6 * TRACE:.2f}.",
        f"Prices: {PRICES_OF}.",
    ]
    return "\n".join([table, "", *told])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-seconds", type=float, default=2.0)
    parser.add_argument("--dynamodb", action="store_true", help="count what DynamoDB says that it consumed")
    given = parser.parse_args()
    with by_dynamodb() if given.dynamodb else nullcontext(by_bytes) as counted:
        print(asyncio.run(measured(counted, given.model_seconds)))


if __name__ == "__main__":
    main()
