"""Runs the embedded model until SIGTERM or Ctrl-C; ends with 1 when there is no model to be had.

python -m turnloom.local.model --port 8330 --data-dir .turnloom
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

import uvicorn

from turnloom.adapters.stepfunctions import SECRET
from turnloom.local.model.front import Front, Status
from turnloom.local.model.llama import EngineFailed, Settings, engine
from turnloom.local.model.weights import SMOLLM2, WeightsUnavailable, ensure

DEMO_MODEL = "smollm2-135m-instruct"
FAREWELL_SECONDS = 3.0
"""A model that never came up says why on /health for so long: who asks now and then must hear it."""
WAYS_OUT = """What you can do:
  - start again when the connection is back; a download begins anew
  - use any OpenAI-compatible endpoint: OPENAI_BASE_URL=http://127.0.0.1:11434/v1 make dev
    (with OPENAI_API_KEY=... where it asks for a key)
  - use a model file of your own: TURNLOOM_GGUF=/path/to/model.gguf make dev"""


class Life:
    """A model from its weights to its end; `status` tells how far it is."""

    def __init__(self, folder: Path, gguf: Path | None) -> None:
        self.status = Status(gguf.stem if gguf else DEMO_MODEL, demo=gguf is None)
        self._folder, self._gguf = folder, gguf

    async def live(self) -> None:
        """Bring the model up and keep it up; comes back only after a failure, which `status` then tells."""
        try:
            await self._run(await self._settings())
        except (WeightsUnavailable, EngineFailed) as failure:
            was_ready = self.status.phase == "ready"
            self.status.phase = "failed"
            self.status.reason = str(failure)
            if not was_ready:
                self.status.reason += f"\n{WAYS_OUT}"
                await asyncio.sleep(FAREWELL_SECONDS)

    async def _run(self, settings: Settings) -> None:
        self.status.phase = "loading"
        async with engine(settings) as running:
            self.status.engine, self.status.phase = running.url, "ready"
            raise EngineFailed(f"llama.cpp ended by itself, with code {await running.ended()}")

    async def _settings(self) -> Settings:
        if self._gguf is None:
            weights = await ensure(SMOLLM2, self._folder, self._tell)
            # Left alone it talks until the context is full; the temperature is its makers' advice.
            return Settings(self.status.model, weights, context=4096, answer=512, temperature=0.2)
        if not self._gguf.is_file():
            raise WeightsUnavailable(f"TURNLOOM_GGUF names no file: {self._gguf}")
        return Settings(self.status.model, self._gguf, context=8192)

    def _tell(self, fetched: int, total: int) -> None:
        self.status.phase, self.status.fetched, self.status.total = "fetching", fetched, total
        line = f"Fetching the embedded model, once: {fetched / 1e6:.0f} of {total / 1e6:.0f} MB"
        if sys.stdout.isatty():
            print(f"\r{line}", end="" if fetched < total else "\n", flush=True)
        else:
            print(line, flush=True)


class LivingServer(uvicorn.Server):
    """Listens at once, on loopback, while the model comes up; ends when the model does.

    The model ends before the open streams, which would otherwise keep the shutdown waiting.
    """

    def __init__(self, life: Life, port: int, secret: str) -> None:
        app = Front(life.status, secret).app()
        config = uvicorn.Config(
            app, "127.0.0.1", port, log_level="warning", access_log=False, timeout_graceful_shutdown=1
        )
        super().__init__(config)
        self._life = life

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._living = asyncio.create_task(self._life.live())
        self._living.add_done_callback(lambda _: setattr(self, "should_exit", True))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._living.cancel()
        with suppress(asyncio.CancelledError):
            await self._living
        await super().shutdown(sockets)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data-dir", type=Path, default=Path(".turnloom"))
    given = parser.parse_args()
    if not (secret := os.environ.get(SECRET, "")):
        raise SystemExit(f"{SECRET} is not set: `make dev` starts this with a secret of its own.")
    gguf = os.environ.get("TURNLOOM_GGUF")
    life = Life(given.data_dir / "models", Path(gguf) if gguf else None)
    with suppress(KeyboardInterrupt):
        LivingServer(life, given.port, secret).run()
    if life.status.phase != "failed":
        return 0
    print(f"The embedded model failed: {life.status.reason}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
