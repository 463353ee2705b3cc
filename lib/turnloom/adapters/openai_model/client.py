"""The model endpoint as the Model port: calls, retries, and what an endpoint has shown that it cannot do."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

from turnloom.adapters.openai_model.adaptations import LearnedAdaptations, adapted, next_adaptation
from turnloom.adapters.openai_model.answer import Answer, documents_of, drain, next_chunks, whole_number
from turnloom.adapters.openai_model.connections import Connections
from turnloom.adapters.openai_model.errors import blamed, is_too_long, understood
from turnloom.adapters.openai_model.parsing import parse_document
from turnloom.adapters.openai_model.request import Draft, draft_of, has_files
from turnloom.adapters.openai_model.tokenizer import Tokenizer
from turnloom.domain.errors import UpstreamBroken, UpstreamError, UpstreamLimited, UpstreamRejected
from turnloom.domain.message import JSON
from turnloom.domain.surrogates import repair
from turnloom.ports import Chunk, ModelInfo, ModelRequest

if TYPE_CHECKING:
    import httpx2

_T = TypeVar("_T")
_OPENAI = "api.openai.com"
_PATIENCE = 5.0


class OpenAIModel:
    """The endpoint at `base_url` (with its `/v1`), called with `api_key` (empty where none is needed),
    or with what it gives when the first call is made.

    An answer that fails before its first chunk, or 429, is asked for again up to `retries` times: after `backoff`
    seconds, then twice that and so on, or after the time that the endpoint wishes for if that is longer, and by chance
    up to half of the former later; if it wishes for more than the request's `patience`, the error goes to the caller at
    once, as timeouts do.
    Without wishes all pauses end within 0.7 s: a caller who waits a second for the status is told of a lasting 429.
    `timeout` bounds, in seconds, the wait for the headers of an answer, for the whole of an error or of the list of
    models, and from byte to byte. With `sends_reasoning` the model is shown its earlier reasoning as
    `reasoning_content`. A file is refused unless `takes_files`, by default only OpenAI's own endpoint.

    What a model refuses it is not asked for again: `adaptations.py` has the other forms of a request.

    One instance serves any number of event loops, with a pool of connections for each.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | Callable[[], str],
        *,
        retries: int = 2,
        timeout: float = 120.0,
        backoff: float = 0.15,
        sends_reasoning: bool = False,
        takes_files: bool | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        official = urlsplit(base_url).hostname == _OPENAI
        self._connections = Connections(base_url, api_key if callable(api_key) else lambda: api_key, timeout)
        self._tokenizer = None if official else Tokenizer(base_url, self._connections.client, now)
        self._retries, self._backoff, self._sleep = retries, backoff, sleep
        self._timeout = timeout
        self._sends_reasoning = sends_reasoning
        self._takes_files = official if takes_files is None else takes_files
        self._learned = LearnedAdaptations()

    @property
    def takes_files(self) -> bool:
        """Whether the endpoint is sent the files of a message."""
        return self._takes_files

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Chunk]:
        """The answer in chunks, the last one `Finished`; closing the generator ends the call at the endpoint.

        Raises UpstreamRejected (`context_length_exceeded`, `model_not_found`, `upstream_authentication_error`,
        `unsupported_file`, or `upstream_rejected` with the endpoint's own code, if any, as `extra["upstream_code"]`),
        UpstreamLimited (`rate_limited`, `insufficient_quota`), UpstreamTimeout or UpstreamBroken.
        """
        if not self._reads(request):
            raise UpstreamRejected("The model endpoint takes no files.", code="unsupported_file")
        draft = draft_of(request, self._sends_reasoning)
        with self._connections.masked():
            first, chunks = await self._persist(lambda: self._begin(draft), request.patience)
            async with aclosing(chunks):
                yield first
                async for chunk in chunks:
                    yield chunk

    async def count(self, request: ModelRequest) -> int | None:
        """How many tokens the endpoint's own tokenizer makes of the request; None where it lends none (as OpenAI)."""
        if self._tokenizer is None or not self._reads(request):
            return None
        draft = draft_of(request, self._sends_reasoning)
        return await self._tokenizer.count(adapted(draft, self._learned.of(draft)).wire_body())

    async def models(self) -> list[ModelInfo]:
        """What the endpoint lists; raises as `stream` does."""
        with self._connections.masked():
            return await self._persist(self._list, _PATIENCE)

    async def aclose(self) -> None:
        """Close the running loop's connections; the instance stays usable."""
        await self._connections.aclose()

    def _reads(self, request: ModelRequest) -> bool:
        return self._takes_files or not has_files(request)

    # --- retries

    async def _persist(self, attempt: Callable[[], Awaitable[_T]], patience: float) -> _T:
        tried = 0
        while True:
            try:
                return await attempt()
            except UpstreamError as error:
                wish = error.extra.get("retry_after", 0.0)
                if tried >= self._retries or wish > patience or not _may_pass(error):
                    error.extra = _in_whole_seconds(error.extra)
                    raise
            pause = self._backoff * 2**tried
            chance = random.uniform(0, 0.5)  # noqa: S311  (spreads load, guards no secret)
            await self._sleep(max(pause, wish) + chance * pause)
            tried += 1

    # --- one attempt

    async def _begin(self, draft: Draft) -> tuple[Chunk, AsyncGenerator[Chunk]]:
        chunks = self._chunks(draft)
        return await anext(chunks), chunks

    async def _chunks(self, draft: Draft) -> AsyncGenerator[Chunk]:
        answer = Answer()
        async with aclosing(await self._open(draft)) as response, aclosing(documents_of(response)) as documents:
            while (chunks := await next_chunks(documents, answer)) is not None:
                for chunk in chunks:
                    yield chunk
            finished = answer.finished()
            for chunk in answer.rest():
                yield chunk
            yield finished
            await drain(documents)

    async def _open(self, draft: Draft) -> httpx2.Response:
        """Send the request in the form that its model takes, which may be found out only now, refusal by refusal."""
        import openai

        adaptations = self._learned.of(draft)
        tried = adaptations
        first: openai.APIStatusError | None = None
        with blamed():
            while True:
                try:
                    response = await self._post(adapted(draft, tried).wire_body())
                except (
                    openai.BadRequestError,
                    openai.NotFoundError,  # routers that know no model for such a request
                    openai.UnprocessableEntityError,
                    openai.InternalServerError,
                ) as refusal:
                    words = refusal.response.text
                    adaptation = next_adaptation(draft, tried, refusal.status_code, words)
                    if adaptation is None:
                        # A later one may mean something else in the request, but it speaks of a form that nobody chose.
                        raise (refusal if first is None or is_too_long(words) else first) from None
                    first = first or refusal
                    tried |= {adaptation}
                else:
                    # Only now it is sure: a refusal may quote the whole request and mean another part of it.
                    self._learned.add(draft, tried - adaptations)
                    return response

    async def _post(self, body: Mapping[str, JSON]) -> httpx2.Response:
        import httpx2
        import openai

        # The SDK hands out the response itself for this `cast_to`, which its types know only for calls without stream.
        client = self._connections.client()
        async with asyncio.timeout(self._timeout):
            response = await client.post(
                "/chat/completions",
                cast_to=httpx2.Response,
                body=body,
                stream=True,
                stream_cls=openai.AsyncStream[object],
            )
        return cast("httpx2.Response", response)

    async def _list(self) -> list[ModelInfo]:
        import httpx2

        client = self._connections.client()
        with blamed():
            async with asyncio.timeout(self._timeout):
                response = await client.get("/models", cast_to=httpx2.Response)
        with understood():
            return [_model_info(model) for model in parse_document(response.text)["data"]]


def _model_info(model: JSON) -> ModelInfo:
    """An entry of the list of models, whose id alone must be right."""
    name, owner = model["id"], model.get("owned_by")
    if not isinstance(name, str):
        raise TypeError(f"no id of a model: {type(name).__name__}")
    return ModelInfo(repair(name), whole_number(model.get("created")), repair(owner) if isinstance(owner, str) else "")


def _may_pass(error: UpstreamError) -> bool:
    """Whether the same call may soon succeed."""
    limited = isinstance(error, UpstreamLimited) and error.code == "rate_limited"
    return limited or (isinstance(error, UpstreamBroken) and error.retryable)


def _in_whole_seconds(extra: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same, with the wish rounded up: the header `Retry-After` knows no fractions."""
    return {**extra, "retry_after": math.ceil(extra["retry_after"])} if "retry_after" in extra else extra
