"""template.yaml as CloudFormation gets it: packaged, and translated by AWS's own translator."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

from turnloom.local.template import ROOT

PACKAGED = ("CodeUri", "ContentUri", "DefinitionUri")


@pytest.fixture(scope="session")
def translated() -> dict[str, Any]:
    """The template after the SAM transform, all of it in CloudFormation's own resources."""
    return translation(yaml_parse((ROOT / "template.yaml").read_text()), {})


def translation(template: dict[str, Any], parameters: dict[str, str]) -> dict[str, Any]:
    """What the SAM transform makes of a template, once packaged, for these parameters."""
    for resource in template["Resources"].values():
        properties = resource["Properties"]
        properties |= {name: "s3://packaged/archive" for name in PACKAGED if name in properties}
    policies = {"AWSLambdaBasicExecutionRole": "arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"}
    translator = Translator(policies, Parser(), boto_session=boto3.Session(region_name="us-east-1"))
    result: dict[str, Any] = translator.translate(template, parameters)
    return result


@pytest.fixture(scope="session")
def resources(translated: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The properties of the translated resources, by logical id, for each type."""
    found: dict[str, dict[str, Any]] = {}
    for name, resource in translated["Resources"].items():
        found.setdefault(resource["Type"], {})[name] = resource.get("Properties", {})
    return found
