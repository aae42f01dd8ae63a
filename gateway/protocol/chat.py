"""What callers send to /v1/chat/completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct

from gateway.errors import InvalidRequest
from gateway.protocol.body import (
    MAX_TOKENS,
    Choices,
    Json,
    Penalty,
    Seed,
    Stop,
    StreamOptions,
    Temperature,
    TopP,
    read_body,
    stops,
    wants_usage,
)

_ROLES = ("user", "assistant", "system", "developer", "tool", "function")
ROLES_WITH_WORDS = frozenset({"system", "developer", "user"})
# What an assistant's message may have in the place of content.
SAID_OTHERWISE = ("tool_calls", "function_call", "refusal", "audio", "reasoning_content")


class Message(Struct, frozen=True):
    role: Annotated[str, Meta(min_length=1, extra_json_schema={"enum": list(_ROLES)})]
    content: str | list[Json] | None = None


class ResponseFormat(Struct, frozen=True):
    type: str


class ChatBody(Struct, frozen=True):
    """The fields of /v1/chat/completions that the gateway reads, with OpenAI's ranges."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    n: Choices | None = None
    stop: Stop | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[Json] | None = None
    functions: list[Json] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    modalities: list[str] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked request. `body` is what the caller sent, field by field; nothing may change it."""

    body: Json
    model: str
    max_tokens: int | None
    stop: tuple[str, ...]
    stream: bool
    wants_usage: bool
    size_bytes: int

    @property
    def messages(self) -> list[Json]:
        messages: list[Json] = self.body["messages"]
        return messages

    @property
    def choices(self) -> int:
        """How many answers there will be."""
        return self.body.get("n") or 1

    @property
    def drafts(self) -> int:
        """How many of them are written."""
        return self.choices

    @property
    def pictures(self) -> int:
        """How many content parts are no text."""
        contents = (message.get("content") for message in self.messages)
        parts = (part for content in contents if isinstance(content, list) for part in content)
        return sum(part.get("type") != "text" for part in parts)

    @property
    def limit_field(self) -> str:
        """The field in which the caller speaks of its token limit."""
        return "max_completion_tokens" if self.body.get("max_completion_tokens") is not None else "max_tokens"


def parse_chat(raw: bytes) -> ChatRequest:
    """Decode and check the body of a chat completion request.

    Raises:
        InvalidRequest: with `param` naming the field.
    """
    body, known = read_body(raw, ChatBody, "'model' and 'messages'")
    _check_messages(known.messages, body["messages"])
    if known.max_tokens is not None and known.max_completion_tokens is not None:
        raise InvalidRequest(
            "'max_tokens' and 'max_completion_tokens' say the same: send one of them.", param="max_completion_tokens"
        )
    return ChatRequest(
        body=body,
        model=known.model,
        max_tokens=known.max_completion_tokens or known.max_tokens,
        stop=stops(known.stop),
        stream=bool(known.stream),
        wants_usage=wants_usage(known.stream_options, stream=known.stream),
        size_bytes=len(raw),
    )


def _check_messages(messages: list[Message], as_sent: list[Json]) -> None:
    """Refuse what OpenAI refuses, and engines take for an empty turn or put into their template as it is."""
    for index, message in enumerate(messages):
        role, content = message.role, message.content
        if role not in _ROLES:
            at = f"messages[{index}].role"
            raise InvalidRequest(f"'{at}': there is no such role. Use one of {', '.join(_ROLES)}.", param=at)
        if isinstance(content, list):
            _check_parts(index, role, content)
        elif role in ROLES_WITH_WORDS:
            if not content or content.isspace():
                raise _empty(role, f"messages[{index}].content")
        elif content is None and not _may_be_silent(role, as_sent[index]):
            raise _empty(role, f"messages[{index}].content")


def _may_be_silent(role: str, message: Json) -> bool:
    if role == "assistant":
        return any(message.get(field) for field in SAID_OTHERWISE)
    return role == "function"  # null is what a function without a result returns


def _check_parts(message: int, role: str, parts: list[Json]) -> None:
    """Each has a type, and text where it says so; which other types there are is the engine's to say."""
    blanks = 0
    for index, part in enumerate(parts):
        kind = part.get("type")
        if not isinstance(kind, str) or not kind:
            at = f"messages[{message}].content[{index}].type"
            raise InvalidRequest(f"'{at}' is required: a string such as 'text'.", param=at)
        if kind == "text":
            text = part.get("text")
            if not isinstance(text, str):
                at = f"messages[{message}].content[{index}].text"
                raise InvalidRequest(f"'{at}' is required in a part of type 'text': a string.", param=at)
            blanks += not text or text.isspace()
    if not parts:
        raise _empty(role, f"messages[{message}].content")
    # Beside others a blank part is a separator, or an image without a caption.
    if blanks == len(parts) and role in ROLES_WITH_WORDS:
        raise _empty(role, f"messages[{message}].content[0].text")


def _empty(role: str, where: str) -> InvalidRequest:
    needs = {"assistant": "An assistant message needs text, content parts, tool_calls or a refusal."}
    said = needs.get(role, f"A {role} message needs text or content parts.")
    return InvalidRequest(f"'{where}' is empty. {said}", param=where)
