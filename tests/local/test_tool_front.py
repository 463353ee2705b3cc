"""Which tool the demo model is made to call, with what, and how it is shown a conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from turnloom.domain.message import Tool
from turnloom.local.model import messages, offers, tool_front


def parameters(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


TEXT = {"type": "string"}
CALCULATOR = Tool("calculator", "Evaluate arithmetic.", parameters("expression", expression=TEXT))
CLOCK = Tool(
    "current_time",
    "The date and time in a time zone.",
    parameters(timezone={"type": "string", "description": "IANA name, e.g. Europe/Paris"}),
)
WEATHER = Tool(
    "getWeather",
    "Get the current weather for a city",
    parameters("city", city=TEXT, unit={"enum": ["celsius", "fahrenheit"]}, days={"type": "integer"}),
)
TOOLS = [CALCULATOR, CLOCK, WEATHER]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def called(name: str = "calculator", call_id: str = "c1", content: str | None = None) -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": "{}"}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def result(content: Any, call_id: str = "c1") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


# --- which tool


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("Please calculate 12 * (3 + 4) with the calculator.", "calculator"),
        ("What is 17 times 23?", "calculator"),
        ("What time is it now in Asia/Tokyo?", "current_time"),
        ("And today's date?", "current_time"),
        ("How is the WEATHER in Paris", "getWeather"),
        ("call getweather for the usual place", "getWeather"),
    ],
)
def test_the_tool_is_the_one_that_shares_words_with_what_was_said(said: str, name: str) -> None:
    chosen = tool_front.choose(TOOLS, "auto", [user(said)])
    assert chosen is not None and chosen.name == name


@pytest.mark.parametrize(
    "said",
    ["Hello, how are you?", "Write a short poem about the sea.", "Who wrote Hamlet?", "Is 2025-11-23 a Sunday?", ""],
)
def test_talk_that_is_about_no_tool_calls_none(said: str) -> None:
    assert tool_front.choose(TOOLS, "auto", [user(said)]) is None


def test_one_shared_word_is_enough_in_a_short_message_only() -> None:
    assert tool_front.choose([WEATHER], "auto", [user("Which city?")]) is WEATHER
    assert tool_front.choose([WEATHER], "auto", [user("My aunt moved to another city years ago, sadly")]) is None


def test_a_forced_choice_calls_a_tool_whatever_was_said() -> None:
    assert tool_front.choose(TOOLS, "required", [user("Hello")]) in TOOLS
    assert tool_front.choose(TOOLS, "getWeather", [user("What is 1 + 1?")]) is WEATHER
    assert tool_front.choose(TOOLS, "required", [user("1 + 1"), called(), result("2")]) is CALCULATOR


def test_none_forbids_tools() -> None:
    assert tool_front.choose(TOOLS, "none", [user("Calculate 1 + 1")]) is None
    assert tool_front.choose([], "required", [user("Calculate 1 + 1")]) is None


def test_after_the_results_of_tools_it_is_time_to_answer() -> None:
    conversation = [user("Calculate 1 + 1"), called(), result("2")]
    assert tool_front.choose(TOOLS, "auto", conversation) is None
    assert tool_front.choose(TOOLS, "auto", [*conversation, user("Calculate 2 + 2")]) is CALCULATOR


def test_tools_and_choice_are_read_from_the_request() -> None:
    function = {"name": "calculator", "description": "Evaluate arithmetic.", "parameters": CALCULATOR.parameters}
    body = {"tools": [{"type": "function", "function": function}, {"type": "custom", "custom": {"name": "x"}}]}
    tools = tool_front.offered(body)
    assert tools == [CALCULATOR]
    assert tool_front.choice(body, tools) == "auto"
    assert tool_front.choice({"tool_choice": "required"}, tools) == "required"
    named = {"tool_choice": {"type": "function", "function": {"name": "calculator"}}}
    assert tool_front.choice(named, tools) == "calculator"


@pytest.mark.parametrize("wrong", ["always", {"type": "function", "function": {"name": "unknown"}}, {"type": "x"}])
def test_a_choice_that_makes_no_sense_is_refused(wrong: Any) -> None:
    with pytest.raises(tool_front.BadRequest, match="tool_choice"):
        tool_front.choice({"tool_choice": wrong}, TOOLS)


@pytest.mark.parametrize("function", [None, {}, {"name": "f", "parameters": {"type": "nonsense"}}])
def test_a_tool_that_makes_no_sense_is_refused(function: Any) -> None:
    with pytest.raises(tool_front.BadRequest):
        tool_front.offered({"tools": [{"type": "function", "function": function}]})


# --- with what


def narrowed(tool: Tool, text: str) -> Any:
    return tool_front.arguments_requests(tool, text)[0]["response_format"]["json_schema"]["schema"]


@pytest.mark.parametrize(
    ("said", "expression"),
    [
        ("Please calculate 12 * (3 + 4) with the calculator.", "12 * (3 + 4)"),
        ("what's 3 plus 4 times 2?", "3 + 4 * 2"),
        ("(is 100/8 right)", "100/8"),
        ("1,250 + 3,750", "1250 + 3750"),
        ("2^10 - 24, please", "2**10 - 24"),
        ("6x7", "6*7"),
        ("5 apples, then 1.5 ÷ 3 of them", "1.5 / 3"),
        ("On 2025-11-23 and 1/2/2024 there were 3 of us (or 4)", None),
        ("(((", None),
        ("nothing to see", None),
    ],
)
def test_arithmetic_is_found_in_what_was_said(said: str, expression: str | None) -> None:
    assert offers.arithmetic(said) == expression


def test_an_expression_is_taken_as_it_was_said() -> None:
    schema = narrowed(CALCULATOR, "Calculate 12 * (3 + 4), will you?")
    assert schema["properties"] == {"expression": {"type": "string", "enum": ["12 * (3 + 4)"]}}


@pytest.mark.parametrize(
    ("said", "zone"),
    [
        ("What time is it in Asia/Tokyo?", "Asia/Tokyo"),
        ("What's the time in New York right now", "America/New_York"),
        ("time in buenos aires", "America/Argentina/Buenos_Aires"),
        ("the time in UTC, please", "UTC"),
    ],
)
def test_a_time_zone_may_be_named_by_its_city(said: str, zone: str) -> None:
    assert narrowed(CLOCK, said)["properties"]["timezone"]["enum"] == [zone]


def test_an_optional_argument_that_nothing_speaks_of_is_left_out() -> None:
    assert narrowed(CLOCK, "What time is it?")["properties"] == {}
    assert narrowed(WEATHER, "What is the weather in Paris?")["properties"].keys() == {"city"}


def test_free_strings_are_narrowed_to_phrases_of_the_text() -> None:
    schema = narrowed(WEATHER, "What is the weather in San Francisco for 3 days, in fahrenheit?")
    assert {"San Francisco", "Francisco", "3"} <= set(schema["properties"]["city"]["enum"])
    assert not {"weather", "weather in San Francisco", "in San"} & set(schema["properties"]["city"]["enum"])
    assert schema["properties"]["unit"] == {"enum": ["fahrenheit"]}
    assert schema["properties"]["days"] == {"type": "integer"}


def test_a_required_argument_is_asked_for_even_if_the_text_offers_nothing() -> None:
    nothing = narrowed(WEATHER, "")
    assert nothing["required"] == ["city"]
    assert nothing["properties"]["city"]["maxLength"] == offers.FREE_CHARACTERS
    only_known_words = narrowed(WEATHER, "the weather in the city")
    assert "city" in only_known_words["properties"]["city"]["enum"]


def test_strings_with_rules_of_their_own_and_nested_values_stay_as_they_are() -> None:
    day = {"type": "string", "format": "date"}
    tags = {"type": "array", "items": {"type": "string"}}
    tool = Tool("plan", "Plan something", parameters("day", "tags", day=day, tags=tags))
    properties = narrowed(tool, "Plan a picnic on Friday")["properties"]
    assert properties == {"day": {**day, "maxLength": offers.FREE_CHARACTERS}, "tags": tags}


@pytest.mark.parametrize("nullable", [{"anyOf": [TEXT, {"type": "null"}]}, {"type": ["string", "null"]}])
def test_a_value_that_may_be_null_is_offered_like_any_other(nullable: Any) -> None:
    tool = Tool("find", "Find", parameters(place=nullable))
    assert narrowed(tool, "Find it in Oslo")["properties"]["place"]["enum"] == ["Oslo"]


def test_the_second_request_has_the_tools_own_schema() -> None:
    _, second = tool_front.arguments_requests(WEATHER, "Weather?")
    assert second["response_format"]["json_schema"]["schema"] == WEATHER.parameters


def test_arguments_are_held_to_the_tools_schema() -> None:
    assert tool_front.checked(WEATHER, '{"city": "Zürich", "days": 2}') == '{"city": "Zürich", "days": 2}'
    for wrong in ('{"days": 2}', '{"city": 3}', '{"city": "x", "unit": "kelvin"}', '["x"]', '{"city": "x"', ""):
        assert tool_front.checked(WEATHER, wrong) is None


# --- the answer


def answer(result_text: str, **body: Any) -> Any:
    instructions = {"role": "system", "content": "Be brief."}
    conversation = [user("Hi"), instructions, user("How many?"), called(), result(result_text)]
    return tool_front.answer_request({"messages": conversation, **body})


def test_a_short_result_is_the_answer_word_for_word() -> None:
    request = answer('{"item": "apples", "price": 1.50}', temperature=0)
    system, question = request["messages"]
    assert system["role"] == "system" and system["content"].startswith("Be brief.\n")
    assert question == user("How many? (The answer is: item: apples, price: 1.50.)")
    assert request["grammar"] == 'root ::= "item: apples, price: 1.50."'
    assert request["temperature"] == 0


@pytest.mark.parametrize(
    ("result_text", "sentence"),
    [
        ("42", "The answer is 42."),
        ("-0.50", "The answer is -0.50."),
        ('{"item": "apples", "count": 3}', "The count is 3."),
        ('{"item": "Apples", "unit_price": 1.50}', "The unit price is 1.50."),
        ('{"item": "apples"}', "The item is apples."),
        ('{"item": "apple", "count": 3}', "item: apple, count: 3."),
        ('{"status": "All is well."}', "All is well."),
        ('{"note": ""}', "The note is empty."),
        ('{"": 1}', ": 1."),
        ("Sunny, 20 degrees", "Sunny, 20 degrees."),
        ("It rains!", "It rains!"),
        ('[{"a": 1}, {"a": 2}]', "a: 1; a: 2."),
        ("", "The result is empty."),
        ("{}", "The result is empty."),
    ],
)
def test_a_result_becomes_a_sentence_with_what_the_question_does_not_say(result_text: str, sentence: str) -> None:
    assert tool_front.statement(result_text, "How many apples are there?") == sentence


def test_several_results_become_several_sentences() -> None:
    conversation = [user("6 * 7, and apples?"), called(), result("42"), result('{"item": "apples", "count": 3}')]
    assert (
        'root ::= "The answer is 42. The count is 3."' in tool_front.answer_request({"messages": conversation}).values()
    )


def test_a_long_result_is_told_and_not_quoted() -> None:
    request = answer("word " * 1000)
    assert "grammar" not in request
    assert "word word" in request["messages"][0]["content"]
    assert len(request["messages"][0]["content"]) < tool_front.TOLD_CHARACTERS + 200


def test_an_answer_in_a_wanted_format_is_not_forced_into_a_sentence() -> None:
    assert "grammar" not in answer("3", response_format={"type": "json_object"})
    assert "grammar" in answer("3", response_format={"type": "text"})


def test_all_newest_results_are_told_in_order() -> None:
    conversation = [
        user("?"),
        called(),
        result("old"),
        user("!"),
        called(),
        result("2"),
        result([{"type": "text", "text": "4"}]),
    ]
    assert messages.newest_results(conversation) == ["2", "4"]
    assert messages.newest_results([*conversation, user("thanks")]) == []


# --- the conversation


def test_contents_of_parts_become_text_with_a_note_for_what_is_not_text() -> None:
    parts = [
        {"type": "text", "text": "Look:"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "refusal", "refusal": "No."},
    ]
    flat, developer = messages.plain([user(parts), {"role": "developer", "content": "Be kind."}])
    assert flat["content"] == "Look:\n[image: this model reads text only]\nNo."
    assert developer == {"role": "system", "content": "Be kind."}


def test_plain_messages_keep_their_calls() -> None:
    conversation = messages.plain([called(), result("4")])
    assert conversation[0]["tool_calls"][0]["id"] == "c1"
    assert conversation[1]["tool_call_id"] == "c1"


def test_without_tools_calls_go_and_results_are_told() -> None:
    conversation = [user("1 + 3?"), called(), result('{"sum": 4}'), called("clock", "c2", "Let me see."), user("?")]
    told = messages.without_tools([{"role": "system", "content": "Be brief."}, *conversation])
    assert told == [
        {"role": "system", "content": "Be brief."},
        user("1 + 3?"),
        {"role": "system", "content": "The tool calculator said: sum: 4"},
        {"role": "assistant", "content": "Let me see."},
        user("?"),
    ]


def test_who_has_no_instructions_gets_some() -> None:
    assert messages.without_tools([user("Hi")]) == [{"role": "system", "content": messages.ASSISTANT}, user("Hi")]


def test_a_long_result_in_the_history_is_cut() -> None:
    told = messages.without_tools([called(), result("x" * 5000), user("so?")])
    assert len(json.dumps(told)) < 2 * messages.RESULT_CHARACTERS


def test_a_shorter_conversation_keeps_instructions_and_the_newest_messages() -> None:
    system = {"role": "system", "content": "Be brief."}
    spoken = [user(str(number)) for number in range(5)]
    shorter = messages.shortened([system, *spoken])
    assert shorter == [system, *spoken[3:]]
    assert messages.shortened([system, user("all there is")]) is None


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("417.30", "417.30"),
        ('{"a": 1.50, "b": [1, "x"], "c": null, "d": true}', "a: 1.50, b: 1; x, c: null, d: true"),
        ("two\n  lines", "two lines"),
        ('"quoted"', "quoted"),
        (json.dumps(json.dumps({"a": 1.5})), "a: 1.5"),
        ("", ""),
    ],
)
def test_results_are_shown_on_one_line_without_brackets(given: str, shown: str) -> None:
    assert messages.shown(given) == shown
