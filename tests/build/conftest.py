"""What `make build` left, run as Lambda would run it. Only when asked for by name: `make test-build` builds first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.build.cloud import Cloud
from tests.upstream import ScriptedUpstream

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave these tests out of plain `pytest`, which would test what was built another day."""
    asked = [config.invocation_params.dir / argument.split("::")[0] for argument in config.invocation_params.args]
    return None if any(path.resolve().is_relative_to(HERE) for path in asked) else True


@pytest.fixture(scope="session")
def _account() -> Iterator[Cloud]:
    with ScriptedUpstream() as upstream, Cloud(upstream) as cloud:
        yield cloud


@pytest.fixture
def cloud(_account: Cloud) -> Cloud:
    """An account with nothing in it but the deployment's empty tables."""
    _account.empty()
    return _account
