"""What the Agents API makes of requests that are malformed, and of the two numbers that cut a list."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import pytest

from tests.wire.conftest import Agents
from turnloom.wire.body import MAX_BODY_BYTES, MOST_VALUES


def errors(answer: Any) -> list[tuple[str, ...]]:
    """Of an answer that must be a 400 of validation, where its errors are and of which type."""
    body = answer.json()
    assert (answer.status_code, body["error"]["code"]) == (400, "invalid_request"), body
    assert body["detail"] == body["error"]["message"]
    return [(*error["loc"], error["type"]) for error in body["error"]["detail"]["errors"] if error["msg"]]


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("start_index=-1", ("query", "start_index", "greater_than_equal")),
        ("limit=-2", ("query", "limit", "greater_than_equal")),
        ("limit=x", ("query", "limit", "int_parsing")),
    ],
)
def test_a_number_that_cannot_cut_a_list_is_told_like_any_invalid_field(
    api: Agents, query: str, error: tuple[str, ...]
) -> None:
    agent = api.agent()
    for path in ("/v1/agents", f"/v1/agents/{agent}/sessions"):
        assert errors(api.http.get(f"{path}?{query}")) == [error]


@pytest.mark.parametrize(
    ("query", "shown", "more"),
    [
        ("", "abc", False),
        ("limit=null", "abc", False),
        ("limit=&start_index=", "abc", False),
        ("limit=-1", "abc", False),
        ("start_index=1", "bc", False),
        ("start_index=1&limit=1", "b", True),
        ("limit=0", "", True),
        ("limit=99999999999999999999", "abc", False),
    ],
)
def test_a_list_begins_and_ends_where_the_request_says(api: Agents, query: str, shown: str, more: bool) -> None:
    for name in "abc":
        api.agent(name=name)
    page = api.http.get(f"/v1/agents?{query}").json()
    assert "".join(agent["agent_config"]["name"] for agent in page["data"]) == shown
    assert page["has_more"] is more


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", None])
@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff",
        b"null",
        b"[]",
        b'{"agent_config":' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"agent_config": NaN}',
        b'{"agent_config": [' + b"1," * MOST_VALUES + b"1]}",
    ],
    ids=["open", "bytes", "null", "list", "deep", "NaN", "wide"],
)
def test_a_body_that_is_no_json_object_is_told_in_the_same_words_by_every_api(
    api: Agents, content: bytes, content_type: str | None
) -> None:
    headers = {"content-type": content_type} if content_type else None
    answer = api.http.post("/v1/agents", content=content, headers=headers)
    assert errors(answer) == [("body", "json_invalid")]
    other = api.http.post("/v1/responses", content=content, headers=headers)
    assert answer.json()["error"]["message"] == other.json()["error"]["message"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_json_must_be_sent_as_json(api: Agents, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else None
    answer = api.http.post("/v1/agents", content=b'{"agent_config": {"model": "m"}}', headers=headers)
    assert errors(answer) == [("body", "json_invalid")]
    assert "content-type: application/json" in answer.json()["detail"]


def test_a_body_that_is_missing_is_told_to_be_missing(api: Agents) -> None:
    assert errors(api.http.post("/v1/agents")) == [("body", "missing")]


@pytest.mark.parametrize(("config", "fault"), [({}, "missing"), ({"instructions": None}, "string_type")])
def test_an_agent_needs_instructions(api: Agents, config: dict[str, Any], fault: str) -> None:
    answer = api.http.post("/v1/agents", json={"agent_config": {"model": "m", **config}})
    assert errors(answer) == [("body", "agent_config", "instructions", fault)]
    assert api.http.get("/v1/agents").json()["data"] == []


AGENT = b'{"agent_config": {"model": "m", "instructions": "Be brief."}}'
RESPONSE = b'{"model": "m", "input": "Hi"}'


def compressed(content: bytes, coding: str) -> bytes:
    return gzip.compress(content) if coding == "gzip" else zlib.compress(content)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize(("path", "content"), [("/v1/agents", AGENT), ("/v1/responses", RESPONSE)])
def test_a_compressed_body_is_read(api: Agents, coding: str, path: str, content: bytes) -> None:
    api.house.model.says("Hello.")
    headers = {"content-type": "application/json", "content-encoding": coding}
    assert api.http.post(path, content=compressed(content, coding), headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/v1/agents", "/v1/responses"])
@pytest.mark.parametrize(
    ("coding", "content", "status"),
    [
        ("zstd", b"x", 415),
        ("br", b"x", 415),
        ("gzip, br", b"x", 415),
        ("gzip", AGENT, 400),
        ("gzip", gzip.compress(AGENT, mtime=0)[:-4], 400),
        ("gzip", gzip.compress(AGENT, mtime=0) + b"x", 400),
        ("deflate", b"x", 400),
        ("gzip", gzip.compress(b" " * (MAX_BODY_BYTES + 1), mtime=0), 413),
    ],
    ids=["zstd", "br", "gzip and br", "plain", "cut off", "with a tail", "no zlib", "too large"],
)
def test_a_body_that_cannot_be_decoded_is_refused_by_its_coding(
    api: Agents, path: str, coding: str, content: bytes, status: int
) -> None:
    headers = {"content-type": "application/json", "content-encoding": coding}
    answer = api.http.post(path, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    message = answer.json()["error"]["message"]
    assert status == 413 or coding.rpartition(", ")[2] in message
