"""Imports go one way: functions -> wire -> usecases -> engine -> domain, and adapters answer ports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

LIB = Path(__file__).parents[2] / "lib" / "turnloom"

# What each package may import of Turnloom, beside itself.
ALLOWED = {
    "domain": set(),
    "ports": {"domain"},
    "store": {"domain", "ports"},
    "engine": {"domain", "ports", "store"},
    "usecases": {"domain", "ports", "store", "engine"},
    "wire": {"domain", "ports", "store", "engine", "usecases"},
    "adapters": {"domain", "ports"},
    "testing": {"domain", "ports", "engine"},
    "tasks": {"bootstrap", "engine", "loop", "usecases"},
    "local": {"wire", "usecases", "domain", "ports", "adapters"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def modules(package: str) -> list[Path]:
    folder = LIB / package
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [LIB / f"{package}.py"]


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_is_below_it(package: str) -> None:
    for path in modules(package):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "turnloom" and len(parts) > 1 and parts[1] != package:
                assert parts[1] in ALLOWED[package], f"{path.relative_to(LIB)} imports {name}"


@pytest.mark.parametrize("library", ["boto3", "botocore", "sqlite3", "openai", "mcp", "httpx2"])
def test_the_outside_world_is_met_in_adapters_alone(library: str) -> None:
    for path in LIB.rglob("*.py"):
        if path.is_relative_to(LIB / "adapters") or path.is_relative_to(LIB / "local"):
            continue
        assert not any(name.split(".")[0] == library for name in imports(path)), path


def test_the_core_knows_no_clock_chance_or_environment() -> None:
    for package in ("domain", "engine", "store", "usecases"):
        for path in modules(package):
            forbidden = {"time", "datetime", "random", "secrets", "os"} & {name.split(".")[0] for name in imports(path)}
            assert not forbidden, f"{path.relative_to(LIB)} imports {forbidden}"
