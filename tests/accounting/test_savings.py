"""Savings of single receipts: class, amount and error."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import msgspec
import pytest
from msgspec import structs

from gateway.accounting.baseline import measure
from gateway.accounting.receipt import EngineShare, Receipt, savings_of, with_savings
from gateway.accounting.savings import is_about_zero, savings_class, shown
from gateway.usage.rollup import SumRow
from tests.accounting.receipt_builders import PRICES, builder, call, closed, guided, plan


@pytest.mark.parametrize(
    ("found", "fields"),
    [
        ("guided", {}),
        ("guided", {"mode": "teacher_complete"}),
        ("guided", {"mode": "guidance"}),
        ("guided", {"mode": "edge"}),
        ("student_by_policy", {"mode": "student"}),
        ("student_by_policy", {"mode": "embeddings"}),
        *(
            ("student_by_policy", {"mode": "student", "unguided": why})
            for why in ("budget", "switched_off", "quality_fallback")
        ),
        *(
            ("teacher_unavailable", {"mode": "student", "unguided": why})
            for why in (
                "teacher_late",
                "teacher_circuit_open",
                "teacher_unreachable",
                "queue_full",
                "ticket_unreadable",
            )
        ),
        ("teacher_unavailable", {"mode": "edge", "unguided": "teacher_late"}),
        ("teacher_unavailable", {"mode": "edge", "unguided": "offline"}),
        *(
            ("not_guidable", {"mode": "student", "unguided": why})
            for why in ("tools", "response_format", "caller_prefill", "student_refused_prefix", "a_reason_to_come")
        ),
        ("teacher", {"mode": "teacher"}),
        ("failed", {"status": "engine_failed"}),
        ("disconnected", {"status": "client_gone", "mode": "student", "unguided": "tools"}),
        ("failed", {"status": "abandoned", "mode": "teacher"}),
        ("measuring", {"mode": "shadow", "shadow_of": "req_1"}),
        ("measuring", {"mode": "shadow", "shadow_of": "req_1", "status": "engine_failed", "unguided": "budget"}),
    ],
)
def test_each_receipt_has_one_class(found: str, fields: dict[str, str]) -> None:
    usual = {"mode": "guided", "status": "ok", "unguided": None, "shadow_of": None}
    assert savings_class(**(usual | fields)) == found  # type: ignore[arg-type]


def test_a_teacher_that_is_not_there_saves_nothing_and_its_cost_without_use_is_a_loss() -> None:
    """The student alone: 100 x 0.2 + 60 x 0.5 = 50 millionths, and the baseline 100 x 2 + 60 x 10 = 800."""
    cheap = closed(builder(plan(), student=call("small", 100, 60), unguided="teacher_unreachable"))
    assert (cheap.baseline_usd, cheap.cost_usd) == (Decimal("0.0008"), Decimal("0.00005"))
    assert (cheap.savings_class, cheap.savings_usd) == ("teacher_unavailable", 0)
    assert savings_of(cheap).error_usd == 0, "nothing was counted that could be wrong"
    # Late: 100 x 2 + 40 x 10 = 600 for discarded text; a short answer, 100 x 0.2 + 10 x 0.5 = 25; baseline 300.
    late = closed(
        builder(plan(), teacher=call("big", 100, 40), student=call("small", 100, 10), unguided="teacher_late")
    )
    assert (late.cost_usd, late.baseline_usd) == (Decimal("0.000625"), Decimal("0.0003"))
    assert late.savings_usd == Decimal("-0.000325")
    assert savings_of(late).error_usd == late.baseline_error_usd


def test_a_failed_request_loses_its_cost() -> None:
    one = closed(guided(), "engine_failed")
    assert (one.savings_class, one.savings_usd) == ("failed", -one.cost_usd)
    assert savings_of(one).error_usd == 0
    row = SumRow.of(one)
    assert (row.baseline_pico, row.savings_pico, row.baseline_error_pico) == (0, -row.cost_pico, 0)


def test_a_disconnect_and_the_teachers_own_answer_save_nothing() -> None:
    for one in (
        closed(guided(), "client_gone"),
        closed(builder(plan("teacher", baseline="huge"), teacher=call("big", 9, 9))),
    ):
        assert one.savings_usd == 0
        assert one.baseline_usd > one.cost_usd
        row = SumRow.of(one)
        assert row.baseline_pico == row.cost_pico > 0, "the baseline that counts"


@pytest.mark.parametrize(
    ("usd", "error", "text"),
    [
        ("0.0007", "0.0025", "about 0"),
        ("-0.0007", "0.0025", "about 0"),
        ("0.0025", "0.0025", "about 0"),
        ("0.0026", "0.0025", "0.0026"),
        ("-0.0026", "0.0025", "-0.0026"),
        ("0.0007", "0", "0.0007"),
        ("0", "0", "0"),
        ("0.001", "-0.002", "0.001"),
    ],
)
def test_savings_with_an_error_as_large_are_about_0(usd: str, error: str, text: str) -> None:
    assert shown(Decimal(usd), Decimal(error)) == text
    assert is_about_zero(Decimal(usd), Decimal(error)) == (text == "about 0")


def test_a_reply_states_about_0_and_the_receipt_has_both_numbers() -> None:
    vague = msgspec.structs.replace(closed(guided()), baseline_error_usd=Decimal("0.002"))
    assert vague.facts(show_cost=True)["savings_usd"] == "about 0"
    plain = vague.as_dict()
    assert (plain["savings_usd"], plain["baseline_error_usd"]) == ("0.001490000000", "0.002")
    assert plain["savings_about_zero"] is True
    assert not {"savings_usd", "savings_about_zero"} & vague.as_dict(show_cost=False).keys()


SERVED = closed(guided())
"""Cost 0.00071, baseline 0.0022 with an error of 0.001: the teacher read 100 tokens, none of them cached."""


def test_a_measured_baseline_takes_the_place_of_the_estimate_in_sums() -> None:
    """The teacher alone wrote 100 tokens instead of 200: 100 x 2 + 100 x 10 = 0.0012. Savings: 0.0012 - 0.00071."""
    sample = guided(plan=plan("teacher"), teacher=call("big", 100, 100, cached=60), student=None, shadow_of=SERVED.id)
    sample.measures = guided()
    sample.measures.receipt = SERVED
    receipt = closed(sample)
    assert receipt.cost_usd == Decimal("0.00114"), "60 of the prompt's tokens cost half"
    assert receipt.measured is not None
    assert receipt.measured.baseline_usd == Decimal("0.0012"), "the request had found none of it in the cache"
    assert receipt.savings_usd == Decimal("0.0012") - Decimal("0.0022") - Decimal("0.00114")
    row = SumRow()
    for one in (SERVED, receipt):
        row.merge(SumRow.of(one))
    saved = {name: one.savings_pico for name, one in row.classes.items()}
    assert saved == {"guided": 490_000_000, "measuring": -1_140_000_000}
    assert (row.savings_pico, row.savings_error_pico) == (-650_000_000, 0)
    assert row.baseline_pico == row.classes["guided"].baseline_pico == 1_200_000_000
    assert row.classes["measuring"].cost_pico == 1_140_000_000
    for one in (SERVED, receipt):
        row.merge(SumRow.of(one, -1))
    assert row.classes == {}


def test_the_measured_baseline_includes_the_cache_writes_of_the_guiding_call() -> None:
    """The request read 10 tokens from the cache and stored 60. The sample then read these from the cache."""
    served = closed(guided(plan=plan(baseline="huge"), teacher=call("huge", 100, 40, 10, 60)))
    sample = EngineShare("huge", 100, 100, Decimal(1), 70, cache_write_input_tokens=20)
    found = measure(served, sample, PRICES["huge"])
    assert found is not None
    assert found.baseline_usd == Decimal(20 * (10 + 10) + 25 * (60 + 20) + 100 * 100) / 10**6
    # Of the stored tokens, 50 and 15 are stored for an hour, at twice the input price.
    price = replace(PRICES["huge"], cache_write_1h_usd=2 * PRICES["huge"].input_usd)
    assert served.teacher is not None
    served = structs.replace(served, teacher=structs.replace(served.teacher, cache_write_1h_input_tokens=50))
    found = measure(served, structs.replace(sample, cache_write_1h_input_tokens=15), price)
    assert found is not None
    assert found.baseline_usd == Decimal(20 * (10 + 10) + 25 * (10 + 5) + 40 * (50 + 15) + 100 * 100) / 10**6


@pytest.mark.parametrize(
    ("served", "teacher"),
    [
        (None, EngineShare("big", 100, 100, Decimal(1))),
        (SERVED, None),
        (SERVED, EngineShare("huge", 100, 100, Decimal(1))),
        (SERVED, EngineShare("big", 100, 100, Decimal(1), estimated=True)),
        (closed(guided(), "client_gone"), EngineShare("big", 100, 100, Decimal(1))),
    ],
)
def test_incomparable_samples_have_no_measured_savings(served: Receipt | None, teacher: EngineShare | None) -> None:
    assert measure(served, teacher, PRICES["big"]) is None


def test_class_and_savings_are_stable() -> None:
    assert with_savings(SERVED) == SERVED
