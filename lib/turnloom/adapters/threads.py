"""Threads for calls that block, so many for each purpose: slow calls of one kind hold up no other."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """At most `at_once` threads of this name, each started when it is first needed.

    asyncio's own executor has few threads, and whatever runs there waits for all else that does.
    """

    def __init__(self, name: str, at_once: int) -> None:
        self._executor = ThreadPoolExecutor(at_once, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function in a thread, in the context of the caller, as `asyncio.to_thread` does."""
        call = partial(contextvars.copy_context().run, function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)
