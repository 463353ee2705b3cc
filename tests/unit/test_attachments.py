"""Files in the input of a response: fetched, read or refused before anything else happens."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import House
from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import FilePart, TextPart, UserMessage
from turnloom.domain.responses_input import read
from turnloom.ports import FetchedFile
from turnloom.testing import InlineDocuments, ScriptedModel
from turnloom.usecases import attachments
from turnloom.usecases.attachments import prepared
from turnloom.usecases.services import Services

Part = dict[str, Any]

ZIP = b"PK\x03\x04\xff"
PLACE = "https://files.example/a"


class FileModel(ScriptedModel):
    """A model behind an adapter that takes files."""

    def __init__(self) -> None:
        super().__init__()
        self.takes_files = True


def equipped(services: Services, **ports: Any) -> Services:
    return replace(services, engine=replace(services.engine, world=replace(services.engine.world, **ports)))


@pytest.fixture
def documents() -> InlineDocuments:
    return InlineDocuments()


@pytest.fixture
def services(house: House, documents: InlineDocuments) -> Services:
    return equipped(house.services, retriever=documents)


@pytest.fixture
def with_files(services: Services) -> Services:
    return equipped(services, model=FileModel())


def sent(content: bytes, media: str | None = None, name: str | None = None) -> Part:
    data = base64.b64encode(content).decode()
    data = data if media is None else f"data:{media};base64,{data}"
    return {"type": "input_file", "file_data": data} | ({} if name is None else {"filename": name})


def at(url: str = PLACE, **others: str) -> Part:
    return {"type": "input_file", "file_url": url, **others}


def message(*parts: Part, role: str = "user") -> Part:
    return {"type": "message", "role": role, "content": list(parts)}


async def refusal(services: Services, *items: Part) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        await prepared(services, "me", items)
    return refused.value


# --- what is left alone


async def test_items_without_files_come_back_as_the_same_objects(
    services: Services, documents: InlineDocuments
) -> None:
    items = [
        message({"type": "input_text", "text": "hello"}),
        {"role": "user", "content": "hello"},
        {"type": "function_call_output", "call_id": "c", "output": "done"},
        {"type": "something_new", "content": [at()]},
        {"type": "reasoning"},
        message({"type": "input_file", "file_id": "file_1"}),
        message(at(text="read before")),
    ]
    made = await prepared(services, "me", items)
    assert all(after is before for after, before in zip(made, items, strict=True))
    assert documents.fetched == []


@pytest.mark.parametrize(
    "part",
    [sent(b"a;b", "text/csv"), sent(b"{}", "Application/JSON"), sent(b"plain", None, "a.txt"), sent(b"plain")],
)
async def test_files_of_text_stay_as_they_are(services: Services, part: Part) -> None:
    item = message(part)
    assert (await prepared(services, "me", [item]))[0] is item


@pytest.mark.parametrize("part", [sent(b"%PDF-text"), sent(ZIP, "application/zip"), sent(b"\x89PNG\xff", "image/png")])
async def test_files_stay_as_they_are_where_the_model_takes_files(with_files: Services, part: Part) -> None:
    item = message(part)
    assert (await prepared(with_files, "me", [item]))[0] is item


# --- PDFs


@pytest.mark.parametrize(
    "part",
    [
        sent(b"%PDF-the text", "application/pdf", "a.pdf"),
        sent(b"%PDF-the text", "application/octet-stream", "a.pdf"),
        sent(b"%PDF-the text", "text/plain", "a.pdf"),
        sent(b"%PDF-the text", None, "a.pdf"),
        sent(b"the text", None, "a.pdf"),
        sent(b"the text", "Application/PDF", "a.pdf"),
    ],
)
async def test_a_pdf_becomes_text_where_the_model_takes_no_files(services: Services, part: Part) -> None:
    made = await prepared(services, "me", [message(part)])
    assert made == [message({**part, "text": "the text"})]
    assert read(made, True) == [UserMessage("a.pdf\n\nthe text")]


async def test_the_request_itself_is_not_changed(services: Services) -> None:
    item = message(sent(b"%PDF-text"), {"type": "input_text", "text": "What is this?"})
    [made] = await prepared(services, "me", [item])
    assert item == message(sent(b"%PDF-text"), {"type": "input_text", "text": "What is this?"})
    assert made["content"][1] is item["content"][1]


@pytest.mark.parametrize("kind", ["function_call_output", "custom_tool_call_output"])
async def test_the_output_of_a_call_may_hold_files(services: Services, documents: InlineDocuments, kind: str) -> None:
    documents.files[PLACE] = FetchedFile(b"%PDF-two", "application/pdf", "two.pdf")
    output = {"type": kind, "call_id": "c", "output": [sent(b"%PDF-one"), at()]}
    [made] = await prepared(services, "me", [output])
    assert [part["text"] for part in made["output"]] == ["one", "two"]
    refused = await refusal(services, {**output, "output": [sent(b"x"), sent(ZIP)]})
    assert refused.param == "input[0].output[1].file_data"


# --- addresses


async def test_a_file_at_an_address_is_put_into_its_part(services: Services, documents: InlineDocuments) -> None:
    documents.files[PLACE] = FetchedFile("Grüße".encode(), "text/plain", "greeting.txt")
    made = await prepared(services, "me", [message(at())])
    data = f"data:text/plain;base64,{base64.b64encode('Grüße'.encode()).decode()}"
    assert made == [message(at(filename="greeting.txt", file_data=data))]
    assert read(made, True) == [UserMessage("greeting.txt\n\nGrüße")]


@pytest.mark.parametrize(("given", "found", "kept"), [("mine", "theirs", "mine"), ("", "theirs", "theirs")])
async def test_the_name_in_the_part_goes_before_the_name_at_the_address(
    services: Services, documents: InlineDocuments, given: str, found: str, kept: str
) -> None:
    documents.files[PLACE] = FetchedFile(b"x", "text/plain", found)
    [made] = await prepared(services, "me", [message(at(filename=given))])
    assert made["content"][0]["filename"] == kept


async def test_a_file_without_any_name_gets_none(services: Services, documents: InlineDocuments) -> None:
    documents.files[PLACE] = FetchedFile(b"x", "text/plain", "")
    [made] = await prepared(services, "me", [message(at())])
    assert "filename" not in made["content"][0]


async def test_the_text_of_a_pdf_at_an_address_is_kept_and_its_bytes_are_not(
    services: Services, documents: InlineDocuments
) -> None:
    documents.files[PLACE] = FetchedFile(b"%PDF-the text", "application/octet-stream", "a.pdf")
    assert await prepared(services, "me", [message(at())]) == [message(at(filename="a.pdf", text="the text"))]


async def test_a_pdf_at_an_address_is_passed_on_where_the_model_takes_files(
    with_files: Services, documents: InlineDocuments
) -> None:
    documents.files[PLACE] = FetchedFile(b"%PDF-the text", "application/octet-stream", "a.pdf")
    data = base64.b64encode(b"%PDF-the text").decode()
    made = await prepared(with_files, "me", [message(at())])
    assert read(made, True) == [UserMessage((FilePart(f"data:application/pdf;base64,{data}", "a.pdf"),))]


async def test_what_was_sent_along_is_not_fetched_again(services: Services, documents: InlineDocuments) -> None:
    item = message(sent(b"plain") | {"file_url": PLACE})
    assert (await prepared(services, "me", [item]))[0] is item
    assert documents.fetched == []


class Crowd(InlineDocuments):
    """Gives files only to as many as come at the same time, and notes the most that did."""

    def __init__(self, together: int) -> None:
        super().__init__()
        self.barrier = asyncio.Barrier(together)
        self.here = self.most = 0

    async def file(self, url: str) -> FetchedFile:
        self.here += 1
        self.most = max(self.most, self.here)
        await self.barrier.wait()
        self.here -= 1
        return FetchedFile(url.encode(), "text/plain", url)


async def test_five_files_are_fetched_side_by_side_and_come_back_in_their_places(services: Services) -> None:
    crowd = Crowd(5)
    services = equipped(services, retriever=crowd)
    urls = [f"https://files.example/{number}" for number in range(10)]
    async with asyncio.timeout(10):
        made = await prepared(services, "me", [message(*map(at, urls[:7])), message(*map(at, urls[7:]))])
    assert crowd.most == 5
    assert [part["filename"] for item in made for part in item["content"]] == urls


class Waiting(InlineDocuments):
    """Gives nothing, once everyone is waiting, but a refusal for `PLACE`."""

    def __init__(self) -> None:
        super().__init__()
        self.barrier = asyncio.Barrier(2)
        self.given_up = False

    async def file(self, url: str) -> FetchedFile:
        await self.barrier.wait()
        if url == PLACE:
            raise InvalidRequest("no", code="invalid_value")
        try:
            return await asyncio.Future()
        except asyncio.CancelledError:
            self.given_up = True
            raise


async def test_the_first_refusal_ends_the_work_on_the_other_files(services: Services) -> None:
    waiting = Waiting()
    services = equipped(services, retriever=waiting)
    async with asyncio.timeout(10):
        refused = await refusal(services, message(at("https://files.example/slow"), at()))
    assert refused.param == "input[0].content[1].file_url"
    assert waiting.given_up


# --- refusals


async def test_an_address_that_gives_nothing_is_named_by_its_path(services: Services) -> None:
    refused = await refusal(services, message({"type": "input_text", "text": "x"}), message(sent(b"x"), at()))
    assert (refused.code, refused.param) == ("invalid_value", "input[1].content[1].file_url")


async def test_all_addresses_together_give_only_so_much(services: Services, documents: InlineDocuments) -> None:
    half = attachments.MOST_FETCHED_BYTES // 2
    documents.files[PLACE] = FetchedFile(b"x" * half, "text/plain", "a")
    assert len(await prepared(services, "me", [message(at(), at())])) == 1
    refused = await refusal(services, message(at(), at(), at()))
    assert (refused.code, refused.param) == ("invalid_value", "input[0].content[2].file_url")


@pytest.mark.parametrize(
    ("part", "media"),
    [
        (sent(ZIP, "application/zip", "a.zip"), "application/zip"),
        (sent(b"\x89PNG\xff", "image/png"), "image/png"),
        (sent(b"\x1f\x8b\xff", None, "a.csv.gz"), "application/octet-stream"),
        (sent(b"a\0b", "binary/octet-stream", "a.qqq"), "application/octet-stream"),
    ],
)
async def test_a_file_that_is_neither_text_nor_pdf_is_refused(services: Services, part: Part, media: str) -> None:
    refused = await refusal(services, message(part))
    assert (refused.code, refused.param) == ("unsupported_file", "input[0].content[0].file_data")
    assert media in refused.message


async def test_such_a_file_at_an_address_is_refused_too(services: Services, documents: InlineDocuments) -> None:
    documents.files[PLACE] = FetchedFile(ZIP, "application/zip", "a.zip")
    refused = await refusal(services, message(at()))
    assert (refused.code, refused.param) == ("unsupported_file", "input[0].content[0].file_url")


async def test_a_pdf_without_text_is_refused(services: Services) -> None:
    refused = await refusal(services, message(sent(b"%PDF-", "application/pdf")))
    assert (refused.code, refused.param) == ("unsupported_file", "input[0].content[0].file_data")


async def test_a_name_with_a_type_tells_what_a_store_without_types_does_not(
    services: Services, documents: InlineDocuments
) -> None:
    documents.files[PLACE] = FetchedFile("<p>é</p>".encode(), "binary/octet-stream", "a.html")
    made = await prepared(services, "me", [message(at(), {"type": "input_text", "text": "x"})])
    [shown] = read(made, True)
    assert isinstance(shown, UserMessage)
    assert shown.content[0] == TextPart("a.html\n\n<p>é</p>")


@pytest.mark.parametrize(
    "part",
    [
        sent(b"1;\xff", "text/csv", "a.csv"),
        sent("é".encode("latin-1"), "text/plain; charset=us-ascii", "a.txt"),
        sent(b"x", "text/plain; charset=no-such-one", "a.txt"),
    ],
)
async def test_a_text_whose_bytes_do_not_fit_its_charset_is_refused(services: Services, part: dict[str, Any]) -> None:
    refused = await refusal(services, message(part))
    assert (refused.code, refused.param) == ("unsupported_file", "input[0].content[0].file_data")
    assert part["filename"] in refused.message


class NeverThere(InlineDocuments):
    """Gives nothing for `PLACE`, ever."""

    async def file(self, url: str) -> FetchedFile:
        if url == PLACE:
            await asyncio.Event().wait()
        return await InlineDocuments.file(self, url)


async def test_the_first_file_that_is_not_ready_in_time_is_named_by_its_place(services: Services) -> None:
    there = FetchedFile(b"x", "text/plain", "a")
    slow = equipped(services, retriever=NeverThere({"https://files.example/there": there}))
    item = message({"type": "input_text", "text": "x"}, sent(b"%PDF-x"), at("https://files.example/there"), at())
    with pytest.raises(InvalidRequest) as refused:
        await prepared(slow, "me", [item], seconds=0.01)
    assert (refused.value.code, refused.value.param) == ("invalid_value", "input[0].content[3].file_url")
