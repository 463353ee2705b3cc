"""What every Blobs adapter promises."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from turnloom.adapters.blobs import DAY_SECONDS, FolderBlobs
from turnloom.ports import Blobs


async def test_what_was_put_is_got(blobs: Blobs) -> None:
    content = bytes(range(256)) * 5_000
    await blobs.put("owner#turn/1", content)
    assert await blobs.get("owner#turn/1") == content


async def test_an_empty_blob_is_not_an_absent_one(blobs: Blobs) -> None:
    await blobs.put("empty", b"")
    assert await blobs.get("empty") == b""
    assert await blobs.get("absent") is None


async def test_a_second_put_replaces_the_first(blobs: Blobs) -> None:
    await blobs.put("key", b"a long first content")
    await blobs.put("key", b"second")
    assert await blobs.get("key") == b"second"


async def test_a_deleted_blob_is_gone_and_may_be_deleted_again(blobs: Blobs) -> None:
    await blobs.put("key", b"content")
    await blobs.delete("key")
    assert await blobs.get("key") is None
    await blobs.delete("key")
    await blobs.delete("never/was")


async def test_keys_differ_by_every_character(blobs: Blobs) -> None:
    keys = ["a", "a/b", "a/b/c", "a#b", "a%2Fb", "a b", "ä/ß", "a.b", "..a/.b", "a+b"]
    for key in keys:
        await blobs.put(key, key.encode())
    assert [await blobs.get(key) for key in keys] == [key.encode() for key in keys]


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../../up", "a//b", "a/", ".", "a/..", "a\0b"])
async def test_a_key_that_leads_elsewhere_is_refused(blobs: Blobs, key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        await blobs.put(key, b"content")
    with pytest.raises(ValueError, match="key"):
        await blobs.get(key)
    with pytest.raises(ValueError, match="key"):
        await blobs.delete(key)


async def test_a_reader_never_sees_half_a_blob(blobs: Blobs) -> None:
    contents = [bytes([n]) * 400_000 for n in range(8)]
    await blobs.put("key", contents[0])
    found = await asyncio.gather(
        *(use for content in contents for use in (blobs.put("key", content), blobs.get("key")))
    )
    assert set(found) - {None} <= set(contents)
    assert await blobs.get("key") in contents


def names_below(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*")]


async def test_a_folder_holds_one_file_for_each_blob_and_nothing_else(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "new" / "blobs")
    await asyncio.gather(*(blobs.put(f"owner/{n % 3}", b"content") for n in range(12)))
    assert len(names_below(tmp_path)) == len(["new", "blobs", 0, 1, 2])


async def test_a_put_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    with pytest.raises(OSError, match="too long"):
        await blobs.put("k" * 300, b"content")
    assert names_below(tmp_path) == []


async def test_a_folder_loses_what_has_expired_when_a_process_first_writes(tmp_path: Path) -> None:
    for key in ("brief/old", "brief/new", "kept/old"):
        await FolderBlobs(tmp_path).put(key, b"x")
    past = time.time() - 3 * DAY_SECONDS
    for key in ("brief%2Fold", "kept%2Fold"):
        os.utime(tmp_path / key, (past, past))
    blobs = FolderBlobs(tmp_path, lambda key: 2 if key.startswith("brief/") else None)
    await blobs.put("another", b"x")
    found = {key for key in ("brief/old", "brief/new", "kept/old") if await blobs.get(key) is not None}
    assert found == {"brief/new", "kept/old"}
