"""Curve files: interpolation, extrapolation and error messages."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigError
from gateway.planning.curve import Curve, read_curve
from tests.planning.curves import curve

SHIPPED = sorted((Path(__file__).parents[2] / "deploy" / "curves").glob("*.json"))
RIGHT: dict[str, Any] = {
    "model": "m",
    "decode": [{"batch": 2, "seconds_per_step": 0.02}, {"batch": 8, "seconds_per_step": 0.05}],
    "prefill": {"tokens_per_s": 9000.5},
    "price": {"gpu_usd_per_hour": 2.25},
    "origin": {"kind": "measured", "source": "a test"},
}


def write_curve(folder: Path, content: object) -> Path:
    file = folder / "curve.json"
    file.write_text(json.dumps(content, indent=2))
    return file


def test_steps_are_interpolated_and_extrapolated_linearly(tmp_path: Path) -> None:
    parsed = read_curve(write_curve(tmp_path, RIGHT))
    assert parsed.step_s(2) == parsed.step_s(1) == 0.02
    assert parsed.step_s(5) == pytest.approx(0.035)
    assert parsed.step_s(8) == pytest.approx(0.05)
    assert parsed.step_s(10) == pytest.approx(0.06)


def test_of_one_batch_alone_larger_ones_are_taken_to_gain_nothing() -> None:
    parsed = curve(decode=[{"batch": 4, "seconds_per_step": 0.02}])
    assert parsed.step_s(8) == pytest.approx(0.04)


def test_decreasing_steps_are_not_extrapolated() -> None:
    parsed = curve(decode=[{"batch": 1, "seconds_per_step": 0.02}, {"batch": 2, "seconds_per_step": 0.01}])
    assert parsed.step_s(1000) == pytest.approx(0.01)


def test_the_batch_size_is_the_measured_one_unless_the_file_or_memory_differ() -> None:
    assert curve().slots(1000) == 10
    assert curve(max_batch=64).slots(1000) == 64
    assert curve(max_batch=64, cache_tokens=9_999).slots(1000) == 9
    assert curve(cache_tokens=10).slots(1000) == 1


def test_money_is_exact(tmp_path: Path) -> None:
    price = read_curve(write_curve(tmp_path, RIGHT)).price
    assert price is not None
    assert price.gpu_usd_per_hour == Decimal("2.25")
    assert price.tokens is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "model: must not be empty"),
        ({"gpu_per_replica": 2}, "gpu_per_replica: unknown key. Did you mean 'gpus_per_replica'?"),
        ({"decode": []}, "decode: must have at least 1 entry"),
        ({"decode": [{"batch": 0, "seconds_per_step": 0.1}]}, "decode[0].batch: must be at least 1"),
        (
            {"decode": [{"batch": 1, "seconds_per_step": "0.1"}]},
            "decode[0].seconds_per_step: must be a number, without",
        ),
        ({"decode": [{"batch": 1}]}, "decode[0].seconds_per_step: missing: add it"),
        (
            {"decode": [{"batch": 2, "seconds_per_step": 0.1}, {"batch": 1, "seconds_per_step": 0.1}]},
            "decode: decode[1].batch is not larger than the batch before it: put the smallest batch first",
        ),
        (
            {"decode": [{"batch": 1, "seconds_per_step": 0.1}, {"batch": 2, "seconds_per_step": 0.3}]},
            "decode: decode[1] writes fewer tokens per second than decode[0]",
        ),
        ({"prefill": {"tokens_per_s": 0}}, "prefill.tokens_per_s: must be more than 0"),
        ({"prefill": {}}, "prefill.tokens_per_s: missing: add it"),
        ({"price": {"input_per_1m": 1}}, "price: needs gpu_usd_per_hour, or input_per_1m and output_per_1m"),
        (
            {"price": {"gpu_usd_per_hour": 1, "input_per_1m": 1, "output_per_1m": 1}},
            "price: has both per-token and per-GPU-hour prices: keep one of the two",
        ),
        ({"price": {"gpu_usd_per_hour": -1}}, "price.gpu_usd_per_hour: must be between 0 and"),
        ({"origin": {"kind": "known", "source": "x"}}, "origin.kind: must be measured, published, derived or assumed"),
        ({"origin": {"kind": "measured"}}, "origin.source: missing: add it"),
        ({"max_batch": 1.5}, "max_batch: must be a whole number"),
    ],
)
def test_an_issue_names_its_line_field_and_remedy(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_curve(write_curve(tmp_path, RIGHT | changes))
    assert message in error.value.message
    assert "curve.json:" in error.value.message.splitlines()[0]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model": "m"', "\xff"])
def test_an_invalid_curve_is_rejected(text: str, tmp_path: Path) -> None:
    (tmp_path / "curve.json").write_text(text, "latin-1")
    with pytest.raises(ConfigError, match=r"curve\.json"):
        read_curve(tmp_path / "curve.json")


def test_a_file_that_is_not_there_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_curve(tmp_path / "none.json")


def test_the_curve_of_the_documentation_can_be_planned_with(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "design" / "planning.md").read_text("utf-8")
    (tmp_path / "curve.json").write_text(page.partition("```json\n")[2].partition("```")[0])
    parsed = read_curve(tmp_path / "curve.json")
    assert parsed.model_fields_set == set(Curve.model_fields) - {"schema_at"}


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_shipped_curves_name_the_source_of_their_numbers(file: Path) -> None:
    parsed: Curve = read_curve(file)
    assert parsed.origin.kind in {"measured", "published", "derived"}
    assert parsed.gpu
    if parsed.origin.kind != "measured":
        assert parsed.origin.source.startswith("https://")
    if parsed.origin.kind == "derived":
        assert parsed.origin.note


def test_the_shipped_teacher_matches_its_source() -> None:
    """Compare with NVIDIA's table for 5000 input and 500 output tokens: concurrency, ms between tokens, tokens/s."""
    parsed = read_curve(SHIPPED[0].with_name("llama-3.3-70b-fp8-2xh100.json"))
    reading_s = 0.40677 - 0.01858
    assert parsed.prefill.tokens_per_s == pytest.approx(5000 / reading_s, rel=1e-3)
    for concurrency, between_ms, tokens_per_s in ((1, 18.58, 51.67), (5, 21.83, 218.48), (25, 38.75, 623.4),
                                                  (50, 59.73, 814.37), (85, 92.91, 917.26)):  # fmt: skip
        others = (concurrency - 1) / concurrency
        step_s = between_ms / 1000 * (1 - tokens_per_s / 500 * reading_s * others)
        assert parsed.step_s(concurrency) == pytest.approx(step_s, rel=2e-3)
