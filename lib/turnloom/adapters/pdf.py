"""Reading PDFs in processes of their own, which end with the request or with its time.

A PDF of some kilobytes can keep its reader busy for minutes, and a thread cannot be ended.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from weakref import WeakValueDictionary

from turnloom.adapters.pdf_child import REFUSED
from turnloom.domain.errors import InvalidRequest

MIB = 1024 * 1024
PDF_BYTES = 20 * MIB
TEXT_BYTES = MIB
MEMORY_BYTES = 512 * MIB
AT_ONCE = 8
AT_ONCE_PER_OWNER = 2
"""PDFs that are read at the same time, of all owners and of one; others wait for their turn."""

_ENVIRONMENT = ("LD_LIBRARY_PATH", "SYSTEMROOT")
"""What the interpreter may need to start; secrets stay here."""
_TOO_MUCH = "reading it takes too much time or memory"
_PROGRAM = ("-S", "-P", "-m", "turnloom.adapters.pdf_child")


class PdfReader:
    """Reads the text of PDFs, each within `seconds`; `program` are the arguments of Python that start the reader."""

    def __init__(self, seconds: float, program: Sequence[str] = _PROGRAM) -> None:
        self._seconds = seconds
        self._program = program
        self._all = asyncio.Semaphore(AT_ONCE)
        self._owners: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def text(self, content: bytes, owner: str) -> str:
        """The text of all pages, a blank line between them; raises InvalidRequest (`unsupported_file`).

        The time counts from the moment when the owner's earlier PDFs have been read.
        """
        if len(content) > PDF_BYTES:
            raise _unsupported(f"it has more than {PDF_BYTES} bytes")
        own = self._owners.setdefault(owner, asyncio.Semaphore(AT_ONCE_PER_OWNER))
        async with own, self._all:
            try:
                async with asyncio.timeout(self._seconds):
                    return await self._text(content)
            except TimeoutError:
                raise _unsupported(f"reading it takes longer than {self._seconds:g} seconds") from None

    async def _text(self, content: bytes) -> str:
        limits = (TEXT_BYTES, MEMORY_BYTES, math.ceil(self._seconds) + 1)
        async with _child((*self._program, *map(str, limits))) as child:
            output, _ = await child.communicate(content)
        if child.returncode == 0:
            return output.decode()
        raise _unsupported(output.decode() if child.returncode == REFUSED else _TOO_MUCH)


@asynccontextmanager
async def _child(arguments: Sequence[str]) -> AsyncIterator[Process]:
    """A Python process that finds the packages of this one and has none of its secrets; it ends with the block."""
    env = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    child = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=env, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
    )
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def _unsupported(fault: str) -> InvalidRequest:
    return InvalidRequest(f"The text of the PDF cannot be read: {fault}", code="unsupported_file")
