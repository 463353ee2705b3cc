"""Bytes as text, wherever they come from: by their charset, their byte order mark, or as UTF-8."""

from __future__ import annotations

import codecs
import re

_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_SLOW_CODECS = ("idna", "punycode")  # made for host names: they take quadratic time
_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def decode_text(content: bytes, content_type: str, errors: str = "strict") -> str:
    """The text of bytes in the charset of their content type, without a byte order mark.

    Where no charset is named, the byte order mark tells it, and without one it is UTF-8. Raises UnicodeError for a
    charset that is not known, and, unless `errors` is "replace", for bytes that do not fit.
    """
    named = _CHARSET.search(content_type)
    try:
        codec = codecs.lookup(named[1]).name if named else _marked_codec(content)
        if codec in _SLOW_CODECS:
            raise LookupError(codec)
        return content.decode("utf-8-sig" if codec == "utf-8" else codec, errors)
    except LookupError:
        raise UnicodeError("the charset is not known") from None


def _marked_codec(content: bytes) -> str:
    return next((codec for mark, codec in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
