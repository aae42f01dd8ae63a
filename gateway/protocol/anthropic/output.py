"""Convert a chat completion to a message of Anthropic's API."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import orjson

from gateway.protocol.anthropic.content import UNPARSED
from gateway.protocol.messages import text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.protocol.anthropic.blocks import Json

_REASONS = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
# The stop string that an engine reports: vLLM and SGLang. Either may be a token id instead.
_MATCHES = ("stop_reason", "matched_stop")


class MessageStop(NamedTuple):
    """The end of a message."""

    reason: str
    sequence: str | None = None

    @classmethod
    def of(cls, choice: Json, stops: Sequence[str], *, has_calls: bool, is_refused: bool) -> MessageStop:
        """Return the end of a choice, whose `finish_reason` is set."""
        if is_refused:
            return cls("refusal")
        finish = choice["finish_reason"]
        if finish in _REASONS:
            return cls(_REASONS[finish])
        if has_calls:  # an engine that had to call a tool reports "stop"
            return cls("tool_use")
        matched = next((choice[name] for name in _MATCHES if choice.get(name) in stops), None)
        return cls("end_turn") if matched is None else cls("stop_sequence", matched)


def message_of(completion: Json, request_id: str, stops: Sequence[str], *, shows_thinking: bool) -> Json:
    """Return the message for a complete chat reply."""
    choice = completion["choices"][0]
    source = choice["message"]
    content = thinking_blocks(source) if shows_thinking else []
    text, refusal = text_of(source.get("content")), source.get("refusal")
    content += [{"type": "text", "text": one} for one in (text, refusal) if one]
    calls = tool_calls_of(source)
    content += [_tool_use(call, tool_id(request_id, index)) for index, call in enumerate(calls)]
    stop = MessageStop.of(choice, stops, has_calls=bool(calls), is_refused=bool(refusal))
    return message_head(request_id, completion["model"]) | {
        "content": content,
        "stop_reason": stop.reason,
        "stop_sequence": stop.sequence,
        "usage": whole_usage(completion["usage"]),
    }


def message_head(request_id: str, model: str) -> Json:
    """Return the message without content, for the beginning of a stream."""
    return {
        "id": f"msg_{request_id}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": whole_usage({"prompt_tokens": 0, "completion_tokens": 0}),
    }


def tool_id(request_id: str, index: int) -> str:
    """Return the id of a call to which the engine gave none."""
    return f"toolu_{request_id}_{index}"


def thinking_blocks(message: Json) -> list[Json]:
    """Return the blocks of a message's reasoning. Only Anthropic's models sign them.

    A reply that was collected from a stream has the parts of its blocks.
    """
    blocks: list[Json] = []
    for part in message.get("thinking_blocks") or ():
        if part.get("type") != "thinking":
            blocks.append(part)
            continue
        if not blocks or blocks[-1].get("signature") != "":
            blocks.append({"type": "thinking", "thinking": "", "signature": ""})
        blocks[-1]["thinking"] += part.get("thinking") or ""
        blocks[-1]["signature"] = part.get("signature") or ""
    if not blocks and (reasoning := reasoning_of(message)):
        blocks.append({"type": "thinking", "thinking": reasoning, "signature": ""})
    return blocks


def reasoning_of(message: Json) -> str:
    """Return the reasoning of a message or a delta, in the field of the engine."""
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    return reasoning if isinstance(reasoning, str) else ""


def tool_calls_of(message: Json) -> list[Json]:
    """Return the tool calls of a message or a delta."""
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def function_of(call: Json) -> tuple[str, str]:
    """Return the name and the arguments of a tool call, or the parts of them in a delta."""
    function = call.get("function")
    if not isinstance(function, dict):
        return "", ""
    arguments = function.get("arguments") or ""
    if not isinstance(arguments, str):  # some engines send an object
        arguments = orjson.dumps(arguments).decode()
    return str(function.get("name") or ""), arguments


def _tool_use(call: Json, default_id: str) -> Json:
    name, arguments = function_of(call)
    return {"type": "tool_use", "id": call.get("id") or default_id, "name": name, "input": _input(arguments or "{}")}


def _input(arguments: str) -> Json:
    """Return the input of a tool. A text that is no JSON object, such as one that was cut, is kept as a text."""
    try:
        given = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        given = None
    return given if isinstance(given, dict) else {UNPARSED: arguments}


def usage_of(usage: Json) -> Json:
    """Return Anthropic's counts. `input_tokens` excludes those read from the cache or written to it."""
    details = usage.get("prompt_tokens_details") or {}
    cached, written = details.get("cached_tokens") or 0, details.get("cache_write_tokens") or 0
    return {
        "input_tokens": max(0, usage["prompt_tokens"] - cached - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "output_tokens": usage["completion_tokens"],
        "server_tool_use": None,
    }


def whole_usage(usage: Json) -> Json:
    """Return the counts with the other fields that a message has."""
    return {**usage_of(usage), "cache_creation": None, "service_tier": None}
