"""A laptop has imported what a turn needs before the first one begins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.mcp_servers import McpServer
from tests.upstream import ScriptedUpstream

ROOT = Path(__file__).parents[2]

TURN = """
import json
import sys

from starlette.testclient import TestClient

from turnloom.local.gateway import gateway
from turnloom.local.libraries import import_libraries

client = TestClient(gateway())
import_libraries()
client.get("/v1/agents")  # as the sweeper, which opens the store
before = set(sys.modules)
tool = {"type": "mcp", "server_label": "test", "server_url": sys.argv[1], "require_approval": "never"}
body = {"model": "m", "input": "x", "tools": [tool], "store": False}
answer = client.post("/v1/responses", json=body).json()
print(json.dumps([answer["status"], sorted(set(sys.modules) - before)]))
"""


def test_the_first_turn_imports_no_library(tmp_path: Path) -> None:
    with ScriptedUpstream() as upstream, McpServer() as server:
        upstream.call(("echo", {"text": "x"}))
        upstream.say("Done.")
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "lib"),
            "OPENAI_BASE_URL": upstream.url,
            "TURNLOOM_DATA_DIR": str(tmp_path),
        }
        command = [sys.executable, "-c", TURN, server.url]
        output = subprocess.run(command, env=env, capture_output=True, check=True, text=True).stdout
    status, imported = json.loads(output)
    assert status == "completed"
    assert [name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names] == []
