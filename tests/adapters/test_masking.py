"""Secrets in texts of peers: found whole, in pieces and in other spellings; everything else stays."""

from __future__ import annotations

import json
from base64 import b64encode
from urllib.parse import quote

import pytest

from turnloom.adapters.masking import mask, secrets_in

SECRET = 'sk/"live"+Zm9v-4711-ümlaut-0815'


@pytest.mark.parametrize(
    "spelled",
    [
        SECRET,
        quote(SECRET, safe=""),
        json.dumps(SECRET)[1:-1],
        SECRET.encode().hex(),
        *(b64encode(f"{before}{SECRET}".encode()).decode() for before in ("", "x", "xy", "Bearer ")),
    ],
)
def test_a_secret_is_masked_in_every_spelling(spelled: str) -> None:
    masked = mask(f"refused: {spelled}!", [SECRET])
    assert masked.startswith("refused: ") and masked.endswith("!")
    assert not [at for at in range(len(spelled) - 7) if spelled[at : at + 8] in masked and at >= 8]


@pytest.mark.parametrize("piece", [SECRET[:8], SECRET[-25:], SECRET[7:16]])
def test_a_piece_of_a_secret_is_masked(piece: str) -> None:
    assert mask(f"({piece})", [SECRET]) == "(<redacted>)"


def test_pieces_in_one_text_are_masked_each() -> None:
    assert mask(f"{SECRET[:12]}...{SECRET[-12:]}", [SECRET]) == "<redacted>...<redacted>"


@pytest.mark.parametrize("text", ["", "short", "a text that holds no secret at all", SECRET[:7], "half \ud800"])
def test_other_text_stays(text: str) -> None:
    assert mask(text, [SECRET, "short", ""]) == text
    assert mask(text, []) == text


def test_a_secret_is_masked_anywhere_in_a_long_text() -> None:
    for before in range(100_000, 100_004):
        masked = mask(f"{' ' * before}{SECRET} ", [SECRET])
        assert "<redacted>" in masked and len(masked.strip(" ").replace("<redacted>", "")) < 8


def test_secrets_are_the_values_of_headers_without_their_scheme() -> None:
    headers = {"Authorization": "Bearer abc", "x-key": "a b", "Content-Type": "application/json", "cookie": "s=1"}
    assert secrets_in(headers) == ["abc", "a b", "s=1"]


def test_words_beside_a_scheme_stay() -> None:
    assert mask("Bearer tokens expire", secrets_in({"authorization": "Bearer to-1234567"})) == "Bearer tokens expire"
