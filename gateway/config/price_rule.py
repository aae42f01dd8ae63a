"""Price of a model in config.yaml: per 1M tokens, per hour of its engine, or none."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, ClassVar

from pydantic import Field

from gateway.config.scalars import Rate, Usd, Whole
from gateway.config.yaml_source import StrictModel
from gateway.pricing import Price

_SCALE = "prices here are USD per 1M tokens: multiply by 1,000,000 and write it as "


class PriceRule(StrictModel):
    """A price in YAML: per 1M tokens, per hour of the engine together with its token rates, or `free`."""

    input_per_1m: Usd | None = None
    """USD per 1,000,000 input tokens."""
    output_per_1m: Usd | None = None
    """USD per 1,000,000 output tokens."""
    cached_input_per_1m: Usd | None = None
    """USD per 1,000,000 input tokens read from the engine's prompt cache. Default: input_per_1m."""
    cache_write_per_1m: Usd | None = None
    """USD per 1,000,000 input tokens written to the engine's prompt cache. Default: input_per_1m."""
    cache_write_1h_per_1m: Usd | None = None
    """USD per 1,000,000 input tokens written to that cache for one hour. Default: cache_write_per_1m."""
    gpu_usd_per_hour: Usd | None = None
    """USD per hour of the engine, or of each of its `gpus`."""
    input_tokens_per_s: Rate | None = None
    """Input tokens per second, over all concurrent requests."""
    output_tokens_per_s: Rate | None = None
    """Output tokens per second, over all concurrent requests."""
    gpus: Annotated[Whole, Field(ge=1, le=100_000)] | None = None
    """Number of GPUs of the engine. Default: 1."""
    free: bool = False
    """The engine costs nothing. Replaces all other keys."""
    key_hints: ClassVar[Mapping[str, str]] = {
        "input_cost_per_token": _SCALE + "input_per_1m",
        "output_cost_per_token": _SCALE + "output_per_1m",
        "cache_read_input_token_cost": _SCALE + "cached_input_per_1m",
        "cache_creation_input_token_cost": _SCALE + "cache_write_per_1m",
        "cache_creation_input_token_cost_above_1hr": _SCALE + "cache_write_1h_per_1m",
    }

    def problem(self) -> str | None:
        """Return why this is not one complete price, or None."""
        by_token = {"input_per_1m", "output_per_1m"}
        by_hour = {"gpu_usd_per_hour", "input_tokens_per_s", "output_tokens_per_s"}
        given = {name for name in type(self).model_fields if getattr(self, name) is not None} - {"free"}
        if self.free:
            return "has free: true and other keys: keep one of the two" if given else None
        if not given:
            return "needs input_per_1m and output_per_1m in USD per 1M tokens, or free: true"
        hourly = given & (by_hour | {"gpus"})
        if hourly and given - hourly:
            return "has prices per 1M tokens and per GPU hour: keep one of the two"
        required = by_hour if hourly else by_token
        if missing := [name for name in type(self).model_fields if name in required - given]:
            return f"needs {' and '.join(missing)} too"
        return None

    def price(self) -> Price:
        """Return the price per token. The rule must have no `problem()`."""
        if self.free:
            return Price.of_tokens(Decimal(0), Decimal(0))
        if self.hourly_usd is not None and self.input_tokens_per_s is not None and self.output_tokens_per_s is not None:
            return Price.of_gpu_hour(self.hourly_usd, self.input_tokens_per_s, self.output_tokens_per_s)
        assert self.input_per_1m is not None
        assert self.output_per_1m is not None
        cache_writes = self.cache_write_per_1m, self.cache_write_1h_per_1m
        return Price.of_tokens(self.input_per_1m, self.output_per_1m, self.cached_input_per_1m, *cache_writes)

    @property
    def hourly_usd(self) -> Decimal | None:
        """USD per hour of the whole engine; None where the price is per token."""
        return None if self.gpu_usd_per_hour is None else self.gpu_usd_per_hour * (self.gpus or 1)
