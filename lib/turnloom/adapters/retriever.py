"""The Retriever port: the text of a document that lies in the request, in a `data:` address, or behind the guard."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from turnloom.adapters.guard import MIB, Guard, text_of
from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import JSON

_MOST_BYTES = MIB
_TAKEN = ("application/json", "application/yaml")
_ADDRESS = re.compile(r"(?:https?|file):\S+|data:[^,\s]*,.*", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Address:
    url: str


class DocumentRetriever:
    """Reads documents of at most 1 MiB of text, by address only where the guard permits it."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def check(self, content: JSON, mime_type: str) -> None:
        """Refuse, without reading it, a document of a kind, size or address that is not taken.

        Raises InvalidRequest (`document_rejected`).
        """
        check_document(content, mime_type, self._guard)

    async def document(self, content: JSON, mime_type: str) -> str:
        """The text of a document, inline or by address; raises InvalidRequest (`document_rejected`)."""
        found = check_document(content, mime_type, self._guard)
        if isinstance(found, str):
            return found
        fetched = await self._guard.fetch(found.url, code="document_rejected")
        return _bounded(_text(fetched.content, fetched.content_type))


def check_document(content: JSON, mime_type: str, guard: Guard) -> str | _Address:
    """The text of a document that is in the request, or a permitted address to fetch it from; touches no network.

    `content` is a text, which may be an http(s) or `data:` address, a text item, a list of these, or `{"uri": ...}`.
    Raises InvalidRequest (`document_rejected`).
    """
    _check_kind(mime_type)
    match content:
        case {"uri": str(uri)}:
            return _addressed(uri, guard)
        case str() if _ADDRESS.fullmatch(content.strip()):
            return _addressed(content.strip(), guard)
        case list():
            return _bounded("\n".join(map(_inline, content)))
        case _:
            return _bounded(_inline(content))


def _inline(item: JSON) -> str:
    match item:
        case str(text) | {"type": "text", "text": str(text)}:
            return text
        case {"type": kind}:
            raise _rejected(f"a document's items must be texts, not of type '{kind}'")
        case _:
            raise _rejected("a document must be a text, text items, or an object with a uri")


def _addressed(url: str, guard: Guard) -> str | _Address:
    if url[:5].lower() == "data:":
        return _bounded(_data(url))
    guard.check_form(url, code="document_rejected")
    return _Address(url)


def _data(url: str) -> str:
    """The text of a `data:` URL (RFC 2397)."""
    head, comma, payload = url[5:].partition(",")
    if not comma:
        raise _rejected("the data: address is malformed")
    kind = re.sub(r";\s*base64\s*$", "", head, flags=re.IGNORECASE)
    _check_kind(kind.partition(";")[0] or "text/plain")
    content = unquote_to_bytes(payload)
    if kind != head:
        try:
            content = base64.b64decode(b"".join(content.split()), validate=True)
        except ValueError:
            raise _rejected("the data: address is not valid base64") from None
    return _text(content, kind)


def _text(content: bytes, content_type: str) -> str:
    try:
        return text_of(content, content_type)
    except UnicodeError:
        raise _rejected("its bytes are not text in the charset that it declares, or in UTF-8") from None


def _bounded(text: str) -> str:
    if len(text) > _MOST_BYTES or len(text.encode("utf-8", "replace")) > _MOST_BYTES:
        raise _rejected(f"it has more than {_MOST_BYTES} bytes of text")
    return text


def _check_kind(mime_type: str) -> None:
    kind = mime_type.partition(";")[0].strip().lower()
    if not (kind.startswith("text/") or kind in _TAKEN):
        raise _rejected(f"'{mime_type}' is not taken; text/*, {' and '.join(_TAKEN)} are")


def _rejected(fault: str) -> InvalidRequest:
    return InvalidRequest(f"The document is rejected: {fault}", code="document_rejected")
