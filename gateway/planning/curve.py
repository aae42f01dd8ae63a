"""Measurements of one engine (a model on one kind of GPU), read from a JSON file."""

from __future__ import annotations

import statistics
from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field, StringConstraints, field_validator, model_validator

from gateway.config.scalars import Flag, InvalidValue, Number, Usd, Whole
from gateway.config.yaml_source import StrictModel, load
from gateway.errors import ConfigError
from gateway.pricing import Price

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal
    from pathlib import Path

Line = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Count = Annotated[Whole, Field(ge=1, le=100_000)]
Tokens = Annotated[Whole, Field(ge=1, le=100_000_000)]
Seconds = Annotated[Number, Field(gt=0, le=3600)]
PerSecond = Annotated[Number, Field(gt=0, le=1_000_000_000)]
MIN_STEPS = 8
"""The fewest steps of joint decoding for a usable mean."""


class DecodeStep(StrictModel):
    """A decoding step, in which each answer of the batch gets a token."""

    batch: Count
    """Number of answers decoded together."""
    step_s: Seconds = Field(alias="seconds_per_step")
    """Duration of the step, without prefill."""


class CurvePrefill(StrictModel):
    """Speed of prefill."""

    tokens_per_s: PerSecond
    """Prompt tokens read per second by an otherwise idle engine, without prefix cache."""
    pass_s: Annotated[Number, Field(ge=0, le=60)] = Field(0.0, alias="seconds_per_pass")
    """Fixed time of each prefill pass."""
    pass_tokens: Tokens | None = Field(None, alias="tokens_per_pass")
    """Maximum prompt tokens of one pass: vLLM's `max-num-batched-tokens`, TGI's `max-batch-prefill-tokens`. Default:
    unlimited."""
    chunked: Flag = True
    """Whether a pass shares its step with decoding and may split a prompt; false: decoding pauses during prefill."""


class CurvePrice(StrictModel):
    """Price of the engine: per GPU hour or per token."""

    gpu_usd_per_hour: Usd | None = None
    """USD per hour of one GPU."""
    input_per_1m: Usd | None = None
    """USD per 1,000,000 input tokens."""
    output_per_1m: Usd | None = None
    """USD per 1,000,000 output tokens."""
    cached_input_per_1m: Usd | None = None
    """USD per 1,000,000 input tokens read from the engine's prefix cache. Default: input_per_1m."""

    @model_validator(mode="after")
    def _one_kind(self) -> CurvePrice:
        by_token = (self.input_per_1m, self.output_per_1m, self.cached_input_per_1m)
        if self.gpu_usd_per_hour is not None and any(one is not None for one in by_token):
            raise InvalidValue("has both per-token and per-GPU-hour prices: keep one of the two")
        if self.gpu_usd_per_hour is None and (self.input_per_1m is None or self.output_per_1m is None):
            raise InvalidValue("needs gpu_usd_per_hour, or input_per_1m and output_per_1m")
        return self

    @property
    def tokens(self) -> Price | None:
        """Return the prices in USD per token; None if the engine is paid by the hour."""
        if self.input_per_1m is None or self.output_per_1m is None:
            return None
        return Price.of_tokens(self.input_per_1m, self.output_per_1m, self.cached_input_per_1m)


class CurveOrigin(StrictModel):
    """Source of the numbers, for judging a plan that uses them."""

    kind: Literal["measured", "published", "derived", "assumed"]
    """`measured`: by `gkt-gateway plan measure` or a similar tool. `published`: as printed by the source. `derived`:
    calculated from published numbers, as `note` explains. `assumed`: a guess; every plan warns about it."""
    source: Line
    """Author, place and tool of the measurement; the address of a publication."""
    on: Annotated[str, StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}(-[0-9]{2})?$")] | None = None
    """Date of the measurement: a day or a month."""
    context_tokens: Tokens | None = None
    """Mean tokens of prompt and answer that each answer held during decoding. Steps of longer contexts take longer."""
    note: Line | None = None
    """Further remarks."""


class Curve(StrictModel):
    """An engine: a model on GPUs of one kind, and its timings.

    `gkt-gateway plan measure` writes one from a running engine; `gkt-gateway plan` reads them.
    """

    schema_at: Line | None = Field(None, alias="$schema")
    """Address of this schema, for editors."""
    model: Line
    """Model and precision."""
    gpu: Line | None = None
    """GPU model."""
    engine: Line | None = None
    """Inference server and version."""
    gpus_per_replica: Count = 1
    """GPUs of one replica: its tensor or pipeline parallelism."""
    decode: Annotated[tuple[DecodeStep, ...], Field(min_length=1, max_length=1000)]
    """Decoding steps by batch, smallest batch first. Times between them are linear; beyond them a plan warns."""
    prefill: CurvePrefill
    """Speed of prefill."""
    max_batch: Count | None = None
    """Maximum answers that one replica decodes together. Default: the largest batch of `decode`."""
    cache_tokens: Tokens | None = None
    """Tokens of prompts and answers that fit in GPU memory next to the weights; engines report it at startup."""
    price: CurvePrice | None = None
    """Price of the engine. Without it, `gkt-gateway plan` needs the price as an option."""
    origin: CurveOrigin
    """Source of these numbers."""

    @field_validator("decode")
    @classmethod
    def _rises(cls, steps: tuple[DecodeStep, ...]) -> tuple[DecodeStep, ...]:
        for index, (before, after) in enumerate(pairwise(steps), 1):
            if after.batch <= before.batch:
                raise InvalidValue(
                    f"decode[{index}].batch is not larger than the batch before it: put the smallest batch first"
                )
            if after.step_s / after.batch > before.step_s / before.batch:
                raise InvalidValue(
                    f"decode[{index}] writes fewer tokens per second than decode[{index - 1}]: a larger batch must not "
                    "be slower; measure again, remove the entry or set max_batch to the smaller batch"
                )
        return steps

    @property
    def measured_batch(self) -> int:
        return self.decode[-1].batch

    def slots(self, context_tokens: float) -> int:
        """Return how many answers of `context_tokens` final tokens one replica decodes together; at least 1."""
        limit = self.max_batch or self.measured_batch
        if self.cache_tokens is not None:
            limit = min(limit, int(self.cache_tokens / max(1.0, context_tokens)))
        return max(1, limit)

    def step_s(self, batch: float) -> float:
        """Return the seconds of one step in which `batch` answers are decoded. A mean batch need not be whole.

        Steps are linear between measured batches. Below the first batch a step takes as long as the first one. Above
        the last batch the slope of the last two continues. With a single measured batch, time grows in proportion to
        the batch.
        """
        steps = self.decode
        if batch <= steps[0].batch:
            return steps[0].step_s
        if len(steps) == 1:
            return steps[0].step_s * batch / steps[0].batch
        above = min(bisect_left([step.batch for step in steps], batch), len(steps) - 1)
        low, high = steps[above - 1], steps[above]
        slope = (high.step_s - low.step_s) / (high.batch - low.batch)
        if batch > high.batch:
            slope = max(0.0, slope)  # a larger batch never makes a step shorter
        return high.step_s + slope * (batch - high.batch)

    def priced(self, gpu_usd_per_hour: Decimal | None) -> Curve:
        """Return the engine with this GPU price; None keeps the price of the file."""
        if gpu_usd_per_hour is None:
            return self
        return self.model_copy(update={"price": CurvePrice(gpu_usd_per_hour=gpu_usd_per_hour)})


def read_curve(path: Path) -> Curve:
    """Read a curve from a file. Raises ConfigError with every issue, its line and its correction."""
    curve, issues = load(path, Curve, context=path)
    if curve is None:
        raise ConfigError(issues)
    return curve


class StreamTiming(NamedTuple):
    """Times of one stream in seconds of one clock: its start and each event with text; tokens as the engine counts."""

    started_s: float
    events_s: tuple[float, ...]
    input_tokens: int
    output_tokens: int

    @property
    def first_s(self) -> float:
        """Return the time from the request to the first text, in seconds."""
        return self.events_s[0] - self.started_s


def step_of(answers: Sequence[StreamTiming]) -> DecodeStep | None:
    """Return the mean step while all of these answers were decoded together; None for too few steps.

    The period begins when the last answer has its first token, and ends when the first answer has its last token.
    Outside it the batch is smaller.
    """
    begin = max(answer.events_s[0] for answer in answers)
    end = min(answer.events_s[-1] for answer in answers)
    events = [sum(begin < moment <= end for moment in answer.events_s) for answer in answers]
    tokens = [
        count * answer.output_tokens / len(answer.events_s) for count, answer in zip(events, answers, strict=True)
    ]
    steps = statistics.fmean(tokens)
    if end <= begin or steps < MIN_STEPS:
        return None
    return DecodeStep(batch=len(answers), step_s=round((end - begin) / steps, 6))


def median_step(samples: Sequence[DecodeStep | None]) -> DecodeStep | None:
    """Return the median of the measurements of one batch size; None if most of them, or half, had too few steps."""
    found = [sample for sample in samples if sample is not None]
    if 2 * len(found) <= len(samples):
        return None
    return found[0].model_copy(update={"step_s": round(statistics.median(one.step_s for one in found), 6)})


def gains(step: DecodeStep, before: DecodeStep) -> bool:
    """Return whether a batch writes at least as many tokens per second as the smaller one before it."""
    return step.step_s / step.batch <= before.step_s / before.batch


def improving_steps(steps: Sequence[DecodeStep]) -> tuple[DecodeStep, ...]:
    """Return the batches, smallest first, up to the first one that no longer increases tokens per second."""
    kept: list[DecodeStep] = []
    for step in sorted(steps, key=lambda one: one.batch):
        if kept and not gains(step, kept[-1]):
            break
        kept.append(step)
    return tuple(kept)


def prefill_of(lengths: Sequence[Sequence[StreamTiming]], alone_s: float) -> CurvePrefill | None:
    """Return the speed of prefill from several answers for each of some prompt lengths, requested one at a time.

    The fastest answer of each length counts, since other activity can only add time. A least-squares line through these
    gives the time per token (slope) and the fixed time of a pass plus the step that it shares (intercept). `alone_s`,
    the step with the smallest batch, is subtracted from the intercept. Returns None if longer prompts did not take
    longer.
    """
    fastest = [min(answers, key=lambda answer: answer.first_s) for answers in lengths]
    tokens = [float(answer.input_tokens) for answer in fastest]
    if len(set(tokens)) < 2:
        return None
    slope, start_s = statistics.linear_regression(tokens, [answer.first_s for answer in fastest])
    if slope <= 0:
        return None
    return CurvePrefill(tokens_per_s=round(1 / slope, 1), pass_s=round(max(0.0, start_s - alone_s), 6))


def context_of(answers: Sequence[StreamTiming]) -> int:
    """Return the mean number of tokens that each of these answers held during decoding."""
    return max(1, round(statistics.fmean(answer.input_tokens + answer.output_tokens / 2 for answer in answers)))
