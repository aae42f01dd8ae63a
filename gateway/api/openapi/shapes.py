"""Structs of the replies, for the OpenAPI document only. Handlers do not use them.

A field without a default is always present. Objects from an engine, such as tool calls, may have more fields.
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
    """Tokens of the caller's prompt and of the whole answer, of teacher and student."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: CachedTokens | None = None


class Delta(Struct):
    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class AnswerMessage(Delta, kw_only=True):
    role: str


class _Choice(Struct):
    index: Count = 0
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class Choice(_Choice, kw_only=True):
    message: AnswerMessage


class ChunkChoice(_Choice, kw_only=True):
    delta: Delta


class TextChoice(_Choice, kw_only=True):
    text: str


class _Completion(Struct, kw_only=True):
    id: str
    created: int
    model: str
    system_fingerprint: str | None = None
    service_tier: str | None = None


class ChatCompletion(_Completion, kw_only=True):
    """A whole answer: the guidance, if there is any, and the student's text after it."""

    object: Literal["chat.completion"]
    choices: Annotated[list[Choice], Meta(min_length=1)]
    usage: Usage


class ChatCompletionChunk(_Completion, kw_only=True):
    """An event of a streamed answer. The last event is `[DONE]`, or an ErrorReply if the answer failed.

    With `stream_options.include_usage` the last chunk has no choices. It has `usage`, and `gkt` with the facts
    that a whole answer has as headers.
    """

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]
    usage: Usage | None = None
    gkt: dict[str, Any] | None = None


class TextCompletion(_Completion, kw_only=True):
    """The completion of a raw prompt, or one event of its stream. `usage` and `gkt` are as in chat completions."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage | None = None
    gkt: dict[str, Any] | None = None


class Seam(Struct):
    """The end of the guidance.

    `owed` is the whitespace after the guidance, for a student that starts without it. `trimmed` is the teacher's later
    text, which was dropped.
    """

    owed: str
    trimmed: str


class GuidanceText(Struct):
    """The teacher's first tokens, up to a point where another model can continue.

    `tokens` were requested, `kept_tokens` are in `text`. With `finish_reason`, `text` is the whole answer.
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
    """Bounds of a device's report: the deadline `by` in Unix seconds, and the maximum of output tokens; null: none."""

    by: int
    most_output_tokens: Count | None


class GuidanceReply(Struct):
    """Guidance for a device that finishes the answer.

    In a stream, each earlier event has a `delta` of text that can be shown. Only streams have `gkt`.
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
    """A receipt. In mode guidance, `edge` is the state of the device's report. `feedback` is the caller's score."""

    edge: Literal["open", "closed", "never_closed"] | None = None
    savings_about_zero: bool | None = None
    feedback: float | None = None


class Feedback(Struct):
    """The score of a request, from 0 to 1."""

    object: Literal["feedback"]
    receipt: str
    score: float


class Embedding(Struct):
    index: Count
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingsUsage(Struct):
    prompt_tokens: Count
    total_tokens: Count


class EmbeddingsReply(Struct):
    """Vectors as the engine returned them: numbers, or base64 of 32-bit little-endian floats."""

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
    models: Annotated[list[Any], Meta(max_length=0)] = []


class LimitUse(Struct):
    """A limit, and its use in the last 60 seconds or at this moment."""

    limit: Count
    used: Count
    left: Count


class BudgetUse(Struct):
    """Amounts in US dollars, as text.

    `max_usd` includes a raise of the budget. `reserved_usd` is reserved for running requests. `duration` is the length
    of a period, such as 1mo. `ends` is the end of the current period in Unix seconds; null for a sliding window.
    """

    duration: str
    ends: int | None
    max_usd: Decimal
    spent_usd: Decimal
    reserved_usd: Decimal
    left_usd: Decimal


class Allowed(Struct):
    """Limits of a tenant or a key; null: no limit. Without `budget` the gateway is configured to hide amounts."""

    id: str
    requests_per_minute: LimitUse | None
    tokens_per_minute: LimitUse | None
    parallel_requests: LimitUse | None
    budget: BudgetUse | None = None


class AllowedLabel(Struct):
    """Limits of a value of a label; null: no limit. `budget` as for the tenant."""

    label: str
    value: str
    requests_per_minute: LimitUse | None
    tokens_per_minute: LimitUse | None
    parallel_requests: LimitUse | None
    budget: BudgetUse | None = None


class LimitsReply(Struct):
    """Limits of the tenant for all keys together, of this key, and of labels. A request must stay within all.

    `labels` has the limits of the values that the key, the token and the headers of this request give. A tenant
    without limits of labels has no `labels`.
    """

    object: Literal["limits"]
    tenant: Allowed
    key: Allowed
    labels: list[AllowedLabel] = []


class RoleTokens(Struct):
    """Input tokens, those from the engine's prefix cache, output tokens, and input tokens written to that cache."""

    input: Count
    cached: Count
    output: Count
    cache_write: Count


class UsageTokens(Struct):
    """`kept` are guidance tokens in answers, `answer` tokens of complete answers, `answer_by_teacher` the teacher's."""

    teacher: RoleTokens
    student: RoleTokens
    failed: RoleTokens
    kept: Count
    answer: Count
    answer_by_teacher: Count


class Latency(Struct):
    """Milliseconds. Means are exact, quantiles within 5 %; null without a measurement."""

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
    handover: Latency
    total: Latency


class Batches(Struct):
    """A batch counts as the fraction of its calls that the sums include."""

    count: float
    mean_size: float | None


class SavingsClassSum(Struct):
    """Sums of one savings class."""

    requests: Count
    cost_usd: Decimal
    baseline_usd: Decimal
    savings_usd: Decimal


class VariantSums(Struct):
    """Sums of one variant of a split route: requests, and how many of them were guided or failed."""

    requests: Count
    guided: Count
    errors: Count
    cost_usd: Decimal | None = None


class Figures(Struct):
    """Sums of receipts. Amounts are text in US dollars, and absent if receipts hide them.

    Sums for labels have the numbers `requests`, `errors`, `input_tokens` and `output_tokens`, and three amounts. All
    others have `errors` by error label, and no `input_tokens` and `output_tokens`.

    `cost_usd` is the sum of `answers_usd`, `disconnected_usd`, `failed_usd` and `measuring_usd`. `baseline_usd` less
    these four is `savings_usd`. `requests` is the sum of `answers`, `errors` and `disconnected`.
    """

    requests: Count
    errors: dict[str, Count] | Count
    answers: Count | None = None
    disconnected: Count | None = None
    shadows: Count | None = None
    unguided: dict[str, Count] | None = None
    tokens: UsageTokens | None = None
    teacher_token_share: float | None = None
    batches: Batches | None = None
    latency_ms: Latencies | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    variants: dict[str, VariantSums] | None = None
    cost_usd: Decimal | None = None
    answers_usd: Decimal | None = None
    disconnected_usd: Decimal | None = None
    failed_usd: Decimal | None = None
    measuring_usd: Decimal | None = None
    teacher_cost_usd: Decimal | None = None
    student_cost_usd: Decimal | None = None
    replaced_cost_usd: Decimal | None = None
    baseline_usd: Decimal | None = None
    savings_usd: Decimal | None = None
    savings_error_usd: Decimal | None = None
    savings_about_zero: bool | None = None
    savings_classes: dict[str, SavingsClassSum] | None = None
    baseline_estimated: Count | None = None
    cost_share: float | None = None


class UsageRow(Figures):
    """Sums of the period that begins at `start`, for one value of each requested dimension."""

    start: str | None = None
    key: str | None = None
    route: str | None = None
    mode: str | None = None
    teacher: str | None = None
    student: str | None = None


class UsageReply(Struct):
    """`since` and `until` are the covered range in whole periods; RFC 3339, in UTC. `by` may have `label:NAME`."""

    object: Literal["usage"]
    since: str
    until: str
    granularity: Literal["minute", "hour", "day"] | None
    by: list[str]
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
