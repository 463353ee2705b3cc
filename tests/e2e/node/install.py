"""The node clients, installed once beside their lock file; without node or npm their tests are skipped."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"
PATIENCE = 600.0


def installed() -> Path:
    """The folder with the packages of the lock file, installed if need be; skips the test where that cannot be."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no node and npm on this machine")
    if int(_told(["node", "--version"]).lstrip("v").split(".")[0]) < 20:
        pytest.skip("the node clients need node 20 or newer")
    stamp = MODULES / ".turnloom"
    wanted = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        _told(["npm", "ci", "--no-audit", "--no-fund"])
        stamp.write_text(wanted)
    return MODULES


def _told(command: list[str]) -> str:
    """What a command prints; one that fails skips the test."""
    try:
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"`{' '.join(command)}` did not run: {error}")
    if done.returncode:
        pytest.skip(f"`{' '.join(command)}` failed: {done.stderr[-400:]}")
    return done.stdout
