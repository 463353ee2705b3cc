"""The Orchestrator port on Step Functions."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from turnloom.adapters.threads import Threads
from turnloom.ports import ExecutionStatus, NotStarted

if TYPE_CHECKING:
    from botocore.awsrequest import AWSRequest
    from botocore.hooks import BaseEventHooks
    from mypy_boto3_stepfunctions import SFNClient

logger = logging.getLogger(__name__)

NAME_LENGTH = 80
SECRET = "TURNLOOM_LOCAL_SECRET"  # noqa: S105
"""The variable with the secret that the parts of a laptop share; it is new at each start."""
SECRET_HEADER = "x-turnloom-secret"  # noqa: S105
_CONNECTIONS = 32

_threads = Threads("stepfunctions", _CONNECTIONS)


class StepFunctions:
    """Starts executions of one state machine. Without a `client` it makes one when the first turn is handed over.

    An execution that cannot be started after three retries raises NotStarted.
    """

    def __init__(self, state_machine_arn: str, client: SFNClient | None = None) -> None:
        self._arn = state_machine_arn
        self._client = client
        self._making = threading.Lock()

    async def start(self, name: str, given: Mapping[str, Any]) -> None:
        await _threads.run(self._start, execution_name(name), json.dumps(given, separators=(",", ":")))

    def _start(self, name: str, given: str) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        client = self._connected()
        try:
            client.start_execution(stateMachineArn=self._arn, name=name, input=given)
        except client.exceptions.ExecutionAlreadyExists:
            # It runs with another input, or has ended: whoever started it first has set the turn going.
            return
        except (BotoCoreError, ClientError) as failure:
            raise NotStarted(str(failure)) from failure

    async def status(self, name: str) -> ExecutionStatus:
        return await _threads.run(self._status, execution_name(name))

    def _status(self, name: str) -> ExecutionStatus:
        from botocore.exceptions import BotoCoreError, ClientError

        client = self._connected()
        execution = f"{self._arn.replace(':stateMachine:', ':execution:')}:{name}"
        try:
            status = client.describe_execution(executionArn=execution)["status"]
        except client.exceptions.ExecutionDoesNotExist:
            return "absent"
        except (BotoCoreError, ClientError) as failure:
            logger.warning("the state machine did not say what runs: %s", failure)
            return "running"
        return "running" if status == "RUNNING" else "ended"

    def _connected(self) -> SFNClient:
        # boto3's default session is not safe to make two clients at once.
        with self._making:
            if self._client is None:
                self._client = stepfunctions_client(self._arn.split(":")[3])
        return self._client


def stepfunctions_client(region: str) -> SFNClient:
    """A thread-safe client for the region, or for the AWS_ENDPOINT_URL_STEPFUNCTIONS of the environment.

    Calls that are throttled or get no answer are tried four times in all, with growing pauses.
    """
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "stepfunctions",
        region_name=region,
        # By itself boto3 heeds AWS_ENDPOINT_URL_SFN and AWS_ENDPOINT_URL, but not the service by its full name.
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL_STEPFUNCTIONS"),
        config=Config(
            retries={"mode": "standard", "total_max_attempts": 4},
            connect_timeout=2,
            read_timeout=5,
            max_pool_connections=_CONNECTIONS,
        ),
    )
    if SECRET in os.environ:
        show_secret(client.meta.events, "sfn", os.environ[SECRET])
    return client


def show_secret(events: BaseEventHooks, service: str, secret: str) -> None:
    """Let every request to this service of AWS carry the secret of the laptop."""

    def add_header(request: AWSRequest, **_: object) -> None:
        request.headers[SECRET_HEADER] = secret

    events.register(f"before-sign.{service}", add_header)


def execution_name(name: str) -> str:
    """The name as Step Functions takes it, at most 80 safe characters; different names stay different."""
    safe = re.sub(r"[^a-zA-Z0-9_-]", "-", name)
    if safe == name and 0 < len(name) <= NAME_LENGTH:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    return f"{safe[: NAME_LENGTH - 33]}-{digest}"
