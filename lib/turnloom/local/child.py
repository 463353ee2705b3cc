"""Runs a module as a part of the laptop that ends with it.

    python -m turnloom.local.child turnloom.local.gateway --port 8321

Its standard input is a pipe from the supervisor. When that closes, however the supervisor died, this process ends.
"""

from __future__ import annotations

import gc
import os
import runpy
import signal
import sys
import threading

COLLECT_EVERY = 50_000
"""New objects before the garbage collector looks at them: imports make many that stay, and looking takes a fifth."""


def _end_with_parent() -> None:
    # Not through sys.stdin: its lock, held by this thread, would make a clean exit of the interpreter a crash.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(5)
    os._exit(1)


if __name__ == "__main__":
    gc.set_threshold(COLLECT_EVERY)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
