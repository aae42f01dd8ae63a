"""Computes the cost of answers, the cost of the baseline model, and the savings. All amounts are Decimal USD.

Also reads LiteLLM's bundled tables of prices and providers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from decimal import ROUND_UP, Context, Decimal
from functools import cache, reduce
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

# A price has at most 24 digits (gateway.config.scalars), so products with token counts are not rounded.
_EXACT = Context(prec=60)
# Picodollars: exact for each price per 1M tokens with six decimals.
_QUANTUM = Decimal("1E-12")
_RATE = Context(prec=24)  # for prices per token from hourly prices, which are rounded
_PER_1M = Decimal(1_000_000)
_SECONDS_PER_HOUR = Decimal(3600)
_TABLE = "model_prices_and_context_window_backup.json"
_PROVIDERS = "provider_endpoints_support_backup.json"
_TEXT_MODES = frozenset({"chat", "completion", "responses", "embedding"})


@dataclass(frozen=True, slots=True)
class Price:
    """Prices in USD per token."""

    input_usd: Decimal  # input tokens that are not cached
    cached_input_usd: Decimal  # input tokens that the engine reads from its prompt cache
    output_usd: Decimal
    cache_write_usd: Decimal  # input tokens that the engine writes to its prompt cache
    cache_write_1h_usd: Decimal  # input tokens that it writes there for a lifetime of one hour
    pico: tuple[int, int, int, int, int, int] | None = field(init=False, compare=False, repr=False)
    """The five prices in picodollars, and `max_input_usd`; None where one is not whole, as with hourly prices."""

    def __post_init__(self) -> None:
        prices = self.input_usd, self.cached_input_usd, self.output_usd, self.cache_write_usd, self.cache_write_1h_usd
        scaled = [_EXACT.scaleb(usd, 12) for usd in prices]
        read, cached, write, stored, stored_1h = whole = [int(pico) for pico in scaled]
        max_read = max(read, cached, stored, stored_1h)
        pico = (read, cached, write, stored, stored_1h, max_read) if whole == scaled else None
        object.__setattr__(self, "pico", pico)

    @classmethod
    def of_tokens(
        cls,
        input_per_1m: Decimal,
        output_per_1m: Decimal,
        cached_input_per_1m: Decimal | None = None,
        cache_write_per_1m: Decimal | None = None,
        cache_write_1h_per_1m: Decimal | None = None,
    ) -> Price:
        """Return a price from USD per 1M tokens.

        Default prices of cache reads and writes are the input price, for one hour that of other cache writes.
        """
        cached = input_per_1m if cached_input_per_1m is None else cached_input_per_1m
        stored = input_per_1m if cache_write_per_1m is None else cache_write_per_1m
        stored_1h = stored if cache_write_1h_per_1m is None else cache_write_1h_per_1m
        return cls(*(_EXACT.divide(usd, _PER_1M) for usd in (input_per_1m, cached, output_per_1m, stored, stored_1h)))

    @classmethod
    def of_gpu_hour(cls, gpu_usd_per_hour: Decimal, input_tokens_per_s: Decimal, output_tokens_per_s: Decimal) -> Price:
        """Return a price from an hourly price and the throughputs of prefill and decode.

        Throughput is that of the whole engine. The duration of one request would charge each of 64 concurrent requests
        for the whole machine. Cached tokens cost as much as others, so that the cost is not understated.
        """
        usd_per_s = _RATE.divide(gpu_usd_per_hour, _SECONDS_PER_HOUR)
        read = _RATE.divide(usd_per_s, input_tokens_per_s)
        return cls(read, read, _RATE.divide(usd_per_s, output_tokens_per_s), read, read)

    @property
    def max_input_usd(self) -> Decimal:
        """The highest price of an input token."""
        return max(self.input_usd, self.cached_input_usd, self.cache_write_usd, self.cache_write_1h_usd)

    @property
    def upper_bound(self) -> Price:
        """Return the price with `max_input_usd` for uncached tokens, for calls with unknown cache counts."""
        return replace(self, input_usd=self.max_input_usd)


def cost_usd(
    price: Price,
    input_tokens: int,
    output_tokens: int,
    cached_input_tokens: int = 0,
    cache_write_input_tokens: int = 0,
    cache_write_1h_input_tokens: int = 0,
) -> Decimal:
    """Return the exact cost of one call.

    `cached_input_tokens` is the part of `input_tokens` that the engine read from its prompt cache. It wrote another
    part to that cache, some of it for one hour. If both parts exceed `input_tokens` together, the cached part is
    reduced.
    """
    counts = input_tokens, output_tokens, cached_input_tokens, cache_write_input_tokens, cache_write_1h_input_tokens
    if min(counts) < 0:
        raise ValueError("token counts cannot be negative")
    stored = min(cache_write_input_tokens, input_tokens)
    stored_1h = min(cache_write_1h_input_tokens, stored)
    cached = min(cached_input_tokens, input_tokens - stored)
    written = _EXACT.multiply(price.output_usd, output_tokens)
    cost = _EXACT.fma(price.input_usd, input_tokens - cached - stored, written)
    if cached:
        cost = _EXACT.fma(price.cached_input_usd, cached, cost)
    if stored:
        cost = _EXACT.fma(price.cache_write_usd, stored - stored_1h, cost)
    return _EXACT.fma(price.cache_write_1h_usd, stored_1h, cost) if stored_1h else cost


def charge_usd(
    price: Price,
    input_tokens: int,
    output_tokens: int,
    cached_input_tokens: int = 0,
    cache_write_input_tokens: int = 0,
    cache_write_1h_input_tokens: int = 0,
) -> Decimal:
    """Return `cost_usd` with twelve decimals, as in receipts. Integers take a third of the time of Decimal."""
    cached, stored, stored_1h = cached_input_tokens, cache_write_input_tokens, cache_write_1h_input_tokens
    if price.pico is None or input_tokens < 0 or output_tokens < 0 or cached < 0 or stored < 0 or stored_1h < 0:
        return quantized(cost_usd(price, input_tokens, output_tokens, cached, stored, stored_1h))
    read_pico, cached_pico, written_pico, stored_pico, stored_1h_pico, _ = price.pico
    cost = read_pico * input_tokens + written_pico * output_tokens
    if cached or stored:
        stored = min(stored, input_tokens)
        cached = min(cached, input_tokens - stored)
        cost += (cached_pico - read_pico) * cached + (stored_pico - read_pico) * stored
        if stored_1h:
            cost += (stored_1h_pico - stored_pico) * min(stored_1h, stored)
    return _EXACT.multiply(_QUANTUM, cost)


def max_charge_usd(price: Price, input_tokens: int, output_tokens: int) -> Decimal:
    """Return the largest cost of one call, whatever its prompt cache does, rounded up to twelve decimals."""
    if price.pico is None:
        # The exact arithmetic of receipts would take several times as long.
        return (price.max_input_usd * input_tokens + price.output_usd * output_tokens).quantize(_QUANTUM, ROUND_UP)
    _, _, written_pico, _, _, max_read_pico = price.pico
    return _EXACT.multiply(_QUANTUM, max_read_pico * input_tokens + written_pico * output_tokens)


def quantized(amount_usd: Decimal) -> Decimal:
    """Return an amount with twelve decimals, as in receipts."""
    return _EXACT.quantize(amount_usd, _QUANTUM)


def total_usd(*amounts_usd: Decimal) -> Decimal:
    """Return the exact sum."""
    return reduce(_EXACT.add, amounts_usd, Decimal(0))


def savings_usd(baseline: Decimal, cost: Decimal) -> Decimal:
    """Return the baseline minus the cost; negative if guidance cost more than it saved."""
    return _EXACT.subtract(baseline, cost)


def litellm_table(model: str) -> Price | None:
    """Return the list price of a model in LiteLLM's bundled table; None if unknown. LiteLLM is not imported.

    `provider/name` finds `name` if the provider in the table is the same, or a part of it such as `bedrock_converse` of
    `bedrock`. Rows without input and output prices, or with prices of 0, are ignored. A free model must be
    marked in config.yaml.
    """
    return _row(model).price


def litellm_max_output(model: str) -> int | None:
    """Return the maximum output tokens of a model in LiteLLM's table; None if unknown."""
    return _row(model).max_output_tokens


@cache
def litellm_providers() -> frozenset[str]:
    """Return the names that may precede the slash in `provider/name`; empty if LiteLLM is not installed."""
    # A name with a slash is a product, not a provider.
    return frozenset(name for name in _litellm_file(_PROVIDERS).get("providers", ()) if "/" not in name)


class ListedModel(NamedTuple):
    """Provider and mode of a model in LiteLLM's bundled table, such as `openai` and `image_generation`."""

    provider: str
    mode: str


def litellm_listed(model: str) -> ListedModel | None:
    """Return provider and mode of a model, also of one without a price per token; None if unknown."""
    return _listed_models().get(model)


@cache
def _listed_models() -> dict[str, ListedModel]:
    rows = _litellm_file(_TABLE).items()
    return {name: ListedModel(str(row.get("litellm_provider", "")), str(row.get("mode", ""))) for name, row in rows}


class _Row(NamedTuple):
    provider: str = ""
    price: Price | None = None
    max_output_tokens: int | None = None


def _row(model: str) -> _Row:
    table = _rows()
    if model in table:
        return table[model]
    provider, slash, name = model.partition("/")
    if slash and name in table:
        seller = table[name].provider
        if seller == provider or seller.startswith((provider + "_", provider + "-")):
            return table[name]
    return _Row()


def _litellm_file(name: str) -> dict[str, Any]:
    """Return a JSON file of LiteLLM, with numbers as Decimal; empty without LiteLLM. LiteLLM is not imported."""
    spec = find_spec("litellm")
    if spec is None or spec.origin is None or not (file := Path(spec.origin).with_name(name)).is_file():
        return {}
    content: dict[str, Any] = json.loads(file.read_text("utf-8"), parse_float=Decimal, parse_int=Decimal)
    return content


@cache
def _rows() -> dict[str, _Row]:
    rows: dict[str, _Row] = {}
    for model, row in _litellm_file(_TABLE).items():
        price = _row_price(row)
        if price is not None and row.get("mode") in _TEXT_MODES:
            limit = row.get("max_output_tokens")
            tokens = int(limit) if isinstance(limit, Decimal) and limit > 0 else None
            rows[model] = _Row(str(row.get("litellm_provider", "")), price, tokens)
    return rows


def _row_price(row: dict[str, object]) -> Price | None:
    read, write = row.get("input_cost_per_token"), row.get("output_cost_per_token")
    cached = row.get("cache_read_input_token_cost", read)
    if not (isinstance(read, Decimal) and isinstance(write, Decimal) and isinstance(cached, Decimal)):
        return None
    if min(read, write, cached) < 0 or not (read or write):
        return None
    # Some rows have 0, for providers without such a charge, or the price of cache reads.
    stored = _at_least(read, row.get("cache_creation_input_token_cost"))
    return Price(read, cached, write, stored, _at_least(stored, row.get("cache_creation_input_token_cost_above_1hr")))


def _at_least(least: Decimal, usd: object) -> Decimal:
    return max(least, usd) if isinstance(usd, Decimal) else least


def picodollars(usd: Decimal) -> str:
    """Return USD in whole picodollars, rounded up, as Redis stores it."""
    return str(ceil(usd.scaleb(12)))


def dollars(pico: int | str) -> Decimal:
    """Return picodollars in USD."""
    return Decimal(pico).scaleb(-12)


def without_trailing_zeros(usd: Decimal) -> Decimal:
    """Return the amount without trailing zeros and without an exponent: 100 for 100.000000000000 and 1E+2."""
    return Decimal(f"{usd.normalize():f}")
