"""Bodies of the Agents API. Unknown fields are ignored; `null` for a list means empty, for anything else not given."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from turnloom.wire.body import Body, JSONObject

MOST_CLIENT_TOOLS = 1000


def _empty_if_null(value: Any) -> Any:
    return [] if value is None else value


def _few_tools(value: Any) -> Any:
    # Pydantic would look at each tool before it counts them.
    if isinstance(value, list) and len(value) > MOST_CLIENT_TOOLS:
        raise ValueError(f"more than {MOST_CLIENT_TOOLS} tools")
    return _empty_if_null(value)


def _default_if_null(default: Any) -> BeforeValidator:
    return BeforeValidator(lambda value: default if value is None else value)


class TextItem(Body):
    type: Literal["text"]
    text: str


class ImageURL(Body):
    uri: str


class Image(Body):
    url: ImageURL | str | None = None
    data: str | None = None

    @model_validator(mode="after")
    def _has_a_source(self) -> Image:
        if self.url is None and self.data is None:
            raise ValueError("an image needs a url or data")
        return self


class ImageItem(Body):
    type: Literal["image"]
    image: Image


ContentItem = Annotated[TextItem | ImageItem, Field(discriminator="type")]
Interleaved = str | ContentItem | list[ContentItem | str]


class UserMessage(Body):
    role: Literal["user"]
    content: Interleaved
    context: Interleaved | None = None


class ToolResponseMessage(Body):
    role: Literal["tool"]
    call_id: str
    content: Interleaved
    tool_name: str | None = None


Message = Annotated[UserMessage | ToolResponseMessage, Field(discriminator="role")]


class ToolParameter(Body):
    name: str
    parameter_type: str = "string"
    description: str = ""
    required: Annotated[bool, _default_if_null(True)] = True
    default: Any = None


class ToolDef(Body):
    name: str
    description: str | None = None
    parameters: Annotated[list[ToolParameter], BeforeValidator(_empty_if_null)] = []
    metadata: JSONObject | None = None


class NamedToolGroup(Body):
    name: str
    args: Annotated[JSONObject, _default_if_null({})] = {}


ToolGroupRef = str | NamedToolGroup


class ToolConfig(Body):
    tool_choice: Annotated[str, _default_if_null("auto")] = "auto"
    tool_prompt_format: Literal["json", "function_tag", "python_list"] | None = None
    system_message_behavior: Annotated[Literal["append", "replace"], _default_if_null("append")] = "append"


class Greedy(Body):
    type: Literal["greedy"] = "greedy"


class TopP(Body):
    type: Literal["top_p"]
    temperature: Annotated[float | None, Field(gt=0)] = None
    top_p: Annotated[float, _default_if_null(0.95)] = 0.95


class TopK(Body):
    type: Literal["top_k"]
    top_k: int


class SamplingParams(Body):
    strategy: Annotated[Greedy | TopP | TopK, Field(discriminator="type")] = Greedy()
    max_tokens: Annotated[int, Field(ge=0), _default_if_null(0)] = 0
    repetition_penalty: Annotated[float, _default_if_null(1.0)] = 1.0
    stop: list[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_strategy_is_greedy(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("strategy") is None:
            return {**given, "strategy": {"type": "greedy"}}
        return given


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: JSONObject


class AgentConfig(Body):
    model: str
    instructions: str
    name: str | None = None
    sampling_params: SamplingParams | None = SamplingParams()
    input_shields: Annotated[list[str], BeforeValidator(_empty_if_null)] = []
    output_shields: Annotated[list[str], BeforeValidator(_empty_if_null)] = []
    toolgroups: Annotated[list[ToolGroupRef], BeforeValidator(_empty_if_null)] = []
    client_tools: Annotated[list[ToolDef], BeforeValidator(_few_tools)] = []
    tool_choice: str | None = None
    tool_prompt_format: Literal["json", "function_tag", "python_list"] | None = None
    tool_config: Annotated[ToolConfig, _default_if_null({})] = ToolConfig()
    max_infer_iters: Annotated[int, Field(ge=1, strict=True)] | None = 10
    enable_session_persistence: Annotated[bool, _default_if_null(False)] = False
    response_format: JsonSchemaFormat | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_tool_config(cls, given: Any) -> Any:
        """Let the deprecated top-level fields fill an absent tool_config, and refuse them where they differ from it."""
        if not isinstance(given, dict):
            return given
        _refuse_grammar(given.get("response_format"))
        old = {name: given[name] for name in ("tool_choice", "tool_prompt_format") if given.get(name) is not None}
        config = given.get("tool_config")
        if config is None:
            return {**given, "tool_config": old}
        for name, value in old.items():
            if isinstance(config, dict) and config.get(name) not in (None, value):
                raise ValueError(f"{name} is deprecated and differs from tool_config.{name}; use tool_config alone")
        return {**given, "tool_config": {**old, **config}} if isinstance(config, dict) else given


def _refuse_grammar(response_format: Any) -> None:
    if isinstance(response_format, dict) and response_format.get("type") == "grammar":
        raise ValueError("response_format 'grammar' is not supported; use 'json_schema'")


class CreateAgent(Body):
    agent_config: AgentConfig


class CreateSession(Body):
    session_name: str


class Document(Body):
    content: Any
    mime_type: str


class CreateTurn(Body):
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    documents: Annotated[list[Document], BeforeValidator(_empty_if_null)] = []
    toolgroups: Annotated[list[ToolGroupRef], BeforeValidator(_empty_if_null)] = []
    tool_config: ToolConfig | None = None


class ToolResponse(Body):
    call_id: str
    tool_name: str = ""
    content: Interleaved
    metadata: JSONObject | None = None


class ResumeTurn(Body):
    tool_responses: Annotated[list[ToolResponse], BeforeValidator(_empty_if_null)]
    stream: bool | None = None
    starting_after: Annotated[int, Field(ge=0)] | None = None
