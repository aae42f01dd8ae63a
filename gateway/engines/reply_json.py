"""Decodes and encodes the JSON of engines' replies without blocking the event loop.

Small JSON is processed on the event loop, large JSON in one thread. C calls in the thread must be short, too, since
they hold the interpreter lock. So values are counted in pieces first. Log-probabilities are most of the values of a
large reply. They are not decoded: `orjson.Fragment` passes their bytes to the caller.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import msgspec
import orjson

from gateway.errors import EngineError
from gateway.protocol.body import MAX_CHOICES, too_deep
from gateway.protocol.structure import INLINE_VALUES, MAX_DEPTH, MAX_VALUES, count_values, is_large

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.protocol.body import Json

_P = ParamSpec("_P")
_T = TypeVar("_T")
_V = TypeVar("_V")

MAX_REPLY_VALUES = 1_000_000
"""The limit on JSON values in one reply. At most MAX_VALUES may be neither log-probabilities nor token ids.

A reply of 6,000 tokens with 20 alternatives each reaches the limit. msgspec skips that many values in 10 ms.
"""

_DECODED_VALUES = 30_000  # decoded in a few milliseconds, log-probabilities included
_FEW = 1000
_REFUSAL = '"refusal"'
_UNDECODED = ("logprobs", "prompt_logprobs")
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
# One field for each choice: msgspec checks the length of a list only after it has decoded all entries, which would hold
# the interpreter lock for 0.1 s.
_CHOICES = msgspec.json.Decoder(
    msgspec.defstruct(
        "_Choices",
        [(f"_{n}", dict[str, msgspec.Raw] | msgspec.UnsetType, msgspec.UNSET) for n in range(MAX_CHOICES)],
        array_like=True,
        forbid_unknown_fields=True,
    )
)
_INLINE_EVENTS_BYTES = 32_000
# More threads would compete with the event loop for the interpreter lock.
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="reply-json")


class Unreadable(ValueError):
    """Invalid or too large JSON. The message names it, as the argument of `bad_reply`."""


async def in_thread(work: Callable[_P, _T], *args: _P.args, **_: _P.kwargs) -> _T:
    """Return the result of a call in the thread for large replies."""
    return await asyncio.get_running_loop().run_in_executor(_THREAD, work, *args)


async def encoded(value: object) -> bytes:
    """Return a value as JSON."""
    return await converted(orjson.dumps, value)


async def converted(convert: Callable[[_V], _T], value: _V) -> _T:
    """Return the result of `convert(value)`. A large JSON value is converted in the thread."""
    return await in_thread(convert, value) if is_large(value) else convert(value)


def are_few(events: list[bytes]) -> bool:
    """Return whether decoding events takes a few milliseconds at most."""
    return sum(map(len, events)) <= _INLINE_EVENTS_BYTES


async def decoded_events(events: list[bytes], read: Callable[[bytes], _T]) -> tuple[list[_T], EngineError | None]:
    """Apply `read` to events. Return the values before the first EngineError, and this error."""
    return _read_each(events, read) if are_few(events) else await in_thread(_read_each, events, read)


def _read_each(events: list[bytes], read: Callable[[bytes], _T]) -> tuple[list[_T], EngineError | None]:
    values: list[_T] = []
    for event in events:
        try:
            values.append(read(event))
        except EngineError as error:
            return values, error
    return values, None


def decode(raw: bytes) -> Any:
    """Return the value of a reply or event. Raises Unreadable above the limits on depth and number of values."""
    if len(raw) <= INLINE_VALUES:
        body = _loads(raw)
        deep = len(raw) > 2 * MAX_DEPTH and too_deep(raw, body)
    else:
        brackets, values = count_values(raw, MAX_REPLY_VALUES)
        if values > MAX_REPLY_VALUES:
            raise Unreadable(f"a reply with more than {MAX_REPLY_VALUES} JSON values, the limit")
        body = _loads(raw) if values <= _DECODED_VALUES else _decode_but_logprobs(raw)
        deep = brackets > MAX_DEPTH and too_deep(raw, body)
    if deep:
        raise Unreadable(f"JSON with more than {MAX_DEPTH} nested levels, the limit")
    return body


def _decode_but_logprobs(raw: bytes) -> Json:
    """Decode a reply, and keep the log-probabilities of its choices as bytes."""
    try:
        fields: dict[str, Any] = _FIELDS.decode(raw)
        decoded = msgspec.structs.astuple(_CHOICES.decode(fields.get("choices", b"[]")))
        choices: list[dict[str, Any]] = [choice for choice in decoded if choice is not msgspec.UNSET]
        kept = [{name: str(one.pop(name), "utf-8") for name in _UNDECODED if name in one} for one in choices]
        rest = msgspec.json.encode({**fields, "choices": choices})
    except msgspec.ValidationError:
        raise Unreadable(f"something else than an object with a list of at most {MAX_CHOICES} choices") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise Unreadable("invalid JSON") from None
    brackets, values = count_values(rest, MAX_REPLY_VALUES)
    if values > MAX_VALUES and (brackets > _FEW or rest.count(b'"') > _FEW):  # a list of numbers is decoded faster
        raise Unreadable(f"a reply with more than {MAX_VALUES} JSON values without log-probabilities, the limit")
    body: Json = _loads(rest)
    for choice, undecoded in zip(body["choices"], kept, strict=True):
        for name, logprobs in undecoded.items():
            if logprobs != "null":
                is_chat = name == "logprobs" and "text" not in choice
                choice[name] = orjson.Fragment(_with_refusal(logprobs) if is_chat else logprobs)
    return body


def _with_refusal(logprobs: str) -> str:
    """Return the log-probabilities of a chat as JSON, with OpenAI's field `refusal` if the engine sent none."""
    at = logprobs.find(_REFUSAL)
    while at >= 0:  # a token's text may be the name of the field
        end = at + len(_REFUSAL)
        if logprobs[end : end + _FEW].lstrip().startswith(":"):
            return logprobs
        at = logprobs.find(_REFUSAL, at + 1)
    return '{"refusal":null,' + logprobs[1:] if logprobs.startswith('{"') else logprobs


def _loads(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise Unreadable("invalid JSON") from None
