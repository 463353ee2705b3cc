"""Files in the input of a response, made ready before anything is stored or paid for.

What lies at an address is fetched, once and for all later turns; a PDF becomes text where the model's adapter takes no
files; what could never reach the model is refused.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import JSON
from turnloom.domain.responses_input import PDF, File, file_of, opened_file
from turnloom.ports import Retriever
from turnloom.usecases.services import Services

AT_ONCE = 5
"""Files that are worked on side by side."""

MOST_FILES = 500
"""In one request; each is decoded on the event loop."""

MOST_FETCHED_BYTES = 50 * 1024 * 1024
"""What all addresses in one request may give together."""

MOST_SECONDS = 25.0
"""For all files of one request: the functions that do not stream have 29 seconds for all they do."""

_LISTS = {"message": "content", "function_call_output": "output", "custom_tool_call_output": "output"}


async def prepared(
    services: Services, owner: str, items: Sequence[Mapping[str, Any]], seconds: float = MOST_SECONDS
) -> list[JSON]:
    """The items with the content of their files in them; an item in which nothing changes is the same object.

    A part that had a `file_url` gets `file_data`, and `filename` if it had none. A PDF that the model cannot take gets
    `text`, beside the `file_data` that the client sent, which is listed; a part that has `text` or `file_data` already
    is not fetched. Raises InvalidRequest with the culprit's path: `unsupported_file` for a file that cannot be read,
    `invalid_value` for an address, or for files that are not ready in time.
    """
    made: list[JSON] = list(items)
    spots = list(_spots(items))
    if not spots:
        return made
    if len(spots) > MOST_FILES:
        raise InvalidRequest(f"The request has more than {MOST_FILES} files", code="invalid_value", param="input")
    world = services.engine.world
    desk = _Desk(owner, world.retriever, world.model.takes_files, asyncio.Semaphore(AT_ONCE), seconds)
    for spot, part in zip(spots, await _side_by_side(desk, spots), strict=True):
        if part is spot.part:
            continue
        if made[spot.item] is items[spot.item]:
            made[spot.item] = {**items[spot.item], spot.key: list(items[spot.item][spot.key])}
        made[spot.item][spot.key][spot.place] = part
    return made


@dataclass(frozen=True, slots=True)
class _Spot:
    """A file's part of content, and where it stands: in which item, under which key, at which place."""

    part: Mapping[str, Any]
    item: int
    key: str
    place: int

    @property
    def culprit(self) -> str:
        source = "file_data" if "file_data" in self.part else "file_url"
        return f"input[{self.item}].{self.key}[{self.place}].{source}"


def _spots(items: Sequence[Mapping[str, Any]]) -> Iterator[_Spot]:
    """The files that are not text yet; those known by an id alone are none of ours."""
    for number, item in enumerate(items):
        key = _LISTS.get(item.get("type", "message"))
        parts = item.get(key) if key else None
        if key is None or not isinstance(parts, list):
            continue
        for place, part in enumerate(parts):
            if part.get("type") == "input_file" and "text" not in part and ("file_data" in part or "file_url" in part):
                yield _Spot(part, number, key, place)


async def _side_by_side(desk: _Desk, spots: Sequence[_Spot]) -> list[Mapping[str, Any]]:
    """The parts, made ready; the first failure, or the end of time, ends the work on all others."""
    try:
        async with asyncio.timeout(desk.seconds), asyncio.TaskGroup() as group:
            tasks = [group.create_task(desk.ready(spot)) for spot in spots]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    except TimeoutError:
        late = next((spot for spot, task in zip(spots, tasks, strict=True) if task.cancelled()), spots[-1])
        message = f"The files of the request were not ready within {desk.seconds:g} seconds"
        raise InvalidRequest(message, code="invalid_value", param=late.culprit) from None
    return [task.result() for task in tasks]


@dataclass(slots=True)
class _Desk:
    """Where the files of one request of the owner are worked on; `left` is how many bytes may still be fetched."""

    owner: str
    retriever: Retriever
    takes_files: bool
    seats: asyncio.Semaphore
    seconds: float
    left: int = MOST_FETCHED_BYTES

    async def ready(self, spot: _Spot) -> Mapping[str, Any]:
        async with self.seats:
            try:
                return await (self._sent if "file_data" in spot.part else self._fetched)(spot.part)
            except InvalidRequest as refusal:
                refusal.param = spot.culprit
                raise

    async def _sent(self, part: Mapping[str, Any]) -> Mapping[str, Any]:
        text = await self._text(opened_file(part))
        if text is None:
            return part
        return {**part, "text": text}

    async def _fetched(self, part: Mapping[str, Any]) -> Mapping[str, Any]:
        found = await self.retriever.file(part["file_url"])
        self.left -= len(found.content)
        if self.left < 0:
            message = f"The files at the addresses have more than {MOST_FETCHED_BYTES} bytes together"
            raise InvalidRequest(message, code="invalid_value")
        name = part.get("filename") or found.filename
        part = {**part, "filename": name} if name else part
        text = await self._text(file_of(name, found.media_type, found.content))
        if text is not None:
            return {**part, "text": text}
        return {**part, "file_data": f"data:{found.media_type};base64,{base64.b64encode(found.content).decode()}"}

    async def _text(self, file: File) -> str | None:
        """The text to be kept in place of the file; None when the file itself is to be."""
        if file.text is not None or self.takes_files:
            return None
        if file.media != PDF:
            message = f"'{file.name}' is of type '{file.media}': only texts and PDFs can be read here"
            raise InvalidRequest(message, code="unsupported_file")
        return await self.retriever.pdf_text(file.content, self.owner)
