"""Between OpenAI's chat completions and LiteLLM's: what of a caller's body may become an argument, and what comes back.

LiteLLM takes addresses, keys, headers, callbacks and mock answers as arguments of the same call that takes the
temperature. So only names on a list go to it, and nothing of a message that would make it fetch something.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.protocol.body import Json

_PASSED = frozenset(
    {
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "modalities",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
    }
)
# The engine says these itself, or they are about the caller's own books.
_LEFT_OUT = frozenset({"model", "stream", "stream_options", "metadata", "store"})
# OpenAI's defaults: said or not, the answer is the same.
_SAYS_NOTHING: Json = {
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
    "modalities": ["text"],
    "n": 1,
    "parallel_tool_calls": True,
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "service_tier": "auto",
    "stop": [],
    "top_logprobs": 0,
}
# OpenAI promises little for them: an answer without is still what was asked for.
_LOSABLE = frozenset({"prompt_cache_key", "safety_identifier", "seed", "service_tier", "user"})
_NEVER_UNSUPPORTED = frozenset({"messages"})

_ADDRESS = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")
# Words, and what tools are called with: no provider's translation looks for addresses there. Content has parts.
_OF_WORDS = frozenset(
    {"content", "function_call", "name", "reasoning_content", "refusal", "role", "tool_call_id", "tool_calls"}
)
_REFERENCES = frozenset({"url", "uri", "image_url", "file_id", "file_uri", "video_url", "path"})


class BodyUnsupported(ValueError):
    """A body that cannot go to LiteLLM. `param` is the field that it is about."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def arguments(body: Json, supported: frozenset[str] | None) -> Json:
    """The arguments that a chat body stands for. `supported`: the parameters that the provider takes, where known.

    Raises:
        Refused: for a field that is not OpenAI's, one that the provider does not take, and an address to fetch from.
    """
    sent: Json = {}
    for name, value in body.items():
        if value is None or name in _LEFT_OUT or (name in _SAYS_NOTHING and value == _SAYS_NOTHING[name]):
            continue
        if name not in _PASSED:
            raise BodyUnsupported(f"'{name}' cannot be sent to it.", name)
        if supported is not None and name not in supported and name not in _NEVER_UNSUPPORTED:
            if name in _LOSABLE:
                continue
            if name not in {"max_tokens", "max_completion_tokens"}:
                raise BodyUnsupported(f"its provider does not take '{name}'.", name)
        sent[name] = value
    _check_tools(sent.get("tools", ()))
    _check_messages(sent["messages"])
    return sent


def _check_tools(tools: Iterable[Any]) -> None:
    """Functions only: the other types are servers that LiteLLM, or the provider, would call."""
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            at = f"tools[{index}].type"
            raise BodyUnsupported(f"'{at}': only functions can be sent to it.", at)


def _check_messages(messages: Iterable[Json]) -> None:
    for index, message in enumerate(messages):
        content = message.get("content")
        for place, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and part.get("type") != "text" and _points_elsewhere(part):
                raise _address_at(f"messages[{index}].content[{place}]")
        for name, value in message.items():
            if name not in _OF_WORDS and _points_elsewhere(value, name):
                raise _address_at(f"messages[{index}].{name}")


def _address_at(at: str) -> BodyUnsupported:
    return BodyUnsupported(f"'{at}' holds an address. Send the data itself, as a data: URL.", at)


def _points_elsewhere(value: Any, name: str = "") -> bool:
    """Whether LiteLLM could take something in it for an address, and fetch what is there."""
    if isinstance(value, str):
        if value.lstrip()[:5].lower() == "data:":
            return False
        return name in _REFERENCES or _ADDRESS.match(value) is not None
    if isinstance(value, dict):
        return any(_points_elsewhere(one, key) for key, one in value.items())
    return isinstance(value, list) and any(_points_elsewhere(one, name) for one in value)


_FINISHES = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})


def plain_reply(reply: Any) -> Json:
    """LiteLLM's reply in OpenAI's shape, and nothing of LiteLLM's own."""
    return _whole(reply, [_choice(choice, "message") for choice in reply.choices])


def plain_chunk(chunk: Any) -> Json:
    """Likewise for one chunk of a stream."""
    return _whole(chunk, [_choice(choice, "delta") for choice in chunk.choices or ()])


def _whole(source: Any, choices: list[Json]) -> Json:
    plain: Json = {"choices": choices}
    usage = _usage(getattr(source, "usage", None))
    if usage is not None:
        plain["usage"] = usage
    for name in ("system_fingerprint", "service_tier"):
        value = getattr(source, name, None)
        if isinstance(value, str):
            plain[name] = value
    return plain


def _choice(choice: Any, holder: str) -> Json:
    reason = getattr(choice, "finish_reason", None)
    return {
        "index": getattr(choice, "index", 0) or 0,
        holder: _said(getattr(choice, holder, None), whole=holder == "message"),
        "logprobs": _dumped(getattr(choice, "logprobs", None)),
        # A reason that nobody knows is no end.
        "finish_reason": None if reason is None else reason if reason in _FINISHES else "length",
    }


def _said(source: Any, *, whole: bool) -> Json:
    said: Json = {"role": "assistant", "content": None, "refusal": None} if whole else {}
    for name in ("role", "content", "refusal", "reasoning_content"):
        value = getattr(source, name, None)
        if isinstance(value, str):
            said[name] = value
    if calls := getattr(source, "tool_calls", None):
        said["tool_calls"] = [_tool_call(call, whole=whole) for call in calls]
    if (function := getattr(source, "function_call", None)) is not None:
        said["function_call"] = _function(function)
    if (audio := _dumped(getattr(source, "audio", None))) is not None:
        said["audio"] = audio
    return said


def _tool_call(call: Any, *, whole: bool) -> Json:
    plain: Json = {} if whole else {"index": getattr(call, "index", 0) or 0}
    for name in ("id", "type"):
        value = getattr(call, name, None)
        if isinstance(value, str):
            plain[name] = value
    plain["function"] = _function(getattr(call, "function", None))
    return plain


def _function(function: Any) -> Json:
    values = {name: getattr(function, name, None) for name in ("name", "arguments")}
    return {name: value for name, value in values.items() if isinstance(value, str)}


def _usage(usage: Any) -> Json | None:
    """OpenAI's usage; None where the engine did not count, which LiteLLM says in zeros."""
    if usage is None:
        return None
    read, written = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
    if not read or written is None:
        return None
    plain: Json = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    details = getattr(usage, "prompt_tokens_details", None)
    # The second names are Anthropic's.
    cached = getattr(details, "cached_tokens", None) or getattr(usage, "cache_read_input_tokens", None)
    stored = getattr(details, "cache_write_tokens", None) or getattr(usage, "cache_creation_input_tokens", None)
    if cached or stored:
        plain["prompt_tokens_details"] = {"cached_tokens": cached or 0}
    if stored:
        plain["prompt_tokens_details"]["cache_write_tokens"] = stored
    return plain


def _dumped(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value
