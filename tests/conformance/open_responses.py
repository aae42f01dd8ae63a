"""The Open Responses specification of 2026-04-24 as data: required fields with their types, and the cases of its suite.

Source: github.com/openresponses/openresponses, `public/openapi/2026-04-24` and `src/lib/compliance-tests.ts`. The
requests here are our own; the suite itself can be run from a checkout, see test_open_responses.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.conformance.cases import CITY, PDF, PLAIN, PNG
from tests.conformance.scripted_engine import Call, Script

NoneType = type(None)
Types = tuple[type, ...]

RESPONSE: dict[str, Types] = {
    "id": (str,), "object": (str,), "created_at": (int,), "completed_at": (int, NoneType), "status": (str,),
    "incomplete_details": (dict, NoneType), "model": (str,), "previous_response_id": (str, NoneType),
    "instructions": (str, NoneType), "output": (list,), "error": (dict, NoneType), "tools": (list,),
    "tool_choice": (str, dict), "truncation": (str,), "parallel_tool_calls": (bool,), "text": (dict,),
    "top_p": (int, float), "presence_penalty": (int, float), "frequency_penalty": (int, float),
    "top_logprobs": (int,), "temperature": (int, float), "reasoning": (dict, NoneType), "usage": (dict, NoneType),
    "max_output_tokens": (int, NoneType), "max_tool_calls": (int, NoneType), "store": (bool,), "background": (bool,),
    "service_tier": (str,), "metadata": (dict, NoneType), "safety_identifier": (str, NoneType),
    "prompt_cache_key": (str, NoneType),
}  # fmt: skip
"""Required fields of a response."""
NESTED: dict[str, dict[str, Types]] = {
    "usage": {"input_tokens": (int,), "output_tokens": (int,), "total_tokens": (int,), "input_tokens_details": (dict,),
              "output_tokens_details": (dict,)},
    "text": {"format": (dict,)},
    "reasoning": {"effort": (str, NoneType), "summary": (str, NoneType)},
    "error": {"code": (str,), "message": (str,)},
    "incomplete_details": {"reason": (str,)},
}  # fmt: skip
"""Required fields of a response's objects."""
ITEMS: dict[str, dict[str, Types]] = {
    "message": {"id": (str,), "status": (str,), "role": (str,), "content": (list,)},
    "function_call": {"id": (str,), "call_id": (str,), "name": (str,), "arguments": (str,), "status": (str,)},
    "reasoning": {"id": (str,), "summary": (list,)},
}
"""Required fields of output items."""
FUNCTION_TOOL: dict[str, Types] = {
    "type": (str,), "name": (str,), "description": (str, NoneType), "parameters": (dict, NoneType),
    "strict": (bool, NoneType),
}  # fmt: skip
"""Required fields of a function in `tools` of a response."""
_AT: dict[str, Types] = {"item_id": (str,), "output_index": (int,)}
_IN_PART: dict[str, Types] = {**_AT, "content_index": (int,)}
EVENTS: dict[str, dict[str, Types]] = {
    "response.created": {"response": (dict,)},
    "response.in_progress": {"response": (dict,)},
    "response.completed": {"response": (dict,)},
    "response.failed": {"response": (dict,)},
    "response.incomplete": {"response": (dict,)},
    "response.output_item.added": {"output_index": (int,), "item": (dict,)},
    "response.output_item.done": {"output_index": (int,), "item": (dict,)},
    "response.content_part.added": {**_IN_PART, "part": (dict,)},
    "response.content_part.done": {**_IN_PART, "part": (dict,)},
    "response.output_text.delta": {**_IN_PART, "delta": (str,)},
    "response.output_text.done": {**_IN_PART, "text": (str,)},
    "response.function_call_arguments.delta": {**_AT, "delta": (str,)},
    "response.function_call_arguments.done": {**_AT, "arguments": (str,)},
}
"""Required fields of the events that the suite's cases produce, besides `type` and `sequence_number`."""


def shape_errors(shape: dict[str, Types], value: dict[str, Any], path: str = "") -> list[str]:
    """Return the fields that are missing or have a wrong type."""
    errors = [f"{path}{name} is missing" for name in shape if name not in value]
    for name, types in shape.items():
        # In Python, but not in JSON, a bool is an int.
        if name in value and type(value[name]) not in types:
            errors.append(f"{path}{name} is {value[name]!r}")
    return errors


def response_errors(response: dict[str, Any]) -> list[str]:
    """Return what is wrong in a response by the specification."""
    errors = shape_errors(RESPONSE, response)
    for name, shape in NESTED.items():
        if isinstance(response.get(name), dict):
            errors += shape_errors(shape, response[name], f"{name}.")
    for index, item in enumerate(response.get("output") or []):
        errors += shape_errors(ITEMS[item["type"]], item, f"output[{index}].")
    for index, tool in enumerate(response.get("tools") or []):
        errors += shape_errors(FUNCTION_TOOL, tool, f"tools[{index}].")
    return errors


def event_errors(event: dict[str, Any]) -> list[str]:
    """Return what is wrong in an event by the specification."""
    errors = shape_errors({"sequence_number": (int,), **EVENTS[event["type"]]}, event)
    return errors + (response_errors(event["response"]) if "response" in event else [])


@dataclass(frozen=True)
class SuiteCase:
    """A case of the suite.

    Attributes:
        id: the suite's name for it.
        requests: bodies without `model`; the later ones continue the response to the one before.
        scripts: the engine's answer to each request.
        item: a type of item that the last response must have.
        events: names of events that the stream must have.
    """

    id: str
    requests: tuple[dict[str, Any], ...]
    scripts: tuple[Script, ...] = (PLAIN,)
    item: str | None = None
    stream: bool = False
    events: frozenset[str] = frozenset()


def _user(content: Any) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": content}


_ASKED = [_user("How is the weather in Bergen?")]
_WEATHER = {"type": "function", "name": "weather", "description": "The weather of a city.", "parameters": CITY}
_CALLS = Script(calls=(Call("weather", ('{"city": ', '"Bergen"}')),))
_CALL_EVENTS = frozenset(
    {"response.output_item.added", "response.function_call_arguments.delta", "response.function_call_arguments.done"}
)
CASES = [
    SuiteCase("basic-response", ({"input": [_user("Greet me in three words.")]},)),
    SuiteCase("assistant-phase", ({"input": [
        {"type": "message", "role": "assistant", "phase": "commentary", "content": "I add the numbers."},
        {"type": "message", "role": "assistant", "phase": "final_answer", "content": "It is five."},
        _user("Say it again."),
    ]},)),
    SuiteCase("streaming-response", ({"input": [_user("Count to three.")]},), stream=True,
              events=frozenset({"response.output_text.delta", "response.completed"})),
    SuiteCase("system-prompt", ({"input": [
        {"type": "message", "role": "system", "content": "Talk like a sailor."}, _user("Greet me."),
    ]},)),
    SuiteCase("tool-calling", ({"input": _ASKED, "tools": [_WEATHER]},), (_CALLS,), "function_call"),
    SuiteCase("tool-calling-streaming", ({"input": _ASKED, "tools": [_WEATHER]},), (_CALLS,), "function_call",
              stream=True, events=_CALL_EVENTS),
    SuiteCase("image-input", ({"input": [_user([
        {"type": "input_text", "text": "Which color is it?"},
        {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"},
    ])]},)),
    SuiteCase("file-input", ({"input": [_user([
        {"type": "input_text", "text": "What is the title?"},
        {"type": "input_file", "filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PDF}"},
    ])]},)),
    SuiteCase("multi-turn", ({"input": [
        _user("I am Bo."), {"type": "message", "role": "assistant", "content": "Hello, Bo."}, _user("Who am I?"),
    ]},)),
    SuiteCase("previous-response-id", (
        {"input": "The word is mango."}, {"input": "Which word did I say?"}), (PLAIN, Script(("Mango",)))),
    SuiteCase("function-call-roundtrip", (
        {"input": "Look up the weather in Bergen.", "tools": [_WEATHER],
         "tool_choice": {"type": "function", "name": "weather"}},
        {"input": [{"type": "function_call_output", "call_id": "call_scripted_0", "output": "9 degrees, rain"}]},
    ), (_CALLS, PLAIN)),
]  # fmt: skip

NOT_OFFERED = {
    "compact-response": "POST /v1/responses/compact",
    "compact-missing-model": "POST /v1/responses/compact",
    "file-search": "a hosted tool",
    "offline-web-search": "a hosted tool",
    "websocket-": "the WebSocket mode",
}
"""Cases of the suite, or beginnings of their ids, for which there is no endpoint or tool here."""
