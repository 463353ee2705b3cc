"""Stores that cannot be read or written just now: what their callers see."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from tests.conftest import House
from tests.wire.apps import both_apis

from turnloom.adapters import sqlite
from turnloom.adapters.blobs import FolderBlobs, S3Blobs
from turnloom.adapters.dynamodb import DynamoTable
from turnloom.adapters.sqlite import SqliteDatabase
from turnloom.domain.errors import StorageFull, StoreUnavailable
from turnloom.ports import Row


async def test_a_database_that_stays_locked_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PATIENCE", 0.05)
    table = SqliteDatabase(tmp_path / "db").table("things")
    await table.put(Row("p", "s", {}))
    other = sqlite3.connect(tmp_path / "db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable):
        await table.put(Row("p", "s", {"n": 1}))
    other.execute("ROLLBACK")
    await table.put(Row("p", "s", {"n": 1}))


async def test_a_full_database_refuses_writes_and_takes_deletions(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "db")
    table = database.table("things")
    await table.put(Row("p", "a", {"text": "x" * 10_000}))
    database.once(lambda file: file.execute("PRAGMA max_page_count = 40").close())
    with pytest.raises(StorageFull):
        await table.put(Row("p", "b", {"text": "x" * 300_000}))
    assert await table.get("p", "b") is None
    await table.delete("p", "a")


async def test_a_mistake_of_our_own_is_no_fault_of_the_store(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        await SqliteDatabase(tmp_path / "db").run(lambda file: file.execute("SELECT nothing FROM nowhere"))


async def test_a_full_disk_keeps_no_part_of_a_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageFull):
        await FolderBlobs(tmp_path / "blobs").put("kept/a", b"content")
    assert list((tmp_path / "blobs").iterdir()) == []


class FailingClient:
    """A client of boto3 whose every call raises this error."""

    class exceptions:  # noqa: N801 - boto3's name
        class ConditionalCheckFailedException(Exception): ...

        class NoSuchKey(Exception): ...

    def __init__(self, failure: Exception) -> None:
        self._failure = failure

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**_: Any) -> None:
            raise self._failure

        return call


def refusal(code: str, status: int = 400) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Call")  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    "failure",
    [
        refusal("ProvisionedThroughputExceededException"),
        refusal("ThrottlingException"),
        refusal("TransactionConflictException"),
        refusal("SlowDown", 503),
        refusal("Whatever", 500),
        ReadTimeoutError(endpoint_url="https://dynamodb"),
    ],
    ids=str,
)
async def test_throttling_and_timeouts_of_aws_are_unavailability(failure: Exception) -> None:
    client: Any = FailingClient(failure)
    table, blobs = DynamoTable(client, "things"), S3Blobs(client, "bucket")
    calls = (
        table.get("p", "s"),
        table.put(Row("p", "s", {})),
        table.delete("p", "s"),
        table.query("p"),
        table.get_many([("p", "s")]),
        blobs.put("k", b""),
        blobs.get("k"),
        blobs.delete("k"),
    )
    for call in calls:
        with pytest.raises(StoreUnavailable):
            await call


async def test_a_refusal_of_aws_that_will_not_pass_stays_what_it_is() -> None:
    client: Any = FailingClient(refusal("AccessDeniedException"))
    with pytest.raises(ClientError):
        await DynamoTable(client, "things").get("p", "s")


@pytest.mark.parametrize(
    ("failure", "status", "code", "headers"),
    [
        (StoreUnavailable("locked"), 503, "store_unavailable", {"retry-after": "5"}),
        (StorageFull("full"), 507, "storage_full", {"x-should-retry": "false"}),
    ],
)
async def test_callers_see_an_unavailable_store_in_one_line(
    house: House,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: Exception,
    status: int,
    code: str,
    headers: dict[str, str],
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(house.services.responses._table, "put", fail)
    monkeypatch.setattr(house.services.agents._table, "put", fail)
    transport = httpx.ASGITransport(both_apis(house.services))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        for path, body in (
            ("/v1/responses", {"model": "m", "input": "Hi"}),
            ("/v1/agents", {"agent_config": {"model": "m", "instructions": ""}}),
        ):
            answer = await http.post(path, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
            assert headers.items() <= dict(answer.headers).items()
    warnings = [record for record in caplog.records if record.levelname != "INFO"]
    assert len(warnings) == 2 and not any(record.exc_info for record in warnings)
