"""The program that reads the text of a PDF, from stdin to stdout, within limits of memory and processor time.

Its arguments are the most bytes of text, of memory, and the seconds. It ends with the status `REFUSED`, and the reason
on stdout, where the text cannot be had.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pypdf import PdfReader
    from pypdf.generic import IndirectObject

REFUSED = 3

_REBUILD = b"\nendstream\nendobj\nstartxref\n0\n%%EOF\n"
"""An end of a file that lets the library search for all objects; it closes what the real end has cut off."""


class _Refused(Exception):
    """The text of the PDF cannot be had."""


def main() -> None:
    text_bytes, memory_bytes, seconds = map(int, sys.argv[1:])
    _limit(memory_bytes, seconds)
    try:
        output, status = _text(sys.stdin.buffer.read(), text_bytes), 0
    except _Refused as refusal:
        output, status = str(refusal).encode(), REFUSED
    sys.stdout.buffer.write(output)
    sys.exit(status)


def _limit(memory_bytes: int, seconds: int) -> None:
    if sys.platform == "win32":
        return
    import resource

    os.nice(5)  # the server comes first
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    if sys.platform != "darwin":  # macOS takes no limit below what the process has reserved
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _text(content: bytes, text_bytes: int) -> bytes:
    """The text of all pages in UTF-8, a blank line between them."""
    pages: list[str] = []
    size = 0
    try:
        for page in _pages(content):
            pages += [page] if page.strip() else []
            size += len(page)
            if size > text_bytes:
                break
    except _Refused:
        raise
    except MemoryError:
        raise _Refused("reading it takes too much memory") from None
    except Exception:
        # In a broken file the library trips over anything, with exceptions of every kind.
        raise _Refused("it is broken") from None
    if not pages:
        raise _Refused("it has no text; its pages may be images")
    # Lone surrogates, which a broken font can give, could not be stored.
    text = "\n\n".join(pages).encode("utf-8", "replace")
    if len(text) > text_bytes:
        raise _Refused(f"it has more than {text_bytes} bytes of text")
    return text


def _pages(content: bytes) -> Iterator[str]:
    from pypdf.errors import FileNotDecryptedError

    # A broken file can bring about a warning for each of its bytes.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        for page in _reader(content).pages:
            yield page.extract_text()
    except FileNotDecryptedError:
        raise _Refused("it needs a password") from None


def _reader(content: bytes) -> PdfReader:
    """A reader of the file that has found its root, if need be without a cross-reference table and a trailer."""
    from pypdf import PdfReader
    from pypdf.errors import FileNotDecryptedError
    from pypdf.generic import NameObject

    try:
        reader = PdfReader(io.BytesIO(content))
        _ = reader.root_object
        return reader
    except (FileNotDecryptedError, MemoryError):
        raise
    except Exception:
        reader = PdfReader(io.BytesIO(content + _REBUILD))
    if "/Root" not in reader.trailer:
        for reference in filter(_is_catalog, _objects(reader)):  # the last one counts, as the newest
            reader.trailer[NameObject("/Root")] = reference
    return reader


def _objects(reader: PdfReader) -> Iterator[IndirectObject]:
    """All objects of the file, in the order in which the library found them."""
    from pypdf.generic import IndirectObject

    places = [(number, generation) for generation, numbers in reader.xref.items() for number in numbers]
    places += [(number, 0) for number in reader.xref_objStm]
    return (IndirectObject(number, generation, reader) for number, generation in places)


def _is_catalog(reference: IndirectObject) -> bool:
    """Whether the object is the root of a document; a broken one is none."""
    from pypdf.generic import DictionaryObject

    try:
        target = reference.get_object()
    except MemoryError:
        raise
    except Exception:
        return False
    return isinstance(target, DictionaryObject) and target.get("/Type") == "/Catalog"


if __name__ == "__main__":
    main()
