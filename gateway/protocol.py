"""OpenAI's wire: what callers send and what they get.

Requests are decoded once. The fields the gateway acts on are checked and typed; the whole body is kept as it came, so
that parameters nobody here knows reach the student untouched. OpenAI's names (`prompt_tokens`, ...) live in this file
only; inside, it is `input_tokens` and `output_tokens`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import orjson
from msgspec import Meta, Struct

from gateway.errors import InvalidRequest

Json = dict[str, Any]

_ROLES = ("user", "assistant", "system", "developer", "tool", "function")
_ROLES_WITH_WORDS = frozenset({"system", "developer", "user"})
# What an assistant's message may have in the place of content.
_SAID_OTHERWISE = ("tool_calls", "function_call", "refusal", "audio", "reasoning_content")
_MAX_STOPS = 4
MAX_DEPTH = 254
"""What orjson can write: deeper JSON could be read and never sent on."""


class Message(Struct, frozen=True):
    role: Annotated[str, Meta(min_length=1)]
    content: str | list[Json] | None = None


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None


MAX_TOKENS = 2**31 - 1
"""More than any answer has, and few enough that sums of them stay numbers that JSON can carry."""


class ResponseFormat(Struct, frozen=True):
    type: str


class _KnownFields(Struct, frozen=True):
    """The fields of /v1/chat/completions that the gateway reads, with OpenAI's ranges."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=_MAX_STOPS)] | None = None
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
    unguidable: str | None  # why guidance cannot open this answer, or None
    size_bytes: int

    @property
    def messages(self) -> list[Json]:
        messages: list[Json] = self.body["messages"]
        return messages

    @property
    def limit_field(self) -> str:
        """The field in which the caller speaks of its token limit."""
        return "max_completion_tokens" if self.body.get("max_completion_tokens") is not None else "max_tokens"


def parse_chat(raw: bytes) -> ChatRequest:
    """Decode and check the body of a chat completion request.

    Raises:
        InvalidRequest: with `param` naming the field.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"The body is not valid JSON ({error}). Send a JSON object with 'model' and 'messages'."
        ) from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object with 'model' and 'messages'.")
    if too_deep(raw, body):
        raise InvalidRequest(f"The body is nested more than {MAX_DEPTH} levels deep.")
    try:
        known = msgspec.convert(body, _KnownFields)
    except msgspec.ValidationError as error:
        raise _explain(error) from None
    _check_messages(known.messages, body["messages"])
    if known.max_tokens is not None and known.max_completion_tokens is not None:
        raise InvalidRequest(
            "'max_tokens' and 'max_completion_tokens' say the same: send one of them.", param="max_completion_tokens"
        )
    if known.stream_options is not None and not known.stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    stop = (known.stop,) if isinstance(known.stop, str) else tuple(known.stop or ())
    return ChatRequest(
        body=body,
        model=known.model,
        max_tokens=known.max_completion_tokens or known.max_tokens,
        stop=tuple(text for text in stop if text),
        stream=bool(known.stream),
        wants_usage=bool(known.stream_options and known.stream_options.include_usage),
        unguidable=_unguidable(known),
        size_bytes=len(raw),
    )


def too_deep(raw: bytes, body: Any) -> bool:
    """Whether JSON is nested too deep to be written again; `body` is what was read from `raw`."""
    if raw.count(b"{") + raw.count(b"[") <= MAX_DEPTH:
        return False
    try:
        orjson.dumps(body)
    except orjson.JSONEncodeError:
        return True
    return False


def _unguidable(known: _KnownFields) -> str | None:
    if known.tools or known.functions:
        return "tools"
    if known.response_format is not None and known.response_format.type != "text":
        return "response_format"
    if (known.n or 1) > 1:
        return "n"
    if known.logprobs:
        return "logprobs"
    if known.modalities not in (None, ["text"]):
        return "modalities"
    return None


def _check_messages(messages: list[Message], as_sent: list[Json]) -> None:
    """Refuse what OpenAI refuses, and engines take for an empty turn or put into their template as it is."""
    for index, message in enumerate(messages):
        role, content = message.role, message.content
        if role not in _ROLES:
            at = f"messages[{index}].role"
            raise InvalidRequest(f"'{at}': there is no such role. Use one of {', '.join(_ROLES)}.", param=at)
        if isinstance(content, list):
            _check_parts(index, role, content)
        elif role in _ROLES_WITH_WORDS:
            if not content or content.isspace():
                raise _empty(role, f"messages[{index}].content")
        elif content is None and not _may_be_silent(role, as_sent[index]):
            raise _empty(role, f"messages[{index}].content")


def _may_be_silent(role: str, message: Json) -> bool:
    if role == "assistant":
        return any(message.get(field) for field in _SAID_OTHERWISE)
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
    if blanks == len(parts) and role in _ROLES_WITH_WORDS:
        raise _empty(role, f"messages[{message}].content[0].text")


def _empty(role: str, where: str) -> InvalidRequest:
    needs = {"assistant": "An assistant message needs text, content parts, tool_calls or a refusal."}
    said = needs.get(role, f"A {role} message needs text or content parts.")
    return InvalidRequest(f"'{where}' is empty. {said}", param=where)


_EXPLAINED = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<where>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.+)`")
_TYPES = re.compile(r"`([a-z]+(?: \| [a-z]+)*)`")
_PLAIN = {"int": "an integer", "float": "a number", "str": "a string", "bool": "true or false",
          "array": "a list", "object": "an object", "null": "null"}  # fmt: skip


def _explain(error: msgspec.ValidationError) -> InvalidRequest:
    """Say in plain words what msgspec found, and name the field the way OpenAI does."""
    match = _EXPLAINED.match(str(error))
    what, where = (match["what"], match["where"] or "") if match else (str(error), "")
    if missing := _MISSING.fullmatch(what):
        param = f"{where}.{missing[1]}" if where else missing[1]
        return InvalidRequest(f"'{param}' is required.", param=param)
    what = _TYPES.sub(lambda found: " or ".join(_PLAIN.get(name, name) for name in found[1].split(" | ")), what)
    param = where.replace("[...]", "") or None  # msgspec names no key of an object
    text = what[:1].lower() + what[1:]
    return InvalidRequest(f"'{param}': {text}." if param else f"{what}.", param=param)


def usage_body(input_tokens: int, output_tokens: int, cached_input_tokens: int = 0) -> Json:
    """OpenAI's `usage` object."""
    body: Json = {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }
    if cached_input_tokens:
        body["prompt_tokens_details"] = {"cached_tokens": cached_input_tokens}
    return body


# Of what an engine says beside choices and usage: the rest may speak of its hosts.
_PASSED_ON = ("system_fingerprint", "service_tier")


def passed_on(reply: Json) -> Json:
    """The engine's own top-level fields that a caller gets."""
    return {name: reply[name] for name in _PASSED_ON if reply.get(name) is not None}


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What every reply and every chunk of one answer shares."""

    id: str
    created: int
    model: str

    def completion(self, choices: list[Json], usage: Json) -> Json:
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": usage,
        }

    def chunk(self, choices: list[Json], *, with_usage: bool = False, usage: Json | None = None) -> Json:
        chunk: Json = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        if with_usage:
            chunk["usage"] = usage
        return chunk
