"""History is read with every turn: what a process has read once, it does not decode again."""

from __future__ import annotations

from pathlib import Path

from turnloom.adapters.sqlite import SqliteDatabase
from turnloom.ports import Row

CONVERSATIONS, LENGTH = 15, 100


async def test_conversations_that_go_on_in_turns_are_decoded_once(tmp_path: Path) -> None:
    table = SqliteDatabase(tmp_path / "turnloom.db").table("turns")
    for number in range(CONVERSATIONS * LENGTH):
        place, ordinal = divmod(number, LENGTH)
        await table.put(Row(f"me#{place}", f"{ordinal:010d}", {"id": f"turn-{number}"}))
    first, again = [[await table.query(f"me#{place}") for place in range(CONVERSATIONS)] for _ in range(2)]
    for one, other in zip(first, again, strict=True):
        assert len(one.rows) == LENGTH
        assert all(old is new for old, new in zip(one.rows, other.rows, strict=True))


async def test_a_row_that_was_written_again_is_decoded_again(tmp_path: Path) -> None:
    table = SqliteDatabase(tmp_path / "turnloom.db").table("turns")
    for text in ("one", "two"):
        await table.put(Row("me", "0", {"text": text}))
        found = await table.get("me", "0")
        assert found is not None and found.value == {"text": text}
