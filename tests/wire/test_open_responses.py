"""What the public Open Responses compliance suite asserts over HTTP, test by test, with its kinds of request.

The suite parses every answer strictly; here `check_response` and `check_stream` stand for its schemas.
"""

from __future__ import annotations

from typing import Any

from openai.types.responses import Response

from tests.wire.conftest import Agents
from tests.wire.responses_stream_checker import check_response, check_stream

WEATHER = {
    "type": "function",
    "name": "weather_at",
    "description": "The weather at a place.",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}
DOT = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content, **more}


def answered(api: Agents, *items: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = api.http.post("/v1/responses", json={"model": "m", "input": list(items), "stream": False, **more})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    check_response(body)
    Response.model_validate(body)
    assert body["status"] == "completed" and body["output"]
    return body


def test_basic_response(api: Agents) -> None:
    api.house.model.says("Hello, dear reader.")
    assert answered(api, said("user", "Greet me in three words."))["output"][0]["type"] == "message"


def test_assistant_phase(api: Agents) -> None:
    api.house.model.says("Done.")
    commentary = said("assistant", "Let me look.", phase="commentary")
    answered(
        api, said("user", "Look."), commentary, said("assistant", "It is red.", phase="final_answer"), said("user", "?")
    )


def test_response_output_phase_schema(api: Agents) -> None:
    api.house.model.says("Hello.")
    for item in answered(api, said("user", "Hello."))["output"]:
        assert "phase" not in item or item["phase"] in ("commentary", "final_answer")


def test_streaming_response(api: Agents) -> None:
    api.house.model.says("1", " 2", " 3")
    body = {"model": "m", "input": [said("user", "Count.")], "stream": True}
    events = check_stream(api.http.post("/v1/responses", json=body).content)
    assert events[-1]["type"] == "response.completed"
    check_response(events[-1]["response"])


def test_system_prompt(api: Agents) -> None:
    api.house.model.says("Arr.")
    answered(api, said("system", "Talk like a pirate."), said("user", "Say hello."))


def test_tool_calling(api: Agents) -> None:
    api.house.model.calls(("weather_at", {"place": "Oslo"}))
    body = answered(api, said("user", "How is the weather in Oslo?"), tools=[WEATHER])
    assert [item["type"] for item in body["output"]] == ["function_call"]


def test_tool_calling_streaming(api: Agents) -> None:
    api.house.model.calls(("weather_at", {"place": "Oslo"}))
    body = {"model": "m", "input": [said("user", "How is it in Oslo?")], "tools": [WEATHER], "stream": True}
    events = check_stream(api.http.post("/v1/responses", json=body).content)
    told = [(event["type"], event.get("item", {}).get("type")) for event in events]
    assert ("response.output_item.added", "function_call") in told
    assert ("response.function_call_arguments.delta", None) in told
    assert ("response.function_call_arguments.done", None) in told
    assert ("response.output_item.done", "function_call") in told


def test_image_input(api: Agents) -> None:
    api.house.model.says("A dot.")
    picture = {"type": "input_image", "image_url": DOT}
    answered(api, said("user", [{"type": "input_text", "text": "What is this?"}, picture]))


def test_multi_turn(api: Agents) -> None:
    api.house.model.says("Ada.")
    answered(api, said("user", "I am Ada."), said("assistant", "Hello Ada!"), said("user", "Who am I?"))


def test_compact_response(api: Agents) -> None:
    api.house.model.says("Ada introduced herself.")
    items = [said("user", "I am Ada."), said("assistant", "Hello Ada!")]
    answer = api.http.post("/v1/responses/compact", json={"model": "m", "input": items})
    assert answer.status_code == 200
    body = answer.json()
    assert body["object"] == "response.compaction" and isinstance(body["created_at"], int)
    assert body["usage"]["total_tokens"] == body["usage"]["input_tokens"] + body["usage"]["output_tokens"]
    [message, compaction] = body["output"]
    assert (message["type"], message["role"], compaction["type"]) == ("message", "user", "compaction")
    assert compaction["encrypted_content"] and "Ada" not in compaction["encrypted_content"]


def test_compact_missing_model(api: Agents) -> None:
    answer = api.http.post("/v1/responses/compact", json={"input": "Hello."})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
