"""Requests to /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Annotated, Any, NamedTuple

from msgspec import Meta, Struct

from gateway.errors import InvalidRequest
from gateway.protocol.anthropic.blocks import BLOCK_TYPES, ContentBlock, Json, SoleTextBlock
from gateway.protocol.anthropic.content import MessagesChat
from gateway.protocol.anthropic.errors import THREAD_UNSUPPORTED
from gateway.protocol.anthropic.tools import (
    AnthropicTool,
    AnthropicToolChoice,
    chat_tool_choice,
    chat_tools,
    first_foreign_tool,
)
from gateway.protocol.body import MAX_STOP_CHARS, MAX_TOKENS, read_known_fields
from gateway.protocol.chat import MAX_MESSAGES, ChatRequest
from gateway.protocol.tags import metadata_of

MAX_STOPS = 64
"""Largest number of stop sequences. For some engines the gateway searches the generated text for each of them."""
_ROLES = ("user", "assistant", "system")
MAX_HEADER_CHARS = 2048
"""Longest value of a header that is forwarded to Anthropic's models."""
_USER_CHARS = 64  # OpenAI's limit for `user`
_BLOCK_TYPE = re.compile(r"(?:messages\[\d+\]|system)[.\[\]\w]*\.type|system\[\d+\]\.type")
# Fields for engines that read them. The gateway reads `thinking` and `output_config`, too.
_PASSED = ("cache_control", "context_management", "service_tier", "thinking", "top_k")
_THINKS = ("enabled", "adaptive")


class AnthropicMessage(Struct, frozen=True):
    role: Annotated[str, Meta(extra_json_schema={"enum": list(_ROLES)})]
    content: str | list[ContentBlock]


class MessagesMetadata(Struct, frozen=True):
    user_id: str | None = None


class CountTokensBody(Struct, frozen=True, kw_only=True):
    """The fields of /v1/messages/count_tokens that the gateway reads."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[AnthropicMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[SoleTextBlock] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Any = None
    output_config: Any = None
    output_format: Any = None
    context_management: Any = None
    cache_control: Any = None


class MessagesBody(CountTokensBody, frozen=True, kw_only=True):
    """The fields of /v1/messages that the gateway reads, with Anthropic's ranges. Others are ignored."""

    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    stream: bool | None = None
    stop_sequences: (
        Annotated[list[Annotated[str, Meta(max_length=MAX_STOP_CHARS)]], Meta(max_length=MAX_STOPS)] | None
    ) = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    metadata: MessagesMetadata | None = None
    service_tier: Any = None
    thread: Any = None


class MessagesRequest(NamedTuple):
    """A checked request: the chat for the pipeline, and what chat completions lacks."""

    chat: ChatRequest
    passed: Json  # fields for engines that read them
    is_marked: bool  # whether messages or tools have fields that only some engines read
    foreign_tool: tuple[int, str] | None  # index and type of the first tool that only Anthropic's models know
    shows_thinking: bool  # whether the caller requested thinking blocks


def parse_messages(raw: bytes) -> MessagesRequest:
    """Decode and check the body of a request. Raises InvalidRequest with the field."""
    body, known = _read(raw, MessagesBody, "'model', 'max_tokens' and 'messages'")
    if known.thread is not None:
        text = "'thread': the gateway stores no conversations. Send all messages, without 'thread'."
        raise InvalidRequest(text, param="thread", code=THREAD_UNSUPPORTED)
    return _request(body, known, raw)


def parse_count_tokens(raw: bytes) -> MessagesRequest:
    """Decode and check the body of a request to count tokens. Raises InvalidRequest with the field."""
    body, known = _read(raw, CountTokensBody, "'model' and 'messages'")
    return _request(body, known, raw)


def _read(raw: bytes, fields: type[Any], needs: str) -> tuple[Json, Any]:
    try:
        return read_known_fields(raw, fields, needs)
    except InvalidRequest as error:
        if error.param is None or not _BLOCK_TYPE.fullmatch(error.param):
            raise
        types = "text" if error.param.startswith("system") else ", ".join(BLOCK_TYPES)
        problem = error.message.partition(": ")[2].rstrip(".")
        raise InvalidRequest(f"'{error.param}': {problem}. The gateway reads {types}.", param=error.param) from None


def _request(body: Json, known: CountTokensBody, raw: bytes) -> MessagesRequest:
    chat = MessagesChat()
    if known.system is not None:
        chat.add_system(known.system)
    for index, message in enumerate(known.messages):
        if message.role not in _ROLES:
            at = f"messages[{index}].role"
            raise InvalidRequest(f"'{at}': there is no such role. Use user or assistant.", param=at)
        chat.add(message.role, message.content, f"messages[{index}]")
    sent: Json = {"model": known.model, "messages": chat.messages()}
    if known.tools:
        sent["tools"] = chat_tools(known.tools, body["tools"])
    if known.tool_choice is not None:
        choice = chat_tool_choice(known.tool_choice)
        sent |= choice if known.tools else {}
    if (form := _response_format(known)) is not None:
        sent["response_format"] = form
    thinking = _thinking_type(known.thinking)
    if thinking == "enabled":
        sent["thinking"] = {"type": thinking}  # the policy treats it as a request for reasoning
    max_tokens, stream = None, False
    stop: tuple[str, ...] = ()
    if isinstance(known, MessagesBody):
        max_tokens, stop, stream = known.max_tokens, tuple(filter(None, known.stop_sequences or ())), bool(known.stream)
        _add_sampling(sent, known, stop)
    passed = {name: body[name] for name in _PASSED if body.get(name) is not None}
    if (effort := _effort(known.output_config)) is not None:
        passed["output_config"] = {"effort": effort}
    tools: list[Json] = sent.get("tools", [])
    return MessagesRequest(
        chat=ChatRequest(
            body=sent,
            model=known.model,
            max_tokens=max_tokens,
            stop=stop,
            stream=stream,
            wants_usage=stream,
            size_bytes=len(raw),
            non_text_parts=chat.non_text_parts,
            is_converted=True,
            metadata=metadata_of(body),
        ),
        passed=passed,
        is_marked=chat.is_marked or any("cache_control" in tool for tool in tools),
        foreign_tool=first_foreign_tool(tools),
        shows_thinking=thinking in _THINKS,
    )


def _add_sampling(sent: Json, known: MessagesBody, stop: tuple[str, ...]) -> None:
    sent["max_tokens"] = known.max_tokens
    if known.temperature is not None:
        sent["temperature"] = known.temperature
    if known.top_p is not None:
        sent["top_p"] = known.top_p
    if known.top_k is not None:
        sent["top_k"] = known.top_k
    if stop:
        sent["stop"] = list(stop)
    if known.metadata is not None and (user := known.metadata.user_id):
        # Claude Code's ids are longer than some engines accept.
        sent["user"] = user if len(user) <= _USER_CHARS else sha256(user.encode("utf-8", "replace")).hexdigest()


def _response_format(known: CountTokensBody) -> Json | None:
    """Return the chat's `response_format` for a JSON schema, in its current place or its older one."""
    config = known.output_config
    form = config.get("format") if isinstance(config, dict) else None
    form = form if form is not None else known.output_format
    if not isinstance(form, dict) or form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        return None
    return {"type": "json_schema", "json_schema": {"name": "output", "strict": True, "schema": form["schema"]}}


def _thinking_type(thinking: Any) -> str | None:
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    return kind if isinstance(kind, str) else None


def _effort(config: Any) -> str | None:
    effort = config.get("effort") if isinstance(config, dict) else None
    return effort if isinstance(effort, str) else None


def check_header(name: str, value: str) -> None:
    """Raise InvalidRequest unless the value of a header may be forwarded."""
    if not (value.isascii() and value.isprintable()) or len(value) > MAX_HEADER_CHARS:
        raise InvalidRequest(
            f"'{name}': expected at most {MAX_HEADER_CHARS} printable characters of ASCII.", param=name
        )
