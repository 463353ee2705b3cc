"""Answers to approval requests, and the requests that they are about."""

from __future__ import annotations

import pytest

from turnloom.domain.errors import InvalidRequest
from turnloom.domain.message import AllowedCall, Spec, ToolServer
from turnloom.usecases.approvals import allowed_calls, with_calls

REQUEST = {"type": "mcp_approval_request", "id": "mcpr_1", "server_label": "srv", "name": "act", "arguments": "{}"}
YES = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
SPEC = Spec("m", servers=(ToolServer("srv", "https://srv.test/mcp"),))


def test_a_call_is_allowed_by_the_answer_to_its_request() -> None:
    assert allowed_calls((), [REQUEST, YES], SPEC) == (AllowedCall("mcpr_1", "act", "srv", "{}", "mcpr_1"),)


@pytest.mark.parametrize("approve", [True, False])
def test_an_answer_to_a_request_that_is_not_there_is_refused(approve: bool) -> None:
    with pytest.raises(InvalidRequest, match="'mcpr_1'") as caught:
        with_calls((), [{**YES, "approve": approve}])
    assert caught.value.param == "input"


def test_a_call_is_not_allowed_when_its_request_is_gone() -> None:
    with pytest.raises(InvalidRequest, match="No approval request found with id 'mcpr_1'") as caught:
        allowed_calls((), [YES], SPEC)
    assert (caught.value.code, caught.value.param) == ("invalid_request", "input")
