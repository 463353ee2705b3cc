"""An AWS account on loopback with what template.yaml deploys beside the functions, and a scripted model endpoint."""

from __future__ import annotations

import logging
import urllib.request
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.samples import set_stage
from tests.upstream import ScriptedUpstream
from turnloom import bootstrap
from turnloom.adapters.dynamodb import create_tables, dynamodb_client
from turnloom.local import template

PREFIX, BUCKET, SEAL_SECRET = "built-", "built", "built-seal"


class Cloud:
    """The account, for as long as the context lasts; `env` is what a function of the deployment finds around it."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.upstream = upstream
        self._server = ThreadedMotoServer("127.0.0.1", 0)
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Cloud:
        # It says a line for every request, which would bury what a failed test has to say.
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self._url = f"http://{host}:{port}"
        self.env = {
            "AWS_ENDPOINT_URL": self._url,
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_REGION": template.REGION,
            "AWS_DEFAULT_REGION": template.REGION,
            "TURNLOOM_TABLES_PREFIX": PREFIX,
            "TURNLOOM_BUCKET": BUCKET,
            "TURNLOOM_STATE_MACHINE_ARN": template.STATE_MACHINE_ARN,
            "TURNLOOM_SEAL_SECRET": SEAL_SECRET,
            "TURNLOOM_AUTH": "keys",
            "OPENAI_BASE_URL": self.upstream.url,
            "OPENAI_API_KEY": "none",
        }
        for name, value in self.env.items():
            self._patch.setenv(name, value)
        self._services = bootstrap.build(self.env)
        self._clients: dict[str, Any] = {name: boto3.client(name) for name in ("s3", "secretsmanager")}
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
        self._server.stop()

    def empty(self) -> None:
        """Forget everything but what the template makes, and what was scripted."""
        self.upstream.forget()
        urllib.request.urlopen(f"{self._url}/moto-api/reset", b"").close()
        create_tables(dynamodb_client(), {PREFIX + table.name: table.indexes for table in template.tables()})
        self._clients["s3"].create_bucket(Bucket=BUCKET)
        self._clients["secretsmanager"].create_secret(Name=SEAL_SECRET, SecretString="sealed" * 8)

    def furnish(self, sample: Path) -> None:
        """Put there what the sample payload names."""
        set_stage(self._services, sample)
