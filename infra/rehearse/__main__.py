"""`make rehearse`: deploy to the emulator, play every scene, tell what passed, what failed and what stays unproven."""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from infra.rehearse.deployment import build, deploy
from infra.rehearse.emulator import Emulator
from infra.rehearse.program import Program
from infra.rehearse.scenes import SCENES
from infra.rehearse.stage import MODEL, UPSTREAM_KEY, Stage, clients
from tests.mcp_servers import McpServer
from tests.upstream import ScriptedUpstream

UNPROVEN = """\
Stays unproven, for the emulator has nothing of it:
- streaming: Lambda Web Adapter, run.sh on arm64, integrations that stream. The functions that stream answered in one
  piece, by the Mangum handler that they have too; their handlers and integrations were changed once deployed
- alarms over several metrics, which were only taken note of
- what API Gateway answers by itself: GatewayResponses, preflights, throttling, time limits, its log
- names of errors in the state machine: here each is Runtime.HandlerError, so that TurnMoved does not end in Done
- the layer for arm64 and python3.13: what ran has its packages for this machine's Python
- versions, aliases and snapshots (make build WARM=...)
- the schedule of the sweeper; limits of size, time and concurrency; metrics and traces; encryption with a key of your
  own; the domain"""


def opening(stack: ExitStack, folder: Path) -> Generator[str, None, Stage]:
    """Bring up all that scenes need; what runs is ended with the stack."""
    yield "the emulator starts"
    emulator = stack.enter_context(Emulator(folder))
    upstream = stack.enter_context(ScriptedUpstream(MODEL))
    tools = stack.enter_context(McpServer())
    yield "sam build"
    build()
    yield "sam deploy, of the template as it is"
    made = emulator.client("secretsmanager").create_secret(Name="upstream", SecretString=UPSTREAM_KEY)
    deployment = deploy(
        emulator,
        UpstreamUrl=upstream.url,
        UpstreamSecretArn=made["ARN"],
        ToolHosts="127.0.0.1",
        DataAfterDelete="Delete",
    )
    yield "functions that stream are set to answer in one piece"
    deployment.buffer()
    yield "a key is made"
    return Stage(deployment, upstream, tools, *clients(deployment, deployment.key("rehearsal")))


def rehearse(program: Program) -> None:
    """Play everything; where a step fails, the errors are printed that functions told of."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnloom-")))
        stage = program.play(opening(stack, folder))
        if stage is None:
            return
        for scene in SCENES:
            failed, told = program.failed, len(stage.deployment.errors())
            stage.upstream.forget()
            program.play(scene(stage))
            if program.failed > failed:
                print("  In the log of the functions:", *stage.deployment.errors()[told:], sep="\n  - ")


def main() -> int:
    """The exit status: 0 when every step passed."""
    # So that the emulator is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # What the scripted servers log tells nothing of the deployment.
    logging.disable()
    began = time.monotonic()
    program = Program(partial(print, flush=True))
    rehearse(program)
    print(f"{program.passed} steps passed, {program.failed} failed, in {time.monotonic() - began:.0f} s.")
    print(UNPROVEN)
    return min(program.failed, 1)


if __name__ == "__main__":
    sys.exit(main())
