"""Output items and usage of the Responses API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import orjson
from msgspec import Raw, Struct
from msgspec.json import Decoder

from gateway.protocol.responses.items import encode_reasoning

if TYPE_CHECKING:
    from gateway.protocol.body import Json
    from gateway.protocol.responses.tools import CalledTool

ItemStatus = Literal["in_progress", "completed", "incomplete"]

INDEX_DIGITS = 4
"""Digits at the end of an item's id, which contains the response's id. The index of the item has at most this many."""

NO_ARGUMENTS = "{}"
"""The arguments of a complete call for which an engine wrote none. Clients parse them as JSON."""

_COMPLETE = frozenset({"stop", "tool_calls", "function_call"})  # `finish_reason` of a complete answer


def incomplete_reason(finish_reason: str | None) -> str | None:
    """Return why an answer is incomplete; None: it is complete. An engine's unknown reason counts as a cut."""
    if not finish_reason or finish_reason in _COMPLETE:
        return None
    return "content_filter" if finish_reason == "content_filter" else "max_output_tokens"


def text_part(text: str, logprobs: list[Json]) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def refusal_part(refusal: str) -> Json:
    return {"type": "refusal", "refusal": refusal}


def message_item(item_id: str, content: list[Json], status: ItemStatus) -> Json:
    return {"type": "message", "id": item_id, "status": status, "role": "assistant", "content": content}


def reasoning_item(item_id: str, text: str, status: ItemStatus, *, as_summary: bool, encoded: bool) -> Json:
    """Return a reasoning item. With `encoded`, the client can send it back without loss."""
    item: Json = {"type": "reasoning", "id": item_id, "status": status, "summary": []}
    if as_summary and text:
        item["summary"] = [{"type": "summary_text", "text": text}]
    elif text:
        item["content"] = [{"type": "reasoning_text", "text": text}]
    if encoded:
        item["encrypted_content"] = encode_reasoning(text)
    return item


def call_item(item_id: str, call_id: str, tool: CalledTool, value: str, status: ItemStatus) -> Json:
    """Return the call of a tool. `value` is a function's arguments or a custom tool's input."""
    if tool.kind == "tool_search":
        arguments = decoded(value)
        item: Json = {"type": "tool_search_call", "execution": "client", "arguments": arguments}
        return {**item, "id": item_id, "call_id": call_id, "status": status}
    item = {"id": item_id, "call_id": call_id, "name": tool.name, "status": status}
    if tool.namespace is not None:
        item["namespace"] = tool.namespace
    if tool.kind == "custom":
        return {"type": "custom_tool_call", **item, "input": value}
    return {"type": "function_call", **item, "arguments": value}


def decoded(arguments: str) -> Any:
    """Return the arguments of a call as a value; as they are, if they are no JSON."""
    try:
        return orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return arguments


def usage_object(usage: Json) -> Json:
    """Return a chat's usage in the names of the Responses API."""
    read, written = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": read.get("cached_tokens") or 0,
            "cache_write_tokens": read.get("cache_write_tokens") or 0,
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": written.get("reasoning_tokens") or 0},
        "total_tokens": usage["total_tokens"],
    }


def logprobs_of(choice: Json) -> list[Any]:
    """Return the log probabilities of a choice's content, with all fields.

    Those of a large reply arrive as JSON and stay JSON: as objects they would need many times its memory. That takes up
    to 0.3 s, so convert large replies in a thread.
    """
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, orjson.Fragment):
        encoded = _ENCODED.decode(orjson.dumps(logprobs)).content or ()
        return [orjson.Fragment(orjson.dumps(_logprob(orjson.loads(bytes(entry))))) for entry in encoded]
    entries = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [_logprob(entry) for entry in entries or ()]


class _Logprobs(Struct):
    content: list[Raw] | None = None


_ENCODED = Decoder(_Logprobs)


def _logprob(entry: Json) -> Json:
    token = _token(entry)
    token["top_logprobs"] = [_token(top) for top in entry.get("top_logprobs") or ()]
    return token


def _token(entry: Json) -> Json:
    token = entry.get("token", "")
    given = entry.get("bytes")
    return {
        "token": token,
        "logprob": entry.get("logprob", 0.0),
        "bytes": list(token.encode()) if given is None else given,
    }
