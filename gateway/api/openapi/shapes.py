"""What replies look like. Only described here: handlers write them from what they have at hand.

A field without a default is always there. Objects that an engine wrote, such as tool calls, may hold more.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from gateway.accounting.receipt import Receipt

Count = Annotated[int, Meta(ge=0)]


class CachedTokens(Struct):
    cached_tokens: Count
    cache_write_tokens: Count = 0


class Usage(Struct):
    """The caller's view: their prompt, and the whole answer, whoever wrote it."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: CachedTokens | None = None


class AnswerMessage(Struct):
    role: str
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Choice(Struct):
    message: AnswerMessage
    index: Count = 0
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class ChatCompletion(Struct):
    """A whole answer: the teacher's opening, where there is one, and the student's words after it."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: Annotated[list[Choice], Meta(min_length=1)]
    usage: Usage
    system_fingerprint: str | None = None
    service_tier: str | None = None


class Delta(Struct):
    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChunkChoice(Struct):
    delta: Delta
    index: Count = 0
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class ChatCompletionChunk(Struct):
    """One event of a streamed answer; the last event is `[DONE]`, or an ErrorReply where the answer broke off.

    With `stream_options.include_usage` the last chunk has no choices, but `usage`, and in `gkt` what the headers of a
    whole answer tell.
    """

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    gkt: dict[str, Any] | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None


class TextChoice(Struct):
    text: str
    index: Count = 0
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class TextCompletion(Struct):
    """What follows a raw prompt: whole, or in a stream one event of it. `usage` and `gkt` are as in a chat's."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None
    gkt: dict[str, Any] | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None


class Seam(Struct):
    """Where the guidance was cut.

    `owed` is the whitespace that followed it, for a student that begins without; `trimmed` what the teacher wrote
    after that, and was dropped.
    """

    owed: str
    trimmed: str


class GuidanceText(Struct):
    """The teacher's first words, up to where another model can go on with them.

    `tokens` were asked for, `kept_tokens` are in `text`. With `finish_reason` it is the whole answer.
    """

    text: str
    placement: Literal["prefix", "context"] | None
    projection: str | None
    tokens: Count
    kept_tokens: Count
    complete: bool
    finish_reason: str | None
    seam: Seam


class Close(Struct):
    """What a device may report: until when, in Unix seconds, and at most how many tokens; null: as many as it likes."""

    by: int
    most_output_tokens: Count | None


class GuidanceReply(Struct):
    """What a device gets that finishes an answer.

    In a stream, events before it hold a `delta` each, of what may be shown at once; `gkt` is there alone.
    """

    id: str
    object: Literal["guidance", "guidance.chunk"]
    created: int | None = None
    model: str | None = None
    guidance: GuidanceText | None = None
    messages: list[dict[str, Any]] | None = None
    unguided: str | None = None
    hint: str | None = None
    receipt: str | None = None
    close: Close | None = None
    delta: str | None = None
    gkt: dict[str, Any] | None = None


class ShownReceipt(Receipt, frozen=True):
    """A receipt. One of mode guidance also says how the account of its device stands."""

    edge: Literal["open", "closed", "never_closed"] | None = None
    savings_about_zero: bool | None = None


class Embedding(Struct):
    index: Count
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingsUsage(Struct):
    prompt_tokens: Count
    total_tokens: Count


class EmbeddingsReply(Struct):
    """Vectors as the engine wrote them: numbers, or base64 of 32-bit floats, little-endian."""

    model: str
    data: list[Embedding]
    usage: EmbeddingsUsage | None = None
    object: Literal["list"] = "list"


class Model(Struct):
    """A name that the key may send as `model`."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(Struct):
    object: Literal["list"]
    data: list[Model]


class LimitUse(Struct):
    """A limit, and what is used of it now: in the last 60 seconds, or at this moment."""

    limit: Count
    used: Count
    left: Count


class BudgetUse(Struct):
    """Money, in US dollars as text.

    `max_usd` is what may be spent, a raise included; `reserved_usd` belongs to requests under way. `duration` is how
    long a period lasts, such as 1mo, and `ends` when this one does, in Unix seconds: null where it is the time just
    past.
    """

    duration: str
    ends: int | None
    max_usd: Decimal
    spent_usd: Decimal
    reserved_usd: Decimal
    left_usd: Decimal


class Allowed(Struct):
    """What a tenant, or a key, may use; null: as much as it likes. No `budget`: the gateway does not tell of money."""

    id: str
    requests_per_minute: LimitUse | None
    tokens_per_minute: LimitUse | None
    parallel_requests: LimitUse | None
    budget: BudgetUse | None = None


class LimitsReply(Struct):
    """A request needs room in both: in what all keys of the tenant may use together, and in what this one may."""

    object: Literal["limits"]
    tenant: Allowed
    key: Allowed


class RoleTokens(Struct):
    """Read afresh, read from the engine's prefix cache, written, and read and stored in that cache."""

    input: Count
    cached: Count
    output: Count
    cache_write: Count


class UsageTokens(Struct):
    """`kept` opened answers; `answer` is what callers got to its end, `answer_by_teacher` the teacher's part of it."""

    teacher: RoleTokens
    student: RoleTokens
    failed: RoleTokens
    kept: Count
    answer: Count
    answer_by_teacher: Count


class Latency(Struct):
    """Milliseconds. Means are exact, quantiles within 5 %; null where there were none."""

    count: Count
    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None


class Latencies(Struct):
    admission: Latency
    batch_wait: Latency
    teacher: Latency
    first_token: Latency
    total: Latency


class Batches(Struct):
    """A batch of which others have a part counts as that part."""

    count: float
    mean_size: float | None


class SavingsClassSum(Struct):
    """Sums of one savings class."""

    requests: Count
    cost_usd: Decimal
    baseline_usd: Decimal
    savings_usd: Decimal


class Figures(Struct):
    """Sums of receipts. Money is text, in US dollars, and left out where receipts do not tell it."""

    requests: Count
    errors: dict[str, Count]
    unguided: dict[str, Count]
    tokens: UsageTokens
    teacher_token_share: float | None
    batches: Batches
    latency_ms: Latencies
    cost_usd: Decimal | None = None
    teacher_cost_usd: Decimal | None = None
    student_cost_usd: Decimal | None = None
    failed_cost_usd: Decimal | None = None
    baseline_usd: Decimal | None = None
    savings_usd: Decimal | None = None
    savings_error_usd: Decimal | None = None
    savings_about_zero: bool | None = None
    measuring_usd: Decimal | None = None
    savings_classes: dict[str, SavingsClassSum] | None = None
    baseline_estimated: Count | None = None
    baseline_error_usd: Decimal | None = None
    cost_share: float | None = None


class UsageRow(Figures):
    """Of the period that begins at `start`, and of what was asked to be told apart."""

    start: str | None = None
    key: str | None = None
    route: str | None = None
    mode: str | None = None
    teacher: str | None = None
    student: str | None = None


class UsageReply(Struct):
    """`since` and `until` are what is covered, in whole periods; RFC 3339, in UTC."""

    object: Literal["usage"]
    since: str
    until: str
    granularity: Literal["minute", "hour", "day"] | None
    by: list[Literal["key", "route", "mode", "teacher", "student"]]
    rows: list[UsageRow]
    total: Figures


class Error(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Struct):
    """OpenAI's error object."""

    error: Error
