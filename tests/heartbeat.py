"""How long an event loop is held up, and by how much the memory of its process grows, while a test runs."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from pathlib import Path

_PAUSE = 0.005
_STATM = Path("/proc/self/statm")
_PAGE_BYTES = 4096


class Heartbeat:
    """Beats on the loop for as long as the context lasts: `longest` block in seconds, `growth` of memory in bytes.

    The block is counted in seconds of the processor that the loop's thread used, which are the same on a busy machine.
    """

    async def __aenter__(self) -> Heartbeat:
        gc.collect()
        # What thousands of other tests have left is not the server's to look through.
        gc.freeze()
        self.longest, self.growth = 0.0, 0
        self._start = _resident()
        self._beating = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._beating.cancel()
        gc.unfreeze()
        sys.stderr.write(f"longest block {self.longest * 1000:.0f} ms, memory +{self.growth / 1e6:.0f} MB\n")

    async def _beat(self) -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(_PAUSE)
            self.longest = max(self.longest, time.thread_time() - before)
            self.growth = max(self.growth, _resident() - self._start)


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    return int(_STATM.read_text().split()[1]) * _PAGE_BYTES if _STATM.exists() else 0
