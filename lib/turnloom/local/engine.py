"""The laptop's Step Functions: moto executes the deployed definition, this repository's functions are its tasks.

    python -m turnloom.local.engine --port 8322

Executions live in this process's memory alone. That may be lost at any time: the turns are in the store, and the
sweeper starts those again that nobody drives any more.

It listens where any program of this machine, and any web page in a browser on it, can reach it. So it believes nothing
but what comes with the secret of this start, which moto's own calls of the tasks carry as well.
"""

from __future__ import annotations

import argparse
import hmac
import json
import logging
import os
import re
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from werkzeug.serving import make_server
from werkzeug.test import Client
from werkzeug.wrappers import Request, Response

from turnloom.adapters.stepfunctions import SECRET, SECRET_HEADER, show_secret
from turnloom.local.hosts import is_own_name
from turnloom.local.libraries import import_libraries
from turnloom.local.request_log import log_to_terminal
from turnloom.local.template import ACCOUNT, REGION, ROOT, STATE_MACHINE_ARN, definition, load, tasks
from turnloom.usecases.trail import trail

logger = logging.getLogger(__name__)

INVOKE = re.compile(r"/2015-03-31/functions/(?:.*:)?([\w-]+)/invocations")
"""Lambda's Invoke, with a function's ARN or its name."""

Handler = Callable[[Any, Any], Any]
Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]

QUIET = "TurnMoved"
"""The error that is no fault: the definition ends the execution in peace, and nobody needs to read of it."""

KEPT_EXECUTIONS = 20
"""How many ended executions are remembered, some 100 KB each; their names are refused for as long."""

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
    """Lambda's Invoke for these functions of a folder and no other, each imported by `load_all` or its first call."""

    def __init__(self, folder: Path, names: Collection[str]) -> None:
        self._folder = folder
        self._names = names
        self._handlers: dict[str, Handler] = {}
        self._importing = threading.Lock()

    def load_all(self) -> None:
        """Import all of them now."""
        for name in self._names:
            self._handler(name)

    def invoke(self, name: str, payload: bytes) -> Response:
        """What Lambda answers: the handler's result, or what it raised, marked by a header."""
        if name not in self._names:
            return _refused(404, "ResourceNotFoundException", f"The state machine has no task '{name}'.")
        event = json.loads(payload or b"null")
        try:
            answer = json.dumps(self._handler(name)(event, Context(name)))
        except Exception as failure:
            return _failed(name, event, failure)
        return Response(answer, mimetype="application/json")

    def _handler(self, name: str) -> Handler:
        with self._importing:
            if name not in self._handlers:
                self._handlers[name] = load(name, self._folder).handler
        return self._handlers[name]


def _refused(status: int, code: str, message: str) -> Response:
    body = json.dumps({"__type": code, "Message": message})
    return Response(body, status, mimetype="application/json", headers={"x-amzn-errortype": code})


def _failed(name: str, event: Any, failure: Exception) -> Response:
    kind = type(failure).__name__
    if kind != QUIET:
        logger.error("%s failed with %s in turn %s", name, kind, _turn_id(event), exc_info=failure)
    told = {
        "errorMessage": str(failure),
        "errorType": kind,
        "stackTrace": traceback.format_tb(failure.__traceback__),
    }
    return Response(json.dumps(told), mimetype="application/json", headers={"X-Amz-Function-Error": "Unhandled"})


def _turn_id(event: Any) -> str:
    match event:
        case {"turn": {"id": str(turn_id)}}:
            return turn_id
    return "unknown"


class Brief(logging.Filter):
    """Of an error that moto logs, says the error alone, and not the state it was in: that is a tree of several KB.

    What a function raised is left out, as it is logged where the function is called, or is nobody's business.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        match record.args:
            case (str(error), _):
                record.msg, record.args = "the state machine failed: %s", (error,)
                return not any(told in error for told in _TOLD)
        return True


# The second is what becomes of the first, or of another error, in a branch of the parallel calls.
_TOLD = ("lambdaFunctionFailedEventDetails", "executionFailedEventDetails")


class Machine:
    """The state machine in moto's Step Functions; calling it answers the requests of AWS clients."""

    def __init__(self) -> None:
        from moto.core.config import default_user_config
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from moto.stepfunctions.parser.models import stepfunctions_parser_backends

        default_user_config["stepfunctions"] = {"execute_state_machine": True}
        backend = stepfunctions_parser_backends[ACCOUNT][REGION]
        name = STATE_MACHINE_ARN.rpartition(":")[2]
        self._machine = backend.create_state_machine(name, definition(), f"arn:aws:iam::{ACCOUNT}:role/turnloom")
        self._requests: Wsgi = DomainDispatcherApplication(create_backend_app)
        self._forgetting = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self._forget()
        return self._requests(environ, start_response)

    def _forget(self) -> None:
        """Drop the oldest of the ended executions; moto keeps all, and every thread that it ever started."""
        from moto.stepfunctions.parser.utils import TMP_THREADS

        with self._forgetting:
            ended = [execution for execution in self._machine.executions if execution.status != "RUNNING"]
            for execution in ended[:-KEPT_EXECUTIONS]:
                self._machine.executions.remove(execution)
            TMP_THREADS.clear()


def application(functions: Functions, secret: str) -> Wsgi:
    """Step Functions, and on the same port the functions, for that is where moto's Lambda tasks call them.

    Requests without the secret, and those for anything else that moto serves, are refused.
    """
    machine = Machine()

    def answer(request: Request) -> Wsgi:
        if request.path == "/health":
            return Response('{"status": "OK"}', mimetype="application/json")
        if not _is_ours(request, secret):
            return _refused(403, "AccessDeniedException", "This service is for the parts of Turnloom alone.")
        if invoked := INVOKE.fullmatch(request.path):
            return functions.invoke(invoked[1], request.get_data())
        if _is_for_the_machine(request):
            return machine
        return _refused(404, "UnknownOperationException", "Only Step Functions is served here.")

    return lambda environ, start_response: answer(Request(environ))(environ, start_response)


def _is_ours(request: Request, secret: str) -> bool:
    """Whether a part of this laptop asks: it knows the secret and the name of this machine."""
    shown = request.headers.get(SECRET_HEADER, "")
    return hmac.compare_digest(shown.encode(), secret.encode()) and is_own_name(request.host)


def _is_for_the_machine(request: Request) -> bool:
    target, content_type = request.headers.get("x-amz-target", ""), request.mimetype
    return (
        (request.method, request.path) == ("POST", "/")
        and target.startswith("AWSStepFunctions.")
        and content_type == "application/x-amz-json-1.0"
    )


def main() -> None:
    """Serve until SIGTERM or Ctrl-C, from when the first execution would be as fast as any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--functions", type=Path, default=ROOT / "functions", help="the folder of the functions")
    given = parser.parse_args()
    if not (secret := os.environ.get(SECRET, "")):
        raise SystemExit(f"{SECRET} is not set: `make dev` starts this with a secret of its own.")
    log_to_terminal(trail)
    _set_up(given.port, secret)
    functions = Functions(given.functions, tasks())
    serve = application(functions, secret)
    _warm_up(functions, serve, secret)
    server = make_server("127.0.0.1", given.port, serve, threaded=True)
    serving = threading.Thread(target=server.serve_forever, args=(0.1,))
    serving.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.shutdown())
    serving.join()
    server.server_close()


def _warm_up(functions: Functions, serve: Wsgi, secret: str) -> None:
    """Do once what the first turn would wait for: import the tasks, and let an execution pass that has none to do."""
    import boto3

    import_libraries()
    functions.load_all()
    boto3.client("lambda", region_name=REGION)
    headers = {
        SECRET_HEADER: secret,
        "x-amz-target": "AWSStepFunctions.StartExecution",
        # moto finds the service by it.
        "authorization": f"AWS4-HMAC-SHA256 Credential=local/20260101/{REGION}/states/aws4_request",
    }
    execution = {"stateMachineArn": STATE_MACHINE_ARN, "name": "warm-up", "input": '{"next": "done"}'}
    answer = Client(serve).post("/", json=execution, content_type="application/x-amz-json-1.0", headers=headers)
    if "executionArn" not in answer.text:
        logger.warning("the state machine did not warm up: %s", answer.text)


def _set_up(port: int, secret: str) -> None:
    """Tell moto where it is, and AWS clients that they need no account and no proxy to call it."""
    import boto3

    os.environ["MOTO_PORT"] = str(port)
    # moto makes its clients in the default session, with credentials of its own.
    boto3.setup_default_session()
    assert boto3.DEFAULT_SESSION is not None
    show_secret(boto3.DEFAULT_SESSION.events, "lambda", secret)
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "local")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "local")
    os.environ.setdefault("AWS_DEFAULT_REGION", REGION)
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost", "127.0.0.1")))
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    logging.getLogger("moto.stepfunctions.parser.asl.component.eval_component").addFilter(Brief())


if __name__ == "__main__":
    main()
