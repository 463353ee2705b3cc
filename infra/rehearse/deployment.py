"""From template.yaml to an API that answers: built for this machine, deployed by `sam deploy` as an operator would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from infra.rehearse.emulator import PYTHON, ROOT, Emulator

STACK = "turnloom"
_BUILT = ROOT / ".aws-sam" / "rehearse" / "build"
_SAM = ROOT / ".venv-sam" / "bin" / "sam"
_CONFIG = ["--config-file", str(ROOT / "infra" / "samconfig.toml")]


@dataclass(frozen=True)
class Deployment:
    """A stack in the emulator; `url` is where its API answers there."""

    emulator: Emulator
    outputs: Mapping[str, str]

    @property
    def url(self) -> str:
        return f"{self.emulator.url}/_aws/execute-api/{self._api}/{self._stage}"

    @property
    def _api(self) -> str:
        return str(urlsplit(self.outputs["Url"]).hostname).split(".")[0]

    @property
    def _stage(self) -> str:
        return urlsplit(self.outputs["Url"]).path.strip("/")

    def resource(self, logical_id: str) -> str:
        """The physical id of a resource."""
        found = self.emulator.client("cloudformation").describe_stack_resource(
            StackName=STACK, LogicalResourceId=logical_id
        )
        return str(found["StackResourceDetail"]["PhysicalResourceId"])

    def key(self, owner: str) -> str:
        """A new API key of the owner's, made as operators do; raises RuntimeError with what the command said."""
        return self._keys("create", "--owner", owner)

    def revoke(self, key: str) -> None:
        """Let the key open nothing any more; raises RuntimeError with what the command said."""
        self._keys("revoke", key)

    def _keys(self, command: str, *arguments: str) -> str:
        whole = [sys.executable, "-m", "turnloom", "keys", command, "--stack", STACK, *arguments]
        done = subprocess.run(whole, env=self.emulator.env, capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            raise RuntimeError(f"turnloom keys {command} failed: {done.stderr}")
        return done.stdout.strip()

    def restore(self, prefix: str) -> None:
        """Restore every table as it is now, under a name that begins so."""
        tables = self.emulator.client("dynamodb")
        for table in tables.list_tables()["TableNames"]:
            target = prefix + table.removeprefix(f"{STACK}-")
            tables.restore_table_to_point_in_time(
                SourceTableName=table, TargetTableName=target, UseLatestRestorableTime=True
            )

    def left_over(self) -> dict[str, str]:
        """A bucket and a secret such as an earlier stack leaves, as the parameters that name them."""
        name = f"{STACK}-before"
        self.emulator.client("s3").create_bucket(Bucket=name)
        made = self.emulator.client("secretsmanager").create_secret(Name=name, SecretString="s" * 64)
        return {"BucketName": name, "SealSecretArn": made["ARN"]}

    def change(self, **parameters: str) -> None:
        """Deploy again with these parameters changed; raises RuntimeError with what `sam` said."""
        deploy(self.emulator, **parameters)
        self.buffer()

    def executions(self) -> list[tuple[str, str]]:
        """Names and statuses of all executions of the state machine."""
        arn = self.resource("Turn")
        pages = self.emulator.client("stepfunctions").get_paginator("list_executions").paginate(stateMachineArn=arn)
        return [(found["name"], found["status"]) for page in pages for found in page["executions"]]

    def invoke(self, logical_id: str) -> Any:
        """What a function returns for an empty event. Raises RuntimeError when it fails."""
        answer = self.emulator.client("lambda").invoke(FunctionName=self.resource(logical_id), Payload=b"{}")
        payload = json.load(answer["Payload"])
        if "FunctionError" in answer:
            raise RuntimeError(f"{logical_id} failed: {payload}")
        return payload

    def objects(self, bucket: str | None = None) -> list[str]:
        """The keys of all objects in a bucket, by default the stack's own."""
        listed = self.emulator.client("s3").get_paginator("list_objects_v2")
        pages = listed.paginate(Bucket=bucket or self.resource("Bucket"))
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def errors(self) -> list[str]:
        """What the functions told of as errors: of each, its message and the last line of what went wrong."""
        events = self.emulator.client("logs").get_paginator("filter_log_events")
        pages = events.paginate(logGroupName=self.resource("Logs"))
        told = [event["message"] for page in pages for event in page["events"]]
        lines = [json.loads(message) for message in told if message.startswith("{")]
        errors = [line for line in lines if line.get("level") == "ERROR"]
        return [": ".join([line["message"], *line.get("exception", "").splitlines()[-1:]]) for line in errors]

    def forbid(self, function: str, policy: str) -> None:
        """Take a policy from the role of a function, both by their logical ids."""
        role, arn = self.resource(f"{function}Role"), self.resource(policy)
        self.emulator.client("iam").detach_role_policy(RoleName=role, PolicyArn=arn)

    def buffer(self) -> None:
        """Let the functions that stream answer in one piece, by their Mangum handler.

        The emulator has neither Lambda Web Adapter nor integrations that stream.
        """
        functions = self.emulator.client("lambda")
        for found in _streaming(functions):
            layers = [layer["Arn"] for layer in found["Layers"] if "LambdaAdapter" not in layer["Arn"]]
            change = {"Handler": "handler.handler", "Layers": layers}
            functions.update_function_configuration(FunctionName=found["FunctionName"], **change)
        self._buffer_integrations()

    def _buffer_integrations(self) -> None:
        gateway = self.emulator.client("apigateway")
        for resource, method, uri in _integrations(gateway, self._api):
            if uri.endswith("/response-streaming-invocations"):
                whole = uri.replace("/2021-11-15/", "/2015-03-31/").replace("/response-streaming-", "/")
                change = {"op": "replace", "path": "/uri", "value": whole}
                gateway.update_integration(
                    restApiId=self._api, resourceId=resource, httpMethod=method, patchOperations=[change]
                )
        gateway.create_deployment(restApiId=self._api, stageName=self._stage)


def build() -> None:
    """Build all that `sam deploy` uploads, with a layer for the Python that the emulator runs functions with.

    Raises RuntimeError with what `sam` said.
    """
    version = "import sys; print('%d.%d' % sys.version_info[:2])"
    runtime = subprocess.check_output([PYTHON, "-c", version], text=True).strip()  # noqa: S603
    # Packages are got as this machine gets them.
    _sam(os.environ | {"PLATFORM": "", "RUNTIME": runtime}, "build", "--build-dir", str(_BUILT))


def deploy(emulator: Emulator, **parameters: str) -> Deployment:
    """Deploy what was built, with these parameters of the template. Raises RuntimeError with what `sam` said."""
    given = [f"{name}={value}" for name, value in parameters.items()]
    template = str(_BUILT / "template.yaml")
    arguments = ["--template-file", template, "--no-confirm-changeset", "--parameter-overrides", *given]
    _sam(emulator.env, "deploy", *arguments)
    [stack] = emulator.client("cloudformation").describe_stacks(StackName=STACK)["Stacks"]
    if stack["StackStatus"] not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
        raise RuntimeError(f"The stack is {stack['StackStatus']}.")
    return Deployment(emulator, {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]})


def _sam(env: Mapping[str, str], command: str, *arguments: str) -> None:
    settings = {**env, "SAM_CLI_TELEMETRY": "0"}
    whole = [str(_SAM), command, *_CONFIG, *arguments]
    done = subprocess.run(whole, env=settings, cwd=ROOT, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"sam {command} failed:\n{done.stdout}\n{done.stderr}")


def _streaming(client: Any) -> list[dict[str, Any]]:
    pages = client.get_paginator("list_functions").paginate()
    return [found for page in pages for found in page["Functions"] if found["Handler"] == "run.sh"]


def _integrations(client: Any, api: str) -> Iterator[tuple[str, str, str]]:
    """The id of the resource, the HTTP method and the URI of every integration that has one."""
    for page in client.get_paginator("get_resources").paginate(restApiId=api, embed=["methods"]):
        for resource in page["items"]:
            for method, found in resource.get("resourceMethods", {}).items():
                if uri := found.get("methodIntegration", {}).get("uri"):
                    yield resource["id"], method, uri
