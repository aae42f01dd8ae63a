"""What an answer cost, what the teacher alone would have cost, and the difference. Pure; all money is Decimal USD."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Context, Decimal
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

_EXACT = Context(
    prec=60
)  # a price has at most 24 digits (gateway.config.scalars), so no product with a token count is rounded
# A millionth of a millionth of a dollar: exact for every price per 1M tokens with six decimals.
_QUANTUM = Decimal("1E-12")
_RATE = Context(prec=24)  # what an hourly price comes to per token has no last digit
_PER_1M = Decimal(1_000_000)
_SECONDS_PER_HOUR = Decimal(3600)
_TABLE = "model_prices_and_context_window_backup.json"
_TEXT_MODES = frozenset({"chat", "completion", "responses", "embedding"})


@dataclass(frozen=True, slots=True)
class Price:
    """USD per token: read afresh, read from the engine's prompt cache, written, and read and stored in that cache."""

    input_usd: Decimal
    cached_input_usd: Decimal
    output_usd: Decimal
    cache_write_usd: Decimal

    @classmethod
    def of_tokens(
        cls,
        input_per_1m: Decimal,
        output_per_1m: Decimal,
        cached_input_per_1m: Decimal | None = None,
        cache_write_per_1m: Decimal | None = None,
    ) -> Price:
        """From USD per 1M tokens. Without prices of their own cached and stored tokens cost as much as fresh ones."""
        cached = input_per_1m if cached_input_per_1m is None else cached_input_per_1m
        stored = input_per_1m if cache_write_per_1m is None else cache_write_per_1m
        return cls(*(_EXACT.divide(usd, _PER_1M) for usd in (input_per_1m, cached, output_per_1m, stored)))

    @classmethod
    def of_gpu_hour(cls, gpu_usd_per_hour: Decimal, input_tokens_per_s: Decimal, output_tokens_per_s: Decimal) -> Price:
        """From an engine bought by the hour: the hourly price over its throughput, prefill and decode apart.

        Never from the seconds of one request: sixty-four at once would each pay for the whole machine.
        A cached token is charged like a fresh one, so that the cost is never understated.
        """
        usd_per_s = _RATE.divide(gpu_usd_per_hour, _SECONDS_PER_HOUR)
        read = _RATE.divide(usd_per_s, input_tokens_per_s)
        return cls(read, read, _RATE.divide(usd_per_s, output_tokens_per_s), read)

    @property
    def dearest_input_usd(self) -> Decimal:
        """The highest price of an input token, whether it is cached, stored or neither."""
        return max(self.input_usd, self.cached_input_usd, self.cache_write_usd)

    @property
    def dearest(self) -> Price:
        """This price with `dearest_input_usd` for fresh tokens: an upper bound where the parts are not known."""
        return replace(self, input_usd=self.dearest_input_usd)


def cost_usd(
    price: Price,
    input_tokens: int,
    output_tokens: int,
    cached_input_tokens: int = 0,
    cache_write_input_tokens: int = 0,
) -> Decimal:
    """Return the exact cost of one call.

    Args:
        cached_input_tokens: the part of `input_tokens` that the engine read from its prompt cache.
        cache_write_input_tokens: another part, which the engine wrote to that cache.

    Both together count up to `input_tokens`, the stored ones first.
    """
    if min(input_tokens, output_tokens, cached_input_tokens, cache_write_input_tokens) < 0:
        raise ValueError("token counts cannot be negative")
    stored = min(cache_write_input_tokens, input_tokens)
    cached = min(cached_input_tokens, input_tokens - stored)
    written = _EXACT.multiply(price.output_usd, output_tokens)
    cost = _EXACT.fma(price.input_usd, input_tokens - cached - stored, written)
    if cached:
        cost = _EXACT.fma(price.cached_input_usd, cached, cost)
    return _EXACT.fma(price.cache_write_usd, stored, cost) if stored else cost


def quantized(amount_usd: Decimal) -> Decimal:
    """An amount as receipts keep it, with twelve decimals."""
    return _EXACT.quantize(amount_usd, _QUANTUM)


def total_usd(*amounts_usd: Decimal) -> Decimal:
    """The exact sum."""
    total = Decimal(0)
    for amount in amounts_usd:
        total = _EXACT.add(total, amount)
    return total


def baseline_usd(
    price: Price,
    prompt_tokens: int,
    answer_tokens: int,
    cached_prompt_tokens: int = 0,
    cache_write_prompt_tokens: int = 0,
) -> Decimal:
    """What the baseline model (the teacher, by default) alone would have cost.

    It reads the same prompt, once, and writes the same whole answer, guidance included.
    """
    return cost_usd(price, prompt_tokens, answer_tokens, cached_prompt_tokens, cache_write_prompt_tokens)


def savings_usd(baseline: Decimal, cost: Decimal) -> Decimal:
    """What was saved against the baseline; negative when guidance cost more than it spared."""
    return _EXACT.subtract(baseline, cost)


def litellm_table(model: str) -> Price | None:
    """The list price of a known model out of LiteLLM's bundled table, which is read without importing it.

    `provider/name` finds `name` if the table says that this provider sells it, or a part of it such as
    `bedrock_converse` of `bedrock`. A row without both prices, and a
    row whose prices are all 0, is no price: a free model's 0 must be written in config.yaml.
    """
    row = _row(model)
    return None if row is None else row.price


def litellm_max_output(model: str) -> int | None:
    """Return the most tokens that a model of the same table writes in one answer; None where no row states it."""
    row = _row(model)
    return None if row is None else row.max_output_tokens


class _Row(NamedTuple):
    provider: str
    price: Price
    max_output_tokens: int | None


def _row(model: str) -> _Row | None:
    table = _rows()
    if model in table:
        return table[model]
    provider, slash, name = model.partition("/")
    if slash and name in table:
        seller = table[name].provider
        if seller == provider or seller.startswith((provider + "_", provider + "-")):
            return table[name]
    return None


@cache
def _rows() -> dict[str, _Row]:
    """Rows by model, for the models that read text, and write it or make vectors of it."""
    spec = find_spec("litellm")
    if spec is None or spec.origin is None:
        return {}
    file = Path(spec.origin).with_name(_TABLE)
    if not file.is_file():
        return {}
    rows: dict[str, _Row] = {}
    for model, row in json.loads(file.read_text("utf-8"), parse_float=Decimal, parse_int=Decimal).items():
        price = _row_price(row)
        if price is not None and row.get("mode") in _TEXT_MODES:
            most = row.get("max_output_tokens")
            tokens = int(most) if isinstance(most, Decimal) and most > 0 else None
            rows[model] = _Row(str(row.get("litellm_provider", "")), price, tokens)
    return rows


def _row_price(row: dict[str, object]) -> Price | None:
    read, write = row.get("input_cost_per_token"), row.get("output_cost_per_token")
    cached = row.get("cache_read_input_token_cost", read)
    if not (isinstance(read, Decimal) and isinstance(write, Decimal) and isinstance(cached, Decimal)):
        return None
    if min(read, write, cached) < 0 or not (read or write):
        return None
    stored = row.get("cache_creation_input_token_cost")
    # Some rows have 0 for providers without such a charge, and some the price of reading from the cache.
    return Price(read, cached, write, max(read, stored) if isinstance(stored, Decimal) else read)


def picodollars(usd: Decimal) -> str:
    """Return USD in whole picodollars, rounded up, as Redis stores it."""
    return str(int(usd.scaleb(12).to_integral_value(ROUND_CEILING)))


def dollars(pico: str) -> Decimal:
    """Return picodollars in USD."""
    return Decimal(pico).scaleb(-12)


def in_short(usd: Decimal) -> Decimal:
    """Return the amount without trailing zeros and without an exponent: 100 for 100.000000000000 and 1E+2."""
    return Decimal(f"{usd.normalize():f}")
