"""Converts OpenAI chat bodies to arguments of LiteLLM, and LiteLLM's replies to OpenAI's shape.

LiteLLM reads addresses, keys, headers, callbacks and mock answers from the same arguments as sampling parameters. So
only listed fields are passed, and messages with addresses that LiteLLM would fetch are rejected.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gateway.engines.chat import CACHE_WRITE_DETAILS
from gateway.engines.replies import finish_reason
from gateway.protocol.reply import usage_body

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.protocol.body import Json

_FORWARDED = frozenset(
    {
        *("audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs"),
        *("max_completion_tokens", "max_tokens", "messages", "modalities", "n", "parallel_tool_calls"),
        *("prediction", "presence_penalty", "prompt_cache_key", "reasoning_effort", "response_format"),
        *("safety_identifier", "seed", "service_tier", "stop", "temperature", "tool_choice", "tools"),
        *("top_logprobs", "top_p", "user", "verbosity"),
    }
)
# Fields that the engine sets itself, or that concern storage at OpenAI.
_OMITTED = frozenset({"model", "stream", "stream_options", "metadata", "store"})
# OpenAI's defaults, which need not be sent.
_DEFAULTS: Json = {
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
# Fields without a guaranteed effect, omitted if the provider does not support them.
_OPTIONAL = frozenset({"prompt_cache_key", "safety_identifier", "seed", "service_tier", "user"})
_TOOL_FIELDS = frozenset({"type", "name", "cache_control"})
_NEVER_UNSUPPORTED = frozenset({"messages"})

_ADDRESS = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")
# Fields with text or tool arguments, in which no translation looks for addresses. Parts of content are checked apart.
_TEXT_FIELDS = frozenset(
    {
        "content",
        "function_call",
        "name",
        "reasoning_content",
        "refusal",
        "role",
        "thinking_blocks",
        "tool_call_id",
        "tool_calls",
    }
)
_REFERENCES = frozenset({"url", "uri", "image_url", "file_id", "file_uri", "video_url", "path"})


class BodyUnsupported(ValueError):
    """A body that cannot be sent to LiteLLM. `param` is the field at fault."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def arguments(body: Json, supported: frozenset[str] | None, *, knows_client_tools: bool = False) -> Json:
    """Return the arguments for a chat body. `supported` are the provider's parameters; None: not known.

    `knows_client_tools`: tools that Anthropic defines and the caller runs are permitted.

    Raises BodyUnsupported if a field is not OpenAI's or the provider's, or a message has an address to fetch.
    """
    sent: Json = {}
    for name, value in body.items():
        if value is None or name in _OMITTED or (name in _DEFAULTS and value == _DEFAULTS[name]):
            continue
        if name not in _FORWARDED:
            raise BodyUnsupported(f"'{name}' is no parameter of chat completions. Remove it.", name)
        if supported is not None and name not in supported and name not in _NEVER_UNSUPPORTED:
            if name in _OPTIONAL:
                continue
            if name not in {"max_tokens", "max_completion_tokens"}:
                raise BodyUnsupported(f"the provider does not support '{name}'. Remove it.", name)
        sent[name] = value
    if not knows_client_tools:
        _check_tools(sent.get("tools", ()))
    elif "tools" in sent:
        sent["tools"] = [_client_tool(tool) for tool in sent["tools"]]
    _check_messages(sent["messages"])
    return sent


def _check_tools(tools: Iterable[Any]) -> None:
    """Reject all tools but functions: LiteLLM or the provider would call the servers of other types."""
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            at = f"tools[{index}].type"
            raise BodyUnsupported(f"'{at}' must be 'function'.", at)


def _client_tool(tool: Json) -> Json:
    """Return a tool of Anthropic as LiteLLM reads it: the fields of `computer` are parameters of a function."""
    if not tool["type"].startswith("computer_"):
        return tool
    parameters = {name: value for name, value in tool.items() if name not in _TOOL_FIELDS}
    kept: Json = {name: tool[name] for name in ("type", "cache_control") if name in tool}
    return {**kept, "function": {"name": tool.get("name"), "parameters": parameters}}


def _check_messages(messages: Iterable[Json]) -> None:
    for index, message in enumerate(messages):
        content = message.get("content")
        for position, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and part.get("type") != "text" and _has_address(part):
                raise _address_at(f"messages[{index}].content[{position}]")
        for name, value in message.items():
            if name not in _TEXT_FIELDS and _has_address(value, name):
                raise _address_at(f"messages[{index}].{name}")


def _address_at(at: str) -> BodyUnsupported:
    return BodyUnsupported(f"'{at}' contains an address. Send the data as a data: URL.", at)


def _has_address(value: Any, name: str = "") -> bool:
    """Return whether a value contains a string that LiteLLM could fetch as an address."""
    if isinstance(value, str):
        if value.lstrip()[:5].lower() == "data:":
            return False
        return name in _REFERENCES or _ADDRESS.match(value) is not None
    if isinstance(value, dict):
        return any(_has_address(one, key) for key, one in value.items())
    return isinstance(value, list) and any(_has_address(one, name) for one in value)


def plain_reply(reply: Any, *, with_thinking: bool = False) -> Json:
    """Return a reply of LiteLLM in OpenAI's shape, without LiteLLM's own fields. Thinking blocks are Anthropic's."""
    return _whole(reply, [_choice(choice, "message", with_thinking=with_thinking) for choice in reply.choices])


def plain_chunk(chunk: Any, *, with_thinking: bool = False) -> Json:
    """Return a stream chunk of LiteLLM in OpenAI's shape, without LiteLLM's own fields."""
    return _whole(chunk, [_choice(choice, "delta", with_thinking=with_thinking) for choice in chunk.choices or ()])


def _whole(source: Any, choices: list[Json]) -> Json:
    plain: Json = {"choices": choices}
    if (usage := _usage(getattr(source, "usage", None))) is not None:
        plain["usage"] = usage
    return plain | _texts(source, "system_fingerprint", "service_tier")


def _choice(choice: Any, holder: str, *, with_thinking: bool) -> Json:
    reason = getattr(choice, "finish_reason", None)
    source = getattr(choice, holder, None)
    message = _message(source, whole=holder == "message")
    if with_thinking and (blocks := getattr(source, "thinking_blocks", None)):
        message["thinking_blocks"] = [_dumped(block) for block in blocks]
    return {
        "index": getattr(choice, "index", 0) or 0,
        holder: message,
        "logprobs": _dumped(getattr(choice, "logprobs", None)),
        "finish_reason": None if reason is None else finish_reason(str(reason)),
    }


def _message(source: Any, *, whole: bool) -> Json:
    message: Json = {"role": "assistant", "content": None, "refusal": None} if whole else {}
    message |= _texts(source, "role", "content", "refusal", "reasoning_content")
    if calls := getattr(source, "tool_calls", None):
        message["tool_calls"] = [_tool_call(call, whole=whole) for call in calls]
    if (function := getattr(source, "function_call", None)) is not None:
        message["function_call"] = _function(function)
    if (audio := _dumped(getattr(source, "audio", None))) is not None:
        message["audio"] = audio
    return message


def _tool_call(call: Any, *, whole: bool) -> Json:
    index = {} if whole else {"index": getattr(call, "index", 0) or 0}
    return {**index, **_texts(call, "id", "type"), "function": _function(getattr(call, "function", None))}


def _function(function: Any) -> Json:
    return _texts(function, "name", "arguments")


def _texts(source: Any, *names: str) -> Json:
    values = {name: getattr(source, name, None) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, str)}


def _usage(usage: Any) -> Json | None:
    """Return OpenAI's usage; None if the engine did not count, for which LiteLLM reports zeros."""
    read, written = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
    if not read or written is None:
        return None
    details = getattr(usage, "prompt_tokens_details", None)
    # The second name of each is Anthropic's.
    cached = getattr(details, "cached_tokens", None) or getattr(usage, "cache_read_input_tokens", None)
    stored = getattr(details, "cache_write_tokens", None) or getattr(usage, "cache_creation_input_tokens", None)
    body = usage_body(read, written, cached or 0, stored or 0)
    if stored and (lifetimes := _dumped(getattr(details, CACHE_WRITE_DETAILS, None))) is not None:
        body["prompt_tokens_details"][CACHE_WRITE_DETAILS] = {
            lifetime: tokens for lifetime, tokens in lifetimes.items() if tokens is not None
        }
    return body


def _dumped(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value
