"""The layer has all that is imported from it, however late."""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.build.built import BUILD, FUNCTIONS, LAYER, PYTHON, RUNTIME
from turnloom.local.template import Function

IMPORT_HANDLER = """
import sys
sys.path[:0] = sys.argv[1:]
import handler
assert callable(handler.handler)
print("app" if hasattr(handler, "app") else "task")
"""

RUN_EACH = """
import json, sys
sys.path[:0] = sys.argv[1:]
missing = []
for statement in json.load(sys.stdin):
    try:
        exec(statement, {})
    except ImportError as error:
        missing.append(f"{statement}: {error}")
print(json.dumps(missing))
"""


def run(script: str, *path: Path, given: str = "") -> str:
    """Run the script by a Python that finds its own library and these folders, and nothing else."""
    command = [str(part) for part in (PYTHON, "-I", "-B", "-c", script, *path)]
    ended = subprocess.run(command, input=given, stdout=subprocess.PIPE, check=True, text=True)
    return ended.stdout.strip()


def imports(tree: ast.AST) -> Iterator[str]:
    """Every absolute import in there that is ever run, as a statement of its own."""
    match tree:
        case ast.If(test=ast.Name("TYPE_CHECKING")):
            return
        case ast.Import() | ast.ImportFrom(level=0):
            yield ast.unparse(tree)
        case _:
            for child in ast.iter_child_nodes(tree):
                yield from imports(child)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.folder)
def test_a_handler_imports_with_nothing_but_the_layer(function: Function) -> None:
    expected = "app" if function.routes else "task"
    assert run(IMPORT_HANDLER, BUILD / function.name, LAYER) == expected


def test_what_turnloom_imports_only_when_needed_is_in_the_layer_or_the_runtime() -> None:
    sources = sorted((LAYER / "turnloom").rglob("*.py"))
    statements = sorted({found for source in sources for found in imports(ast.parse(source.read_text()))})
    assert "import boto3" in statements
    assert json.loads(run(RUN_EACH, LAYER, RUNTIME, given=json.dumps(statements))) == []
