"""Idempotency keys: which response a key of a client's stands for."""

from __future__ import annotations

import hashlib
import zlib
from contextlib import suppress
from dataclasses import dataclass

from turnloom.ports import Absent, ConditionFailed, Row, Table, Version
from turnloom.store.keys import partition

CLAIM_SECONDS = 24 * 3600
UNSTORED_SECONDS = 60
"""How long a key stands for what is not stored, should nobody free or renew it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The response that a request with this key began.

    `fingerprint` tells the request from others, `stored` whether the response can be read again.
    """

    key: str
    response_id: str
    fingerprint: str
    stored: bool = True


class Claims:
    """Claims are made before their response is stored: one may name a response that never came to be."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def stake(self, owner: str, claim: Claim, now: int) -> Claim | None:
        """Make the claim, `now` in microseconds; the one that was there before, if there is one."""
        row = _row(owner, claim, now)
        try:
            await self._table.put(row, Absent())
        except ConditionFailed:
            found = await self._table.get(row.partition, row.sort)
            return await self.stake(owner, claim, now) if found is None else _claim(found, claim.key)
        return None

    async def get(self, owner: str, key: str) -> Claim | None:
        row = await self._table.get(partition(owner, "claims"), _sort(key))
        return None if row is None else _claim(row, key)

    async def renew(self, owner: str, claim: Claim, now: int) -> None:
        """Let the key stand from `now` on as long as at first, unless it stands for another response by now."""
        row = _row(owner, claim, now)
        with suppress(ConditionFailed):
            await self._table.put(row, Version(row.version))

    async def drop(self, owner: str, key: str, response_id: str) -> None:
        """Free the key, unless it stands for another response by now."""
        with suppress(ConditionFailed):
            await self._table.delete(partition(owner, "claims"), _sort(key), Version(_version(response_id)))


def _row(owner: str, claim: Claim, now: int) -> Row:
    value = {"response": claim.response_id, "fingerprint": claim.fingerprint, "stored": claim.stored}
    expires = now // 1_000_000 + (CLAIM_SECONDS if claim.stored else UNSTORED_SECONDS)
    version = _version(claim.response_id)
    return Row(partition(owner, "claims"), _sort(claim.key), value, version, expires=expires)


def _claim(row: Row, key: str) -> Claim:
    return Claim(key, row.value["response"], row.value["fingerprint"], row.value["stored"])


def _version(response_id: str) -> int:
    """Claims of one key are told apart by what they name."""
    return zlib.crc32(response_id.encode())


def _sort(key: str) -> str:
    """Clients may send any text, of any length."""
    return hashlib.sha256(key.encode()).hexdigest()
