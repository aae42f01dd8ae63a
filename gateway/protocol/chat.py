"""Requests to /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from gateway.errors import InvalidRequest
from gateway.protocol.body import MAX_TOKENS, Choices, Json, SamplingBody, read_body, stop_texts, wants_usage
from gateway.protocol.other_endpoint import ANTHROPIC_PARTS, MESSAGES
from gateway.protocol.tags import metadata_of, take_tags
from gateway.runtime.record import Record

MAX_MESSAGES = 10_000
"""Largest number of messages in one chat. OpenAI accepts 2,048."""
_ROLES = ("user", "assistant", "system", "developer", "tool", "function")
ROLES_WITHOUT_TEXT = frozenset({"assistant", "function"})
"""Roles of messages whose content may be null or missing."""
# Fields of an assistant's message that may replace its content.
CONTENT_ALTERNATIVES = ("tool_calls", "function_call", "refusal", "audio", "reasoning_content")


class Message(Struct, frozen=True):
    """The fields of a chat message that the gateway reads."""

    role: Annotated[str, Meta(min_length=1, extra_json_schema={"enum": list(_ROLES)})]
    content: str | list[Json] | None = None


class ResponseFormat(Struct, frozen=True):
    """OpenAI's `response_format`."""

    type: str


class ChatBody(SamplingBody, frozen=True, kw_only=True):
    """The fields of /v1/chat/completions that the gateway reads, with OpenAI's ranges."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    best_of: Choices | None = None
    tools: list[Json] | None = None
    functions: list[Json] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    modalities: list[str] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class ChatRequest(Record, frozen=True):
    """A checked request. `body` is the body as the caller sent it, or converted from another API; do not change it."""

    body: Json
    model: str
    max_tokens: int | None
    stop: tuple[str, ...]
    stream: bool
    wants_usage: bool
    size_bytes: int
    non_text_parts: int = 0  # number of content parts without text
    is_converted: bool = False  # whether the caller sent a body of another API, with other fields
    cache_key: str | None = None  # the caller's name of the conversation, for prompt caches; None: it sent none
    may_store: bool = True  # False if the caller sent `store: false`
    tags: tuple[str, ...] = ()  # of `metadata`
    metadata: Json | None = None  # as the caller sent it

    @property
    def messages(self) -> list[Json]:
        messages: list[Json] = self.body["messages"]
        return messages

    @property
    def choices(self) -> int:
        return self.body.get("n") or 1

    @property
    def generated_choices(self) -> int:
        """Return the number of answers that are generated; with beam search, the width of the beam."""
        body = self.body
        n = body.get("n") or 1
        return max(n, body["best_of"] or 1) if "best_of" in body else n

    @property
    def limit_field(self) -> str:
        """Return the name of the field in which the caller sends its token limit."""
        return "max_completion_tokens" if self.body.get("max_completion_tokens") is not None else "max_tokens"


def parse_chat(raw: bytes) -> ChatRequest:
    """Decode and check the body of a chat completion request. Raises InvalidRequest with the field."""
    body, known = read_body(raw, ChatBody, "'model' and 'messages'")
    non_text_parts = _check_messages(known.messages, body["messages"])
    _check_combinations(known)
    return ChatRequest(
        body=body,
        model=known.model,
        max_tokens=known.max_completion_tokens if known.max_tokens is None else known.max_tokens,
        stop=stop_texts(known.stop),
        stream=bool(known.stream),
        wants_usage=wants_usage(known.stream_options, stream=known.stream),
        size_bytes=len(raw),
        non_text_parts=non_text_parts,
        may_store=body.get("store") is not False,
        metadata=metadata_of(body),
        tags=take_tags(body),
    )


def _check_combinations(known: ChatBody) -> None:
    """Reject the combinations of fields that OpenAI rejects."""
    if known.max_tokens is not None and known.max_completion_tokens is not None:
        raise InvalidRequest(
            "'max_tokens' and 'max_completion_tokens' cannot be set at once. Send 'max_completion_tokens' only.",
            param="max_tokens",
        )
    if known.top_logprobs and not known.logprobs:
        raise InvalidRequest(
            "'top_logprobs' is only allowed when 'logprobs' is true. Set 'logprobs' to true, or remove 'top_logprobs'.",
            param="top_logprobs",
        )


def _check_messages(messages: list[Message], raw_messages: list[Json]) -> int:
    """Reject the messages that OpenAI rejects. Return the number of content parts without text.

    An assistant message without content gets an empty text, because a template would render the word None.
    """
    non_text_parts = 0
    for index, message in enumerate(messages):
        role, content = message.role, message.content
        if role not in _ROLES:
            at = f"messages[{index}].role"
            raise InvalidRequest(f"'{at}': there is no such role. Use one of {', '.join(_ROLES)}.", param=at)
        if isinstance(content, list):
            non_text_parts += _check_parts(index, content)
        elif content is None and role not in ROLES_WITHOUT_TEXT:
            at = f"messages[{index}].content"
            raise InvalidRequest(f"'{at}' is required in a {role} message: a string or content parts.", param=at)
        elif content is None and role == "assistant" and not any(map(raw_messages[index].get, CONTENT_ALTERNATIVES)):
            raw_messages[index]["content"] = ""
    return non_text_parts


def _check_parts(message: int, parts: list[Json]) -> int:
    """Check that each part has a type, and text if its type is text. The engine checks other types."""
    if not parts:
        at = f"messages[{message}].content"
        raise InvalidRequest(f"'{at}' is an empty list. Send a string or at least one content part.", param=at)
    non_text_parts = 0
    for index, part in enumerate(parts):
        kind = part.get("type")
        if not isinstance(kind, str) or not kind:
            at = f"messages[{message}].content[{index}].type"
            raise InvalidRequest(f"'{at}' is required: a string such as 'text'.", param=at)
        if kind != "text":
            if kind in ANTHROPIC_PARTS:
                at = f"messages[{message}].content[{index}].type"
                raise InvalidRequest(f"'{at}': only {MESSAGES} accepts parts of type '{kind}'.", param=at)
            non_text_parts += 1
        elif not isinstance(part.get("text"), str):
            at = f"messages[{message}].content[{index}].text"
            raise InvalidRequest(f"'{at}' is required in a part of type 'text': a string.", param=at)
    return non_text_parts
