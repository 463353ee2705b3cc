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
from turnloom.domain.surrogates import repair

if TYPE_CHECKING:
    import openai

MOST_BYTES = 4 * 1024 * 1024
"""Of one event of a stream, or of an answer in one piece: an image of 3 MB in base64, or a million words.

A text of this size is held up to five times while it is read, with four bytes for each character.
"""

_MESSAGE_CHARACTERS = 2000
_CODE_CHARACTERS = 100
_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size"
    r"|maximum (context|model|input) length"  # OpenAI, vLLM, SGLang, Mistral, Groq
    r"|(context|model) (length|size|window)[^.]{0,40}exceeded"
    r"|exceeds?\b[^.]{0,40}\b(context|maximum number of (input )?tokens)"  # llama.cpp, Ollama, OpenAI, Gemini
    r"|(prompt|input)\b[^.]{0,80} is too long"  # Anthropic, Bedrock, older vLLM
    r"|inputs\b.{0,40} must (be <=|have less)"  # TGI
    r"|maximum prompt length|max_prompt_tokens_exceeded|exceeded model token limit"  # xAI, Copilot, Moonshot
    # Zhipu, MiniMax
    r"|\b(prompt|input|context)\b[^.]{0,40}\bexceeds\b[^.]{0,10}\b(max(imum)?|the|its)?\s?(length|limit)"
    r"|range of input length|tokens in the prompt cannot exceed"  # DashScope, Cohere
    r"|\b(longer|greater|larger) than the\b[^.]{0,20}\bcontext"  # LM Studio, vLLM
    r"|must be at least 1, got -\d",  # vLLM: nothing is left for an answer
    re.IGNORECASE,
)
NO_MODEL = re.compile(
    r"model_not_found|\bmodel\b.{0,120}?\b(not found|(does not|doesn't) exist|not a valid model)"
    r"|\b(unknown|invalid|no such) model\b|not a valid model",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d{1,9}(\.\d+)?")
_STATUS = re.compile(r"[45]\d\d")
# Of the codes and types of OpenAI, Anthropic, Google and vLLM; the first that is found counts.
_STATUSES = {
    429: re.compile(r"rate_?limit|too_?many_?requests|quota|resource_?exhausted|throttl", re.IGNORECASE),
    401: re.compile(r"authenticat|unauthorized|permission|forbidden|invalid_api_key", re.IGNORECASE),
    404: re.compile(r"not_?found", re.IGNORECASE),
    408: re.compile(r"time_?out", re.IGNORECASE),
    400: re.compile(r"invalid|bad_?request|context_|unprocessable|content_(filter|policy)", re.IGNORECASE),
}


class AnswerTooLarge(UpstreamBroken):
    """More came in one piece than is read; it would be as large again."""

    retryable = False

    def __init__(self, most: int, unit: str = "bytes") -> None:
        super().__init__(f"The model endpoint sent more than {most} {unit} in one piece.")


def is_too_long(words: str) -> bool:
    """Whether a refusal says that the context is too long for the model."""
    return bool(_TOO_LONG.search(words))


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
    except (openai.APITimeoutError, httpx2.TimeoutException, TimeoutError) as error:
        raise UpstreamTimeout("The model endpoint did not answer in time.") from error
    except openai.APIConnectionError as error:
        # The SDK wraps what the bounds of an answer raise.
        if isinstance(error.__cause__, UpstreamError):
            raise error.__cause__ from None
        raise UpstreamBroken("The model endpoint cannot be reached.") from error
    except httpx2.SSEError:
        # The only other reason for it, another content type, is ruled out before.
        raise AnswerTooLarge(MOST_BYTES) from None
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


def refused(error: object) -> UpstreamError:
    """What an error object means that came in place of an answer, under status 200."""
    return _meaning(_status_of(error), error, _retry_delay(error))


def _refusal(error: openai.APIStatusError) -> UpstreamError:
    """What an answer with an error status means."""
    body = unwrapped(error.body)
    body = body.get("error") or body if isinstance(body, dict) else body
    wish = _retry_after(error.response.headers)
    return _meaning(error.status_code, body, _retry_delay(body) if wish is None else wish)


def _meaning(status: int, error: object, wish: float | None = None) -> UpstreamError:
    """What an error object means by its status; the endpoint's own words are for the caller unless about our key."""
    words, kinds = words_of(error), _kinds(error)
    message = words or f"The model endpoint answered with status {status}."
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
        return _rejected(status, message, f"{kinds} {words}", kinds[0])
    return UpstreamBroken(message, extra=extra)


def _rejected(status: int, message: str, words: str, code: object) -> UpstreamRejected:
    if _TOO_LONG.search(words):
        return UpstreamRejected(message, code="context_length_exceeded")
    if status == 404 or NO_MODEL.search(words):
        return UpstreamRejected(message, code="model_not_found")
    named = {"upstream_code": repair(code[:_CODE_CHARACTERS])} if code and isinstance(code, str) else {}
    return UpstreamRejected(message, extra=named)


def _status_of(error: object) -> int:
    """The status that an error object stands for, by its own number, its kind, or its words."""
    numbers = _told(error, "status_code", "status", "code")
    if number := next((text for text in map(str, numbers) if _STATUS.fullmatch(text)), None):
        return int(number)
    kinds = " ".join(map(str, _told(error, "code", "type", "status")))
    words = words_of(error)
    unsaid = 400 if _TOO_LONG.search(words) or NO_MODEL.search(words) else 500
    return next((status for status, kind in _STATUSES.items() if kind.search(kinds)), unsaid)


def _kinds(error: object) -> tuple[object, ...]:
    """The code and the type of an error object."""
    return _told(error, "code", "type")


def _told(error: object, *keys: str) -> tuple[object, ...]:
    return tuple(error.get(key) for key in keys) if isinstance(error, dict) else (None,) * len(keys)


def unwrapped(document: Any) -> Any:
    """The one object in an array, as Google wraps its errors; anything else as it is."""
    return document[0] if isinstance(document, list) and len(document) == 1 else document


def words_of(error: object) -> str:
    """The sentence in an error body of any of the usual shapes, cut to a length that can be stored; no HTML."""
    error = unwrapped(error)
    if not error:
        return ""
    if isinstance(error, dict):
        told = next((error[key] for key in ("message", "detail", "error", "msg") if error.get(key)), None)
        return words_of(told) if told else json.dumps(error)[:_MESSAGE_CHARACTERS]
    if isinstance(error, str):
        return "" if error.lstrip().startswith("<") else repair(error[:_MESSAGE_CHARACTERS])
    return json.dumps(error)[:_MESSAGE_CHARACTERS]


def _retry_delay(error: object) -> float | None:
    """The seconds to wait that Google's error details ask for (google.rpc.RetryInfo)."""
    details = error.get("details") if isinstance(error, dict) else None
    entries = details if isinstance(details, list) else []
    delays = (detail.get("retryDelay") for detail in entries if isinstance(detail, dict))
    seconds = next((str(delay).removesuffix("s") for delay in delays if delay), "")
    return float(seconds) if _NUMBER.fullmatch(seconds) else None


def _retry_after(headers: Mapping[str, Any]) -> float | None:
    """The seconds of `Retry-After`, given as such or as a date, or of `retry-after-ms`."""
    if _NUMBER.fullmatch(milliseconds := headers.get("retry-after-ms", "")):
        return float(milliseconds) / 1000
    if _NUMBER.fullmatch(given := headers.get("retry-after", "")):
        return float(given)
    with suppress(ValueError, TypeError):  # no date, or one without a zone
        return max(0, math.ceil((parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds()))
    return None
