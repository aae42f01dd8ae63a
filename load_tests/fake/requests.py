"""Parse requests into what an engine without a model needs: prompt tokens and output tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from load_tests.fake.profile import Profile
    from load_tests.fake.replies import Tape

_MOST_CHOICES = 128
_TOKENS_AROUND_A_MESSAGE = 4  # added by a chat template
_SPELLS = re.compile(r"(?:^|\s)(?:[a-z] ){2,}([a-z])$")


class InvalidRequestBody(ValueError):
    """The request body is invalid. The message gives the reason.

    Args:
        kind: TGI's error type. `syntax` and `type` are errors of its JSON parser, which have none.
    """

    def __init__(self, message: str, kind: str = "type") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A parsed request.

    Attributes:
        reads: tokens of each prompt; a chat is one prompt.
        choices: answers for each prompt.
        tape, at: tape of the answers, and the position of their first token.
        max_tokens: None without a limit.
    """

    reads: tuple[int, ...]
    choices: int
    tape: Tape
    at: int
    max_tokens: int | None
    stream: bool = False
    usage: bool = False
    details: bool = False


def read_chat(raw: bytes, profile: Profile) -> ParsedRequest:
    """Parse a body of /v1/chat/completions. Raises InvalidRequestBody."""
    body = _object(raw)
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InvalidRequestBody("messages must be a list of objects")
    if profile.dialect == "tgi":
        _check_tgi_types(body)
        _check_tgi_chat(body, messages)
    elif not messages:
        raise InvalidRequestBody("messages must not be empty")
    texts = [_content(message) for message in messages]
    tape, at = _tape_after(texts[-1]) if messages and _continues(profile, body, messages[-1]) else ("prose", 0)
    around = _TOKENS_AROUND_A_MESSAGE * len(messages)
    return _openai(body, (around + _tokens("".join(texts), profile),), tape, at)


def _check_tgi_types(body: dict[str, Any]) -> None:
    """Reject values of common fields that OpenAI accepts and TGI's types exclude."""
    stop, seed = body.get("stop"), body.get("seed")
    if stop is not None and not isinstance(stop, list):
        raise InvalidRequestBody("stop: expected a sequence")
    if seed is not None and (not isinstance(seed, int) or seed < 0):
        raise InvalidRequestBody("seed: expected u64")
    if body.get("stream", False) is None:
        raise InvalidRequestBody("stream: invalid type: null, expected a boolean")


def _check_tgi_chat(body: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    """Reject the same for chats. TGI's second name of max_tokens is an alias of the first."""
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise InvalidRequestBody("duplicate field `max_tokens`")
    if isinstance(body.get("logit_bias"), dict):
        raise InvalidRequestBody("logit_bias: expected a sequence")
    if body.get("stream_options", {}) is None:
        raise InvalidRequestBody("stream_options: invalid type: null, expected struct StreamOptions")
    if any(message.get("content") is None and not isinstance(message.get("tool_calls"), list) for message in messages):
        raise InvalidRequestBody("messages: data did not match any variant")
    form = body.get("response_format")
    if form is not None and not (isinstance(form, dict) and "value" in form):
        raise InvalidRequestBody("response_format: missing field `value`")


def read_completion(raw: bytes, profile: Profile) -> ParsedRequest:
    """Parse a body of /v1/completions. Raises InvalidRequestBody."""
    body = _object(raw)
    prompt = body.get("prompt")
    prompts: list[Any] = prompt if isinstance(prompt, list) else [prompt]
    if not prompts or not all(isinstance(one, str) and one for one in prompts):
        raise InvalidRequestBody("prompt must be a text or a list of texts")
    if profile.dialect == "tgi":
        _check_tgi_types(body)
    return _openai(body, tuple(_tokens(one, profile) for one in prompts), *_tape_after(prompts[0]))


def read_generate(raw: bytes, profile: Profile) -> ParsedRequest:
    """Parse a body of /generate. Raises InvalidRequestBody."""
    body = _object(raw)
    inputs, parameters = body.get("inputs"), body.get("parameters") or {}
    if not isinstance(inputs, str) or not inputs or not isinstance(parameters, dict):
        raise InvalidRequestBody("inputs must be a text, and parameters an object")
    return ParsedRequest(
        (_tokens(inputs, profile),),
        1,
        *_tape_after(inputs),
        _count(parameters, "max_new_tokens"),
        details=parameters.get("details") is True,
    )


def _openai(body: dict[str, Any], reads: tuple[int, ...], tape: Tape, at: int) -> ParsedRequest:
    options = body.get("stream_options")
    choices = _count(body, "n") or 1
    if choices * len(reads) > _MOST_CHOICES:
        raise InvalidRequestBody(f"more than {_MOST_CHOICES} answers requested")
    return ParsedRequest(
        reads,
        choices,
        tape,
        at,
        _count(body, "max_tokens") or _count(body, "max_completion_tokens"),
        stream=body.get("stream") is True,
        usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body: Any = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise InvalidRequestBody("the body is not JSON", "syntax") from None
    if not isinstance(body, dict):
        raise InvalidRequestBody("the body must be an object")
    return body


def _count(body: dict[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidRequestBody(f"{name} must be a whole number of 1 or more")
    return value


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _tokens(text: str, profile: Profile) -> int:
    return ceil(len(text) / profile.chars_per_token)


def _continues(profile: Profile, body: dict[str, Any], last: dict[str, Any]) -> bool:
    """Return whether the request makes the engine continue the last message."""
    if last.get("role") != "assistant":
        return False
    match profile.continuation:
        case "trailing":
            return True
        case "vllm":
            return body.get("continue_final_message") is True and body.get("add_generation_prompt") is False
        case "sglang":
            return body.get("continue_final_message") is True
        case "prefix" | "partial" as mark:
            return last.get(mark) is True
        case _:
            return False


def _tape_after(text: str) -> tuple[Tape, int]:
    """Return tape and position: a text that ends in a spelled alphabet is continued, for the gateway's probe."""
    spelt = _SPELLS.search(text[-64:])
    return ("letters", ord(spelt[1]) - ord("a") + 1) if spelt else ("prose", 1)
