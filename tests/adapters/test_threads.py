"""Slow calls of one kind hold up no other."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from pathlib import Path
from typing import Any

from turnloom.adapters.blobs import FolderBlobs
from turnloom.adapters.stepfunctions import StepFunctions
from turnloom.adapters.threads import Threads

ARN = "arn:aws:states:eu-west-1:123456789012:stateMachine:turns"


class StoppedEngine:
    """A client of Step Functions whose calls return when `release` is set."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def start_execution(self, **arguments: Any) -> None:
        self.release.wait()


async def test_an_engine_that_does_not_answer_holds_up_nothing_else(tmp_path: Path) -> None:
    engine: Any = StoppedEngine()
    starts = [asyncio.create_task(StepFunctions(ARN, engine).start(f"turn-{n}", {})) for n in range(100)]
    try:
        async with asyncio.timeout(60):
            blobs = FolderBlobs(tmp_path)
            await blobs.put("a", b"content")
            assert await blobs.get("a") == b"content"
            assert await asyncio.to_thread(lambda: "answered") == "answered"
        assert not any(start.done() for start in starts)
    finally:
        engine.release.set()
        await asyncio.gather(*starts)


async def test_a_call_runs_in_a_thread_of_its_purpose_and_in_the_context_of_its_caller() -> None:
    variable = contextvars.ContextVar("variable", default="")
    variable.set("of the caller")
    name, value = await Threads("purpose", 1).run(lambda: (threading.current_thread().name, variable.get()))
    assert (name, value) == ("purpose_0", "of the caller")
