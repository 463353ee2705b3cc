"""Which secrets the server of a tool is sent."""

from __future__ import annotations

import pytest

from turnloom.adapters.masking import mask
from turnloom.adapters.tools.failure import secrets_of
from turnloom.domain.message import ToolSource


@pytest.mark.parametrize("named", [True, False])
def test_a_token_in_the_path_of_a_server_is_masked(named: bool) -> None:
    source = ToolSource("mcp", "g", "look", "https://tools.example/s/abcdefgh-12345678/mcp")
    told = mask("no route /s/abcdefgh-12345678/mcp", secrets_of(source, {}, named=named))
    assert told == "no route /s/<redacted>/mcp"
