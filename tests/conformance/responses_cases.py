"""Requests to /v1/responses."""

from __future__ import annotations

from typing import Any

from tests.conformance.cases import CITY, LONG, PDF, PNG, UNICODE, Case, Refused
from tests.conformance.scripted_engine import Call, Script


def says(content: Any, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content, **more}


def text(value: str, kind: str = "input_text") -> dict[str, Any]:
    return {"type": kind, "text": value}


def function(name: str = "weather", **more: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, "description": "The weather.", "parameters": CITY, "strict": True, **more}


ASKED = [says("What is the weather in Oslo?")]
CALLS_WEATHER = Script(calls=(Call("weather", ('{"ci', 'ty": ', '"Oslo"}')),))
ROUND_TRIP = [
    *ASKED,
    {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Oslo"}'},
]
MANY = tuple(Call("weather", ('{"city": ', f'"City {number}"}}')) for number in range(12))
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edit files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
}
NAMESPACE = {
    "type": "namespace",
    "name": "home",
    "description": "The house.",
    "tools": [{"type": "function", "name": "lights", "description": "The lights.", "parameters": CITY}],
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}

CASES = [
    # Input
    Case("text", {"input": "Hello?"}),
    Case("empty text", {"input": ""}),
    Case("messages without a type", {"input": [{"role": "user", "content": "Hello?"}]}),
    Case("typed messages", {"input": [says([text("Hello"), text("?")])]}),
    Case("instructions", {"input": "Hello?", "instructions": "Be brief."}),
    Case("system and developer", {"input": [says("A", "system"), says([text("B")], "developer"), says("C")]}),
    Case("history", {"input": [
        says("Hello?"),
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{**text("Hi.", "output_text"), "annotations": [], "logprobs": []}]},
        says("Again?"),
    ]}),
    Case("history with a refusal", {"input": [
        says("Hello?"), says([{"type": "refusal", "refusal": "No."}], "assistant", id="msg_1"), says("Again?"),
    ]}),
    Case("history with phases", {"input": [
        says("I should greet.", "assistant", phase="commentary"),
        says("Hi.", "assistant", phase="final_answer"),
        says("Again?"),
    ]}),
    Case("image by address", {"input": [says([text("Describe it."), {
        "type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"}])]}),
    Case("image as data", {"input": [says([{
        "type": "input_image", "image_url": f"data:image/png;base64,{PNG}", "detail": "auto"}])]}),
    Case("file as data", {"input": [says([text("Read it."), {
        "type": "input_file", "filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PDF}"}])]}),
    Case("reasoning in history", {"input": [
        says("Hello?"),
        {"type": "reasoning", "id": "rs_1", "summary": [text("I greet.", "summary_text")], "encrypted_content": None},
        {"type": "reasoning", "id": "rs_2", "summary": [], "content": [text("Politely.", "reasoning_text")]},
        says([{**text("Hi.", "output_text"), "annotations": []}], "assistant", id="msg_1", status="completed"),
        says("Again?"),
    ]}),
    Case("unicode", {"input": "".join(UNICODE), "instructions": "漢字 👩‍👩‍👧"}, Script(UNICODE)),
    # Tools
    Case("a function is called", {"input": ASKED, "tools": [function()]}, CALLS_WEATHER),
    Case("a function without optional fields", {
        "input": ASKED, "tools": [{"type": "function", "name": "weather", "parameters": None, "strict": None}],
    }, CALLS_WEATHER),
    Case("a function is not called", {"input": ASKED, "tools": [function()], "tool_choice": "auto"}),
    Case("a function has to be called", {"input": ASKED, "tools": [function()], "tool_choice": "required"},
         CALLS_WEATHER),
    Case("no function may be called", {"input": ASKED, "tools": [function()], "tool_choice": "none"}),
    Case("a chosen function", {
        "input": ASKED, "tools": [function(), function("time")], "tool_choice": {"type": "function", "name": "weather"},
    }, CALLS_WEATHER),
    Case("allowed functions", {
        "input": ASKED, "tools": [function(), function("time")],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
    }, CALLS_WEATHER),
    Case("text before a call", {"input": ASKED, "tools": [function()]}, Script(
        ("Let me", " look."), calls=CALLS_WEATHER.calls)),
    Case("twelve calls", {"input": ASKED, "tools": [function()], "parallel_tool_calls": True}, Script(calls=MANY)),
    Case("twelve calls in a chunk each", {"input": ASKED, "tools": [function()]}, Script(calls=MANY, chunking="whole")),
    Case("three calls at the same time", {"input": ASKED, "tools": [function()]}, Script(
        calls=(*MANY[:2], Call("weather", ('{"ci', 'ty": "', 'Oslo', '"}'))), chunking="interleaved")),
    Case("calls of an engine that stops", {"input": ASKED, "tools": [function()]}, Script(
        ("Let me look.",), calls=MANY[:2], finish="stop")),
    Case("a call that the limit ends", {"input": ASKED, "tools": [function()], "max_output_tokens": 16}, Script(
        calls=(Call("weather", ('{"city": ', '"Os')),), finish="length"), "incomplete"),
    Case("calls of a custom tool at the same time", {"input": "Run it.", "tools": [PATCH]}, Script(calls=(
        Call("apply_patch", ('{"input": "a', 'b"}')), Call("apply_patch", ('{"inp', 'ut": "c"}'))),
        chunking="interleaved"), custom=frozenset({"apply_patch"})),
    Case("one call at a time", {"input": ASKED, "tools": [function()], "parallel_tool_calls": False}, CALLS_WEATHER),
    Case("a call without arguments", {"input": ASKED, "tools": [function()]}, Script(calls=(
        Call("weather", ("{}",)),))),
    Case("a call with unicode", {"input": ASKED, "tools": [function()]}, Script(
        calls=(Call("weather", ('{"city": "', "Trom", "sø", " 👩‍👩‍👧", '"}')),), dialect="openai")),
    Case("a long call", {"input": ASKED, "tools": [function()]}, Script(calls=(
        Call("weather", ('{"city": "', *LONG[:500], '"}')),))),
    Case("the result of a call", {"input": [
        *ROUND_TRIP, {"type": "function_call_output", "call_id": "call_1", "output": "Sunny"},
    ], "tools": [function()]}),
    Case("the result of a call in parts", {"input": [
        *ROUND_TRIP, {"type": "function_call_output", "call_id": "call_1", "output": [text("Sunny")]},
    ], "tools": [function()]}),
    Case("a custom tool", {"input": "Edit it.", "tools": [PATCH]}, Script(calls=(
        Call("apply_patch", ('{"input": "*** Begin', " Patch\\n", '+ü\\"\\n*** End Patch"}')),)),
        custom=frozenset({"apply_patch"})),
    Case("a custom tool of text", {
        "input": "Run it.", "tools": [{"type": "custom", "name": "run"}],
        "tool_choice": {"type": "custom", "name": "run"},
    }, Script(calls=(Call("run", ('{"input": "ls"}',)),)), custom=frozenset({"run"})),
    Case("the result of a custom tool", {"input": [
        says("Edit it."),
        {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_1", "name": "apply_patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "call_1", "output": "Done"},
    ], "tools": [PATCH]}),
    Case("a namespace", {"input": ASKED, "tools": [NAMESPACE, function()]}, CALLS_WEATHER),
    Case("a function of a namespace", {"input": ASKED, "tools": [NAMESPACE]}, Script(calls=(
        Call("home__lights", ('{"city": ', '"Oslo"}')),))),
    Case("the result of a function of a namespace", {"input": [
        *ASKED,
        {"type": "function_call", "call_id": "call_1", "namespace": "home", "name": "lights", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "on"},
    ], "tools": [NAMESPACE]}),
    Case("additional tools", {"input": [
        {"type": "additional_tools", "role": "developer", "tools": [function()]}, *ASKED,
    ]}, CALLS_WEATHER),
    # Reasoning
    Case("reasoning", {"input": "Think.", "reasoning": {"effort": "low"}}, Script(("42",), ("I ", "think."))),
    Case("reasoning with a summary", {
        "input": "Think.", "reasoning": {"effort": "high", "summary": "auto"},
        "include": ["reasoning.encrypted_content"], "store": False,
    }, Script(("42",), ("I ", "think."), reasoning_field="reasoning")),
    Case("reasoning before a call", {"input": ASKED, "tools": [function()], "reasoning": {"effort": "medium"}}, Script(
        reasoning=("I look.",), calls=CALLS_WEATHER.calls)),
    Case("reasoning to the limit", {"input": "Think.", "max_output_tokens": 16, "reasoning": {"effort": "high"}},
         Script(reasoning=("I ", "think"), finish="length"), "incomplete"),
    Case("no reasoning", {"input": "Answer.", "reasoning": {"effort": "none", "summary": None}}),
    # Formats of text
    Case("a JSON schema", {"input": "Who?", "text": {"format": {
        "type": "json_schema", "name": "person", "schema": PERSON, "strict": True}}}, Script(('{"name"', ': "Ada"}'))),
    Case("a JSON object", {"input": "Who? In JSON.", "text": {"format": {"type": "json_object"}}}, Script((
        '{"a"', ": 1}"))),
    Case("text of low verbosity", {"input": "Who?", "text": {"format": {"type": "text"}, "verbosity": "low"}}),
    Case("logprobs", {
        "input": "Hello?", "include": ["message.output_text.logprobs"], "top_logprobs": 2,
    }, Script(("Hello", " thére", " 👩‍👩‍👧"), logprobs=True)),
    # Limits and ends
    Case("a limit", {"input": "Hello?", "max_output_tokens": 16}, Script(("Hello", " the"), finish="length"),
         "incomplete"),
    Case("a filter", {"input": "Hello?"}, Script(("Hello",), finish="content_filter"), "incomplete"),
    Case("a refusal", {"input": "Hello?"}, Script(refusal=("I", " cannot."), dialect="openai")),
    Case("an answer in parts", {"input": "Hello?"}, Script(("Hello", " there", "."), in_parts=True)),
    Case("an empty answer", {"input": "Hello?"}, Script()),
    Case("an answer of one space", {"input": "Hello?"}, Script((" ",), dialect="openai")),
    Case("a long answer", {"input": "Hello?"}, Script(LONG)),
    Case("an answer as OpenAI writes it", {"input": "Hello?"}, Script(("Hello", "."), dialect="openai", usage={
        "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 0}})),
    Case("an engine without usage", {"input": "Hello?"}, Script(("Hello", "."), usage=None)),
    # Other fields
    Case("sampling", {"input": "Hello?", "temperature": 0, "top_p": 0.5}),
    Case("null fields", {"input": "Hello?", **dict.fromkeys((
        "instructions", "temperature", "top_p", "max_output_tokens", "metadata", "include", "reasoning", "store",
        "parallel_tool_calls", "previous_response_id", "truncation", "user", "service_tier", "background"))}),
    Case("account fields", {
        "input": "Hello?", "metadata": {"trace": "1"}, "user": "u", "safety_identifier": "s", "prompt_cache_key": "k",
        "service_tier": "auto", "truncation": "disabled", "store": False, "background": False,
        "stream_options": {"include_obfuscation": False}, "prompt_cache_retention": "24h",
    }),
    Case("unknown fields", {
        "input": [says([{**text("Hello?"), "prompt_cache_breakpoint": {"mode": "x"}}], internal=1)],
        "client_metadata": {"a": "b"}, "context_management": [{"type": "compaction"}],
        "something_new": [1, {"b": None}],
        "tools": [function(defer_loading=True, something={"new": 1})], "reasoning": {"effort": "low", "context": "x"},
        "text": {"verbosity": "high", "something": 1}, "include": ["something.new"],
    }),
    # Failures within a stream
    Case("an error within a stream", {"input": "Hello?"}, Script(("Hello", " the"), failure="error event"), "failed"),
    Case("a stream that is cut", {"input": "Hello?"}, Script(("Hello", " the"), failure="cut"), "failed"),
    Case("an error within a call", {"input": ASKED, "tools": [function()]}, Script(
        calls=CALLS_WEATHER.calls, failure="error event"), "failed"),
    Case("an error within reasoning", {"input": "Think.", "reasoning": {"effort": "low"}}, Script(
        reasoning=("I ", "think"), failure="error event"), "failed"),
]  # fmt: skip

REFUSED = [
    Refused("an unknown model", {"model": "nobody", "input": "Hello?"}, 404, "model"),
    Refused("no model", {"model": None, "input": "Hello?"}, 400, "model"),
    Refused("input of a number", {"input": 5}, 400, "input"),
    Refused("an unknown role", {"input": [says("Hello?", "nobody")]}, 400, "input[0].role"),
    Refused("an unknown part", {"input": [says("A"), says([text("B"), text("C", "nothing")])]}, 400,
            "input[1].content[1].type"),
    Refused("an unknown item", {"input": [says("A"), {"type": "nothing"}]}, 400, "input[1].type"),
    Refused("an output without its call", {"input": [{"type": "function_call_output", "output": "a"}]}, 400,
            "input[0].call_id"),
    Refused("a hosted tool", {"input": "Hello?", "tools": [function(), {"type": "web_search"}]}, 400, "tools[1].type"),
    Refused("a function without a name", {"input": "Hello?", "tools": [{"type": "function"}]}, 400, "tools[0].name"),
    Refused("a limit of text", {"input": "Hello?", "max_output_tokens": "ten"}, 400, "max_output_tokens"),
    Refused("a temperature above the range", {"input": "Hello?", "temperature": 3}, 400, "temperature"),
    Refused("a schema without a name", {
        "input": "Hello?", "text": {"format": {"type": "json_schema", "schema": PERSON}}}, 400, "text.format.name"),
    Refused("a result for a response that is not stored", {
        "input": [{"type": "function_call_output", "call_id": "call_1", "output": "a"}],
        "previous_response_id": "resp_nothing"}, 404, "previous_response_id"),
    Refused("a response that is not stored", {"input": "Hello?", "previous_response_id": "resp_nothing"}, 404,
            "previous_response_id"),
]  # fmt: skip
