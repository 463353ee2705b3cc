"""Event loops that last as long as the process, for Lambda handlers that are plain functions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_starting = threading.Lock()
_loops: dict[str, asyncio.AbstractEventLoop] = {}


def on_loop(work: Coroutine[Any, Any, T], name: str = "turnloom-loop") -> T:
    """Run on the process's loop of this name, from any thread, and wait for the result.

    A loop of its own for each call would orphan pooled connections. Loops of different names share neither a thread nor
    an executor, so that what is slow on one keeps nobody waiting on another.
    """
    return asyncio.run_coroutine_threadsafe(work, _loop(name)).result()


def _loop(name: str) -> asyncio.AbstractEventLoop:
    with _starting:
        if name not in _loops:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name=name, daemon=True).start()
            _loops[name] = loop
        return _loops[name]
