"""What is uploaded: how much it is, and that it is for the machine that will run it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.build.built import BUILD, DEPLOYED, FUNCTIONS, PYTHON
from turnloom.local.template import ROOT, Function

UNZIPPED_BYTES = 60_000_000
AARCH64 = (183).to_bytes(2, "little")
"""e_machine of an ELF file."""
UNCHECKED_HASH = (0b01).to_bytes(4, "little")
"""The flags of bytecode that is taken without a look at its source (PEP 552)."""

RUNTIME_VERSION = str(yaml.safe_load((BUILD / "template.yaml").read_text())["Globals"]["Function"]["Runtime"])
IDENTITY = "import importlib.util, sys; print('python%d.%d' % sys.version_info[:2], importlib.util.MAGIC_NUMBER.hex())"


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_layer_is_small_unzipped() -> None:
    assert sum(path.stat().st_size for path in files(DEPLOYED)) < UNZIPPED_BYTES


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.folder)
def test_a_function_is_built_of_its_own_few_lines(function: Function) -> None:
    source = ROOT / "functions" / function.folder
    built = {path.name: path for path in files(BUILD / function.name)}
    assert set(built) == ({"handler.py", "run.sh"} if function.streams else {"handler.py"})
    assert all(path.read_text() == (source / name).read_text() for name, path in built.items())
    assert os.access(built["run.sh"], os.X_OK) if function.streams else True


def test_every_binary_in_the_layer_is_for_arm64() -> None:
    binaries = [path for path in files(DEPLOYED) if ".so" in path.suffixes]
    assert binaries
    assert [path for path in binaries if path.read_bytes()[18:20] != AARCH64] == []


def test_the_layer_is_compiled_for_the_runtime_and_never_checked_against_its_sources() -> None:
    name, magic = subprocess.check_output([PYTHON, "-c", IDENTITY], text=True).split()
    if name != RUNTIME_VERSION:
        pytest.skip(f"only {name} is here, and the layer is for {RUNTIME_VERSION}: it goes without bytecode")
    tag = name.removeprefix("python").replace(".", "")
    for source in DEPLOYED.rglob("*.py"):
        compiled = source.parent / "__pycache__" / f"{source.stem}.cpython-{tag}.pyc"
        assert compiled.read_bytes()[:8] == bytes.fromhex(magic) + UNCHECKED_HASH, source
