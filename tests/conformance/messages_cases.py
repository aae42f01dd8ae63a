"""Requests to /v1/messages."""

from __future__ import annotations

from typing import Any

from tests.conformance.cases import CITY, LONG, PNG, UNICODE, Case, Refused
from tests.conformance.scripted_engine import Call, Script


def asks(content: Any = "Hello?", role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": content}


def block(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


def body(content: Any = "Hello?", **more: Any) -> dict[str, Any]:
    """Return a body with one message, or with the messages of `more`."""
    return {"max_tokens": 100, "messages": [asks(content)], **more}


CACHED = {"cache_control": {"type": "ephemeral"}}
CACHED_FOR_AN_HOUR = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
WEATHER = {"name": "weather", "description": "The weather.", "input_schema": CITY}
CALLS_WEATHER = Script(calls=(Call("weather", ('{"ci', 'ty": ', '"Oslo"}')),))
MANY = tuple(Call("weather", ('{"city": ', f'"City {number}"}}')) for number in range(12))
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}


def result(content: Any, **more: Any) -> dict[str, Any]:
    """Return a conversation that ends with the result of a tool."""
    results = [{"type": "tool_result", "tool_use_id": "toolu_1", "content": content, **more}]
    return body(messages=[asks(), asks([block("Let me look."), USE], "assistant"), asks(results)], tools=[WEATHER])


CASES = [
    # Input
    Case("text", body()),
    Case("blocks", body([block("Hello"), block("?")])),
    Case("system", body(system="Be brief.")),
    Case("system in blocks", body(system=[block("Be brief."), block("Be kind.", **CACHED)])),
    Case("history", body(messages=[asks(), asks("Hi.", "assistant"), asks([block("Again?")])])),
    Case("two turns of the user", body(messages=[asks("A"), asks("B")])),
    Case("a prefill", body(messages=[asks(), asks("The answer is", "assistant")])),
    Case("image as data", body([IMAGE, block("Describe it.")])),
    Case("image by address", body([{"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}])),
    Case("thinking in history", body(messages=[
        asks(),
        asks([
            {"type": "thinking", "thinking": "I greet.", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "ZGF0YQ=="},
            block("Hi."),
        ], "assistant"),
        asks("Again?"),
    ])),
    Case("cache_control", body([block("A", **CACHED_FOR_AN_HOUR), block("B", **CACHED)], system=[block("S", **CACHED)],
         tools=[{**WEATHER, **CACHED}])),
    Case("cache_control of the request", body(**CACHED)),
    Case("unicode", body("".join(UNICODE), system="漢字 👩‍👩‍👧"), Script(UNICODE)),
    # Tools
    Case("a tool is called", body(tools=[WEATHER]), CALLS_WEATHER),
    Case("a tool with its type", body(tools=[{"type": "custom", "strict": True, **WEATHER}]), CALLS_WEATHER),
    Case("a tool without a description", body(tools=[{"name": "weather", "input_schema": {"type": "object"}}]),
         CALLS_WEATHER),
    Case("a tool is not called", body(tools=[WEATHER], tool_choice={"type": "auto"})),
    Case("any tool", body(tools=[WEATHER], tool_choice={"type": "any"}), CALLS_WEATHER),
    Case("a chosen tool", body(tools=[WEATHER], tool_choice={"type": "tool", "name": "weather"}), CALLS_WEATHER),
    Case("no tool", body(tools=[WEATHER], tool_choice={"type": "none"})),
    Case("one call at a time", body(tools=[WEATHER], tool_choice={"type": "auto", "disable_parallel_tool_use": True}),
         CALLS_WEATHER),
    Case("text before a call", body(tools=[WEATHER]), Script(("Let me", " look."), calls=CALLS_WEATHER.calls)),
    Case("twelve calls", body(tools=[WEATHER]), Script(calls=MANY)),
    Case("two calls at the same time", body(tools=[WEATHER]), Script(calls=MANY[:2], chunking="interleaved")),
    Case("twelve calls in a chunk each", body(tools=[WEATHER]), Script(calls=MANY, chunking="whole")),
    Case("calls of an engine that stops", body(tools=[WEATHER]), Script(
        ("Let me look.",), calls=MANY[:2], finish="stop"), stop_reason="tool_use"),
    Case("a call without arguments", body(tools=[WEATHER]), Script(calls=(Call("weather", ("{}",)),))),
    Case("a call whose arguments are empty", body(tools=[WEATHER]), Script(calls=(Call("weather", ()),))),
    Case("a call with unicode", body(tools=[WEATHER]), Script(
        calls=(Call("weather", ('{"city": "', "Trom", "sø", " 👩‍👩‍👧", '"}')),), dialect="openai")),
    Case("a long call", body(tools=[WEATHER], max_tokens=10_000), Script(calls=(
        Call("weather", ('{"city": "', *LONG[:500], '"}')),))),
    Case("the result of a tool", result("Sunny")),
    Case("the result of a tool in blocks", result([block("Sunny"), IMAGE])),
    Case("the failure of a tool", result("No such city", is_error=True)),
    Case("a tool without a result text", result(None)),
    Case("a result and a question", body(messages=[
        asks(), asks([USE], "assistant"),
        asks([{"type": "tool_result", "tool_use_id": "toolu_1", "content": "Sunny"}, block("And tomorrow?")]),
    ], tools=[WEATHER])),
    # Thinking
    Case("thinking", body("Think.", max_tokens=2000, thinking={"type": "enabled", "budget_tokens": 1024}), Script(
        ("42",), ("I ", "think."))),
    Case("adaptive thinking", body("Think.", thinking={"type": "adaptive"}, output_config={"effort": "high"}), Script(
        ("42",), ("I ", "think."), reasoning_field="reasoning")),
    Case("no thinking", body("Think.", thinking={"type": "disabled"})),
    Case("thinking before a call", body(tools=[WEATHER], thinking={"type": "adaptive"}), Script(
        reasoning=("I look.",), calls=CALLS_WEATHER.calls)),
    Case("thinking to the limit", body("Think.", thinking={"type": "adaptive"}), Script(
        reasoning=("I ", "think"), finish="length"), "incomplete"),
    # Formats of text
    Case("a JSON schema", body("Who?", output_config={"format": {"type": "json_schema", "schema": PERSON}}), Script(
        ('{"name"', ': "Ada"}'))),
    # Limits and ends
    Case("a limit", body(max_tokens=16), Script(("Hello", " the"), finish="length"), "incomplete"),
    Case("a stop sequence", body(stop_sequences=["###"]), Script(("Hello", "."), stop_text="###"), stops_at="###"),
    Case("a stop sequence that is not found", body(stop_sequences=["###"])),
    Case("a filter", body(), Script(("Hello",), finish="content_filter")),
    Case("a refusal", body(), Script(refusal=("I", " cannot."), dialect="openai")),
    Case("an answer in parts", body(), Script(("Hello", " there", "."), in_parts=True)),
    Case("an empty answer", body(), Script()),
    Case("an answer of one space", body(), Script((" ",), dialect="openai")),
    Case("a long answer", body(max_tokens=10_000), Script(LONG)),
    Case("an answer as OpenAI writes it", body(), Script(("Hello", "."), dialect="openai", usage={
        "prompt_tokens_details": {"cached_tokens": 4}})),
    Case("an engine without usage", body(), Script(("Hello", "."), usage=None)),
    # Other fields
    Case("sampling", body(temperature=0.5, top_p=0.5, top_k=5)),
    Case("account fields", body(metadata={"user_id": "u"}, service_tier="auto"), headers={
        "anthropic-version": "2023-06-01", "anthropic-beta": "context-management-2025-06-27,something-new-2026-01-01"}),
    Case("unknown fields", body(
        [block("Hello?", something=1)], context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
        thinking={"type": "adaptive", "display": "omitted"}, container=None, mcp_servers=[], inference_geo="eu",
        speed="fast", something_new=[1, {"a": None}], tools=[{**WEATHER, "eager_input_streaming": True, "new": 1}],
    )),
    # Failures within a stream
    Case("an error within a stream", body(), Script(("Hello", " the"), failure="error event"), "failed"),
    Case("a stream that is cut", body(), Script(("Hello", " the"), failure="cut"), "failed"),
    Case("an error within a call", body(tools=[WEATHER]), Script(
        calls=CALLS_WEATHER.calls, failure="error event"), "failed"),
    Case("an error within thinking", body(thinking={"type": "adaptive"}), Script(
        reasoning=("I ", "think"), failure="error event"), "failed"),
]  # fmt: skip

REFUSED = [
    Refused("an unknown model", body(model="nobody"), 404, "model"),
    Refused("no limit", {"messages": [asks()]}, 400, "max_tokens"),
    Refused("a limit of text", body(max_tokens="ten"), 400, "max_tokens"),
    Refused("no messages", {"max_tokens": 10}, 400, "messages"),
    Refused("messages of text", body(messages="Hello?"), 400, "messages"),
    Refused("an empty list of messages", body(messages=[]), 400, "messages"),
    Refused("an unknown role", body(messages=[asks("A", "nobody")]), 400, "messages[0].role"),
    Refused("an unknown block", body(messages=[asks("A"), asks([block("B"), {"type": "nothing"}])]), 400,
            "messages[1].content[1].type"),
    Refused("a text block without text", body([{"type": "text"}]), 400, "messages[0].content[0].text"),
    Refused("a result without its call", body([{"type": "tool_result", "content": "a"}]), 400,
            "messages[0].content[0].tool_use_id"),
    Refused("a hosted tool", body(tools=[WEATHER, {"type": "web_search_20250305", "name": "web_search"}]), 400,
            "tools[1].type"),
    Refused("a tool without a name", body(tools=[{"input_schema": {"type": "object"}}]), 400, "tools[0].name"),
    Refused("a temperature above the range", body(temperature=3), 400, "temperature"),
]  # fmt: skip
