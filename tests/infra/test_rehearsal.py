"""The rehearsal itself: that it tells what failed, and that it can reach no account."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from infra.rehearse.emulator import Emulator
from infra.rehearse.program import Program
from infra.rehearse.stage import Unexpected, expect, expect_error, until


def scene(found: int) -> Generator[str, None, str]:
    yield "first"
    yield "second"
    expect(found, 2)
    yield "third"
    return "played"


@pytest.fixture
def told() -> list[str]:
    return []


def outcomes(told: list[str]) -> list[tuple[str, str]]:
    """The first and the last word of every line, without what went wrong."""
    lines = [line.partition(":")[0].split() for line in told]
    return [(words[0], words[-1]) for words in lines]


def test_every_step_of_a_scene_is_told_and_its_result_given(told: list[str]) -> None:
    program = Program(told.append)
    assert program.play(scene(2)) == "played"
    assert outcomes(told) == [("ok", "first"), ("ok", "second"), ("ok", "third")]
    assert (program.passed, program.failed) == (3, 0)


def test_a_step_that_fails_says_why_and_is_the_last_of_its_scene_only(told: list[str]) -> None:
    program = Program(told.append)
    assert program.play(scene(1)) is None
    assert outcomes(told) == [("ok", "first"), ("FAILED", "second")]
    assert "Unexpected: 1 instead of 2" in told[-1]
    program.play(scene(2))
    assert (program.passed, program.failed) == (4, 1)


def test_an_error_of_another_kind_is_not_the_one_that_was_expected() -> None:
    expect_error(ZeroDivisionError, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        expect_error(KeyError, lambda: 1 // 0)
    with pytest.raises(Unexpected):
        expect_error(KeyError, lambda: 1)


def test_an_answer_that_is_enough_is_not_asked_for_again() -> None:
    answers = iter([1, 2])
    assert until(lambda: next(answers), lambda answer: answer == 1) == 1
    assert next(answers) == 2


def test_what_runs_in_a_rehearsal_knows_of_no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = {"AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CONFIG_FILE"}
    for name in real:
        monkeypatch.setenv(name, "real")
    env = Emulator(tmp_path).env
    assert not env.keys() & real
    assert env["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:") and env["HOME"] == str(tmp_path)
