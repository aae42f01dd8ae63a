"""The sums of a receipt: the cost of each engine, the baseline, and the savings."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from io import StringIO
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.accounting.estimate import count_messages, count_text
from gateway.accounting.receipt import Receipt
from gateway.config.models import ENCODINGS as ENCODINGS_ALLOWED
from gateway.engines.base import TokenUsage
from gateway.pricing import Price
from tests.accounting.receipt_builders import ENCODINGS, MESSAGES, PRICES, builder, call, closed, guided, plan

if TYPE_CHECKING:
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.accounting.shares import EngineCall


def usd(amount: str) -> Decimal:
    return Decimal(amount)


def test_a_guided_answer_costs_the_sum_of_both_engines() -> None:
    """Cached tokens have their own price. Savings are the baseline minus the cost."""
    receipt = closed(guided())
    assert receipt.mode == "guided"
    assert receipt.teacher is not None
    assert receipt.student is not None
    assert receipt.teacher.cost_usd == usd("0.0006")  # 100 x 2 + 40 x 10, per 1M
    assert receipt.student.cost_usd == usd("0.00011")  # 150 x 0.2 (cached costs the same) + 160 x 0.5
    assert receipt.cost_usd == usd("0.00071")
    assert receipt.baseline_usd == usd("0.0022")  # the teacher alone: 100 x 2 + 200 x 10
    assert receipt.savings_usd == usd("0.00149")
    assert receipt.baseline_estimated


@pytest.mark.parametrize("shared", ["flight", "cache"])
def test_guidance_that_another_request_paid_for_costs_nothing(shared: str) -> None:
    """A shared call counts in the tokens and the baseline. Only the student's call is charged."""
    one = guided(teacher=call("big", 100, 40, shared=shared), batch=None, granted=None)
    early, receipt = one.facts(), closed(one)
    assert receipt.teacher is not None
    assert (receipt.teacher.shared, receipt.teacher.output_tokens, receipt.teacher.cost_usd) == (shared, 40, 0)
    assert receipt.cost_usd == usd("0.00011")
    assert receipt.baseline_usd == usd("0.0022")
    assert receipt.savings_usd == usd("0.00209")
    facts = receipt.facts(show_cost=True)
    assert early["shared"] == facts["shared"] == shared
    assert {"batch", "batch_wait_ms", "teacher_ms"}.isdisjoint(facts)
    assert receipt.as_dict()["teacher"]["shared"] == shared
    assert "shared" not in closed(guided()).as_dict()["teacher"]


def test_cached_input_is_charged_at_its_own_price() -> None:
    """Ten of a hundred tokens at half the price."""
    receipt = closed(builder(plan("teacher"), teacher=call("big", 100, 0, 10)))
    assert receipt.cost_usd == usd("0.00019")
    assert receipt.baseline_usd == usd("0.00019")
    assert receipt.savings_usd == 0, "the teacher alone saves nothing against itself"


def test_stored_input_is_charged_at_its_own_price() -> None:
    """`huge` reads at 20, stores at 25 and writes at 100 USD per 1M tokens: 30 x 20 + 10 x 20 + 60 x 25 + 2 x 100."""
    receipt = closed(builder(plan("teacher", baseline="huge"), teacher=call("huge", 100, 2, 10, 60)))
    assert receipt.cost_usd == receipt.baseline_usd == usd("0.0025")
    assert receipt.as_dict()["teacher"]["cache_write_input_tokens"] == 60
    assert Receipt.from_json(receipt.to_json()) == receipt
    fresh = closed(builder(plan("teacher"), teacher=call("huge", 100, 2)))
    assert "cache_write_input_tokens" not in fresh.as_dict()["teacher"]


def test_a_share_of_a_lists_count_is_charged_and_marked() -> None:
    """The engine reported one usage for several calls, so nothing derived from it is exact."""
    shared = call("big", 100, 40)
    shared.usage = TokenUsage(100, 40, estimated=True)
    receipt = closed(builder(plan("teacher"), teacher=shared))
    assert receipt.teacher is not None
    assert (receipt.teacher.input_tokens, receipt.teacher.output_tokens) == (100, 40)
    assert receipt.teacher.estimated
    assert receipt.baseline_estimated
    assert not closed(builder(plan("teacher"), teacher=call("big", 100, 40))).baseline_estimated


def test_guidance_in_context_is_not_a_part_of_the_answer() -> None:
    """The caller got only the student's 160 tokens, so the baseline writes 160."""
    receipt = closed(guided(plan=plan(placement="context")))
    assert receipt.baseline_usd == usd("0.0018")  # 100 x 2 + 160 x 10


def test_another_baseline_reads_the_callers_prompt_without_the_guidance() -> None:
    """The baseline model did not read the caller's prompt. The student's count less the guidance is used."""
    receipt = closed(guided(plan=plan(baseline="huge")))
    assert receipt.baseline_usd == usd("0.0222")  # (150 - 40) x 20 + 200 x 100
    assert receipt.baseline_estimated


@pytest.mark.parametrize("placement", ["prefix", "context"])
def test_a_teacher_that_ended_by_itself_wrote_the_whole_answer(placement: str) -> None:
    """With every placement, the teacher's text is the answer: nothing is saved or lost."""
    receipt = closed(guided(plan=plan(placement=placement), student=None, complete=True))
    assert receipt.mode == "teacher_complete"
    assert receipt.cost_usd == receipt.baseline_usd == usd("0.0006")
    assert receipt.savings_usd == 0
    assert not receipt.baseline_estimated


@pytest.mark.parametrize(("projection", "kept"), [("concise", 40), ("cutoff", 30)])
def test_the_baseline_of_a_teacher_answer_is_an_estimate_if_prompt_or_text_differ(projection: str, kept: int) -> None:
    """The teacher's prompt contained an instruction, or its text was trimmed."""
    one = guided(plan=plan(projection=projection), student=None, complete=True, kept_tokens=kept)
    assert closed(one).baseline_estimated


def test_guidance_that_reaches_the_callers_limit_needs_no_student() -> None:
    """The teacher was cut off. The answer is its guidance, and no student was called."""
    receipt = closed(guided(student=None, complete=False))
    assert (receipt.mode, receipt.student) == ("guided", None)
    assert receipt.baseline_usd == receipt.cost_usd == usd("0.0006")


def test_a_teacher_route_costs_its_baseline() -> None:
    """The baseline is the same model with the same prompt, so it is exact and nothing is saved."""
    receipt = closed(builder(plan("teacher"), teacher=call("big", 100, 200)))
    assert (receipt.mode, receipt.student) == ("teacher", None)
    assert receipt.cost_usd == receipt.baseline_usd == usd("0.0022")
    assert not receipt.baseline_estimated


def test_a_student_route_is_measured_against_its_baseline() -> None:
    """Tokens of another model make the baseline an estimate. The student's own count is exact."""
    one = call("small", 100, 200)
    receipt = closed(builder(plan("student"), student=one))
    assert receipt.mode == "student"
    assert receipt.cost_usd == usd("0.00012")
    assert receipt.baseline_usd == usd("0.0022")
    assert receipt.baseline_estimated
    own = closed(builder(plan("student", baseline="small"), student=one))
    assert own.baseline_usd == own.cost_usd
    assert not own.baseline_estimated


def test_after_a_refused_teacher_the_answer_is_the_students() -> None:
    """Guidance cost nothing and is not in the baseline."""
    receipt = closed(builder(plan(), student=call("small", 100, 200), unguided="teacher_overloaded"))
    assert (receipt.mode, receipt.unguided) == ("student", "teacher_overloaded")
    assert (receipt.teacher, receipt.guidance, receipt.batch) == (None, None, None)
    assert receipt.cost_usd == usd("0.00012")
    assert receipt.baseline_usd == usd("0.0022")
    assert receipt.baseline_estimated


def test_after_a_late_teacher_its_lost_tokens_are_paid_and_marked() -> None:
    """Tokens written before the cut are charged up to an upper bound, and save nothing."""
    late = call("big", None, lost_tokens=40)
    receipt = closed(builder(plan(), teacher=late, student=call("small", 100, 10), unguided="teacher_late"))
    read = count_messages("cl100k_base", MESSAGES)
    assert receipt.teacher is not None
    assert (receipt.teacher.input_tokens, receipt.teacher.output_tokens) == (read, 40)
    assert receipt.teacher.estimated
    assert receipt.mode == "student"
    # The student's count of the prompt, since the teacher reported none.
    assert receipt.baseline_usd == PRICES["big"].input_usd * 100 + PRICES["big"].output_usd * 10
    assert receipt.baseline_estimated
    assert receipt.savings_usd == receipt.baseline_usd - receipt.cost_usd < 0


def test_a_request_that_reached_no_engine_costs_nothing() -> None:
    """The request was refused or canceled: it has no shares, no baseline and no estimate."""
    receipt = closed(builder(plan()), "overloaded")
    assert (receipt.teacher, receipt.student) == (None, None)
    assert receipt.cost_usd == receipt.baseline_usd == receipt.savings_usd == 0
    assert receipt.status == "overloaded"
    assert not receipt.baseline_estimated


def test_savings_are_negative_if_guidance_costs_more_than_it_saves() -> None:
    """The teacher reads a long prompt for an answer of one token."""
    receipt = closed(
        guided(plan=plan(placement="context"), teacher=call("big", 5000, 40), student=call("small", 6000, 1))
    )
    assert receipt.savings_usd == receipt.baseline_usd - receipt.cost_usd
    assert receipt.savings_usd < 0


def test_an_engine_that_did_not_count_is_counted_here_and_marked() -> None:
    """The received text is counted, which was collected piece by piece."""
    student = call("small", None, text=StringIO("Once upon a time"))
    one = builder(plan("student"), student=student)
    assert one.needs_estimate
    share = closed(one).student
    assert share is not None
    assert share.estimated
    assert share.input_tokens == count_messages("cl100k_base", MESSAGES)
    assert share.output_tokens == count_text("cl100k_base", "Once upon a time")
    assert not guided().needs_estimate


def test_an_estimate_takes_any_shape_of_message() -> None:
    """Requests may contain any JSON. Only text is counted."""
    odd = [
        {"role": "user", "content": [{"type": "text", "text": "ship"}, {"type": "image_url"}, "text", 5, None]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool"},
        {"role": "user", "content": 7},
    ]
    assert count_messages("cl100k_base", odd) == 4 * 4 + count_text("cl100k_base", "ship")


def test_a_long_text_is_estimated_from_its_bytes() -> None:
    """Above fifty thousand characters, a count would take too long."""
    assert count_text("cl100k_base", "é" * 60_000) == 30_000


def test_a_receipt_is_fixed_when_it_is_closed() -> None:
    """A second close with another status returns the first receipt."""
    one = guided()
    first = closed(one)
    assert closed(one, "client_gone") is first
    assert first.status == "ok"


def test_timings_are_of_the_stages_that_happened() -> None:
    """Stage times are in milliseconds. Stages that did not happen are omitted."""
    timings = closed(guided()).timings
    assert (timings.batch_wait_ms, timings.teacher_ms) == (250, 750)
    assert timings.first_token_ms == pytest.approx(1500, abs=50)
    none = closed(builder(plan("student"))).timings
    assert (none.admission_ms, none.batch_wait_ms, none.teacher_ms, none.first_token_ms) == (None,) * 4


def test_the_handover_is_the_time_from_the_guidance_to_the_students_first_token() -> None:
    assert closed(guided()).timings.handover_ms == 500


@pytest.mark.parametrize(
    "facts", [{"unguided": "student_started_anew"}, {"unguided": "teacher_late"}, {"student_began": None}]
)
def test_an_answer_without_guidance_or_without_a_student_has_no_handover(facts: dict[str, Any]) -> None:
    receipt = closed(guided(**facts))
    assert receipt.timings.handover_ms is None
    assert b"handover_ms" not in receipt.to_json()


def test_a_receipt_of_an_earlier_version_has_no_handover() -> None:
    fields = msgspec.json.decode(closed(guided()).to_json())
    del fields["timings"]["handover_ms"]
    assert Receipt.from_json(msgspec.json.encode(fields)).timings.handover_ms is None


def test_a_streams_first_facts_are_those_of_its_receipt() -> None:
    """Headers are sent before the receipt is closed and must agree with it."""
    one = guided()
    early = one.facts()
    late = closed(one).facts(show_cost=False)
    assert early == {name: late[name] for name in early}
    assert early["batch"] == "b7"
    assert early["guidance_tokens"] == 40


def test_the_first_token_is_seen_once() -> None:
    """Later tokens do not change the time."""
    one = builder(plan("student"))
    one.stream = True
    one.mark_first_token()
    first = one.first_token
    one.mark_first_token()
    assert one.first_token == first is not None
    whole = builder(plan("student"))
    whole.mark_first_token()
    assert whole.first_token is None, "a JSON caller sees no first token"


prices = st.builds(
    Price.of_tokens, *(st.decimals(0, 100_000, places=6, allow_nan=False, allow_infinity=False) for _ in range(5))
)
counts = st.integers(0, 10**19)


def _exact(price: Price, one: EngineCall) -> Fraction:
    assert one.usage is not None
    stored = min(one.usage.cache_write_input_tokens, one.usage.input_tokens)
    cached = min(one.usage.cached_input_tokens, one.usage.input_tokens - stored)
    parts = (
        (price.input_usd, one.usage.input_tokens - cached - stored),
        (price.cached_input_usd, cached),
        (max(price.cache_write_usd, price.cache_write_1h_usd), stored),
        (price.output_usd, one.usage.output_tokens),
    )
    return sum((Fraction(usd) * tokens for usd, tokens in parts), Fraction(0))


DEAR = Price.of_tokens(*(Decimal("99999.999999") for _ in range(5)))


@example(DEAR, DEAR, 10**19 - 1, 10**19 - 1, 0, 0, 10**19 - 1, 10**19 - 1)
@given(prices, prices, counts, counts, counts, counts, counts, counts)
def test_money_is_exact(
    big: Price, small: Price, read: int, written: int, cached: int, stored: int, more: int, kept: int
) -> None:
    """Sums are exact for prices with six decimals per million tokens, also after JSON."""
    teacher, student = call("big", read, written, cached, stored), call("small", more, written, cached, stored)
    one: ReceiptBuilder = guided(teacher=teacher, student=student, kept_tokens=kept)
    receipt = one.close("ok", {"big": big, "small": small}, ENCODINGS)
    cost = _exact(big, teacher) + _exact(small, student)
    written_to_cache = min(stored, read)
    known = min(cached, read - written_to_cache)
    reading = Fraction(big.input_usd) * (read - known - written_to_cache) + Fraction(big.cached_input_usd) * known
    reading += Fraction(max(big.cache_write_usd, big.cache_write_1h_usd)) * written_to_cache
    baseline = reading + Fraction(big.output_usd) * (kept + written)
    assert Fraction(receipt.cost_usd) == cost
    assert Fraction(receipt.baseline_usd) == baseline
    assert Fraction(receipt.savings_usd) == baseline - cost
    assert Receipt.from_json(receipt.to_json()) == receipt


def test_a_vocabulary_that_cannot_be_loaded_fails_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four bytes count as a token instead, and the failure is logged."""
    from gateway.accounting import estimate

    def refuse(name: str) -> None:
        raise OSError(name)

    estimate._encoding.cache_clear()
    monkeypatch.setattr(estimate.tiktoken, "get_encoding", refuse)
    try:
        assert count_text("cl100k_base", "x" * 40) == 10
    finally:
        estimate._encoding.cache_clear()


@pytest.mark.parametrize("encoding", ENCODINGS_ALLOWED)
def test_every_allowed_encoding_is_installed(encoding: str) -> None:
    """Estimates need no download."""
    assert count_text(encoding, "Why is the sea salty?") in range(4, 10)
