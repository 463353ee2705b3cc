"""The Table port on DynamoDB, one table of it for one of Turnloom's.

An item holds the keys as `pk` and `sk`, the value as JSON text in `v`, the version in `n`, the expiry in `ttl` (which
DynamoDB's own expiry reads), and its place in the secondary index NAME as `NAME_pk` and `NAME_sk`. Indexes project
keys only: they are small and cheap to keep, and the rows they lead to are read consistently, so that a query by index
never shows an old row.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_never

from turnloom.adapters.aws_errors import passing_faults
from turnloom.adapters.threads import Threads
from turnloom.domain.errors import TooLarge
from turnloom.domain.message import JSON
from turnloom.ports import Absent, Condition, ConditionFailed, Page, Row, Version

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

VALUE_BYTES = 350_000
"""What the port allows for a value; DynamoDB ends at 400 KB for the item with its keys."""

_CONNECTIONS = 32
_BATCH = 100
"""As many keys as BatchGetItem takes."""
_PROBE = 4
"""How many items to ask for when all that matters is whether there is another live one."""
_LIVE = "(attribute_not_exists(#ttl) OR #ttl > :now)"
_NAMES = {"#ttl": "ttl"}  # a reserved word of the expression language

_threads = Threads("dynamodb", _CONNECTIONS)
_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Item = dict[str, Any]
Key = tuple[str, str]


def dynamodb_client() -> DynamoDBClient:
    """A thread-safe client for the account, or the AWS_ENDPOINT_URL, of the environment.

    Calls that are throttled or get no answer are tried four times in all, with growing pauses.
    """
    import boto3
    from botocore.config import Config

    return boto3.client(
        "dynamodb",
        config=Config(
            retries={"mode": "standard", "total_max_attempts": 4},
            connect_timeout=2,
            read_timeout=5,
            max_pool_connections=_CONNECTIONS,
        ),
    )


def table_schema(name: str, indexes: Iterable[str] = ()) -> dict[str, Any]:
    """The arguments of `create_table` for a Turnloom table with these secondary indexes, billed by request."""
    prefixes = {index: f"{index}_" for index in indexes}
    attributes = [prefix + key for prefix in ("", *prefixes.values()) for key in ("pk", "sk")]
    schema: dict[str, Any] = {
        "TableName": name,
        "BillingMode": "PAY_PER_REQUEST",
        "KeySchema": _key_schema(""),
        "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in attributes],
    }
    if prefixes:
        schema["GlobalSecondaryIndexes"] = [
            {"IndexName": index, "KeySchema": _key_schema(prefix), "Projection": {"ProjectionType": "KEYS_ONLY"}}
            for index, prefix in prefixes.items()
        ]
    return schema


def create_tables(client: DynamoDBClient, tables: Mapping[str, Iterable[str]]) -> None:
    """Create the tables (name to its secondary indexes) that are not there yet, with expiry on, and wait for them.

    For a laptop and for tests: in the cloud template.yaml does it. A table that is there is left as it is.
    """
    for name, indexes in tables.items():
        try:
            client.create_table(**table_schema(name, indexes))
        except client.exceptions.ResourceInUseException:
            continue
        client.get_waiter("table_exists").wait(TableName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        client.update_time_to_live(TableName=name, TimeToLiveSpecification={"Enabled": True, "AttributeName": "ttl"})


def dump(value: JSON) -> str:
    """The value as compact JSON text that UTF-8 can carry. Raises TooLarge above `VALUE_BYTES`."""
    text = _compact(value)
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        # Half of a surrogate pair: models do write such, and only an escape can hold it.
        text = json.dumps(value, separators=(",", ":"))
        size = len(text)
    if size > VALUE_BYTES:
        raise TooLarge(f"This would take {size} bytes where at most {VALUE_BYTES} can be kept")
    return text


class DynamoTable:
    """The DynamoDB table `name` as a Table. Calls run in threads, for boto3 is synchronous."""

    def __init__(self, client: DynamoDBClient, name: str, *, now: Callable[[], float] = time.time) -> None:
        self._client = client
        self.name = name
        self._now = now

    async def get(self, partition: str, sort: str) -> Row | None:
        with passing_faults():
            answer = await _threads.run(
                self._client.get_item, TableName=self.name, Key=_key(partition, sort), ConsistentRead=True
            )
        rows = self._live([answer["Item"]] if "Item" in answer else [])
        return rows[0] if rows else None

    async def get_many(self, keys: Sequence[Key]) -> list[Row]:
        unique = list(dict.fromkeys(keys))
        groups = [unique[start : start + _BATCH] for start in range(0, len(unique), _BATCH)]
        found = await asyncio.gather(*(self._batch(group) for group in groups))
        rows = {(row.partition, row.sort): row for items in found for row in self._live(items)}
        return [rows[key] for key in keys if key in rows]

    async def put(self, row: Row, when: Condition | None = None) -> None:
        item = _item(row)
        await self._write(self._client.put_item, item, when, Item=item)

    async def delete(self, partition: str, sort: str, when: Version | None = None) -> None:
        await self._write(self._client.delete_item, None, when, Key=_key(partition, sort))

    async def query(
        self,
        partition: str,
        *,
        after: str | None = None,
        before: str | None = None,
        descending: bool = False,
        limit: int | None = None,
        index: str | None = None,
    ) -> Page:
        after = after or None  # no key is empty, and DynamoDB does not compare with what cannot be
        if before is not None and (after or "") >= before:
            return Page((), more=False)
        run = _Run(partition, after, before, index)
        request = run.request() | {"TableName": self.name, "ScanIndexForward": not descending}
        if limit is not None:
            # One more than asked for, and the excluded ends, spare a second call that only learns of `more`.
            request["Limit"] = limit + 1 + run.inclusive_ends
        rows, last = await self._read(run, request)
        if limit is not None and len(rows) > limit:
            return Page(tuple(rows[:limit]), more=True)
        if last is None:
            return Page(tuple(rows), more=False)
        beyond, _ = await self._read(run, request | {"ExclusiveStartKey": last, "Limit": _PROBE})
        return Page(tuple(rows), more=bool(beyond))

    async def _read(self, run: _Run, request: Item) -> tuple[list[Row], Item | None]:
        """The next answer that has any live row, and where the query goes on after it, None at its end."""
        while True:
            with passing_faults():
                answer = await _threads.run(self._client.query, **request)
            rows = await self._rows(run, answer["Items"])
            last = answer.get("LastEvaluatedKey")
            if rows or last is None:
                return rows, last
            request = request | {"ExclusiveStartKey": last}
            if "Limit" in request:
                request["Limit"] *= 4  # a run of expired rows is not worth a call for every few of them

    async def _rows(self, run: _Run, items: Sequence[Item]) -> list[Row]:
        if run.index is None:
            rows = self._live(items)
        else:
            rows = await self.get_many([(item["pk"]["S"], item["sk"]["S"]) for item in items])
        return [row for row in rows if run.holds(row)]

    async def _batch(self, keys: Sequence[Key]) -> list[Item]:
        wanted: Item = {self.name: {"Keys": [_key(*key) for key in keys], "ConsistentRead": True}}
        items: list[Item] = []
        pause = 0.02
        while True:
            with passing_faults():
                answer = await _threads.run(self._client.batch_get_item, RequestItems=wanted)
            items += answer["Responses"].get(self.name, [])
            wanted = answer.get("UnprocessedKeys") or {}
            if not wanted:
                return items
            if self.name not in answer["Responses"]:
                await asyncio.sleep(pause)
                pause = min(2 * pause, 1.0)

    async def _write(
        self, call: Callable[..., Any], outcome: Item | None, when: Condition | None, **given: Any
    ) -> None:
        """Make the conditional `call`, which leaves `outcome` at the key."""
        request = given | {"TableName": self.name} | self._condition(when)
        try:
            with passing_faults():
                await _threads.run(call, **request)
        except self._client.exceptions.ConditionalCheckFailedException as error:
            if not _retry_of_success(error.response, outcome):
                raise ConditionFailed(f"{self.name}: {when}") from error

    def _condition(self, when: Condition | None) -> Item:
        now = {":now": {"N": str(int(self._now()))}}
        match when:
            case None:
                return {}
            case Absent():
                expression = "attribute_not_exists(pk) OR #ttl <= :now"
                values = now
            case Version(number):
                expression = f"n = :n AND {_LIVE}"
                values = now | {":n": {"N": str(number)}}
            case _:
                assert_never(when)
        return {
            "ConditionExpression": expression,
            "ExpressionAttributeNames": _NAMES,
            "ExpressionAttributeValues": values,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }

    def _live(self, items: Iterable[Item]) -> list[Row]:
        now = int(self._now())
        rows = map(_row, items)
        return [row for row in rows if row.expires is None or row.expires > now]


@dataclass(frozen=True, slots=True)
class _Run:
    """The part of a partition, of the table or of one of its indexes, that a query is about."""

    partition: str
    after: str | None
    before: str | None
    index: str | None

    @property
    def inclusive_ends(self) -> int:
        """How many rows DynamoDB may give too many: its one condition with two ends includes both."""
        return 2 if self.after is not None and self.before is not None else 0

    def request(self) -> Item:
        prefix = f"{self.index}_" if self.index else ""
        bounds = {":after": self.after, ":before": self.before}
        values = {name: {"S": bound} for name, bound in bounds.items() if bound is not None}
        return {
            "KeyConditionExpression": f"{prefix}pk = :partition" + self._bounds(f"{prefix}sk"),
            "ExpressionAttributeValues": {":partition": {"S": self.partition}, **values},
        } | ({"IndexName": self.index} if self.index else {"ConsistentRead": True})

    def holds(self, row: Row) -> bool:
        """Whether the row belongs here; one found by an index may have moved since the index heard of it."""
        partition, sort = row.indexes.get(self.index, ("", "")) if self.index else (row.partition, row.sort)
        beyond_after = self.after is None or sort > self.after
        return partition == self.partition and beyond_after and (self.before is None or sort < self.before)

    def _bounds(self, sort: str) -> str:
        match self.after, self.before:
            case None, None:
                return ""
            case _, None:
                return f" AND {sort} > :after"
            case None, _:
                return f" AND {sort} < :before"
            case _:
                return f" AND {sort} BETWEEN :after AND :before"


def _key(partition: str, sort: str) -> Item:
    return {"pk": {"S": partition}, "sk": {"S": sort}}


def _key_schema(prefix: str) -> list[dict[str, str]]:
    return [
        {"AttributeName": f"{prefix}pk", "KeyType": "HASH"},
        {"AttributeName": f"{prefix}sk", "KeyType": "RANGE"},
    ]


def _item(row: Row) -> Item:
    item = _key(row.partition, row.sort) | {"v": {"S": dump(row.value)}, "n": {"N": str(row.version)}}
    if row.expires is not None:
        item["ttl"] = {"N": str(row.expires)}
    for name, (partition, sort) in row.indexes.items():
        item |= {f"{name}_pk": {"S": partition}, f"{name}_sk": {"S": sort}}
    return item


def _row(item: Item) -> Row:
    indexes = [name.removesuffix("_pk") for name in item if name.endswith("_pk")]
    return Row(
        partition=item["pk"]["S"],
        sort=item["sk"]["S"],
        value=json.loads(item["v"]["S"]),
        version=int(item["n"]["N"]),
        expires=int(item["ttl"]["N"]) if "ttl" in item else None,
        indexes={name: (item[f"{name}_pk"]["S"], item[f"{name}_sk"]["S"]) for name in indexes},
    )


def _retry_of_success(response: Mapping[str, Any], outcome: Item | None) -> bool:
    """Whether the call was repeated by boto3 and what it meets is what its own first try left there.

    A write whose answer got lost is sent again, and then fails the condition that it has itself made untrue.
    """
    return response["ResponseMetadata"].get("RetryAttempts", 0) > 0 and response.get("Item") == outcome
