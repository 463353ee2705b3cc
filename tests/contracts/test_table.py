"""What every Table adapter promises, and what SQLite and DynamoDB have to fear each on its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError
from botocore.httpsession import URLLib3Session

from tests.contracts.conftest import INDEXES, Clock
from turnloom.adapters.dynamodb import VALUE_BYTES, DynamoTable, create_tables
from turnloom.adapters.sqlite import SqliteDatabase
from turnloom.domain.errors import TooLarge
from turnloom.ports import Absent, ConditionFailed, Page, Row, Table, Version


def row(sort: str, value: Any = None, **rest: Any) -> Row:
    return Row("p", sort, value, **rest)


def sorts(page: Page) -> list[str]:
    return [found.sort for found in page.rows]


async def filled(table: Table, *names: str, **rest: Any) -> None:
    for name in names:
        await table.put(row(name, name, **rest))


async def refused(write: Awaitable[None]) -> bool:
    try:
        await write
    except ConditionFailed:
        return True
    return False


# --- writing and reading one row


async def test_a_row_comes_back_as_it_was_put(table: Table) -> None:
    given = Row("owner#thread", "0001", {"a": 1}, 7, 5_000_000_000, {"listed": ("owner", "x"), "running": ("0", "y")})
    await table.put(given)
    assert await table.get("owner#thread", "0001") == given


async def test_a_row_is_found_by_its_whole_key_only(table: Table) -> None:
    await table.put(row("b"))
    assert await table.get("p", "a") is None
    assert await table.get("q", "b") is None
    assert await table.get("p", "B") is None


async def test_a_put_replaces_the_whole_row(table: Table) -> None:
    await table.put(row("a", {"old": True}, version=3, expires=5_000_000_000, indexes={"listed": ("o", "1")}))
    await table.put(row("a", ["new"]))
    assert await table.get("p", "a") == row("a", ["new"])


async def test_a_delete_removes_the_row_and_may_come_again(table: Table) -> None:
    await filled(table, "a", "b")
    await table.delete("p", "a")
    await table.delete("p", "a")
    assert await table.get("p", "a") is None
    assert await table.get("p", "b") is not None


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -0.0,
        1.0,
        1e-7,
        1.7976931348623157e308,
        2**53 + 1,
        123456789012345678901234567890123456789012345,
        "",
        [],
        {},
        {"": {"z": [], "a": None, "b": [True, 1, 1.0, "1"]}},
        "naïve 漢字 🙂 \u0000 \u2028 \\ \" ' {table} :now %s",
        "half a pair: \ud83d",
    ],
    ids=lambda value: str(value).encode("ascii", "backslashreplace").decode()[:20].replace("\0", "0"),
)
async def test_values_keep_their_types(table: Table, value: Any) -> None:
    await table.put(row("a", value))
    found = await table.get("p", "a")
    assert found is not None
    assert repr(found.value) == repr(value)


async def test_deep_values_come_back(table: Table) -> None:
    value: Any = {"leaf": 0.5}
    for depth in range(150):
        value = [depth, value] if depth % 2 else {"down": value}
    await table.put(row("a", value))
    found = await table.get("p", "a")
    assert found is not None
    assert found.value == value


@pytest.mark.parametrize("letter", ["x", "漢"])
async def test_large_values_come_back(table: Table, letter: str) -> None:
    text = letter * (300_000 // len(letter.encode()))
    await table.put(row("a", {"text": text}))
    found = await table.get("p", "a")
    assert found is not None
    assert found.value == {"text": text}


async def test_a_value_over_the_limit_is_refused_and_not_written(table: Table) -> None:
    await table.put(row("a", "x" * (VALUE_BYTES - 2)))
    with pytest.raises(TooLarge, match="350002 bytes"):
        await table.put(row("a", "é" * (VALUE_BYTES // 2)))
    found = await table.get("p", "a")
    assert found is not None
    assert found.value[0] == "x"


@pytest.mark.parametrize("key", ["ünï#ßü", "漢字", "a b/c?d=e&f", "'; DROP TABLE turns; --", "🙂"])
async def test_keys_may_be_any_text(table: Table, key: str) -> None:
    given = Row(key, key, 1, indexes={"listed": (key, key)})
    await table.put(given)
    assert await table.get(key, key) == given
    assert await table.get_many([(key, key)]) == [given]
    assert (await table.query(key)).rows == (given,)
    assert (await table.query(key, index="listed")).rows == (given,)


# --- conditions


async def test_put_if_absent_writes_once(table: Table) -> None:
    await table.put(row("a", "first"), Absent())
    with pytest.raises(ConditionFailed):
        await table.put(row("a", "first"), Absent())
    with pytest.raises(ConditionFailed):
        await table.put(row("a", "second"), Absent())
    assert await table.get("p", "a") == row("a", "first")


async def test_put_if_version_writes_over_that_version_only(table: Table) -> None:
    await table.put(row("a", "one", version=1))
    await table.put(row("a", "two", version=2), Version(1))
    with pytest.raises(ConditionFailed):
        await table.put(row("a", "late", version=2), Version(1))
    assert await table.get("p", "a") == row("a", "two", version=2)


async def test_put_if_version_does_not_create(table: Table) -> None:
    with pytest.raises(ConditionFailed):
        await table.put(row("a"), Version(1))
    assert await table.get("p", "a") is None


async def test_delete_if_version_removes_that_version_only(table: Table) -> None:
    await table.put(row("a", version=2))
    with pytest.raises(ConditionFailed):
        await table.delete("p", "a", Version(1))
    assert await table.get("p", "a") is not None
    await table.delete("p", "a", Version(2))
    assert await table.get("p", "a") is None
    with pytest.raises(ConditionFailed):
        await table.delete("p", "a", Version(2))


async def test_a_failed_condition_writes_nothing(table: Table) -> None:
    given = row("a", "kept", version=5, expires=5_000_000_000, indexes={"listed": ("o", "1")})
    await table.put(given)
    other = row("a", "lost", version=6, indexes={"listed": ("o", "2"), "running": ("r", "1")})
    assert await refused(table.put(other, Absent()))
    assert await refused(table.put(other, Version(4)))
    assert await refused(table.delete("p", "a", Version(6)))
    assert await table.get("p", "a") == given
    assert (await table.query("o", index="listed")).rows == (given,)
    assert (await table.query("r", index="running")).rows == ()


async def in_threads(*work: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Run each in a thread and an event loop of its own, all at once."""
    start = asyncio.Event()

    async def alone(one: Callable[[], Awaitable[Any]]) -> Any:
        await start.wait()
        return await asyncio.to_thread(lambda: asyncio.run(_awaited(one)))

    tasks = [asyncio.create_task(alone(one)) for one in work]
    start.set()
    return await asyncio.gather(*tasks)


async def _awaited(one: Callable[[], Awaitable[Any]]) -> Any:
    return await one()


async def test_of_twenty_at_once_one_creates_the_row(table: Table) -> None:
    lost = await in_threads(*(lambda n=n: refused(table.put(row("a", n), Absent())) for n in range(20)))
    assert lost.count(False) == 1
    assert await table.get("p", "a") == row("a", lost.index(False))


async def test_of_twenty_at_once_one_replaces_the_version(table: Table) -> None:
    await table.put(row("a", version=1))
    lost = await in_threads(*(lambda n=n: refused(table.put(row("a", n, version=2), Version(1))) for n in range(20)))
    assert lost.count(False) == 1
    assert await table.get("p", "a") == row("a", lost.index(False), version=2)


# --- queries


async def test_a_query_goes_forwards_and_backwards_through_one_partition(table: Table) -> None:
    await filled(table, "b", "a", "d", "c")
    await table.put(Row("other", "b", None))
    assert await table.query("p") == Page(tuple(row(name, name) for name in "abcd"), more=False)
    assert sorts(await table.query("p", descending=True)) == ["d", "c", "b", "a"]
    assert await table.query("nobody") == Page((), more=False)


async def test_sort_keys_are_ordered_by_code_point(table: Table) -> None:
    names = ["0010", "0009", "1", "A", "a", "a#b", "ab", "é", "\uffee", "🙂"]
    await filled(table, *names)
    assert sorts(await table.query("p")) == sorted(names)
    assert sorts(await table.query("p", after="é")) == ["\uffee", "🙂"]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    ("after", "before", "expected"),
    [
        ("b", None, "cde"),
        (None, "d", "abc"),
        ("a", "e", "bcd"),
        ("b", "c", ""),
        ("c", "c", ""),
        ("d", "b", ""),
        ("aa", "d0", "bcd"),
        ("e", None, ""),
        (None, "a", ""),
        ("", None, "abcde"),
        (None, "", ""),
    ],
)
async def test_after_and_before_are_exclusive(
    table: Table, after: str | None, before: str | None, expected: str, descending: bool
) -> None:
    await filled(table, *"abcde")
    page = await table.query("p", after=after, before=before, descending=descending)
    assert sorts(page) == sorted(expected, reverse=descending)
    assert not page.more


@pytest.mark.parametrize("descending", [False, True])
async def test_more_is_true_only_when_there_is_more(table: Table, descending: bool) -> None:
    await filled(table, *"abcde")
    run = sorted("abcde", reverse=descending)
    for limit in range(1, 7):
        page = await table.query("p", limit=limit, descending=descending)
        assert (sorts(page), page.more) == (run[:limit], limit < 5)
        within = await table.query("p", after="a", before="e", limit=limit, descending=descending)
        assert (sorts(within), within.more) == (run[1:4][:limit], limit < 3)


async def whole(table: Table, *, descending: bool, limit: int | None = None, index: str | None = None) -> list[Page]:
    """All pages of a query, each begun where the one before it ended."""
    pages, end = [], None
    while True:
        bounds = {"before": end} if descending else {"after": end}
        page = await table.query("p", descending=descending, limit=limit, index=index, **bounds)
        pages.append(page)
        if not page.more:
            return pages
        end = page.rows[-1].sort


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("index", [None, "listed"])
async def test_pages_follow_each_other_without_gap_or_repeat(table: Table, descending: bool, index: str | None) -> None:
    names = [f"{n:03d}" for n in range(23)]
    for name in names:
        await table.put(row(name, indexes={"listed": ("p", name)}))
    pages = await whole(table, descending=descending, limit=5, index=index)
    assert [len(page.rows) for page in pages] == [5, 5, 5, 5, 3]
    assert [name for page in pages for name in sorts(page)] == sorted(names, reverse=descending)


@pytest.mark.parametrize("descending", [False, True])
async def test_more_than_a_megabyte_comes_in_several_pages(table: Table, descending: bool) -> None:
    names = [f"{n:03d}" for n in range(13)]
    for name in names:
        await table.put(row(name, name * 70_000))
    for limit in (None, 12, 13, 100):
        pages = await whole(table, descending=descending, limit=limit)
        found = [one for page in pages for one in page.rows]
        assert len(pages) > 1
        assert [one.sort for one in found] == sorted(names, reverse=descending)
        assert all(one.value == one.sort * 70_000 for one in found)


# --- many keys


async def test_get_many_keeps_the_order_and_leaves_out_what_is_missing(table: Table) -> None:
    await filled(table, *"abc")
    await table.put(Row("other", "a", "of another"))
    found = await table.get_many([("p", "c"), ("p", "nothing"), ("other", "a"), ("p", "a"), ("p", "c")])
    assert [one.value for one in found] == ["c", "of another", "a", "c"]
    assert await table.get_many([]) == []


async def test_get_many_takes_more_keys_than_a_batch(table: Table) -> None:
    names = [f"{n:03d}" for n in range(230)]
    await asyncio.gather(*(table.put(row(name, name)) for name in names))
    found = await table.get_many([("p", name) for name in reversed(names)])
    assert [one.sort for one in found] == names[::-1]


# --- expiry


async def test_an_expired_row_is_not_returned_by_any_read(table: Table, clock: Clock) -> None:
    expires = int(clock.seconds) + 10
    given = row("a", expires=expires, indexes={"listed": ("o", "a")})
    await table.put(given)
    clock.seconds = expires - 0.5
    assert await table.get("p", "a") == given
    clock.seconds = expires
    assert await table.get("p", "a") is None
    assert await table.get_many([("p", "a")]) == []
    assert await table.query("p") == Page((), more=False)
    assert await table.query("o", index="listed") == Page((), more=False)


async def test_an_expired_row_is_absent_to_conditions(table: Table, clock: Clock) -> None:
    await filled(table, "a", "b", expires=int(clock.seconds) - 1)
    with pytest.raises(ConditionFailed):
        await table.put(row("a", version=2), Version(1))
    with pytest.raises(ConditionFailed):
        await table.delete("p", "a", Version(1))
    await table.put(row("b", "again"), Absent())
    assert await table.query("p") == Page((row("b", "again"),), more=False)


@pytest.mark.parametrize("index", [None, "listed"])
async def test_expired_rows_take_no_place_on_a_page_and_do_not_count_as_more(
    table: Table, clock: Clock, index: str | None
) -> None:
    live = {5, 6, 40, 41}
    for n in range(80):
        expires = None if n in live else int(clock.seconds)
        await table.put(row(f"{n:03d}", expires=expires, indexes={"listed": ("p", f"{n:03d}")}))
    pages = await whole(table, descending=False, limit=2, index=index)
    assert [name for page in pages for name in sorts(page)] == ["005", "006", "040", "041"]
    assert all(page.rows for page in pages)
    pages = await whole(table, descending=True, limit=3, index=index)
    assert [name for page in pages for name in sorts(page)] == ["041", "040", "006", "005"]


# --- secondary orders


async def test_an_index_is_sparse_and_has_its_own_order(table: Table) -> None:
    await table.put(row("a", indexes={"listed": ("o", "3")}))
    await table.put(row("b", indexes={"listed": ("o", "1"), "running": ("r", "9")}))
    await table.put(row("c"))
    await table.put(Row("elsewhere", "d", None, indexes={"listed": ("o", "2")}))
    await table.put(row("e", indexes={"listed": ("other", "0")}))
    assert sorts(await table.query("o", index="listed")) == ["b", "d", "a"]
    assert sorts(await table.query("o", index="listed", descending=True)) == ["a", "d", "b"]
    assert sorts(await table.query("o", index="listed", after="1", before="3")) == ["d"]
    assert sorts(await table.query("o", index="listed", after="1")) == ["d", "a"]
    page = await table.query("o", index="listed", limit=2)
    assert (sorts(page), page.more) == (["b", "d"], True)
    assert sorts(await table.query("r", index="running")) == ["b"]
    assert await table.query("p", index="listed") == Page((), more=False)


async def test_a_row_leaves_an_index_and_moves_in_it(table: Table) -> None:
    await table.put(row("a", indexes={"listed": ("o", "1"), "running": ("r", "1")}))
    await table.put(row("b", indexes={"listed": ("o", "2")}))
    await table.put(row("a", version=2, indexes={"listed": ("o", "3")}), Version(1))
    assert sorts(await table.query("r", index="running")) == []
    assert sorts(await table.query("o", index="listed")) == ["b", "a"]
    await table.put(row("b", indexes={"listed": ("another", "2")}))
    assert sorts(await table.query("o", index="listed")) == ["a"]
    assert sorts(await table.query("another", index="listed")) == ["b"]


async def test_a_deleted_row_is_in_no_index(table: Table) -> None:
    await table.put(row("a", indexes={"listed": ("o", "1")}))
    await table.delete("p", "a")
    assert await table.query("o", index="listed") == Page((), more=False)


async def test_an_index_tells_of_rows_as_they_are(table: Table) -> None:
    given = row("a", {"deep": [1.0]}, version=4, expires=5_000_000_000, indexes={"listed": ("o", "1")})
    await table.put(given)
    assert await table.query("o", index="listed") == Page((given,), more=False)


# --- DynamoDB alone


class Lagging:
    """A DynamoDB whose index has not heard of the last change."""

    def __init__(self, client: Any, stale: list[dict[str, Any]]) -> None:
        self._client = client
        self._stale = stale

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def query(self, **request: Any) -> Any:
        return {"Items": self._stale}


async def test_an_index_that_lags_behind_shows_no_row_that_has_left_it(
    dynamo_table: DynamoTable, moto_dynamodb: Any
) -> None:
    await dynamo_table.put(row("stays", indexes={"listed": ("o", "1")}))
    await dynamo_table.put(row("left"))
    await dynamo_table.put(row("moved", indexes={"listed": ("o", "9")}))
    keys = [{"pk": {"S": "p"}, "sk": {"S": name}} for name in ("stays", "left", "moved", "deleted")]
    lagging: Any = Lagging(moto_dynamodb, keys)
    table = DynamoTable(lagging, dynamo_table.name)
    assert sorts(await table.query("o", index="listed", before="5")) == ["stays"]


class Halving:
    """A DynamoDB that answers for half of the keys at a time, and first for none."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.asked: list[int] = []

    def batch_get_item(self, RequestItems: Any) -> Any:  # noqa: N803
        ((name, wanted),) = RequestItems.items()
        keys = wanted["Keys"]
        self.asked.append(len(keys))
        done = 0 if len(self.asked) == 1 else (len(keys) + 1) // 2
        answer = self._client.batch_get_item(RequestItems={name: {**wanted, "Keys": keys[:done]}}) if done else {}
        later = {name: {**wanted, "Keys": keys[done:]}} if keys[done:] else {}
        return {"Responses": {}, **answer, "UnprocessedKeys": later}


async def test_keys_that_were_not_processed_are_asked_for_again(dynamo_table: DynamoTable, moto_dynamodb: Any) -> None:
    await filled(dynamo_table, *"abcde")
    halving: Any = Halving(moto_dynamodb)
    found = await DynamoTable(halving, dynamo_table.name).get_many([("p", name) for name in "edcba"])
    assert [one.sort for one in found] == list("edcba")
    assert halving.asked == [5, 5, 2, 1]


@pytest.fixture
def loses_an_answer(moto_dynamodb: Any) -> Any:
    """After a call of this, the next write reaches DynamoDB and its answer is lost on the way back."""
    lost: list[str] = []

    def send(request: Any, **_: Any) -> None:
        if not lost:
            return
        lost.clear()
        URLLib3Session().send(request)
        raise ReadTimeoutError(endpoint_url=request.url)

    moto_dynamodb.meta.events.register("before-send.dynamodb.*", send, unique_id="lost")
    yield lambda: lost.append("next")
    moto_dynamodb.meta.events.unregister("before-send.dynamodb.*", unique_id="lost")


async def test_a_write_whose_answer_got_lost_has_succeeded(dynamo_table: DynamoTable, loses_an_answer: Any) -> None:
    loses_an_answer()
    await dynamo_table.put(row("a", "mine"), Absent())
    loses_an_answer()
    await dynamo_table.put(row("a", "mine again", version=2), Version(1))
    assert await dynamo_table.get("p", "a") == row("a", "mine again", version=2)
    loses_an_answer()
    await dynamo_table.delete("p", "a", Version(2))
    assert await dynamo_table.get("p", "a") is None


async def test_a_retried_write_does_not_take_another_row_for_its_own(
    dynamo_table: DynamoTable, loses_an_answer: Any
) -> None:
    await dynamo_table.put(row("a", "theirs"))
    loses_an_answer()
    with pytest.raises(ConditionFailed):
        await dynamo_table.put(row("a", "mine"), Absent())
    assert await dynamo_table.get("p", "a") == row("a", "theirs")


async def test_a_query_that_fits_on_a_page_takes_one_call(dynamo_table: DynamoTable, moto_dynamodb: Any) -> None:
    await filled(dynamo_table, *"abcde")
    calls: list[str] = []
    moto_dynamodb.meta.events.register("before-send.dynamodb.*", lambda **_: calls.append("call"), unique_id="count")
    for bounds in ({}, {"limit": 5}, {"limit": 2}, {"after": "a", "before": "e", "limit": 2}):
        await dynamo_table.query("p", **bounds)
    moto_dynamodb.meta.events.unregister("before-send.dynamodb.*", unique_id="count")
    assert len(calls) == 4


async def test_tables_are_created_once_and_expire_by_the_clock_of_dynamodb(
    dynamo_table: DynamoTable, moto_dynamodb: Any
) -> None:
    await filled(dynamo_table, "a")
    create_tables(moto_dynamodb, {dynamo_table.name: INDEXES})
    assert await dynamo_table.get("p", "a") is not None
    described = moto_dynamodb.describe_time_to_live(TableName=dynamo_table.name)["TimeToLiveDescription"]
    assert (described["TimeToLiveStatus"], described["AttributeName"]) == ("ENABLED", "ttl")
    schema = moto_dynamodb.describe_table(TableName=dynamo_table.name)["Table"]
    projections = {index["IndexName"]: index["Projection"] for index in schema["GlobalSecondaryIndexes"]}
    assert projections == {name: {"ProjectionType": "KEYS_ONLY"} for name in INDEXES}
    assert schema["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"


# --- SQLite alone


async def count_up(path: Path, times: int) -> None:
    """Add one to a row `times` times, each time on the version last seen, among others who do the same."""
    with closing(SqliteDatabase(path)) as database:
        table = database.table("turns")
        for _ in range(times):
            while True:
                found = await table.get("p", "count")
                assert found is not None
                raised = row("count", found.value + 1, version=found.version + 1)
                if not await refused(table.put(raised, Version(found.version))):
                    break


def count_up_alone(path: Path, times: int) -> None:
    asyncio.run(count_up(path, times))


async def test_several_processes_lose_no_conditional_write(tmp_path: Path) -> None:
    path = tmp_path / "turnloom.db"
    with closing(SqliteDatabase(path)) as database:
        await database.table("turns").put(row("count", 0))
        spawn = multiprocessing.get_context("spawn")
        others = [spawn.Process(target=count_up_alone, args=(path, 150)) for _ in range(3)]
        for process in others:
            process.start()
        await count_up(path, 150)
        for process in others:
            await asyncio.to_thread(process.join)
        assert [process.exitcode for process in others] == [0, 0, 0]
        assert await database.table("turns").get("p", "count") == row("count", 600, version=601)


async def test_several_processes_may_create_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "turnloom.db"
    program = f"""
import asyncio, sys
from pathlib import Path
from turnloom.adapters.sqlite import SqliteDatabase
from turnloom.domain.errors import TooLarge
from turnloom.ports import Absent, Row
sys.stdin.readline()
table = SqliteDatabase(Path({str(path)!r})).table("turns")
asyncio.run(table.put(Row("p", sys.argv[1], None, indexes={{"listed": ("o", sys.argv[1])}}), Absent()))
"""
    writers = [python(program, str(n)) for n in range(4)]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    outcomes = [await asyncio.to_thread(writer.communicate) for writer in writers]
    assert [(writer.returncode, errors) for writer, (_, errors) in zip(writers, outcomes, strict=True)] == [(0, "")] * 4
    with closing(SqliteDatabase(path)) as database:
        assert sorts(await database.table("turns").query("o", index="listed")) == ["0", "1", "2", "3"]


def python(program: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {"PYTHONPATH": "lib"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
    )


WRITER = """
import asyncio, sys, zlib
from pathlib import Path
from turnloom.adapters.sqlite import SqliteDatabase
from turnloom.domain.errors import TooLarge
from turnloom.ports import Absent, Row

async def main():
    table = SqliteDatabase(Path(sys.argv[1])).table("turns")
    number = int(sys.argv[2])
    while True:
        text = str(number) * (number % 7 * 1000 + 10)
        value = {"text": text, "sum": zlib.crc32(text.encode())}
        await table.put(Row("p", f"{number:09d}", value, indexes={"listed": ("p", f"{number:09d}")}), Absent())
        print(number, flush=True)
        number += 1

asyncio.run(main())
"""


async def test_a_killed_writer_leaves_every_acknowledged_row_and_whole_ones_only(tmp_path: Path) -> None:
    path = tmp_path / "turnloom.db"
    acknowledged: set[int] = set()
    for kills in range(1, 4):
        with python(WRITER, str(path), str(1_000_000 * kills)) as writer:
            assert writer.stdout is not None
            first = [writer.stdout.readline() for _ in range(300)]
            writer.kill()
            acknowledged |= {int(number) for number in [*first, *writer.stdout]}
        with closing(SqliteDatabase(path)) as database:
            table = database.table("turns")
            rows = [one for page in await whole(table, descending=False) for one in page.rows]
            written = {int(one.sort) for one in rows}
            assert acknowledged <= written
            assert len(written - acknowledged) <= kills
            assert all(zlib.crc32(one.value["text"].encode()) == one.value["sum"] for one in rows)
            listed = await whole(table, descending=False, index="listed")
            assert [one for page in listed for one in page.rows] == rows


async def test_a_write_waits_for_another_process_and_leaves_the_loop_free(tmp_path: Path) -> None:
    path = tmp_path / "turnloom.db"
    with closing(SqliteDatabase(path)) as database, closing(sqlite3.connect(path, isolation_level=None)) as other:
        table = database.table("turns")
        await filled(table, "a")
        other.execute("BEGIN IMMEDIATE")
        write = asyncio.create_task(table.put(row("b"), Absent()))
        for _ in range(3):
            assert await table.get("p", "a") is not None
            await asyncio.sleep(0)
        assert not write.done()
        other.execute("ROLLBACK")
        await write
        assert await table.get("p", "b") is not None


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def stored(path: Path) -> list[str]:
    """The sort keys that are in the file, whatever a table would say."""
    with closing(sqlite3.connect(path)) as file:
        return [name for (name,) in file.execute("SELECT sort FROM turns ORDER BY sort")]


async def test_expired_rows_of_an_earlier_process_are_removed(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "turnloom.db"
    expires = int(clock.seconds) + 10
    with closing(SqliteDatabase(path, now=clock)) as database:
        table = database.table("turns")
        await filled(table, "a", "b", expires=expires)
        await filled(table, "c")
        await filled(table, "d", expires=expires + 1)
    clock.seconds = expires
    with closing(SqliteDatabase(path, now=clock)) as database:
        await filled(database.table("turns"), "e", expires=expires + 1)
    assert stored(path) == ["c", "d", "e"]


async def test_expired_rows_are_removed_while_others_are_written(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "turnloom.db"
    with closing(SqliteDatabase(path, now=clock)) as database:
        table = database.table("turns")
        for n in range(2_000):
            clock.seconds += 1
            await table.put(row(f"{n:04d}", expires=int(clock.seconds) + 10))
        assert len(stored(path)) < 300


async def test_a_hundred_rows_of_900_bytes_take_less_than_150_kilobytes(tmp_path: Path) -> None:
    path = tmp_path / "turnloom.db"
    with closing(SqliteDatabase(path)) as database:
        for name in ("agents", "sessions", "events"):
            await database.table(name).get("p", "a")
        table = database.table("responses")
        for n in range(100):
            name = f"resp_{n:032d}"
            placed = Row("anonymous#0123456789abcdef", f"{n:010d}", None, indexes={"listed": ("anonymous", name)})
            await table.put(replace(placed, value="x" * 200))
            await table.put(replace(placed, value="x" * 898, version=2), Version(1))
    assert path.stat().st_size < 150_000
    assert names_in(tmp_path) == ["turnloom.db"]


async def test_what_was_deleted_is_gone_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "turnloom.db"
    with closing(SqliteDatabase(path)) as database:
        table = database.table("turns")
        for n in range(50):
            await table.put(row(f"{n:02d}", f"secret {n} " * 100))
        await table.put(row("49", "replaced", version=2), Version(1))
        for n in range(49):
            await table.delete("p", f"{n:02d}")
    assert b"replaced" in path.read_bytes()
    assert b"secret" not in path.read_bytes()


async def test_an_index_is_made_from_the_rows_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "turnloom.db"
    with closing(SqliteDatabase(path)) as database:
        await database.table("turns").put(row("a", indexes={"listed": ("o", "1")}))
    with closing(sqlite3.connect(path)) as file:
        file.execute("DROP INDEX turns_by_listed")
    with closing(SqliteDatabase(path)) as database:
        assert sorts(await database.table("turns").query("o", index="listed")) == ["a"]


async def test_a_query_by_index_searches_and_does_not_sort(tmp_path: Path) -> None:
    path = tmp_path / "turnloom.db"
    statements: list[str] = []
    with closing(SqliteDatabase(path)) as database:
        table = database.table("turns")
        await table.query("o", index="listed")
        database.once(lambda file: file.set_trace_callback(statements.append))
        await table.query("o", index="listed", after="a", descending=True)
        database.once(lambda file: file.set_trace_callback(None))
        plan = database.once(lambda file: file.execute(f"EXPLAIN QUERY PLAN {statements[0]}").fetchall())
    assert [step[-1] for step in plan] == ["SEARCH turns USING INDEX turns_by_listed (<expr>=? AND <expr>>?)"]


@pytest.mark.parametrize("name", ["", "a b", 'turns"; DROP TABLE turns; --', "ärger", "1st", "turn-s"])
async def test_names_that_are_no_words_are_refused(tmp_path: Path, name: str) -> None:
    with closing(SqliteDatabase(tmp_path / "turnloom.db")) as database:
        with pytest.raises(ValueError, match="cannot name"):
            database.table(name)
        with pytest.raises(ValueError, match="cannot name"):
            await database.table("turns").query("p", index=name)
        with pytest.raises(ValueError, match="cannot name"):
            await database.table("turns").put(row("a", indexes={name: ("o", "1")}))
