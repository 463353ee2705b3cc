"""The Retriever port: the text of a document that lies in the request, in a `data:` address, or behind the guard.

And whole files from behind the guard, and the text that is in a PDF.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, replace
from email.message import Message
from email.utils import collapse_rfc2231_value
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from turnloom.adapters.guard import MIB, Fetched, Guard
from turnloom.adapters.pdf import PdfReader
from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import JSON
from turnloom.domain.text_decoding import decode_text
from turnloom.ports import FetchedFile

_MOST_BYTES = MIB
_MOST_FILE_BYTES = 20 * MIB
_FILE_SECONDS = 20.0
_MOST_NAME_CHARACTERS = 255
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+", re.ASCII)
_TAKEN = ("application/json", "application/yaml")
_ADDRESS = re.compile(r"(?:https?|file):\S+|data:[^,\s]*,.*", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Address:
    url: str


class DocumentRetriever:
    """Reads documents of at most 1 MiB of text, by address only where the guard permits it.

    Files are taken from https addresses alone, save those that the guard makes exceptions for. Reading the text of a
    PDF may take `pdf_seconds`.
    """

    def __init__(self, guard: Guard, *, pdf_seconds: float = 20.0) -> None:
        self._guard = guard
        self._https = replace(guard, https_only=True)
        self._pdfs = PdfReader(pdf_seconds)

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

    async def file(self, url: str) -> FetchedFile:
        """The file at an address, of at most 20 MiB; raises InvalidRequest (`invalid_value`)."""
        fetched = await self._https.fetch(url, max_bytes=_MOST_FILE_BYTES, timeout=_FILE_SECONDS, code="invalid_value")
        return FetchedFile(_in_utf8(fetched), _media_type(fetched.content_type), _filename(fetched))

    async def pdf_text(self, content: bytes, owner: str) -> str:
        """The text of all pages, a blank line between them; raises InvalidRequest (`unsupported_file`)."""
        return await self._pdfs.text(content, owner)


def check_document(content: JSON, mime_type: str, guard: Guard) -> str | _Address:
    """The text of a document that is in the request, or a permitted address to fetch it from; touches no network.

    `content` is a text, which may be an http(s) or `data:` address, a text item, a list of these, or `{"uri": ...}`.
    Raises InvalidRequest (`document_rejected`).
    """
    _check_kind(mime_type)
    match content:
        case {"uri": str(uri)}:
            return _addressed(uri, mime_type, guard)
        case str() if _ADDRESS.fullmatch(content.strip()):
            return _addressed(content.strip(), mime_type, guard)
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


def _addressed(url: str, mime_type: str, guard: Guard) -> str | _Address:
    if url[:5].lower() == "data:":
        return _bounded(_data(url, mime_type))
    guard.check_form(url, code="document_rejected")
    return _Address(url)


def _data(url: str, mime_type: str) -> str:
    """The text of a `data:` URL (RFC 2397); where it names no charset, that of the document's type counts."""
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
    return _text(content, kind if "charset" in kind.lower() else mime_type)


def _text(content: bytes, content_type: str) -> str:
    try:
        return decode_text(content, content_type)
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


# --- files


def _in_utf8(fetched: Fetched) -> bytes:
    """The content, from the charset that a text declares; a PDF that is called a text stays what it is."""
    content, told = fetched.content, fetched.content_type
    if not told.lower().startswith("text/") or content.startswith(b"%PDF-"):
        return content
    try:
        return decode_text(content, told).encode()
    except UnicodeError:
        return content


def _media_type(content_type: str) -> str:
    told = content_type.partition(";")[0].strip().lower()
    return told if _MEDIA_TYPE.fullmatch(told) else "application/octet-stream"


def _filename(fetched: Fetched) -> str:
    """The name that the server gives the file (RFC 6266), else the end of the path that it was found at."""
    name = _attached_name(fetched.disposition) or unquote(urlsplit(fetched.url).path)
    last = re.split(r"[/\\]", name)[-1]
    return "".join(filter(str.isprintable, last)).strip()[:_MOST_NAME_CHARACTERS]


def _attached_name(disposition: str) -> str:
    header = Message()
    header["content-disposition"] = disposition
    parameters = header.get_params([], "content-disposition")
    names = [value for key, value in parameters if key.lower() == "filename"]
    # Of a plain name and one with a charset, which is there for better clients, the second comes last.
    return collapse_rfc2231_value(names[-1]) if names else ""
