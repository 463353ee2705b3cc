"""Functions that start warm: what `make build WARM=...` makes of the template."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from infra.warm import FIRST, WAYS, main, warmed

from tests.infra.conftest import translation
from turnloom.local.template import ROOT, read

RELEASE = {"Release": "1764000000"}


def of_kind(translated: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {name: found for name, found in translated["Resources"].items() if found["Type"] == f"AWS::Lambda::{kind}"}


def in_words(way: str, **parameters: str) -> dict[str, Any]:
    return translation(warmed(read(ROOT / "template.yaml"), way), parameters)


@pytest.fixture(scope="module", params=WAYS)
def translated(request: pytest.FixtureRequest) -> dict[str, Any]:
    return in_words(request.param, **RELEASE)


def test_everything_calls_an_alias_and_nothing_a_function(translated: dict[str, Any]) -> None:
    functions = set(of_kind(translated, "Function"))
    assert {f"{name}Aliaslive" for name in functions} == set(of_kind(translated, "Alias"))
    calling = ("AWS::ApiGateway::RestApi", "AWS::StepFunctions::StateMachine", "AWS::Events::Rule", "AWS::IAM::Role")
    text = json.dumps([found for found in translated["Resources"].values() if found["Type"] in calling])
    called = {name for name in functions if f'"{name}Aliaslive"' in text or f"${{{name}Aliaslive}}" in text}
    assert called == functions
    assert not {name for name in functions if f'["{name}", "Arn"]' in text or f"${{{name}.Arn}}" in text}


def test_who_may_call_a_function_may_call_its_alias(translated: dict[str, Any]) -> None:
    for name, permission in of_kind(translated, "Permission").items():
        assert permission["Properties"]["FunctionName"]["Ref"].endswith("Aliaslive"), name


def test_another_release_publishes_another_version_of_every_function() -> None:
    before, same, after = (
        {name for name in of_kind(in_words("snapstart", Release=release), "Version")}
        for release in ("1764000000", "1764000000", "1764000001")
    )
    assert before == same and not before & after and len(before) == len(after)


def test_an_old_version_goes(translated: dict[str, Any]) -> None:
    assert {version["DeletionPolicy"] for version in of_kind(translated, "Version").values()} == {"Delete"}


def test_with_snapstart_every_function_has_a_snapshot_of_its_versions() -> None:
    functions = of_kind(in_words("snapstart", **RELEASE), "Function").values()
    assert all(found["Properties"]["SnapStart"] == {"ApplyOn": "PublishedVersions"} for found in functions)


def test_what_is_provisioned_stands_before_a_first_token() -> None:
    aliases = of_kind(in_words("provisioned", **RELEASE), "Alias")
    kept = {name for name, alias in aliases.items() if "ProvisionedConcurrencyConfig" in alias["Properties"]}
    assert kept == {f"{name}Aliaslive" for name in FIRST}


def test_a_deployment_without_a_release_is_refused_by_the_template(translated: dict[str, Any]) -> None:
    assert "Default" not in translated["Parameters"]["Release"]


def test_the_template_itself_publishes_nothing() -> None:
    assert not of_kind(translation(read(ROOT / "template.yaml"), {}), "Alias")


def test_an_unknown_way_is_refused_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = tmp_path / "template.yaml"
    built.write_text("{}")
    monkeypatch.setattr(sys, "argv", ["warm", "hot"])
    assert main(built) == 2
    assert "snapstart, provisioned" in capsys.readouterr().err and built.read_text() == "{}"
