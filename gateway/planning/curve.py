"""What was measured of one engine: a model on a kind of GPU, as a JSON file says it."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

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


class DecodeStep(StrictModel):
    """One step of decoding, in which each answer of the batch gets a token."""

    batch: Count
    """How many answers are decoded together."""
    step_s: Seconds = Field(alias="seconds_per_step")
    """How long such a step takes, without the reading of prompts."""


def step_s(steps: Sequence[DecodeStep], batch: float) -> float:
    """Seconds of one step for `batch` answers, from steps that were measured, the smallest batch first.

    Linear between them. Below the first it takes as long as that one. Above the last it goes on as between the last
    two, or in proportion to the batch where there is one alone: an engine that gains nothing from batches.
    """
    if batch <= steps[0].batch:
        return steps[0].step_s
    if len(steps) == 1:
        return steps[0].step_s * batch / steps[0].batch
    above = min(bisect_left([step.batch for step in steps], batch), len(steps) - 1)
    low, high = steps[above - 1], steps[above]
    slope = (high.step_s - low.step_s) / (high.batch - low.batch)
    if batch > high.batch:
        slope = max(0.0, slope)  # no engine gets ever quicker
    return high.step_s + slope * (batch - high.batch)


class CurvePrefill(StrictModel):
    """How fast prompts are read."""

    tokens_per_s: PerSecond
    """Tokens read in a second while nothing else is done, of prompts that no cache holds."""
    pass_s: Annotated[Number, Field(ge=0, le=60)] = Field(0.0, alias="seconds_per_pass")
    """What each pass over prompts takes beside, however little it reads."""
    pass_tokens: Tokens | None = Field(None, alias="tokens_per_pass")
    """The most that one pass reads: vLLM's `max-num-batched-tokens`, TGI's `max-batch-prefill-tokens`. Default: all."""
    chunked: Flag = True
    """Whether a pass shares its step with decoding and may break a prompt off; false: others wait while it reads."""


class CurvePrice(StrictModel):
    """What the engine costs: by the hour of each GPU, or by the token."""

    gpu_usd_per_hour: Usd | None = None
    """USD for an hour of one GPU."""
    input_per_1m: Usd | None = None
    """USD per 1,000,000 tokens read."""
    output_per_1m: Usd | None = None
    """USD per 1,000,000 tokens written."""
    cached_input_per_1m: Usd | None = None
    """Of those read, from the engine's prefix cache. Default: as input_per_1m."""

    @model_validator(mode="after")
    def _one_kind(self) -> CurvePrice:
        by_token = (self.input_per_1m, self.output_per_1m, self.cached_input_per_1m)
        if self.gpu_usd_per_hour is not None and any(one is not None for one in by_token):
            raise InvalidValue("is either per 1M tokens or per GPU hour: keep one of the two")
        if self.gpu_usd_per_hour is None and (self.input_per_1m is None or self.output_per_1m is None):
            raise InvalidValue("needs gpu_usd_per_hour, or input_per_1m and output_per_1m")
        return self

    @property
    def tokens(self) -> Price | None:
        """USD per token; None: paid by the hour."""
        if self.input_per_1m is None or self.output_per_1m is None:
            return None
        return Price.of_tokens(self.input_per_1m, self.output_per_1m, self.cached_input_per_1m)


class CurveOrigin(StrictModel):
    """Where the numbers come from, so that whoever plans with them can judge them."""

    kind: Literal["measured", "published", "derived", "assumed"]
    """`measured`: by `gkt-gateway plan measure` or the like. `published`: as somebody printed it. `derived`: worked out
    of what somebody printed, as `note` says. `assumed`: a guess; every plan says so."""
    source: Line
    """Who measured, where, with what; for what was published its address."""
    on: Annotated[str, StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}(-[0-9]{2})?$")] | None = None
    """When: a day or a month."""
    context_tokens: Tokens | None = None
    """Tokens of prompt and answer that each answer held on average while it was decoded. Longer ones take longer."""
    note: Line | None = None
    """What else one should know."""


class Curve(StrictModel):
    """One engine: a model on GPUs of one kind, and how long it takes.

    `gkt-gateway plan measure` writes one from a running engine; `gkt-gateway plan` reads them.
    """

    schema_at: Line | None = Field(None, alias="$schema")
    """Where this schema is, for editors."""
    model: Line
    """Which model, in which precision."""
    gpu: Line | None = None
    """Which GPU."""
    engine: Line | None = None
    """Which server, in which version."""
    gpus_per_replica: Count = 1
    """GPUs that one replica takes: its tensor or pipeline parallelism."""
    decode: Annotated[tuple[DecodeStep, ...], Field(min_length=1, max_length=1000)]
    """Steps of decoding, by batch, the smallest batch first. Between them it is linear; beyond them a plan warns."""
    prefill: CurvePrefill
    """How fast prompts are read."""
    max_batch: Count | None = None
    """Answers that one replica decodes together at most. Default: the largest batch of `decode`."""
    cache_tokens: Tokens | None = None
    """Tokens of prompts and answers that the GPUs' memory holds beside the weights; engines tell it when they start."""
    price: CurvePrice | None = None
    """What it costs. Without it `gkt-gateway plan` must be told."""
    origin: CurveOrigin
    """Where these numbers come from."""

    @field_validator("decode")
    @classmethod
    def _rises(cls, steps: tuple[DecodeStep, ...]) -> tuple[DecodeStep, ...]:
        for place, (before, after) in enumerate(pairwise(steps), 1):
            if after.batch <= before.batch:
                raise InvalidValue(
                    f"decode[{place}].batch is not more than the one before it: put the smallest batch first"
                )
            if after.step_s / after.batch > before.step_s / before.batch:
                raise InvalidValue(
                    f"decode[{place}] writes fewer tokens in a second than decode[{place - 1}]: an engine gains from a "
                    "larger batch, or max_batch should be the smaller one; measure again or leave it out"
                )
        return steps

    @property
    def measured_batch(self) -> int:
        """The largest batch that was measured."""
        return self.decode[-1].batch

    def places(self, context_tokens: float) -> int:
        """Answers that one replica decodes together when each holds so many tokens in the end; at least 1."""
        most = self.max_batch or self.measured_batch
        if self.cache_tokens is not None:
            most = min(most, int(self.cache_tokens / max(1.0, context_tokens)))
        return max(1, most)

    def step_s(self, batch: float) -> float:
        """Seconds of one step in which `batch` answers are decoded; a mean of batches need not be whole."""
        return step_s(self.decode, batch)

    def priced(self, gpu_usd_per_hour: Decimal | None) -> Curve:
        """The same engine at this price of its GPUs; None: at its own."""
        if gpu_usd_per_hour is None:
            return self
        return self.model_copy(update={"price": CurvePrice(gpu_usd_per_hour=gpu_usd_per_hour)})


def read_curve(path: Path) -> Curve:
    """The curve in a file. Raises ConfigError, with every mistake, its line and its mend."""
    curve, mistakes = load(path, Curve, context=path)
    if curve is None:
        raise ConfigError(mistakes)
    return curve
