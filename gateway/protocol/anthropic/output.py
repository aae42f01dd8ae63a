"""Convert a chat completion to a message of Anthropic's API."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import orjson

from gateway.protocol.anthropic.content import UNPARSED
from gateway.protocol.messages import function_of, reasoning_of, text_of, tool_calls_of

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


_ENCODABLE_BRACKETS = 200  # fewer than the levels that orjson encodes
_LONG_NUMBER = re.compile(r"\d{16}")  # orjson rounds integers beyond 64 bits


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


def message_head(request_id: str, model: str, input_tokens: int = 0) -> Json:
    """Return the message without content, for the beginning of a stream."""
    return {
        "id": f"msg_{request_id}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": whole_usage({"prompt_tokens": input_tokens, "completion_tokens": 0}),
    }


def tool_id(request_id: str, index: int) -> str:
    """Return the id of a call to which the engine gave none."""
    return f"toolu_{request_id}_{index}"


def thinking_blocks(message: Json) -> list[Json]:
    """Return the blocks of a message's reasoning. Only Anthropic's models sign them.

    A reply that was collected from a stream has the parts of its blocks.
    """
    blocks: list[Json] = []
    for part in thinking_parts(message):
        if part["type"] != "thinking":
            blocks.append(part)
            continue
        if not blocks or blocks[-1].get("signature") != "":
            blocks.append({"type": "thinking", "thinking": "", "signature": ""})
        blocks[-1]["thinking"] += part["thinking"]
        blocks[-1]["signature"] = part["signature"]
    if not blocks and (reasoning := reasoning_of(message)):
        blocks.append({"type": "thinking", "thinking": reasoning, "signature": ""})
    return blocks


def thinking_parts(message: Json) -> list[Json]:
    """Return the blocks of a message, or the parts of them in a delta. They are empty where an engine sends no text."""
    fields = {"thinking": ("thinking", "signature"), "redacted_thinking": ("data",)}
    blocks = message.get("thinking_blocks")
    return [
        {"type": kind, **{name: text if isinstance(text := block.get(name), str) else "" for name in names}}
        for block in (blocks if isinstance(blocks, list) else ())
        if isinstance(block, dict) and (names := fields.get(kind := str(block.get("type")))) is not None
    ]


def _tool_use(call: Json, default_id: str) -> Json:
    name, arguments = function_of(call)
    return {"type": "tool_use", "id": call.get("id") or default_id, "name": name, "input": _input(arguments or "{}")}


def _input(arguments: str) -> Json | orjson.Fragment:
    """Return the input of a tool. A text that is no JSON object, such as one that was cut, is kept as a text.

    An object stays as the model wrote it if encoding it again could fail or change a number.
    """
    try:
        given = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        given = None
    if not isinstance(given, dict):
        return {UNPARSED: arguments}
    is_deep = arguments.count("{") + arguments.count("[") > _ENCODABLE_BRACKETS
    return orjson.Fragment(arguments) if is_deep or _LONG_NUMBER.search(arguments) else given


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
