"""Every sample payload in events/, replayed against the handler it is for: none can rot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.samples import EVENTS, ROOT, outcome, run, set_stage
from tests.upstream import ScriptedUpstream, say
from turnloom import bootstrap, gate
from turnloom.usecases.services import Services


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    with ScriptedUpstream() as upstream:
        upstream.answer = lambda request: say("Hello", " there")
        monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        monkeypatch.setenv("TURNLOOM_DATA_DIR", str(tmp_path))
        monkeypatch.setenv("TURNLOOM_AUTH", "keys")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        bootstrap.services.cache_clear()
        gate.authorization.cache_clear()
        yield bootstrap.services()
        bootstrap.services.cache_clear()
        gate.authorization.cache_clear()


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_sample_payload_brings_what_its_name_says(path: Path, services: Services) -> None:
    set_stage(services, path)
    result = run(path.parent.name, json.loads(path.read_text()))
    assert outcome(result) == path.stem.split("-")[0], result
    if "statusCode" in (result or {}):
        assert "x-trace-id" in result["headers"] or "x-trace-id" in result.get("multiValueHeaders", {})


def test_every_function_has_a_sample_payload() -> None:
    functions = {path.parent.name for path in ROOT.glob("functions/*/handler.py")}
    assert functions == {path.parent.name for path in EVENTS}
