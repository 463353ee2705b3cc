"""Bodies of the neighbours. Unknown fields are ignored; `null` means not given."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from turnloom.wire.body import Body, JSONObject

Identifier = Annotated[str, Field(min_length=1)]


class Endpoint(Body):
    uri: Identifier


class RegisterToolGroup(Body):
    toolgroup_id: Identifier
    provider_id: Identifier
    mcp_endpoint: Endpoint | None = None
    args: JSONObject | None = None


class InvokeTool(Body):
    tool_name: str
    kwargs: JSONObject | None = None


class RegisterModel(Body):
    model_id: Identifier
    provider_model_id: str | None = None
    provider_id: str | None = None
    metadata: JSONObject | None = None
    model_type: Literal["llm", "embedding"] | None = None
