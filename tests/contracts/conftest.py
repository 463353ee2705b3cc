"""The stores under contract: SQLite, DynamoDB and S3 as moto plays them, and a DynamoDB of your choice.

TURNLOOM_TEST_DYNAMODB_URL=http://127.0.0.1:PORT adds that endpoint to every test of the table contract.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from turnloom.adapters.blobs import FolderBlobs, S3Blobs, s3_client
from turnloom.adapters.dynamodb import DynamoTable, create_tables, dynamodb_client
from turnloom.adapters.sqlite import SqliteDatabase
from turnloom.ports import Blobs, Table

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

T = TypeVar("T")
INDEXES = ("listed", "running")
OWN_ENDPOINT = os.environ.get("TURNLOOM_TEST_DYNAMODB_URL", "")


@dataclass
class Clock:
    """Seconds since the epoch, standing still."""

    seconds: float = 4_000_000_000.0  # so far ahead that no emulator removes what expires here

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """moto behind HTTP, one request at a time: it checks a condition and writes in two steps."""
    moto = DomainDispatcherApplication(create_backend_app)
    turn = threading.Lock()

    def one_at_a_time(environ: Any, start_response: Any) -> Iterable[bytes]:
        with turn:
            return list(moto(environ, start_response))

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def client(make: Callable[[], T], endpoint: str) -> T:
    """What `make` makes where the environment names this endpoint and an account that is none."""
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        for name, value in environment.items():
            patch.setenv(name, value)
        return make()


@pytest.fixture(scope="session")
def moto_dynamodb(moto_endpoint: str) -> DynamoDBClient:
    return client(dynamodb_client, moto_endpoint)


@pytest.fixture(params=["sqlite", "moto", *(["endpoint"] if OWN_ENDPOINT else [])])
def table(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Table]:
    """An empty table with the indexes `INDEXES`, on the time of `clock`."""
    if request.param == "sqlite":
        database = SqliteDatabase(tmp_path / "turnloom.db", now=clock)
        yield database.table("turns")
        database.close()
        return
    own = request.param == "endpoint"
    dynamodb = client(dynamodb_client, OWN_ENDPOINT) if own else request.getfixturevalue("moto_dynamodb")
    name = f"contract-{uuid.uuid4()}"
    create_tables(dynamodb, {name: INDEXES})
    yield DynamoTable(dynamodb, name, now=clock)
    dynamodb.delete_table(TableName=name)


@pytest.fixture
def dynamo_table(moto_dynamodb: DynamoDBClient, clock: Clock) -> DynamoTable:
    """A table on moto, for what only DynamoDB can do to us."""
    name = f"contract-{uuid.uuid4()}"
    create_tables(moto_dynamodb, {name: INDEXES})
    return DynamoTable(moto_dynamodb, name, now=clock)


@pytest.fixture(params=["folder", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return FolderBlobs(tmp_path / "blobs")
    s3 = client(s3_client, request.getfixturevalue("moto_endpoint"))
    bucket = f"contract-{uuid.uuid4()}"
    s3.create_bucket(Bucket=bucket)
    return S3Blobs(s3, bucket)
