"""Lists that take long to look at are refused at once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import House
from turnloom.domain.errors import InvalidRequest
from turnloom.domain.responses_input import file_content
from turnloom.usecases.attachments import MOST_FILES, prepared
from turnloom.wire.agents_api.models import MOST_CLIENT_TOOLS, AgentConfig
from turnloom.wire.responses_api.tools import MOST_SERVERS, MOST_TOOLS, read_tools


def functions(count: int) -> list[Any]:
    return [{"type": "function", "name": f"f{number}"} for number in range(count)]


def servers(count: int) -> list[Any]:
    return [
        {"type": "mcp", "server_label": f"s{number}", "server_url": "https://tools.test"} for number in range(count)
    ]


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        (functions(MOST_TOOLS + 1), "tools"),
        ([{"type": "namespace", "name": "n", "tools": functions(MOST_TOOLS + 1)}], "tools[0].tools"),
        (servers(MOST_SERVERS + 1), "tools"),
    ],
    ids=["functions", "namespace", "servers"],
)
def test_a_response_has_only_so_many_tools(tools: list[Any], param: str) -> None:
    with pytest.raises(InvalidRequest, match="more than") as refusal:
        read_tools(tools, "tools", alias=False)
    assert refusal.value.param == param


def test_a_response_may_have_as_many_tools_as_the_limits_say() -> None:
    tools, _ = read_tools(functions(MOST_TOOLS - MOST_SERVERS) + servers(MOST_SERVERS), "tools", alias=False)
    assert len(tools) == MOST_TOOLS


def test_an_agent_has_only_so_many_tools_of_its_client() -> None:
    tools = [{"name": f"t{number}"} for number in range(MOST_CLIENT_TOOLS + 1)]
    assert AgentConfig.model_validate({"model": "m", "instructions": "", "client_tools": tools[1:]})
    with pytest.raises(ValueError, match="client_tools"):
        AgentConfig.model_validate({"model": "m", "instructions": "", "client_tools": tools})


async def test_a_request_has_only_so_many_files(house: House) -> None:
    part = {"type": "input_file", "file_data": "data:text/plain;base64,eA=="}
    with pytest.raises(InvalidRequest, match="more than") as refusal:
        await prepared(house.services, "me", [{"role": "user", "content": [part] * (MOST_FILES + 1)}])
    assert refusal.value.param == "input"


@pytest.mark.parametrize(
    "url", ["data:text/plain" + ";" * 2000 + ",x", "data:," + "%41" * 200_000], ids=["head", "escapes"]
)
def test_a_data_url_that_takes_long_to_decode_is_none(url: str) -> None:
    with pytest.raises(ValueError):
        file_content(url)


def test_whitespace_in_base64_does_not_count() -> None:
    assert file_content("data:text/plain;base64,aGVs\r\n bG8=\t") == ("text/plain", b"hello")
