"""The Blobs port on a folder and on S3.

A key is one or more parts with `/` between them, none of them empty, `.` or `..`; others are refused with ValueError
by both, so that what a folder could not hold never gets into a bucket.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from turnloom.adapters.aws_errors import passing_faults
from turnloom.adapters.threads import Threads
from turnloom.domain.errors import StorageFull, StoreUnavailable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


DAY_SECONDS = 24 * 3600
_CONNECTIONS = 16

_threads = Threads("blobs", _CONNECTIONS)


def s3_client() -> S3Client:
    """A thread-safe client for the account, or the AWS_ENDPOINT_URL, of the environment."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        config=Config(
            retries={"mode": "standard", "total_max_attempts": 4},
            connect_timeout=2,
            read_timeout=10,
            max_pool_connections=_CONNECTIONS,
            # An endpoint of one's own has no host name for every bucket.
            s3={"addressing_style": "path" if os.environ.get("AWS_ENDPOINT_URL") else "auto"},
        ),
    )


class FolderBlobs:
    """Blobs as files in the folder `root`, each named by its whole key in quoted form; `root` is created if need be.

    A file is written aside and then renamed, so that a reader, or whoever comes after a kill, finds all of it or
    nothing of it. `days_of` a key is for how long its blob is kept, None for ever; what is older is removed when this
    process first writes.
    """

    def __init__(self, root: Path, days_of: Callable[[str], int | None] = lambda key: None) -> None:
        self._root = root
        self._days_of = days_of
        self._swept = False

    async def put(self, key: str, content: bytes) -> None:
        path = self._path(key)
        try:
            await _threads.run(self._write, path, content)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StorageFull(str(error)) from error
            if error.errno in (errno.EIO, errno.EROFS):
                raise StoreUnavailable(str(error)) from error
            raise
        if not self._swept:
            self._swept = True
            await _threads.run(self._sweep)

    async def get(self, key: str) -> bytes | None:
        try:
            return await _threads.run(self._path(key).read_bytes)
        except FileNotFoundError:
            return None

    async def delete(self, key: str) -> None:
        await _threads.run(self._path(key).unlink, missing_ok=True)

    def _path(self, key: str) -> Path:
        # One flat folder: `a` and `a/b` may both be keys, and there are no empty folders to tidy up.
        return self._root / quote(_checked(key), safe="")

    def _sweep(self) -> None:
        for path in self._root.iterdir():
            days = self._days_of(unquote(path.name))
            # Other processes sweep too.
            with suppress(FileNotFoundError):
                if days is not None and path.stat().st_mtime < time.time() - days * DAY_SECONDS:
                    path.unlink()

    def _write(self, path: Path, content: bytes) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=self._root, prefix=".")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(handle)
            Path(aside).replace(path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise


class S3Blobs:
    """Blobs as objects of the S3 bucket `bucket`. Calls run in threads, for boto3 is synchronous."""

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    async def put(self, key: str, content: bytes) -> None:
        with passing_faults():
            await _threads.run(self._client.put_object, Bucket=self._bucket, Key=_checked(key), Body=content)

    async def get(self, key: str) -> bytes | None:
        with passing_faults():
            return await _threads.run(self._read, _checked(key))

    async def delete(self, key: str) -> None:
        with passing_faults():
            await _threads.run(self._client.delete_object, Bucket=self._bucket, Key=_checked(key))

    def _read(self, key: str) -> bytes | None:
        try:
            return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except self._client.exceptions.NoSuchKey:
            return None


def _checked(key: str) -> str:
    if "\0" in key or {"", ".", ".."}.intersection(key.split("/")):
        raise ValueError(f"{key!r} cannot be a blob's key")
    return key
