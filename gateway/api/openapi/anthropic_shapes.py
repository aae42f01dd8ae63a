"""Structs of the replies of Anthropic's API, for the OpenAPI document only."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from gateway.api.openapi.shapes import Count


class CacheCreation(Struct):
    """Tokens that were written to the prompt cache, by the time for which they stay there."""

    ephemeral_5m_input_tokens: Count
    ephemeral_1h_input_tokens: Count


class MessageUsage(Struct):
    """Tokens of the caller's prompt, outside the cache, written to it and read from it; and of the whole answer."""

    input_tokens: Count
    cache_creation_input_tokens: Count
    cache_read_input_tokens: Count
    output_tokens: Count
    server_tool_use: dict[str, Any] | None
    cache_creation: CacheCreation | None = None
    service_tier: str | None = None


class AnthropicMessageReply(Struct):
    """A message: the guidance, if there is any, and the student's text after it."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"] | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageDelta(Struct):
    """The end of a message, or a part of a content block."""

    type: str | None = None
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    signature: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None


class MessageEvent(Struct):
    """An event of a streamed message. `message_delta` has `gkt`, with the facts that a whole answer has as headers."""

    type: Literal[
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "ping",
    ]
    index: Count | None = None
    message: AnthropicMessageReply | None = None
    content_block: dict[str, Any] | None = None
    delta: MessageDelta | None = None
    usage: MessageUsage | None = None
    gkt: dict[str, Any] | None = None


class MessageTokens(Struct):
    """An upper bound on the tokens of a prompt."""

    input_tokens: Count


class AnthropicError(Struct):
    type: str
    message: str


class AnthropicErrorReply(Struct):
    """Anthropic's error object."""

    type: Literal["error"]
    error: AnthropicError
    request_id: str


class AnthropicModel(Struct):
    """A name that the key may send as `model`, in the shape of Anthropic's API."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    max_input_tokens: int | None
    max_tokens: int | None
    capabilities: dict[str, Any] | None


class AnthropicModels(Struct):
    """A page of models in the shape of Anthropic's API."""

    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None
