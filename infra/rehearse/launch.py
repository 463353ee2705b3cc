"""The emulator, made to take the template as AWS does in three places; run by the Python of .venv-rehearse.

It refuses alarms over more than one metric, and with them the whole stack. And a Ref to a secret gives it the secret's
name, where CloudFormation gives its ARN: no policy that means the secret would name it. And of the policies that AWS
manages it lacks one that SAM attaches to every role, for which it would put one that allows everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ministack.app import main  # type: ignore[import-not-found]
from ministack.services import iam  # type: ignore[import-not-found]
from ministack.services.cloudformation import provisioners  # type: ignore[import-not-found]

Create = Callable[[str, dict[str, Any], str], tuple[str, dict[str, Any]]]
"""From logical id, properties and name of the stack to what Ref and what GetAtt give."""


def noted(create: Create) -> Create:
    """Alarms are made as before, but those over several metrics are only named."""

    def made(logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        if "Metrics" in properties:
            return f"{stack}-{logical_id}", {}
        return create(logical_id, properties, stack)

    return made


def renoted(update: Callable[..., tuple[str, dict[str, Any]]]) -> Callable[..., tuple[str, dict[str, Any]]]:
    """The same where an alarm changes; its properties are the third thing told."""

    def made(name: str, before: Any, properties: dict[str, Any], *rest: Any, **told: Any) -> tuple[str, dict[str, Any]]:
        return (name, {}) if "Metrics" in properties else update(name, before, properties, *rest, **told)

    return made


def by_arn(create: Create) -> Create:
    """What is made is referred to by its ARN."""

    def made(logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        _, attributes = create(logical_id, properties, stack)
        return attributes["Arn"], attributes

    return made


TRACING = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Action": ["xray:PutTraceSegments", "xray:PutTelemetryRecords", "xray:GetSampling*"],
            "Resource": "*",
        }
    ],
}


def manage(name: str, document: dict[str, Any]) -> None:
    """Let there be a policy of AWS's."""
    policy = iam._make_aws_managed_record(name, json.dumps(document))
    iam._aws_managed_policies[policy["Arn"]] = policy


if __name__ == "__main__":
    manage("AWSXrayWriteOnlyAccess", TRACING)
    for kind, corrected in {"AWS::CloudWatch::Alarm": noted, "AWS::SecretsManager::Secret": by_arn}.items():
        handlers = provisioners._RESOURCE_HANDLERS[kind]
        handlers["create"] = corrected(handlers["create"])
    alarms = provisioners._RESOURCE_HANDLERS["AWS::CloudWatch::Alarm"]
    alarms["update"] = renoted(alarms["update"])
    main()
