"""Documents: inline, in `data:` addresses, and fetched from a real loopback server through the guard."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.server import LoopbackServer

from turnloom.adapters.guard import MIB, Guard
from turnloom.adapters.retriever import DocumentRetriever
from turnloom.domain.errors import InvalidRequest

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


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with LoopbackServer(Starlette(routes=[Route("/{name}", page)])) as server:
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
