"""Plays scenes and tells how each of their steps went."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")


class Program:
    """Tells a line for each step, `ok` or `failed` and the seconds it took; `passed` and `failed` count them."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._say = tell
        self.passed = 0
        self.failed = 0

    def play(self, scene: Generator[str, None, T]) -> T | None:
        """What a scene returns, or None when one of its steps fails, which is its last.

        A scene gives the name of a step, and does that step when it is asked for the next name.
        """
        step = next(scene)
        while True:
            began = time.monotonic()
            try:
                following = next(scene)
            except StopIteration as end:
                self._tell_passed(step, began)
                result: T = end.value
                return result
            except Exception as failure:
                self._tell_failed(step, began, failure)
                return None
            self._tell_passed(step, began)
            step = following

    def _tell_passed(self, step: str, began: float) -> None:
        self.passed += 1
        self._say(f"ok     {time.monotonic() - began:6.1f} s  {step}")

    def _tell_failed(self, step: str, began: float, failure: Exception) -> None:
        self.failed += 1
        self._say(f"FAILED {time.monotonic() - began:6.1f} s  {step}: {type(failure).__name__}: {failure}")
