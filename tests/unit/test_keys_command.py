"""`turnloom keys`, as an operator uses it: on a laptop, and on a deployed stack."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from turnloom import gate, keys
from turnloom.adapters.dynamodb import create_tables, dynamodb_client
from turnloom.domain.api_key import key_parts
from turnloom.domain.errors import Unauthenticated
from turnloom.loop import on_loop
from turnloom.usecases.authorization import Identity

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command for the laptop's own keys, and gives what it prints."""
    monkeypatch.setenv("TURNLOOM_DATA_DIR", str(tmp_path))

    def command(*arguments: str, status: int = 0) -> str:
        assert keys.main(list(arguments)) == status
        shown = capsys.readouterr()
        return (shown.err if status else shown.out).removesuffix("\n")

    return command


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a stack that has its table of keys."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", boto3.Session())
        create_tables(dynamodb_client(), {"stack-keys": ()})
        yield "stack"


def identify(key: str, **env: str) -> Identity:
    return on_loop(gate.build({"TURNLOOM_AUTH": "keys", **env}).identify(f"Bearer {key}"))


def id_of(key: str) -> str:
    parts = key_parts(key)
    assert parts is not None
    return parts[0]


def test_what_create_shows_is_a_key_and_nothing_else(run: Run, tmp_path: Path) -> None:
    key = run("create", "--owner", "me")
    assert key_parts(key)
    assert identify(key, TURNLOOM_DATA_DIR=str(tmp_path)) == Identity("me")


def test_a_listed_key_says_whose_it_is_and_how_it_stands_but_not_its_secret(run: Run) -> None:
    made = [run("create", "--owner", "me", "--label", "laptop"), run("create", "--owner", "they", "--days", "30")]
    heading, *lines = run("list").splitlines()
    assert heading.split("\t") == ["id", "state", "created", "owner", "label"]
    rows = [line.split("\t") for line in lines]
    assert [row[0] for row in rows] == [id_of(key) for key in made]
    assert [row[3:] for row in rows] == [["me", "laptop"], ["they", ""]]
    assert rows[0][1] == "good" and re.fullmatch(r"until \d{4}-\d\d-\d\d", rows[1][1])
    assert not any(key.rpartition("_")[2] in line for key in made for line in lines)


@pytest.mark.parametrize("whole", [True, False])
def test_a_key_is_revoked_by_its_id_or_by_itself(whole: bool, run: Run, tmp_path: Path) -> None:
    key = run("create", "--owner", "me")
    assert id_of(key) in run("revoke", key if whole else id_of(key))
    with pytest.raises(Unauthenticated):
        identify(key, TURNLOOM_DATA_DIR=str(tmp_path))
    assert "revoked " in run("list")


def test_to_revoke_what_is_not_there_fails(run: Run) -> None:
    assert "0123" in run("revoke", "0123", status=1)


@pytest.mark.parametrize(
    "wrong", [("--owner", ""), ("--owner", "me", "--days", "0"), ("--owner", "me", "--days", "9999999")]
)
def test_what_makes_no_key_says_why(wrong: tuple[str, ...], run: Run) -> None:
    assert run("create", *wrong, status=1)
    assert len(run("list").splitlines()) == 1


def test_the_folder_can_be_another(run: Run, tmp_path: Path) -> None:
    run("create", "--owner", "me", "--data-dir", str(tmp_path / "other"))
    assert len(run("list").splitlines()) == 1
    assert len(run("list", "--data-dir", str(tmp_path / "other")).splitlines()) == 2


def test_a_stack_has_keys_of_its_own(run: Run, stack: str) -> None:
    key = run("create", "--stack", stack, "--owner", "me")
    assert identify(key, TURNLOOM_TABLES_PREFIX="stack-") == Identity("me")
    assert id_of(key) in run("list", "--stack", stack)
    assert id_of(key) not in run("list")
    run("revoke", "--stack", stack, id_of(key))
    with pytest.raises(Unauthenticated):
        identify(key, TURNLOOM_TABLES_PREFIX="stack-")


def test_a_stack_that_is_not_there_is_told_in_a_line(run: Run, stack: str) -> None:
    assert "\n" not in run("list", "--stack", "mistyped", status=1)


@pytest.mark.parametrize("module", [["turnloom", "keys"], ["turnloom.keys"]])
def test_the_command_is_there_under_both_its_names(module: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", *module, "list", "--data-dir", str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("id\t")
    other = subprocess.run([sys.executable, "-m", "turnloom", "kees"], capture_output=True, text=True)
    assert other.returncode == 2 and "usage" in other.stderr
