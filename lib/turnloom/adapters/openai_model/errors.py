"""What goes wrong at a model endpoint, told in the words of the domain."""

from __future__ import annotations

import json
import math
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from turnloom.domain.errors import (
    UpstreamBroken,
    UpstreamError,
    UpstreamLimited,
    UpstreamRejected,
    UpstreamTimeout,
)

if TYPE_CHECKING:
    import openai

_MESSAGE_CHARACTERS = 2000
_CODE_CHARACTERS = 100
_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size"
    r"|maximum (context|model|input) length"  # OpenAI, vLLM, SGLang, Mistral, Groq
    r"|(context|model) (length|size|window)[^.]{0,40}exceeded"
    r"|exceeds?\b[^.]{0,40}\b(context|maximum number of (input )?tokens)"  # llama.cpp, Ollama, OpenAI, Gemini
    r"|(prompt|input)\b[^.]{0,80} is too long"  # Anthropic, Bedrock, older vLLM
    r"|inputs\b.{0,40} must (be <=|have less)",  # TGI
    re.IGNORECASE,
)
NO_MODEL = re.compile(
    r"model_not_found|\bmodel\b.{0,120}?\b(not found|(does not|doesn't) exist|not a valid model)"
    r"|\b(unknown|invalid|no such) model\b|not a valid model",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d{1,9}(\.\d+)?")


@contextmanager
def blamed() -> Iterator[None]:
    """Turn what the HTTP client raises into an UpstreamError."""
    import anyio
    import httpx2
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        # Not the cause: its text is upstream's, and may quote the key.
        raise _refusal(error) from None
    except (openai.APITimeoutError, httpx2.TimeoutException) as error:
        raise UpstreamTimeout("The model endpoint did not answer in time.") from error
    except openai.APIConnectionError as error:
        raise UpstreamBroken("The model endpoint cannot be reached.") from error
    # The last two are TLS failures that the client lets through (pydantic/httpx2, issue 854).
    except (httpx2.RequestError, ssl.SSLError, anyio.EndOfStream) as error:
        raise UpstreamBroken("The model endpoint broke off its answer.") from error


@contextmanager
def understood() -> Iterator[None]:
    """Turn what goes wrong in reading a document of any shape into UpstreamBroken."""
    try:
        yield
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise UpstreamBroken("The model endpoint sent something other than chat completions.") from error


def _refusal(error: openai.APIStatusError) -> UpstreamError:
    """What an answer with an error status means; the endpoint's own words are for the caller unless about our key."""
    status, words, kinds = error.status_code, words_of(error.body), (error.code, error.type)
    message = words or f"The model endpoint answered with status {status}."
    wish = _retry_after(error.response.headers)
    extra = {} if wish is None else {"retry_after": wish}
    if status in (401, 403):
        return UpstreamRejected(
            "The model endpoint did not accept the credential it was given.", code="upstream_authentication_error"
        )
    if status == 408:
        return UpstreamTimeout("The model endpoint did not answer in time.")
    if status == 402 or (status == 429 and "insufficient_quota" in kinds):
        return UpstreamLimited(message, code="insufficient_quota", extra=extra)
    if status == 429:
        return UpstreamLimited(message, extra=extra)
    if 400 <= status < 500:
        return _rejected(error, message, f"{kinds} {words}")
    return UpstreamBroken(message, extra=extra)


def _rejected(error: openai.APIStatusError, message: str, words: str) -> UpstreamRejected:
    if _TOO_LONG.search(words):
        return UpstreamRejected(message, code="context_length_exceeded")
    if error.status_code == 404 or NO_MODEL.search(words):
        return UpstreamRejected(message, code="model_not_found")
    # Not `error.code`: the SDK makes text of whatever stands there, e.g. of llama.cpp's status.
    code = error.body.get("code") if isinstance(error.body, dict) else None
    named = {"upstream_code": code[:_CODE_CHARACTERS]} if code and isinstance(code, str) else {}
    return UpstreamRejected(message, extra=named)


def words_of(error: object) -> str:
    """The sentence in an error body of any of the usual shapes, cut to a length that can be stored; no HTML."""
    if not error:
        return ""
    if isinstance(error, dict):
        told = next((error[key] for key in ("message", "detail", "error") if error.get(key)), None)
        return words_of(told) if told else json.dumps(error)[:_MESSAGE_CHARACTERS]
    if isinstance(error, str):
        return "" if error.lstrip().startswith("<") else error[:_MESSAGE_CHARACTERS]
    return json.dumps(error)[:_MESSAGE_CHARACTERS]


def _retry_after(headers: Mapping[str, Any]) -> int | None:
    """The seconds of `Retry-After`, given as such or as a date, or of `retry-after-ms`; rounded up."""
    if _NUMBER.fullmatch(milliseconds := headers.get("retry-after-ms", "")):
        return math.ceil(float(milliseconds) / 1000)
    if _NUMBER.fullmatch(given := headers.get("retry-after", "")):
        return math.ceil(float(given))
    with suppress(ValueError, TypeError):  # no date, or one without a zone
        return max(0, math.ceil((parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds()))
    return None
