"""Name the endpoint for which a body is meant that another endpoint rejected. Called only on the way to an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
TEXT = "/v1/completions"

_CONTENT = ("messages", "input", "prompt")  # the field with the caller's content, at every endpoint
# Fields of one API alone, among those with the same content field.
_ANTHROPIC = frozenset({"system", "stop_sequences", "anthropic_version", "anthropic_beta"})
ANTHROPIC_PARTS = frozenset({"tool_use", "tool_result"})
"""Types of content parts that only Anthropic's Messages API has."""
_CHAT = frozenset(
    {"max_completion_tokens", "frequency_penalty", "presence_penalty", "response_format", "stream_options", "functions",
     "logprobs", "top_logprobs", "n", "seed", "stop", "parallel_tool_calls", "reasoning_effort"}
)  # fmt: skip
_CHAT_ROLES = frozenset({"developer", "tool", "function"})
_EMBEDDING = frozenset({"encoding_format", "dimensions"})
_RESPONSE = frozenset(
    {"instructions", "max_output_tokens", "previous_response_id", "reasoning", "text", "include", "stream", "tools"}
)


def missing_content(body: Mapping[str, Any], fields: Collection[str]) -> InvalidRequest | None:
    """Return the error for a body without the content of its endpoint, but with that of another endpoint.

    `fields` are the fields of the endpoint. None: no other endpoint is recognized. In chats and in Anthropic's API the
    content has the same name. There the error is about the limit, which only Anthropic's API requires. Responses and
    embeddings both have `input`. There the error is about the type of its entries.
    """
    missing = next((name for name in _CONTENT if name in fields), None)
    if missing is None:
        return None
    if body.get(missing) is not None:
        if missing == "input":
            return _foreign_input(body["input"], fields)
        return _chat_at_messages(body) if "stop_sequences" in fields else None
    found = next((name for name in _CONTENT if body.get(name) is not None), None)
    if found is None:
        return None
    target = _target(body, found)
    return InvalidRequest(f"'{missing}' is required. A body with '{found}' goes to {target}.", param=missing)


def _chat_at_messages(body: Mapping[str, Any]) -> InvalidRequest | None:
    """Return the error for a chat of OpenAI's API without the field that Anthropic's API requires."""
    if body.get("max_tokens") is not None:
        return None
    tools, messages = _objects(body.get("tools")), _objects(body["messages"])
    if (
        _CHAT.isdisjoint(body)
        and not any("function" in tool for tool in tools)
        and not any(str(message.get("role")) in _CHAT_ROLES for message in messages)
    ):
        return None
    return InvalidRequest(f"'max_tokens' is required. A body in OpenAI's format goes to {CHAT}.", param="max_tokens")


def _foreign_input(entries: Any, fields: Collection[str]) -> InvalidRequest | None:
    """Return the error for texts at /v1/responses, or for items at /v1/embeddings."""
    if not isinstance(entries, list) or not entries:
        return None
    are_items = {isinstance(entry, dict) for entry in entries}
    if "instructions" in fields and are_items == {False}:
        return InvalidRequest(f"'input[0]' must be an object. A list of texts goes to {EMBEDDINGS}.", param="input[0]")
    if "instructions" not in fields and are_items == {True}:
        return InvalidRequest(f"'input[0]' must be a text. A list of items goes to {RESPONSES}.", param="input[0]")
    return None


def _target(body: Mapping[str, Any], content: str) -> str:
    if content == "prompt":
        return TEXT
    if content == "messages":
        return MESSAGES if is_anthropic(body) else CHAT
    items = body["input"]
    if isinstance(items, list):
        return RESPONSES if items and all(isinstance(item, dict) for item in items) else EMBEDDINGS
    if not _EMBEDDING.isdisjoint(body):
        return EMBEDDINGS
    return RESPONSES if not _RESPONSE.isdisjoint(body) else f"{RESPONSES}, and for an embedding to {EMBEDDINGS}"


def is_anthropic(body: Mapping[str, Any]) -> bool:
    """Return whether a body with messages has fields, tools or content parts of Anthropic's Messages API alone."""
    if not _ANTHROPIC.isdisjoint(body):
        return True
    if any("input_schema" in tool for tool in _objects(body.get("tools"))):
        return True
    contents = [message.get("content") for message in _objects(body["messages"])]
    return any(str(part.get("type")) in ANTHROPIC_PARTS for content in contents for part in _objects(content))


def _objects(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []
