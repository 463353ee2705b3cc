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

REFUSED = 3


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
    from pypdf import PdfReader
    from pypdf.errors import FileNotDecryptedError

    # A broken file can bring about a warning for each of its bytes.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        for page in PdfReader(io.BytesIO(content)).pages:
            yield page.extract_text()
    except FileNotDecryptedError:
        raise _Refused("it needs a password") from None


if __name__ == "__main__":
    main()
