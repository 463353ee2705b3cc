"""Where state is kept: tables in DynamoDB and blobs in S3 where a state is deployed or asked for, else one folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from turnloom.ports import Blobs, Table

INDEXES = {
    "agents": (),
    "sessions": (),
    "turns": ("running",),
    "responses": ("running", "listed"),
    "events": (),
    "registry": (),
    "keys": (),
}
"""The tables, each with its secondary orders, as in template.yaml."""


def data_folder(env: dict[str, str]) -> Path:
    """The folder of a laptop's state."""
    return Path(env.get("TURNLOOM_DATA_DIR", ".turnloom"))


def storage(env: dict[str, str]) -> Callable[[str], Table]:
    """What opens the table of a name; where DynamoDB is asked for and none is deployed, the tables are made."""
    if "TURNLOOM_TABLES_PREFIX" not in env and env.get("TURNLOOM_STORE") != "dynamodb":
        from turnloom.adapters.sqlite import SqliteDatabase

        return SqliteDatabase(data_folder(env) / "turnloom.db").table
    from turnloom.adapters.dynamodb import DynamoTable, create_tables, dynamodb_client

    client = dynamodb_client()
    prefix = env.get("TURNLOOM_TABLES_PREFIX", "turnloom-")
    if "TURNLOOM_TABLES_PREFIX" not in env:
        create_tables(client, {prefix + name: indexes for name, indexes in INDEXES.items()})
    return lambda name: DynamoTable(client, prefix + name)


def blob_store(env: dict[str, str]) -> Blobs:
    """The bucket of the deployment, or a folder."""
    from turnloom.adapters.blobs import FolderBlobs, S3Blobs, s3_client
    from turnloom.store.turns import days_of

    bucket = env.get("TURNLOOM_BUCKET")
    deployed = "TURNLOOM_TABLES_PREFIX" in env or env.get("TURNLOOM_STORE") == "dynamodb"
    return S3Blobs(s3_client(), bucket) if bucket and deployed else FolderBlobs(data_folder(env) / "blobs", days_of)
