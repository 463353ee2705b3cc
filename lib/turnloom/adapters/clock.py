"""Time and chance, as the machine has them."""

from __future__ import annotations

import asyncio
import secrets
import time


class SystemClock:
    def now(self) -> int:
        return time.time_ns() // 1000

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def random_bits(bits: int) -> int:
    return secrets.randbits(bits)
