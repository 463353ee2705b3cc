"""What of an address may be a secret."""

from __future__ import annotations

import pytest

from turnloom.domain.redaction import tokens_in_path


@pytest.mark.parametrize(
    ("url", "tokens"),
    [
        ("https://tools.example/s/abcdefgh-12345678/mcp", ["abcdefgh-12345678"]),
        ("https://tools.example/api/v1/weather-of-the-world/{city}", []),
        ("https://tools.example/2024-10-01/mcp", []),
        ("https://tools.example?key=abcdefgh-12345678", []),
        ("http://[::1/abcdefgh-12345678", []),
    ],
)
def test_long_segments_with_a_digit_look_like_tokens(url: str, tokens: list[str]) -> None:
    assert tokens_in_path(url) == tokens
