"""An engine call of a request and its charge: the engine's own count where it is possible, otherwise an upper bound.

No share exceeds the reservation for the call, whatever usage an engine reports (worst_case.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
import orjson
from msgspec.structs import replace

from gateway.accounting.estimate import MAX_BOUNDED_BYTES, bound_text, count_messages, count_text, texts_of
from gateway.accounting.receipt import EngineShare
from gateway.accounting.worst_case import TOKENS_PER_PART, Role
from gateway.engines.base import TokenUsage
from gateway.pricing import charge_usd, max_charge_usd, quantized
from gateway.protocol.body import Json
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.accounting.estimate import Encoding
    from gateway.accounting.worst_case import CallBound
    from gateway.pricing import Price
    from gateway.protocol.requests import AnyRequest


# A struct: creating a dataclass takes ten times as long.
class EngineCall(msgspec.Struct):
    """A call to an engine."""

    model: str
    messages: Sequence[Json]
    usage: TokenUsage | None = None  # the usage as the engine reported it
    text: StringIO = msgspec.field(default_factory=StringIO)  # as received, to count where no usage was reported
    choice_texts: dict[int, list[str]] = {}  # the text of each choice, if there are several
    lost_tokens: int = 0  # an upper bound on tokens that were written but not received
    shared: str = ""  # "flight" or "cache" where an identical request made and paid for the call
    unbounded: bool = False  # tokens may have been written but not received, without any bound
    span: Any = None  # the trace span of the call, also where another request made it
    limit_tokens: int | None = None  # the engine's output limit over all choices
    seen_tokens: int = 0  # a lower bound on the received output tokens
    answer_tokens: int | None = None  # the output tokens at the end of the answer; None: all, or not reported
    min_output_tokens: int = 0  # a lower bound on the output tokens; 0 where it is clearly below the reported count
    ended: bool = False  # every choice has its finish_reason. The usage may still be missing.
    role: Role = "student"
    prefix_bytes: int = 0  # the length of the answer's text that a failed call wrote and this call continues


class FailedCall(Record, frozen=True):
    """A failed call that another call replaced. `call` is None where the engine never received it."""

    engine: str
    label: str
    call: EngineCall | None


UsageError: TypeAlias = Literal["", "too_high", "too_low"]

MAX_CHARS_PER_TOKEN = 256
"""The longest token of the known vocabularies has 128 characters."""
_BYTES_PER_TOKEN = 4
# Tokens that a chat template adds to the messages' own markers, and to tool definitions.
_TEMPLATE_TOKENS = 128
_TOOLS_TEMPLATE_TOKENS = 512
_TOOLS = frozenset({"tools", "functions"})
# Fields that no model reads, and fields that are counted separately.
_NOT_READ = frozenset({
    "model", "stop", "stream_options", "logit_bias", "metadata", "user", "messages", "prompt", "input",
})  # fmt: skip
_FREE = quantized(Decimal(0))
_IMAGE_KINDS = frozenset({"image_url", "image", "input_image"})


Shares: TypeAlias = tuple[EngineShare, EngineShare]
"""The charged share of a call, and its likely share without upper bounds for the baseline."""


def usage_error(
    call: EngineCall, bound: CallBound | None, *, choices: int = 1, shown_chars: int | None = 0
) -> UsageError:
    """Return why the reported usage of a call is impossible; "" where it is possible.

    Args:
        choices: the number of answers. An engine may count one final token per answer beyond the limit. It is not
            charged.
        shown_chars: the length of text before the call's own text. Some engines repeat it without counting it. None:
            the length is unknown, so the text is no evidence against the count.
    """
    usage = call.usage
    if usage is None or bound is None:
        return ""
    if usage.input_tokens > bound.input_tokens or usage.output_tokens > bound.output_tokens + max(1, choices):
        return "too_high"
    if call.min_output_tokens > usage.output_tokens:
        return "too_low"
    if shown_chars is not None and len(call.text.getvalue()) - shown_chars > usage.output_tokens * MAX_CHARS_PER_TOKEN:
        return "too_low"
    return ""


def share_call(
    call: EngineCall,
    request: AnyRequest | None,
    bound: CallBound | None,
    error: UsageError,
    prices: Mapping[str, Price],
    encodings: Mapping[str, Encoding] | None,
) -> Shares:
    """Return the shares of a call.

    Args:
        request: the request of the call; None together with `bound`.
        bound: the reservation for the call; None: there is none, so the gateway's count is no upper bound.
        error: why the reported usage is impossible.
        encodings: the tokenizer, by model. Counting takes milliseconds. None: bytes bound the tokens.
    """
    usage, price = call.usage, prices[call.model]
    if usage is not None and not error:
        share = _reported_share(call, usage, price, bound)
        return share, share
    likely = _likely(call, request, encodings)
    if bound is None:
        share = _share(call, *likely, price, estimated=True, at_least=call.unbounded)
        return share, share
    encoding = None if encodings is None else encodings[call.model]
    max_written = bound.output_tokens if call.unbounded else _max_written(call, encoding)
    at_least = call.unbounded and not bound.known
    if usage is not None and usage.input_tokens <= bound.input_tokens:
        # Only the count of the output is wrong. The text is no evidence against the count of the prompt.
        written = max_written if error == "too_low" else usage.output_tokens
        likely_usage = replace(usage, output_tokens=min(likely[1], written), estimated=True)
        return (
            _reported_share(
                call,
                replace(usage, output_tokens=written, estimated=True),
                price,
                bound,
                at_least=at_least,
                error=error,
            ),
            _reported_share(call, likely_usage, price, bound),
        )
    if usage is not None:
        read, written = usage.input_tokens, usage.output_tokens
    else:
        read, written = _max_read(call, request, bound, encoding), max_written
    charged = min(read, bound.input_tokens), min(written, bound.output_tokens)
    return (
        _share(call, *charged, price.upper_bound, estimated=True, at_least=at_least, error=error),
        _share(call, min(likely[0], charged[0]), min(likely[1], charged[1]), price, estimated=True),
    )


def _reported_share(
    call: EngineCall,
    usage: TokenUsage,
    price: Price,
    bound: CallBound | None,
    *,
    at_least: bool = False,
    error: UsageError = "",
) -> EngineShare:
    """Return the share for a usage, at most the bound."""
    read, written = usage.input_tokens, usage.output_tokens
    if bound is not None:
        read, written = min(read, bound.input_tokens), min(written, bound.output_tokens)
    stored, stored_1h = usage.cache_write_input_tokens, usage.cache_write_1h_input_tokens
    if stored_1h is None:
        # The split is not reported. The upper bound is that of one lifetime.
        stored_1h = stored if price.cache_write_1h_usd > price.cache_write_usd else 0
    cache_tokens = usage.cached_input_tokens, stored, stored_1h
    return _share(call, read, written, price, *cache_tokens, estimated=usage.estimated, at_least=at_least, error=error)


def within(share: EngineShare, bound: CallBound, price: Price) -> EngineShare:
    """Return the share with at most the cost of the bound, whatever its tokens are."""
    usd = max_charge_usd(price, bound.input_tokens, bound.output_tokens)
    return share if share.cost_usd <= usd else msgspec.structs.replace(share, cost_usd=usd)


def _share(
    call: EngineCall,
    read: int,
    written: int,
    price: Price,
    cached: int = 0,
    stored: int = 0,
    stored_1h: int = 0,
    *,
    estimated: bool,
    at_least: bool = False,
    error: UsageError = "",
) -> EngineShare:
    if stored or cached:
        stored = min(stored, read)
        stored_1h = min(stored_1h, stored)
        cached = min(cached, read - stored)
    cost = _FREE if call.shared else charge_usd(price, read, written, cached, stored, stored_1h)
    return EngineShare(
        call.model, read, written, cost, cached, estimated, at_least, call.shared, error, stored, stored_1h
    )


def _likely(call: EngineCall, request: AnyRequest | None, encodings: Mapping[str, Encoding] | None) -> tuple[int, int]:
    """Return the likely number of tokens that a call read and wrote."""
    text = call.text.getvalue()
    if encodings is None:
        size = 0 if request is None else request.size_bytes
        return size // _BYTES_PER_TOKEN, len(text) // _BYTES_PER_TOKEN + call.lost_tokens
    encoding = encodings[call.model].name
    others = 0 if request is None else len(_others(call, request)) // _BYTES_PER_TOKEN
    counted = count_text(encoding, text)
    written = counted + call.lost_tokens
    if call.limit_tokens is not None:
        written = min(written, max(counted, call.limit_tokens))
    return count_messages(encoding, call.messages) + others, written


def _max_written(call: EngineCall, encoding: Encoding | None) -> int:
    """Return an upper bound on the tokens that an engine wrote. It is at most the engine's limit."""
    bound = _bound_text(call.text.getvalue(), encoding) + call.lost_tokens
    return bound if call.limit_tokens is None else min(bound, call.limit_tokens)


def _max_read(call: EngineCall, request: AnyRequest | None, bound: CallBound, encoding: Encoding | None) -> int:
    """Return an upper bound on the tokens of a call's prompt, including its template."""
    texts, parts, image_bytes = _without_images(call.messages)
    size = 0 if request is None else request.size_bytes - image_bytes
    if encoding is None or size > MAX_BOUNDED_BYTES:
        return bound.input_tokens - image_bytes
    body: Json = {} if request is None else request.body
    if "input" in body:  # texts to embed have no template and at most two markers each
        read = [text for message in call.messages for text in texts_of(message)]
        return 2 * len(read) + _bound_text("\n".join(read), encoding)
    total = parts * TOKENS_PER_PART
    total += _TEMPLATE_TOKENS if _TOOLS.isdisjoint(body) else _TOOLS_TEMPLATE_TOKENS
    total += _bound_text(_json(texts).decode(), encoding)
    if request is not None:
        total += _bound_text(_others(call, request).decode(), encoding) + _token_ids(body.get("prompt"))
    return total


def _bound_text(text: str, encoding: Encoding | None) -> int:
    if encoding is None:
        return len(text.encode("utf-8", "replace"))
    return bound_text(encoding.name, text, own=encoding.own)


def _others(call: EngineCall, request: AnyRequest) -> bytes:
    """Return other content that a model may read, such as tools, schemas and documents, as JSON."""
    if call.role == "guidance":
        return b""  # a guidance call contains only messages
    read = {
        name: value
        for name, value in request.body.items()
        if name not in _NOT_READ and isinstance(value, dict | list | str)
    }
    return _json(read) if read else b""


def _without_images(messages: Sequence[Json]) -> tuple[list[Json], int, int]:
    """Return messages without images, the number of parts that are not text, and the size of the images."""
    kept: list[Json] = []
    others = size = 0
    for message in messages:
        content = message.get("content")
        if not isinstance(content, list):
            kept.append(message)
            continue
        parts: list[Any] = []
        for part in content:
            kind = part.get("type", "text") if isinstance(part, dict) else "text"
            others += kind != "text"
            if kind in _IMAGE_KINDS:
                size += len(_json(part))
            else:
                parts.append(part)
        kept.append({**message, "content": parts})
    return kept, others, size


def _token_ids(prompt: Any) -> int:
    """Return the number of token ids in a prompt or a list of prompts. Messages do not contain their text."""
    if not isinstance(prompt, list):
        return 0
    return sum(len(one) if isinstance(one, list) else isinstance(one, int) for one in prompt)


def _json(value: Any) -> bytes:
    return orjson.dumps(value, default=str)
