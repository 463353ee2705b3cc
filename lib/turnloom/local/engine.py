"""The laptop's Step Functions: the deployed definition, executed by moto, its tasks served by this repository's functions.

    python -m turnloom.local.engine --port 8322

Executions live in this process's memory alone. That may be lost at any time: the turns are in the store, and the sweeper
starts those again that nobody drives any more.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turnloom.local.template import ACCOUNT, REGION, ROOT, STATE_MACHINE_ARN, definition, load
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

logger = logging.getLogger(__name__)

Handler = Callable[[Any, Any], Any]
Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]

QUIET = "TurnMoved"
"""The error that is no fault: the definition ends the execution in peace, and nobody needs to read of it."""

KEPT_EXECUTIONS = 500
"""How many ended executions are remembered; a name is known, and refused, for as long."""

MAX_SECONDS = 900
"""How long a function may run in the cloud; here it is what the context says, and nobody is stopped."""


@dataclass(frozen=True)
class Context:
    """What Lambda tells a handler about its invocation."""

    function_name: str
    aws_request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    function_version: str = "$LATEST"
    memory_limit_in_mb: int = 1024
    log_group_name: str = "turnloom"
    log_stream_name: str = "local"
    started: float = field(default_factory=time.monotonic)

    @property
    def invoked_function_arn(self) -> str:
        return f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{self.function_name}"

    def get_remaining_time_in_millis(self) -> int:
        return max(0, int((self.started + MAX_SECONDS - time.monotonic()) * 1000))


class Functions:
    """Lambda's Invoke for the functions of a folder, each imported when it is first called."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._handlers: dict[str, Handler] = {}
        self._importing = threading.Lock()

    def invoke(self, name: str, payload: bytes) -> Response:
        """What Lambda answers: the handler's result, or what it raised, marked by a header."""
        try:
            event = json.loads(payload or b"null")
            answer = json.dumps(self._handler(name)(event, Context(name)))
        except Exception as failure:
            return _failed(name, failure)
        return Response(answer, mimetype="application/json")

    def _handler(self, name: str) -> Handler:
        with self._importing:
            if name not in self._handlers:
                self._handlers[name] = load(name, self._folder).handler
        return self._handlers[name]


def _failed(name: str, failure: Exception) -> Response:
    kind = type(failure).__name__
    if kind != QUIET:
        logger.error("%s failed", name, exc_info=failure)
    told = {
        "errorMessage": str(failure),
        "errorType": kind,
        "stackTrace": traceback.format_tb(failure.__traceback__),
    }
    return Response(json.dumps(told), mimetype="application/json", headers={"X-Amz-Function-Error": "Unhandled"})


class Engine:
    """A WSGI application: moto's Step Functions, and what it calls by HTTP on its own port."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._step_functions = _step_functions()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return self._answer(Request(environ))(environ, start_response)

    def _answer(self, request: Request) -> Wsgi:
        if request.path == "/health":
            return Response('{"status": "OK"}', mimetype="application/json")
        invoked = re.fullmatch(r"/2015-03-31/functions/(?:.*:)?([\w-]+)/invocations", request.path)
        if invoked is not None:
            return self._functions.invoke(invoked[1], request.get_data())
        return self._step_functions


def _step_functions() -> Wsgi:
    """Moto's Step Functions with the state machine in it."""
    from moto.core.config import default_user_config
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.stepfunctions.parser.models import stepfunctions_parser_backends

    default_user_config["stepfunctions"] = {"execute_state_machine": True}
    name = STATE_MACHINE_ARN.rpartition(":")[2]
    role = f"arn:aws:iam::{ACCOUNT}:role/turnloom"
    stepfunctions_parser_backends[ACCOUNT][REGION].create_state_machine(name, definition(), role)
    application: Wsgi = DomainDispatcherApplication(create_backend_app)
    return application


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--functions", type=Path, default=ROOT / "functions", help="the folder of the task handlers")
    given = parser.parse_args()
    _prepare(given.port)
    server = make_server("127.0.0.1", given.port, Engine(Functions(given.functions)), threaded=True)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.shutdown())
    serving.join()
    server.server_close()

def _prepare(port):
    os.environ["MOTO_PORT"] = str(port)
    for name, value in {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_DEFAULT_REGION": REGION}.items():
        os.environ.setdefault(name, value)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)

if __name__ == "__main__":
    main()
