"""Who asks: keys and what is kept of them, tokens and whose they make a request."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from turnloom.adapters.sqlite import SqliteDatabase
from turnloom.domain.api_key import key_parts, new_key_id
from turnloom.domain.errors import InvalidRequest, Unauthenticated
from turnloom.store.api_keys import ApiKeys
from turnloom.testing import CountingEntropy, FrozenClock
from turnloom.usecases.authorization import DAY, LEEWAY, Authorization, Identity, Trust, create_key, is_owner

ISSUER = "https://id.example/"
NEVER = "tl_0000000000000000_" + "0" * 52


class Keyring:
    """Keys in a real table, on a clock that a test moves."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.db"
        self.clock = FrozenClock()
        self.entropy = CountingEntropy()
        database = SqliteDatabase(self.path, now=lambda: self.clock.time / 1_000_000)
        self.keys = ApiKeys(database.table("keys"))
        self.authorization = Authorization(self.keys)

    async def create(self, owner: str = "me", **rest: Any) -> str:
        return await create_key(self.keys, self.clock, self.entropy, owner, **rest)

    async def identify(self, credential: str) -> Identity:
        return await self.authorization.identify(f"Bearer {credential}")

    async def refused(self, header: str | None) -> bool:
        with pytest.raises(Unauthenticated):
            await self.authorization.identify(header)
        return True


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path)


class Said:
    """Tokens that are JSON, and all valid."""

    async def claims(self, token: str) -> Mapping[str, Any]:
        claims: dict[str, Any] = json.loads(token)
        return claims


def trusting(claim: str = "sub") -> Authorization:
    return Authorization(trust=Trust(Said(), ISSUER, claim))


# --- keys


async def test_a_key_makes_the_requests_of_the_owner_it_was_made_for(ring: Keyring) -> None:
    mine, theirs = await ring.create("me"), await ring.create("they")
    assert await ring.identify(mine) == Identity("me")
    assert await ring.identify(theirs) == Identity("they")


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
async def test_the_scheme_is_written_as_one_likes(ring: Keyring, scheme: str) -> None:
    key = await ring.create()
    assert await ring.authorization.identify(f"{scheme} {key}") == Identity("me")


async def test_what_is_kept_opens_nothing(ring: Keyring) -> None:
    key = await ring.create()
    parts = key_parts(key)
    assert parts is not None
    with sqlite3.connect(ring.path) as file:
        dump = "\n".join(file.iterdump())
    assert parts[0] in dump and parts[1] not in dump
    [kept] = await ring.keys.all()
    assert await ring.refused(f"Bearer tl_{parts[0]}_{kept.digest[:52]}")


async def test_a_secret_opens_with_its_own_id_alone(ring: Keyring) -> None:
    first, second = key_parts(await ring.create("me")), key_parts(await ring.create("they"))
    assert first and second and first[1] != second[1]
    assert await ring.refused(f"Bearer tl_{first[0]}_{second[1]}")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", f"Bearer {NEVER}", f"Basic {NEVER}", "Bearer x.y.z"])
async def test_anything_else_is_refused(ring: Keyring, header: str | None) -> None:
    await ring.create()
    assert await ring.refused(header)


async def test_a_key_without_its_scheme_or_in_another_case_is_refused(ring: Keyring) -> None:
    key = await ring.create()
    assert await ring.refused(key)
    assert await ring.refused(f"Bearer {key.upper()}")
    assert await ring.refused(f"Bearer {key}0")


async def test_a_revoked_key_opens_nothing_and_stays_listed(ring: Keyring) -> None:
    key, other = await ring.create(), await ring.create()
    [first, _] = await ring.keys.all()
    assert await ring.keys.revoke(first.key_id, 7)
    assert await ring.refused(f"Bearer {key}")
    assert await ring.identify(other) == Identity("me")
    assert [kept.revoked for kept in await ring.keys.all()] == [7, None]


async def test_revoking_again_changes_nothing(ring: Keyring) -> None:
    await ring.create()
    [kept] = await ring.keys.all()
    assert [await ring.keys.revoke(kept.key_id, now) for now in (7, 8)] == [True, True]
    assert [kept.revoked for kept in await ring.keys.all()] == [7]
    assert not await ring.keys.revoke("nobody", 9)


async def test_a_key_says_when_it_ends_and_ends_then(ring: Keyring) -> None:
    start = ring.clock.time // 1_000_000
    key = await ring.create(days=2)
    ring.clock.advance(2 * DAY - 10)
    assert await ring.identify(key) == Identity("me", start + 2 * DAY)
    ring.clock.advance(10)
    assert await ring.refused(f"Bearer {key}")
    assert await ring.keys.all() == []


async def test_a_revoked_key_still_ends_when_it_should(ring: Keyring) -> None:
    await ring.create(days=1)
    [kept] = await ring.keys.all()
    await ring.keys.revoke(kept.key_id, 7)
    ring.clock.advance(DAY)
    assert await ring.keys.all() == []


async def test_keys_are_listed_in_the_order_in_which_they_were_made(ring: Keyring) -> None:
    for label in ("first", "second", "third"):
        await ring.create(label=label)
        ring.clock.advance(1)
    assert [kept.label for kept in await ring.keys.all()] == ["first", "second", "third"]


def test_ids_of_keys_sort_by_time_whatever_chance_says() -> None:
    early, late = new_key_id(1_000, lambda bits: (1 << bits) - 1), new_key_id(2_000, lambda bits: 0)
    assert early < late and len(early) == len(late) == 16


@pytest.mark.parametrize("owner", ["", "a\nb", "\ud800", "x" * 1025, "ä" * 200])
async def test_no_key_is_made_for_what_can_name_nobody(ring: Keyring, owner: str) -> None:
    with pytest.raises(InvalidRequest):
        await ring.create(owner)
    assert await ring.keys.all() == []


@pytest.mark.parametrize("days", [0, -1])
async def test_no_key_is_made_that_is_over_already(ring: Keyring, days: int) -> None:
    with pytest.raises(InvalidRequest):
        await ring.create(days=days)


# --- tokens


async def test_the_owner_of_a_token_is_its_issuer_and_its_claim() -> None:
    found = await trusting().identify('Bearer {"sub":"alice","exp":1000}')
    assert found == Identity(f"{ISSUER}|alice", 1000 + LEEWAY)


async def test_another_claim_names_the_owner_where_that_is_wanted() -> None:
    found = await trusting("org").identify('Bearer {"sub":"alice","org":"acme","exp":1000}')
    assert found.owner == f"{ISSUER}|acme"


@pytest.mark.parametrize("sub", ["null", '""', "7", '["alice"]', '"a\\u0000"', '"\\ud800"', json.dumps("x" * 1100)])
async def test_a_claim_that_can_name_nobody_is_refused(sub: str) -> None:
    with pytest.raises(Unauthenticated):
        await trusting().identify(f'Bearer {{"sub":{sub},"exp":1000}}')


async def test_a_token_without_the_claim_is_refused() -> None:
    with pytest.raises(Unauthenticated):
        await trusting("org").identify('Bearer {"sub":"alice","exp":1000}')


async def test_a_key_and_a_token_of_one_name_are_two_owners(ring: Keyring) -> None:
    both = Authorization(ring.keys, Trust(Said(), ISSUER))
    by_key = await both.identify(f"Bearer {await ring.create('alice')}")
    by_token = await both.identify('Bearer {"sub":"alice","exp":1000}')
    assert by_key.owner != by_token.owner


async def test_an_operator_can_make_a_key_for_the_owner_of_a_token(ring: Keyring) -> None:
    both = Authorization(ring.keys, Trust(Said(), ISSUER))
    by_key = await both.identify(f"Bearer {await ring.create(ISSUER + '|alice')}")
    by_token = await both.identify('Bearer {"sub":"alice","exp":1000}')
    assert by_key.owner == by_token.owner


async def test_where_tokens_alone_are_taken_a_key_opens_nothing(ring: Keyring) -> None:
    key = await ring.create()
    with pytest.raises(Unauthenticated):
        await trusting().identify(f"Bearer {key}")


# --- neither


@pytest.mark.parametrize("header", [None, "Bearer none", f"Bearer {NEVER}"])
async def test_where_all_is_open_everybody_is_one_owner(header: str | None) -> None:
    assert await Authorization(open=True).identify(header) == Identity("default")


@pytest.mark.parametrize("header", [None, "Bearer none", f"Bearer {NEVER}"])
async def test_authorization_that_trusts_nobody_lets_nobody_in(header: str | None) -> None:
    with pytest.raises(Unauthenticated):
        await Authorization().identify(header)


def test_subjects_as_long_as_openid_allows_can_name_owners() -> None:
    assert is_owner(f"{ISSUER}|{'|' * 255}")
