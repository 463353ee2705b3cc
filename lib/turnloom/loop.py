"""One event loop for the whole process, for Lambda handlers that are plain functions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_starting = threading.Lock()
_loops: list[asyncio.AbstractEventLoop] = []


def on_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run on the process's loop, from any thread: a loop of its own for each call would orphan pooled connections."""
    return asyncio.run_coroutine_threadsafe(work, _loop()).result()


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        if not _loops:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="turnloom-loop", daemon=True).start()
            _loops.append(loop)
    return _loops[0]
