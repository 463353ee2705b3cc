"""Asks the model endpoint for its models before the laptop says that it is ready."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from turnloom.domain.message import JSON

if TYPE_CHECKING:
    import httpx2

OPENAI = "https://api.openai.com/v1"
SECONDS = 3.0
_NOT_CHAT = re.compile(
    r"embed|rerank|moderation|guard|whisper|transcri|speech|audio|realtime|(?<![a-z])tts|dall-e|image|diffusion|sora"
    r"|minilm|(?<![a-z])(bge|gte|e5|clip|flux)(?![a-z])|davinci-002|babbage|turbo-instruct",
    re.IGNORECASE,
)
"""In the names and types of models that do something other than chat."""


@dataclass(frozen=True, slots=True)
class UpstreamCheck:
    """The answer of an endpoint: the first model that can chat, and one sentence when something is wrong."""

    model: str | None = None
    problem: str | None = None


def check_upstream(env: Mapping[str, str]) -> UpstreamCheck:
    """Ask the endpoint of these settings for its models; whatever goes wrong is told and not raised."""
    # Not while the parts start: they need the time more.
    import httpx2

    key = env.get("OPENAI_API_KEY", "")
    base = (env.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")
    try:
        headers = {"authorization": f"Bearer {key or 'none'}"}
        answer = httpx2.get(f"{base}/models", headers=headers, timeout=SECONDS)
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, ValueError):
        return UpstreamCheck(problem=f"OPENAI_BASE_URL is no web address: {address_of(env)}")
    except httpx2.TimeoutException:
        return _failed(env, f"did not answer within {SECONDS:g} seconds")
    except httpx2.HTTPError as failure:
        return _failed(env, f"cannot be reached: {_reason(failure)}")
    if answer.status_code != 200:
        return _failed(env, _refusal(answer.status_code, bool(key), base))
    return _choose(env, answer, base)


def address_of(env: Mapping[str, str]) -> str:
    """The endpoint's address as it may be shown: without what stands in it for a password or a key."""
    address = env.get("OPENAI_BASE_URL") or OPENAI
    if "@" not in address and "?" not in address:
        return address
    scheme, separator, rest = address.partition("://")
    return f"{scheme if separator else ''}{separator}{(rest or scheme).rpartition('@')[2].partition('?')[0]}"


def can_chat(model: Mapping[str, JSON]) -> bool:
    """Whether a model can chat, by what its endpoint says of it, or else by its name."""
    match model:
        case {"capabilities": {"completion_chat": bool(chats)}}:
            return chats
        case _:
            return not any(_NOT_CHAT.search(str(model.get(key, ""))) for key in ("id", "type", "model_type"))


def _failed(env: Mapping[str, str], problem: str) -> UpstreamCheck:
    return UpstreamCheck(problem=f"The model endpoint {address_of(env)} {problem}.".replace("?.", "?"))


def _reason(failure: Exception) -> str:
    """The words of a failed connection without the number before them."""
    return re.sub(r"^\[[^]]*\] ?", "", str(failure)).rstrip(".") or type(failure).__name__


def _refusal(status: int, has_key: bool, base: str) -> str:
    match status:
        case 401 | 403 if has_key:
            return f"does not accept the key in OPENAI_API_KEY ({status})"
        case 401 | 403:
            return f"asks for a key: set OPENAI_API_KEY ({status})"
        case 404:
            return f"has no list of models (404): {_hint(base)}"
        case _:
            return f"answers {status} to who asks for its models"


def _hint(base: str) -> str:
    return "is the address right?" if urlsplit(base).path.endswith("/v1") else "does the address end in /v1?"


def _choose(env: Mapping[str, str], answer: httpx2.Response, base: str) -> UpstreamCheck:
    try:
        document = answer.json()
    except ValueError:
        document = None
    models = document.get("data") if isinstance(document, dict) else document
    if not isinstance(models, list):
        return _failed(env, f"sends something other than a list of models: {_hint(base)}")
    named = [model for model in models if isinstance(model, dict) and isinstance(model.get("id"), str)]
    chat = next((str(model["id"]) for model in named if can_chat(model)), None)
    return UpstreamCheck(chat) if chat else _failed(env, "lists no model that can chat")
