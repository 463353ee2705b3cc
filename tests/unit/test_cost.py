"""How the cost page counts: the units of each call by AWS's rules, or as DynamoDB says itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from benchmarks.cost import MeteredTable, Units, by_dynamodb
from moto import mock_aws

from turnloom.adapters.dynamodb import dynamodb_client
from turnloom.adapters.sqlite import SqliteDatabase
from turnloom.ports import Absent, ConditionFailed, Row, Version

KB = 1000
"""So many characters leave room for keys and names of attributes within a KB."""


@pytest.fixture
def table(tmp_path: Path) -> Iterator[MeteredTable]:
    database = SqliteDatabase(tmp_path / "cost.db")
    yield MeteredTable(database.table("turns"), Units())
    database.close()


async def units_of_put(table: MeteredTable, row: Row) -> float:
    before = table.units.written
    await table.put(row)
    return table.units.written - before


async def test_a_write_costs_a_unit_for_each_kb_of_the_larger_of_what_was_and_what_is(table: MeteredTable) -> None:
    assert await units_of_put(table, Row("p", "s", "")) == 1
    assert await units_of_put(table, Row("p", "s", "x" * 3 * KB)) == 3
    assert await units_of_put(table, Row("p", "s", "")) == 3
    assert await units_of_put(table, Row("p", "s", "")) == 1
    assert table.units.read == 0


async def test_bytes_are_counted_not_characters(table: MeteredTable) -> None:
    assert await units_of_put(table, Row("p", "s", "ü" * KB)) == 2


async def test_a_delete_costs_what_it_takes_away(table: MeteredTable) -> None:
    await table.put(Row("p", "s", "x" * 3 * KB, indexes={"listed": ("l", "1")}))
    table.units.written = 0
    await table.delete("p", "s")
    assert table.units.written == 3 + 1
    await table.delete("p", "s")
    assert table.units.written == 3 + 1 + 1


async def test_an_entry_of_an_index_costs_one_to_come_or_go_two_to_move_and_none_to_stay(table: MeteredTable) -> None:
    assert await units_of_put(table, Row("p", "s", "a", indexes={"listed": ("l", "1"), "running": ("r", "1")})) == 3
    assert await units_of_put(table, Row("p", "s", "b", indexes={"listed": ("l", "1"), "running": ("r", "1")})) == 1
    assert await units_of_put(table, Row("p", "s", "b", indexes={"listed": ("l", "1"), "running": ("r", "2")})) == 3
    assert await units_of_put(table, Row("p", "s", "b", indexes={"listed": ("l", "1")})) == 2


async def test_a_failed_condition_costs_the_row_that_it_met(table: MeteredTable) -> None:
    await table.put(Row("p", "s", "x" * 3 * KB, indexes={"listed": ("l", "1")}))
    table.units.written = 0
    with pytest.raises(ConditionFailed):
        await table.put(Row("p", "s", "x" * 5 * KB), Absent())
    assert table.units.written == 3
    with pytest.raises(ConditionFailed):
        await table.delete("p", "none", Version(1))
    assert table.units.written == 3 + 1


async def test_a_read_costs_a_unit_for_each_four_kb_and_one_for_nothing(table: MeteredTable) -> None:
    await table.put(Row("p", "s", "x" * 5 * KB))
    await table.get("p", "s")
    assert table.units.read == 2
    await table.get("p", "none")
    assert table.units.read == 2 + 1


async def test_a_batch_rounds_up_each_row_and_a_query_only_their_sum(table: MeteredTable) -> None:
    for sort in ("a", "b"):
        await table.put(Row("p", sort, "x" * 5 * KB))
    await table.get_many([("p", "a"), ("p", "b"), ("p", "a"), ("p", "none")])
    assert table.units.read == 2 + 2 + 1
    table.units.read = 0
    await table.query("p")
    assert table.units.read == 3
    await table.query("none")
    assert table.units.read == 3 + 1


async def test_a_query_of_an_index_costs_half_and_the_rows_that_it_leads_to(table: MeteredTable) -> None:
    for sort in ("a", "b"):
        await table.put(Row("p", sort, "x" * 5 * KB, indexes={"listed": ("l", sort)}))
    await table.query("l", index="listed")
    assert table.units.read == 0.5 + 2 + 2
    table.units.read = 0
    await table.query("none", index="listed")
    assert table.units.read == 0.5


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An account of moto's: a write or a query costs one unit, whatever its size, and a get half of one."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        yield


@pytest.mark.usefixtures("account")
async def test_what_dynamodb_says_is_added_up_by_who_asked(tmp_path: Path) -> None:
    ours, others = Units(), Units()
    with by_dynamodb() as counted:
        table = counted(tmp_path, ours)("turns")
        await table.put(Row("p", "s", ""))
        await table.get("p", "s")
        await table.query("p")
        await table.get_many([("p", "s"), ("p", "none")])
        await counted(tmp_path, others)("events").delete("p", "s")
    assert (ours.written, ours.read) == (1, 0.5 + 1 + 2)
    assert (others.written, others.read) == (1, 0)


@pytest.mark.usefixtures("account")
def test_tables_made_for_the_count_are_gone_when_a_case_fails() -> None:
    client = dynamodb_client()
    with pytest.raises(ZeroDivisionError), by_dynamodb():
        assert client.list_tables()["TableNames"]
        raise ZeroDivisionError
    assert client.list_tables()["TableNames"] == []
