"""The driver's pen: how much goes into one batch of the log, and what becomes of what is too large for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import House
from tests.engine.conversations import Conversation, calls, says
from tests.engine.test_drivers_agree import OWNER, normal, play_inline, play_stepped, scripted_house
from tests.engine.test_responses import answered, delete_response, stored
from turnloom.domain.event import Delta, Event, InferenceStarted, TurnStarted
from turnloom.domain.message import UserMessage
from turnloom.domain.turn import Turn
from turnloom.engine.journal import AHEAD_EVENTS, Journal
from turnloom.ports import Finished, ModelRequest, TextChunk
from turnloom.store import codec
from turnloom.store.large import INLINE_BYTES, pack
from turnloom.store.turns import Place, Record, Unstored
from turnloom.testing import USAGE, FrozenClock
from turnloom.usecases import agents

LARGE = "x" * 400_000
LOGPROBS = ({"token": "x", "top_logprobs": [{"token": "y" * 20, "logprob": -0.25}] * 20},)


class Batches(Unstored):
    """The batches that were appended; with `gate` set, an append waits for that."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[Event, ...]] = []
        self.gate: asyncio.Event | None = None

    async def append(self, record: Record, events: Sequence[Event], lease: int, turn: Turn | None = None) -> Record:
        self.written.append(tuple(events))
        if self.gate is not None:
            await self.gate.wait()
        return await super().append(record, events, lease, turn)


def journal_over(batches: Batches) -> Journal:
    clock = FrozenClock()
    started = [TurnStarted(clock.now(), ()), InferenceStarted(clock.now())]
    record = Record(Place("agents", "me", "thread", 0), Turn("turn-0")).with_events(started)
    return Journal(batches, record, clock, 2.0, 30.0, lambda event: None)


async def note(journal: Journal, events: Sequence[Event]) -> None:
    """As the drivers do."""
    for event in events:
        if journal.full:
            await journal.flush()
        journal.note(event)


async def test_small_events_share_a_batch() -> None:
    batches = Batches()
    journal = journal_over(batches)
    await note(journal, [Delta("text", f" word{number}") for number in range(2 * AHEAD_EVENTS)])
    await journal.flush()
    assert [len(batch) for batch in batches.written] == [AHEAD_EVENTS] * 2


@pytest.mark.parametrize(
    "delta",
    [
        Delta("text", "x" * 9_000),
        Delta("text", "\N{GRINNING FACE}" * 9_000),
        Delta("arguments", '"\\\x01' * 3_000),
        Delta("text", "x", LOGPROBS * 5),
    ],
    ids=["ascii", "four bytes", "escapes", "logprobs"],
)
async def test_a_batch_of_larger_events_is_one_that_a_row_holds(delta: Delta) -> None:
    batches = Batches()
    journal = journal_over(batches)
    events = [Delta("text", delta.text, delta.logprobs)] * AHEAD_EVENTS
    assert len(pack(codec.dump(events))) > INLINE_BYTES
    await note(journal, events)
    await journal.flush()
    assert max(len(pack(codec.dump(batch))) for batch in batches.written) <= INLINE_BYTES
    assert sum(map(len, batches.written)) == AHEAD_EVENTS


async def test_what_is_noted_during_a_write_counts_for_the_next_batch() -> None:
    batches = Batches()
    batches.gate = asyncio.Event()
    journal = journal_over(batches)
    journal.note(Delta("text", LARGE))
    writing = asyncio.create_task(journal.flush())
    await asyncio.sleep(0)
    journal.note(Delta("text", LARGE))
    batches.gate.set()
    await writing
    assert journal.full and journal.unlogged == 1
    await journal.flush()
    assert not journal.full and [len(batch) for batch in batches.written] == [1, 1]


LARGE_ONES = [
    Conversation("large arguments and a large result", [calls(("echo", {"text": LARGE})), says("done")]),
    Conversation("large deltas", [says(*["y" * 90_000] * 7)]),
    Conversation("a large document", [says("read")], {"documents": [{"content": LARGE, "mime_type": "text/plain"}]}),
]


@pytest.mark.parametrize("conversation", LARGE_ONES, ids=lambda conversation: conversation.name)
async def test_no_turn_is_too_large_for_a_driver(conversation: Conversation, tmp_path: Path) -> None:
    inline = await play_inline(scripted_house(tmp_path / "inline", conversation), conversation)
    stepped = await play_stepped(scripted_house(tmp_path / "stepped", conversation), conversation)
    assert inline.turn.status == stepped.turn.status == "completed"
    assert normal(inline) == normal(stepped)


async def test_a_session_that_is_deleted_leaves_nothing_of_its_large_logs(tmp_path: Path) -> None:
    house = scripted_house(tmp_path, LARGE_ONES[0])
    record = await play_inline(house, LARGE_ONES[0])
    kinds = {path.name.split("%2F")[0] for path in (tmp_path / "blobs").iterdir()}
    assert kinds == {"kept", "log"}
    await agents.delete_session(house.services, OWNER, str(record.origin["agent"]), record.place.thread)
    assert list((tmp_path / "blobs").iterdir()) == []


async def test_a_summary_that_no_row_can_hold_is_kept(house: House, tmp_path: Path) -> None:
    def answer(request: ModelRequest) -> list[Any]:
        last = request.messages[-1]
        sums_up = isinstance(last, UserMessage) and "Sum up the conversation" in str(last.content)
        return [TextChunk(LARGE if sums_up else "Hm."), Finished("stop", USAGE)]

    house.model._rule = answer
    first = await answered(house, "word " * 1200)
    above = [{"type": "compaction", "compact_threshold": 1000}]
    turn = await answered(house, "And?", previous_response_id=first.id, context_management=above)
    assert turn.status == "completed" and LARGE in str((await stored(house, turn)).events)
    await delete_response(house.services, "me", turn.id)
    assert list((tmp_path / "blobs").iterdir()) == []
