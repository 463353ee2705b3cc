"""Documents and files: inline, in `data:` addresses, and fetched from a real loopback server; the text of PDFs."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from pypdf import PdfReader, PdfWriter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from tests.server import LoopbackServer

from turnloom.adapters.guard import MIB, Guard
from turnloom.adapters.retriever import DocumentRetriever
from turnloom.domain.errors import InvalidRequest
from turnloom.ports import FetchedFile

PAGES = {
    "plain": (b"plain text", "text/plain"),
    "umlauts": ("Grüße".encode(), ""),
    "marked": (b"\xef\xbb\xbfmarked", "text/plain; charset=utf-8"),
    "latin": ("Grüße".encode("latin-1"), 'text/plain; charset="ISO-8859-1"'),
    "binary": (b"\x89PNG\xff\xfe", "text/plain"),
    "unknown": (b"text", "text/plain; charset=klingon"),
    "slow": (b"text-", "text/plain; charset=punycode"),
    "large": (b"x" * (MIB + 1), "text/plain"),
}


async def page(request: Request) -> Response:
    content, content_type = PAGES[request.path_params["name"]]
    return Response(content, headers={"content-type": content_type})


# What lies under /files, with its content type and its disposition.
FILES = {
    "a%20b.PDF": (b"%PDF-1.7", "Application/PDF; x=y", ""),
    "binary": (b"\x00\xff", "", ""),
    "odd": (b"x", "text/plain,base64", ""),
    "latin": ("Grüße".encode("latin-1"), "text/plain; charset=iso-8859-1", ""),
    "mistaken": (b"\xff", "text/plain; charset=utf-8", ""),
    "miscalled": (b"%PDF-\xe9", "text/plain; charset=iso-8859-1", ""),
    "attached": (b"x", "text/csv", 'attachment; filename="sums 1.csv"'),
    "extended": (b"x", "text/csv", "attachment; filename*=UTF-8''Gr%C3%BC%C3%9Fe.csv; filename=Gruesse.csv"),
    "escaping": (b"x", "text/csv", "attachment; FILENAME*=UTF-8''..%2F..%5Cetc/pass%07wd%0A"),
    "long": (b"x", "text/csv", f"attachment; filename={'n' * 999}"),
    "inline": (b"x", "text/csv", "inline"),
    "large": (b"x" * (20 * MIB + 1), "text/plain", ""),
}


async def file(request: Request) -> Response:
    content, content_type, disposition = FILES[request.scope["raw_path"].decode().rpartition("/")[2]]
    told = {"content-type": content_type, "content-disposition": disposition}
    return Response(content, headers={name: value for name, value in told.items() if value})


async def to(request: Request) -> Response:
    return RedirectResponse(request.query_params["url"])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    routes = [Route("/{name}", page), Route("/files/{name}", file), Route("/to/{name}", to)]
    with LoopbackServer(Starlette(routes=routes)) as server:
        yield server.url


@pytest.fixture
def retriever() -> DocumentRetriever:
    return DocumentRetriever(Guard(allow_loopback=True))


async def rejection(retriever: DocumentRetriever, content: Any, mime_type: str = "text/plain") -> str:
    """Why both the check and the retrieval refuse this document."""
    with pytest.raises(InvalidRequest) as checked:
        retriever.check(content, mime_type)
    with pytest.raises(InvalidRequest) as read:
        await retriever.document(content, mime_type)
    assert (checked.value.code, read.value.code) == ("document_rejected", "document_rejected")
    assert checked.value.message == read.value.message
    return read.value.message


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("some text", "some text"),
        ("", ""),
        ("https://example.com says hello", "https://example.com says hello"),
        ("data: nothing special", "data: nothing special"),
        ({"type": "text", "text": "an item"}, "an item"),
        ([{"type": "text", "text": "one"}, "two"], "one\ntwo"),
        ([], ""),
        ("x" * MIB, "x" * MIB),
    ],
)
async def test_text_in_the_request_is_the_document(retriever: DocumentRetriever, content: Any, text: str) -> None:
    retriever.check(content, "text/plain")
    assert await retriever.document(content, "text/plain") == text


@pytest.mark.parametrize(
    "mime_type", ["text/plain", "text/markdown", "TEXT/HTML; charset=utf-8", "application/yaml", "application/json"]
)
async def test_textual_kinds_are_taken(retriever: DocumentRetriever, mime_type: str) -> None:
    assert await retriever.document("a: 1", mime_type) == "a: 1"


@pytest.mark.parametrize("mime_type", ["application/pdf", "image/png", "", "texture/x", "application/json-seq"])
async def test_other_kinds_are_rejected(retriever: DocumentRetriever, mime_type: str) -> None:
    assert "is not taken" in await rejection(retriever, "text", mime_type)


@pytest.mark.parametrize(
    "content",
    [
        None,
        7,
        {},
        {"uri": None},
        {"type": "text"},
        {"type": "image", "image": {"url": {"uri": "https://example.com/x.png"}}},
        [{"type": "text", "text": "one"}, {"uri": "https://example.com/"}],
        [["nested"]],
    ],
)
async def test_what_is_no_text_and_no_address_is_rejected(retriever: DocumentRetriever, content: Any) -> None:
    assert "document" in await rejection(retriever, content)


@pytest.mark.parametrize("content", ["ä" * (MIB // 2) + "x", [{"type": "text", "text": "x" * MIB}, "y"]])
async def test_more_than_a_mebibyte_in_the_request_is_rejected(retriever: DocumentRetriever, content: Any) -> None:
    assert str(MIB) in await rejection(retriever, content)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("data:text/plain;base64," + base64.b64encode("Grüße".encode()).decode(), "Grüße"),
        ("data:text/plain;charset=iso-8859-1;base64," + base64.b64encode("Grüße".encode("latin-1")).decode(), "Grüße"),
        ("DATA:application/json,%7B%22a%22%3A%201%7D", '{"a": 1}'),
        ("data:,hello world", "hello world"),
        ("data:;charset=utf-8,Gr%C3%BC%C3%9Fe", "Grüße"),
        ("data:text/plain;base64,aGVs\nbG8=", "hello"),
    ],
)
@pytest.mark.parametrize("wrapped", [True, False])
async def test_a_data_address_holds_its_document(
    retriever: DocumentRetriever, address: str, text: str, wrapped: bool
) -> None:
    content: Any = {"uri": address, "type": "uri", "document_id": "d1"} if wrapped else address
    retriever.check(content, "text/plain")
    assert await retriever.document(content, "text/plain") == text


@pytest.mark.parametrize(
    "address",
    [
        "data:application/pdf;base64,JVBERi0=",
        "data:text/plain;base64,not-base64!",
        "data:text/plain;base64,/w==",
        "data:text/plain;charset=klingon,abc",
        "data:text/plain," + "x" * (MIB + 1),
    ],
)
async def test_a_data_address_that_holds_no_text_is_rejected(retriever: DocumentRetriever, address: str) -> None:
    assert "document is rejected" in await rejection(retriever, address)
    await rejection(retriever, {"uri": address})


async def test_a_malformed_data_address_is_rejected(retriever: DocumentRetriever) -> None:
    await rejection(retriever, {"uri": "data:text/plain"})


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "http://10.0.0.1/",
        "http://user:secret@example.com/",
        "https://169.254.169.254/latest/",
    ],
)
async def test_addresses_that_are_never_read_are_rejected_beforehand(
    retriever: DocumentRetriever, address: str
) -> None:
    for content in (address, {"uri": address}):
        assert "secret" not in await rejection(retriever, content)


async def test_loopback_is_for_the_laptop_alone(url: str) -> None:
    await rejection(DocumentRetriever(Guard()), {"uri": f"{url}/plain"})


@pytest.mark.parametrize(
    ("name", "text"), [("plain", "plain text"), ("umlauts", "Grüße"), ("marked", "marked"), ("latin", "Grüße")]
)
async def test_a_document_is_fetched_and_decoded(retriever: DocumentRetriever, url: str, name: str, text: str) -> None:
    for content in (f"{url}/{name}", f" {url}/{name}\n", {"uri": f"{url}/{name}", "type": "uri"}):
        retriever.check(content, "text/plain")
        assert await retriever.document(content, "text/plain") == text


@pytest.mark.parametrize("name", ["binary", "unknown", "slow", "large", "missing/entirely"])
async def test_what_is_fetched_and_is_not_a_text_of_that_size_is_rejected(
    retriever: DocumentRetriever, url: str, name: str
) -> None:
    retriever.check({"uri": f"{url}/{name}"}, "text/plain")
    with pytest.raises(InvalidRequest) as refusal:
        await retriever.document({"uri": f"{url}/{name}"}, "text/plain")
    assert refusal.value.code == "document_rejected"


# --- files


@pytest.mark.parametrize(
    ("name", "media", "filename"),
    [
        ("a%20b.PDF", "application/pdf", "a b.PDF"),
        ("binary", "application/octet-stream", "binary"),
        ("odd", "application/octet-stream", "odd"),
        ("attached", "text/csv", "sums 1.csv"),
        ("extended", "text/csv", "Grüße.csv"),
        ("escaping", "text/csv", "passwd"),
        ("long", "text/csv", "n" * 255),
        ("inline", "text/csv", "inline"),
    ],
)
async def test_a_file_is_fetched_with_its_type_and_name(
    retriever: DocumentRetriever, url: str, name: str, media: str, filename: str
) -> None:
    fetched = await retriever.file(f"{url}/files/{name}?key=1#part")
    assert fetched == FetchedFile(FILES[name][0], media, filename)


async def test_a_file_is_named_after_the_place_that_a_redirect_leads_to(retriever: DocumentRetriever, url: str) -> None:
    assert (await retriever.file(f"{url}/to/x?url={url}/files/binary")).filename == "binary"


@pytest.mark.parametrize(
    ("name", "content"), [("latin", "Grüße".encode()), ("mistaken", b"\xff"), ("miscalled", b"%PDF-\xe9")]
)
async def test_a_text_is_brought_into_utf_8_and_nothing_else_is(
    retriever: DocumentRetriever, url: str, name: str, content: bytes
) -> None:
    assert (await retriever.file(f"{url}/files/{name}")).content == content


async def not_fetched(retriever: DocumentRetriever, address: str) -> str:
    with pytest.raises(InvalidRequest) as refusal:
        await retriever.file(address)
    assert refusal.value.code == "invalid_value"
    return refusal.value.message


async def test_files_are_taken_from_public_https_addresses_alone(url: str) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return {"public.example": ["93.184.216.34"], "inner.example": ["10.0.0.1"]}.get(host, [host])

    retriever = DocumentRetriever(Guard(allow_loopback=True, resolve=resolve))
    for way in ("", f"{url}/to/x?url="):
        assert "only https" in await not_fetched(retriever, f"{way}http://public.example/a.pdf")
        assert "not public" in await not_fetched(retriever, f"{way}https://inner.example/a.pdf")
        assert "file:" in await not_fetched(retriever, f"{way}file:///etc/passwd")
    assert "not public" in await not_fetched(DocumentRetriever(Guard()), f"{url}/files/binary")


@pytest.mark.parametrize(("path", "reason"), [("files/large", "more than 20971520 bytes"), ("a/b/c", "status 404")])
async def test_a_file_that_is_too_large_or_not_there_is_refused(
    retriever: DocumentRetriever, url: str, path: str, reason: str
) -> None:
    assert reason in await not_fetched(retriever, f"{url}/{path}")


# --- PDF


def pdf(*pages: str) -> bytes:
    """A PDF whose pages have one line of text each, "" for a page that has none."""
    shown = [f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else "" for text in pages]
    font = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    bodies = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>", font]
    for number, content in enumerate(shown):
        resources = "/MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >>"
        bodies.append(f"<< /Type /Page /Parent 2 0 R {resources} /Contents {5 + 2 * number} 0 R >>")
        bodies.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    made, places = b"%PDF-1.4\n", []
    for number, body in enumerate(bodies, 1):
        places.append(len(made))
        made += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    entries = "".join(f"{place:010} 00000 n \n" for place in places)
    table = f"xref\n0 {len(bodies) + 1}\n0000000000 65535 f \n{entries}"
    return made + f"{table}trailer\n<< /Size {len(bodies) + 1} /Root 1 0 R >>\nstartxref\n{len(made)}\n%%EOF".encode()


def encrypted(content: bytes, password: str) -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(content)))
    writer.encrypt(password, "owner", algorithm="AES-256")
    made = io.BytesIO()
    writer.write(made)
    return made.getvalue()


async def unread(content: bytes, retriever: DocumentRetriever) -> str:
    with pytest.raises(InvalidRequest) as refusal:
        await retriever.pdf_text(content, "me")
    assert refusal.value.code == "unsupported_file"
    return refusal.value.message


async def test_the_text_of_a_pdf_is_that_of_its_pages(retriever: DocumentRetriever) -> None:
    assert await retriever.pdf_text(pdf("The first page.", "", "Caf\\351."), "me") == "The first page.\n\nCafé."


async def test_a_pdf_that_anyone_may_open_is_read_although_it_is_encrypted(retriever: DocumentRetriever) -> None:
    assert await retriever.pdf_text(encrypted(pdf("Sealed lightly."), ""), "me") == "Sealed lightly."


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pdf("", ""), "no text"),
        (pdf(), "no text"),
        (b"%PDF-1.4", "broken"),
        (b"%PDF-1.4\n" + b"<" * 10_000, "broken"),
        (b"", "broken"),
        (encrypted(pdf("Sealed."), "secret"), "needs a password"),
        (pdf("x" * MIB, "y"), "more than 1048576 bytes of text"),
        (pdf("x" * (20 * MIB)), "more than 20971520 bytes"),
    ],
    ids=["blank", "empty", "header", "junk", "nothing", "password", "long", "large"],
)
async def test_a_pdf_whose_text_cannot_be_had_is_refused(
    retriever: DocumentRetriever, content: bytes, reason: str
) -> None:
    assert reason in await unread(content, retriever)


async def test_a_pdf_that_is_cut_short_does_no_harm_wherever_it_is_cut(retriever: DocumentRetriever) -> None:
    whole = pdf("Some text.")
    for end in range(8, len(whole), 29):
        try:
            assert await retriever.pdf_text(whole[:end], "me") == "Some text."
        except InvalidRequest as refusal:
            assert refusal.code == "unsupported_file"


async def test_a_pdf_does_not_hold_up_a_request_for_longer_than_it_may() -> None:
    assert "longer than 0 seconds" in await unread(pdf("Some text."), DocumentRetriever(Guard(), pdf_seconds=0))


async def test_a_broken_pdf_does_not_fill_the_log(
    retriever: DocumentRetriever, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert (
            await retriever.pdf_text(pdf("Some text.").replace(b"startxref\n", b"startxref\n1"), "me") == "Some text."
        )
    assert not [record for record in caplog.records if record.name.startswith("pypdf")]
