"""Counting the tokens of a request with the tokenizer of the server that would answer it, where it lends it.

The paths are those of vLLM (`/tokenize`, which takes chats and names the count) and of llama.cpp (`/apply-template`,
then `/tokenize`, which takes text and gives an empty list for anything else); both stand beside `/v1`, not under it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from turnloom.adapters.openai_model.errors import NO_MODEL, blamed, understood, words_of
from turnloom.adapters.openai_model.parsing import parse_document
from turnloom.domain.errors import UpstreamError
from turnloom.domain.message import JSON

if TYPE_CHECKING:
    import openai

_ABSENT_SECONDS = 600.0


class Tokenizer:
    """The tokenizer at the endpoint of `base_url`; one that is not there is not looked for again for ten minutes.

    A count may take `timeout` seconds. `now` gives seconds that only ever grow.
    """

    def __init__(
        self,
        base_url: str,
        client: Callable[[], openai.AsyncOpenAI],
        now: Callable[[], float],
        *,
        timeout: float = 2.0,
    ) -> None:
        self._root = base_url.rstrip("/").removesuffix("/v1").rstrip("/")
        self._client, self._now, self._timeout = client, now, timeout
        self._absent_until = -math.inf

    async def count(self, body: Mapping[str, JSON]) -> int | None:
        """How many tokens the chat-completions request `body` has; None if nobody says."""
        if self._now() < self._absent_until:
            return None
        # Made before the clock runs: the first call imports the SDK.
        client = self._client()
        try:
            async with asyncio.timeout(self._timeout):
                return await _count(client, self._root, body)
        except (TimeoutError, UpstreamError):
            self._absent_until = self._now() + _ABSENT_SECONDS
            return None


async def _count(client: openai.AsyncOpenAI, root: str, body: Mapping[str, JSON]) -> int | None:
    """The number, or None when only this request is refused; raises UpstreamError where there is no tokenizer."""
    import openai

    chat = {name: body[name] for name in ("model", "messages", "tools") if name in body}
    with blamed(), understood():
        try:
            told = await _post(client, f"{root}/tokenize", {**chat, "add_generation_prompt": True})
            return _number(told["count"] if "count" in told else await _count_text(client, root, chat))
        except openai.APIStatusError as refusal:
            if _means_request(refusal):
                return None
            raise


async def _count_text(client: openai.AsyncOpenAI, root: str, chat: Mapping[str, JSON]) -> int:
    prompt = (await _post(client, f"{root}/apply-template", chat))["prompt"]
    # With the tokens that begin a text, as llama.cpp's chat completions read it too; `/tokenize` leaves them out.
    told = await _post(client, f"{root}/tokenize", {"content": prompt, "add_special": True})
    return len(told["tokens"])


async def _post(client: openai.AsyncOpenAI, url: str, body: Mapping[str, JSON]) -> JSON:
    import httpx2

    response = await client.post(url, cast_to=httpx2.Response, body=body)
    return parse_document(response.text)


def _number(count: JSON) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count <= 0:
        raise TypeError(f"no number of tokens: {count!r}")
    return count


def _means_request(refusal: openai.APIStatusError) -> bool:
    """Whether another request may well be counted: vLLM answers 404 also for a model that it does not have."""
    return refusal.status_code in (400, 422) or bool(NO_MODEL.search(words_of(refusal.body)))
