"""The engine: llama.cpp's own HTTP server, from the package `xllamacpp`, in a process of its own.

Loading a model holds the interpreter's lock, and a broken file may end the process: neither may touch the front.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from turnloom.adapters.stepfunctions import SECRET

STOP_SECONDS = 3.0


class EngineFailed(Exception):
    """The engine did not start or ended by itself; the message is for people."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run a model, called `name` in its answers. `context` is what a conversation may fill, `answer` the most
    that is written at once (-1: open), both in tokens; `temperature` is for requests that name none.
    """

    name: str
    gguf: Path
    context: int = 4096
    answer: int = -1
    temperature: float = 0.8


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine at `url`."""

    url: str
    process: asyncio.subprocess.Process

    async def ended(self) -> int:
        """Wait until it ends by itself; its return code."""
        return await self.process.wait()


@asynccontextmanager
async def engine(settings: Settings) -> AsyncIterator[Engine]:
    """An engine with its model loaded, for as long as the context lasts. Raises EngineFailed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "turnloom.local.child", "turnloom.local.model.llama"),
        *("--name", settings.name, "--gguf", str(settings.gguf), "--context", str(settings.context)),
        *("--answer", str(settings.answer), "--temperature", str(settings.temperature)),
        # Its end of this pipe closes when we die, and it with us.
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        address = (await process.stdout.readline()).decode().strip()
        if not address:
            raise EngineFailed(f"llama.cpp could not load {settings.gguf}; see the lines above")
        yield Engine(address, process)
    finally:
        await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


def threads(cores: int) -> int:
    """How many to compute with: a core is left to everybody else, and beyond four a small model gains nothing.

    All of them wait for the slowest one at every layer, so that one thread too many costs more than one too few.
    """
    return max(1, min(4, cores - 1))


def main() -> None:
    """Serve a model on a free loopback port; the address is the one line on standard output, once it is loaded."""
    import xllamacpp

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--answer", type=int, required=True)
    parser.add_argument("--temperature", type=float, required=True)
    given = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = given.gguf
    params.model_alias = {given.name}
    params.n_parallel = 2
    params.n_ctx = given.context * params.n_parallel
    params.n_predict = given.answer
    params.sampling.temp = given.temperature
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads(os.cpu_count() or 1)
    # A request occupies its thread while it waits for its turn: many sessions may wait at once.
    params.n_threads_http = 64
    # Errors only.
    params.verbosity = 1
    params.cache_ram_mib = 64
    params.ui = False
    # Any program of this machine reaches its port.
    params.api_keys = [os.environ[SECRET]]
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as failure:
        raise SystemExit(str(failure)) from None
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
