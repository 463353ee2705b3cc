"""How much of a list goes into one answer, by itself and in the lists of both APIs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI

from tests.wire.conftest import Agents
from turnloom.wire.fit import MOST_BYTES, fitting

BIG = 2 * 1024 * 1024
MOST_OF_LAMBDA = 6 * 1024 * 1024


def said(text: str) -> dict[str, Any]:
    return {"text": text}


def test_what_fits_is_given_whole() -> None:
    data = [said("x" * (BIG // 2)) for _ in range(4)]
    assert fitting(data) == (data, False)
    assert fitting([]) == ([], False)


@pytest.mark.parametrize("letter", ["x", '"', "\n", "é", "語"])
def test_what_is_taken_fits_into_the_answer_that_lambda_makes_of_it(letter: str) -> None:
    data = [said(letter * 100_000) for _ in range(100)]
    taken, cut = fitting(data)
    assert cut and taken == data[: len(taken)]
    sizes = [len(json.dumps({"body": json.dumps(data[:n], ensure_ascii=False)})) for n in (len(taken), len(taken) + 1)]
    assert MOST_BYTES * 0.9 < sizes[0] < MOST_OF_LAMBDA and sizes[1] > MOST_BYTES


def test_what_is_too_large_is_given_alone() -> None:
    huge, small = said("x" * 2 * MOST_BYTES), said("y")
    assert fitting([huge, small]) == ([huge], True)
    assert fitting([small, huge]) == ([small], True)
    assert fitting([huge]) == ([huge], False)


def test_what_is_left_out_is_not_made() -> None:
    made = []
    taken, cut = fitting(made.append(n) or said("x" * BIG) for n in range(50))  # type: ignore[func-returns-value]
    assert (len(taken), cut, made) == (2, True, [0, 1, 2])


@pytest.fixture
def chain(api: Agents) -> list[str]:
    """Two responses, one on top of the other, with two large items in each."""
    made: list[str] = []
    for number in range(2):
        api.house.model.says("Hm.")
        items = [{"role": "user", "content": f"{number}{half}" + "x" * BIG} for half in range(2)]
        body = {"model": "m", "input": items, "previous_response_id": made[-1] if made else None}
        answer = api.http.post("/v1/responses", json=body)
        assert answer.status_code == 200, answer.text
        made.append(answer.json()["id"])
    return made


def pages(api: Agents, path: str) -> list[list[dict[str, Any]]]:
    """All pages of a list of the Responses API, each with the ids of its ends."""
    found: list[list[dict[str, Any]]] = []
    more, after = True, ""
    while more:
        answer = api.http.get(f"{path}?limit=100&order=asc{after}")
        page = answer.json()
        assert len(answer.content) < MOST_OF_LAMBDA
        assert [page["first_id"], page["last_id"]] == [page["data"][0]["id"], page["data"][-1]["id"]]
        found.append(page["data"])
        more, after = page["has_more"], f"&after={page['last_id']}"
    return found


def test_a_page_of_items_ends_where_it_would_be_too_large(api: Agents, chain: list[str]) -> None:
    found = pages(api, f"/v1/responses/{chain[-1]}/input_items")
    texts = [[item["content"][0]["text"].rstrip("x") for item in page] for page in found]
    assert texts == [["00", "01", "Hm."], ["10", "11"]]
    client = OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0)
    listed = [item.id for item in client.responses.input_items.list(chain[-1], order="asc")]
    assert listed == [item["id"] for page in found for item in page]


def test_a_page_of_responses_ends_where_it_would_be_too_large(api: Agents, chain: list[str]) -> None:
    found = pages(api, "/v1/responses")
    assert [[response["id"] for response in page] for page in found] == [[chain[0]], [chain[1]]]


def test_a_page_of_agents_ends_where_it_would_be_too_large(api: Agents) -> None:
    made = [api.agent(instructions="x" * 300_000) for _ in range(20)]
    first = api.http.get("/v1/agents").json()
    rest = api.http.get("/v1/agents", params={"start_index": len(first["data"])}).json()
    assert [[agent["agent_id"] for agent in page["data"]] for page in (first, rest)] == [made[:17], made[17:]]
    assert (first["has_more"], rest["has_more"]) == (True, False)


def test_a_session_that_is_too_large_gives_its_newest_turns_first(api: Agents) -> None:
    session, made = api.talk(), []
    for number in range(3):
        api.house.model.says("Hm.")
        made.append(api.turn(session, f"{number}" + "x" * BIG).json()["turn_id"])
    newest = api.http.get(session).json()
    assert ([turn["turn_id"] for turn in newest["turns"]], newest["has_more"]) == (made[1:], True)
    oldest = api.http.get(session, params={"before": made[1]}).json()
    assert ([turn["turn_id"] for turn in oldest["turns"]], "has_more" in oldest) == (made[:1], False)
