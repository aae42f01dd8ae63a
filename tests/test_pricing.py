"""Amounts are exact, hourly prices are shared by all tokens, and an unknown price is never 0."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pricing import (
    Price,
    charge_usd,
    cost_usd,
    litellm_providers,
    litellm_table,
    max_charge_usd,
    quantized,
    savings_usd,
)

PER_1M = Price.of_tokens(Decimal("0.90"), Decimal("1.80"), Decimal("0.45"))
STORING = Price.of_tokens(Decimal(4), Decimal(20), Decimal("0.4"), Decimal(5), Decimal(8))
usd = st.decimals(0, 1_000_000, places=9)
tokens = st.integers(0, 10**12)


def test_a_price_per_1m_is_a_price_per_token() -> None:
    read = Decimal("0.0000009")
    price = Price(read, Decimal("0.00000045"), Decimal("0.0000018"), read, read)
    assert price == PER_1M


def test_cached_and_stored_tokens_cost_as_much_as_fresh_ones_unless_told() -> None:
    price = Price.of_tokens(Decimal(2), Decimal(3))
    assert (price.cached_input_usd, price.cache_write_usd) == (Decimal("0.000002"), Decimal("0.000002"))
    price = Price.of_tokens(Decimal(2), Decimal(3), Decimal(0), Decimal("2.5"))
    assert (price.cached_input_usd, price.cache_write_usd) == (0, Decimal("0.0000025"))
    assert price.cache_write_1h_usd == price.cache_write_usd


def test_cached_tokens_are_a_part_of_the_input() -> None:
    assert cost_usd(PER_1M, 1_000_000, 1_000_000) == Decimal("2.70")
    assert cost_usd(PER_1M, 1_000_000, 0, 400_000) == Decimal("0.72")


def test_more_cached_tokens_than_input_are_believed_up_to_the_input() -> None:
    assert cost_usd(PER_1M, 10, 0, 99) == cost_usd(PER_1M, 10, 0, 10)
    assert cost_usd(STORING, 10, 0, 99, 99) == cost_usd(STORING, 10, 0, 0, 10) == 10 * STORING.cache_write_usd
    assert cost_usd(STORING, 10, 0, 99, 99, 99) == cost_usd(STORING, 10, 0, 0, 10, 10) == 10 * Decimal("0.000008")


def test_negative_counts_are_a_bug_of_the_caller() -> None:
    for counts in ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, 0, -1), (0, 0, 0, 0, -1)):
        for cost_of in (cost_usd, charge_usd):
            with pytest.raises(ValueError, match="negative"):
                cost_of(PER_1M, *counts)


@given(st.tuples(usd, usd, usd, usd, usd), tokens, tokens, st.data())
def test_cost_is_exact_in_integers(
    prices: tuple[Decimal, Decimal, Decimal, Decimal, Decimal], n: int, m: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, n))
    s = data.draw(st.integers(0, n - k))
    hour = data.draw(st.integers(0, s))
    cost = cost_usd(Price.of_tokens(*prices), n, m, k, s, hour)
    scale = 10**9
    counts = (n - k - s, m, k, s - hour, hour)
    units = sum(int(price * scale) * count for price, count in zip(prices, counts, strict=True))
    numerator, denominator = cost.as_integer_ratio()
    assert numerator * scale * 10**6 == units * denominator


per_1m = st.decimals(0, 1_000_000, places=6)
any_price = st.one_of(st.builds(Price.of_tokens, *[amounts] * 5) for amounts in (per_1m, usd))


@given(any_price, tokens, tokens, tokens, tokens, tokens)
def test_integer_amounts_equal_decimal_arithmetic(
    price: Price, n: int, m: int, cached: int, stored: int, hour: int
) -> None:
    charged = charge_usd(price, n, m, cached, stored, hour)
    assert str(charged) == str(quantized(cost_usd(price, n, m, cached, stored, hour)))
    assert charged <= max_charge_usd(price, n, m)


@given(st.builds(Price.of_tokens, *[per_1m] * 5), st.integers(0, 10**9), st.integers(0, 10**9))
def test_the_largest_charge_is_that_of_the_highest_input_price(price: Price, n: int, m: int) -> None:
    assert price.pico is not None
    assert str(max_charge_usd(price, n, m)) == str(quantized(cost_usd(price.upper_bound, n, m)))


def test_an_hourly_price_has_no_integer_form() -> None:
    price = Price.of_gpu_hour(Decimal("1.20"), Decimal(9000), Decimal(1500))
    assert price.pico is None
    assert charge_usd(price, 9000, 0) == quantized(cost_usd(price, 9000, 0))


@given(usd, tokens, tokens, tokens)
def test_the_cost_of_two_calls_is_the_cost_of_their_sum(price: Decimal, a: int, b: int, c: int) -> None:
    per_token = Price.of_tokens(price, price)
    assert cost_usd(per_token, a, 0) + cost_usd(per_token, b, c) == cost_usd(per_token, a + b, c)


def test_an_hour_of_a_gpu_is_shared_by_all_the_tokens_of_that_hour() -> None:
    price = Price.of_gpu_hour(Decimal("1.20"), Decimal(9000), Decimal(1500))
    an_hour = 3600
    assert cost_usd(price, 9000 * an_hour, 0).quantize(Decimal("1e-15")) == Decimal("1.20")
    assert cost_usd(price, 0, 1500 * an_hour).quantize(Decimal("1e-15")) == Decimal("1.20")
    assert price.cached_input_usd == price.cache_write_usd == price.cache_write_1h_usd == price.input_usd


def test_the_dearest_input_token_may_be_of_any_kind() -> None:
    for of_input, *of_cache in ((3, 1, 2, 2), (1, 3, 2, 2), (1, 2, 3, 1), (1, 1, 2, 3)):
        price = Price.of_tokens(Decimal(of_input), Decimal(9), *map(Decimal, of_cache))
        assert price.max_input_usd == price.upper_bound.input_usd == Decimal("0.000003")


def test_an_hourly_price_has_few_enough_digits_for_exact_sums() -> None:
    price = Price.of_gpu_hour(Decimal(1), Decimal(7), Decimal(11))
    assert max(len(part.as_tuple().digits) for part in (price.input_usd, price.output_usd)) <= 24


def test_the_baseline_is_the_teacher_alone_on_the_same_prompt_and_answer() -> None:
    student = Price.of_tokens(Decimal("0.10"), Decimal("0.20"))
    cost = cost_usd(PER_1M, 100, 40) + cost_usd(student, 140, 160)
    baseline = cost_usd(PER_1M, 100, 200)
    assert baseline == cost_usd(PER_1M, 100, 200)
    assert savings_usd(baseline, cost) == baseline - cost


def test_savings_may_be_negative() -> None:
    assert savings_usd(Decimal(1), Decimal(3)) == -2


def test_a_list_price_is_found_by_name_and_by_provider_and_name() -> None:
    price = litellm_table("gpt-4o")
    assert price is not None
    assert price.input_usd > 0
    assert price.output_usd > price.input_usd > price.cached_input_usd
    assert litellm_table("anthropic/claude-sonnet-4-5") == litellm_table("claude-sonnet-4-5") is not None


def test_a_list_price_for_stored_tokens_is_never_below_that_of_fresh_ones() -> None:
    """For providers without such a charge, the table has no price, 0, or the price of cache reads."""
    claude, gpt, deepseek = map(litellm_table, ("claude-sonnet-4-5", "gpt-4o", "deepseek/deepseek-chat"))
    assert claude is not None
    assert gpt is not None
    assert deepseek is not None
    assert claude.cache_write_usd == Decimal("1.25") * claude.input_usd
    assert claude.cache_write_1h_usd == 2 * claude.input_usd
    assert (gpt.cache_write_1h_usd, deepseek.cache_write_1h_usd) == (gpt.input_usd, deepseek.input_usd)
    assert (gpt.cache_write_usd, deepseek.cache_write_usd) == (gpt.input_usd, deepseek.input_usd)


def test_embeddings_have_a_list_price_too() -> None:
    price = litellm_table("text-embedding-3-small")
    assert price is not None
    assert (price.input_usd > 0, price.output_usd) == (True, 0)


def test_a_sub_provider_has_the_prices_of_its_provider() -> None:
    """The table has `bedrock_converse` for Bedrock's Converse route; users of LiteLLM write bedrock/..."""
    name = "anthropic.claude-sonnet-4-5-20250929-v1:0"
    assert litellm_table(f"bedrock/{name}") == litellm_table(name) is not None
    assert litellm_table(f"bed/{name}") is None


@pytest.mark.parametrize(
    "model",
    [
        "no-such-model",
        "",
        "sample_spec",
        "openai/claude-sonnet-4-5",  # another provider
        "gemini/gemini-exp-1114",  # its row has price 0
        "dall-e-3",  # no price per token
    ],
)
def test_an_unknown_price_is_none_and_never_0(model: str) -> None:
    assert litellm_table(model) is None


def test_the_table_is_read_without_importing_litellm() -> None:
    code = "import sys; from gateway.pricing import litellm_table; assert litellm_table('gpt-4o'); "
    code += "assert 'litellm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_table_is_no_price(monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway import pricing

    pricing._rows.cache_clear()
    monkeypatch.setattr(pricing, "find_spec", lambda name: None)
    try:
        assert litellm_table("gpt-4o") is None
    finally:
        pricing._rows.cache_clear()


def test_the_provider_names_are_read_without_importing_litellm() -> None:
    code = "import sys; from gateway.pricing import litellm_providers; names = litellm_providers(); "
    code += "print(len(names), 'anthropic' in names, 'litellm' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert int(output[0]) > 100
    assert output[1:] == ["True", "False"]


@pytest.mark.parametrize(
    "name",
    [
        "openai", "azure", "anthropic", "bedrock", "gemini", "vertex_ai", "mistral", "deepseek", "groq", "openrouter",
        "together_ai", "fireworks_ai", "hosted_vllm", "ollama", "ollama_chat", "lm_studio", "cohere_chat", "xai",
    ],
)  # fmt: skip
def test_common_providers_are_known(name: str) -> None:
    assert name in litellm_providers()


def test_without_litellm_no_provider_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway import pricing

    litellm_providers.cache_clear()
    monkeypatch.setattr(pricing, "find_spec", lambda _: None)
    try:
        assert litellm_providers() == frozenset()
    finally:
        litellm_providers.cache_clear()
