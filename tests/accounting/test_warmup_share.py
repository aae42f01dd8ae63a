"""The cost of a warm-up: included in every sum, and a cost of the answer, unlike that of a probe."""

from __future__ import annotations

from decimal import Decimal

import msgspec
from msgspec import structs

from gateway.accounting.receipt import Receipt
from gateway.accounting.worst_case import worst_case
from gateway.cli.usage_files import columns_of
from gateway.usage.counters import pico
from gateway.usage.rollup import SumRow
from tests.accounting.receipt_builders import PRICES, call, chat, closed, guided, plan

GUIDANCE = plan().guidance
assert GUIDANCE is not None
PLAN = structs.replace(plan(), guidance=structs.replace(GUIDANCE, warm_student=True))


def warmed() -> Receipt:
    return closed(guided(plan=PLAN, warmup=call("small", 100, 1, role="warmup")))


def test_the_warmup_is_a_cost_of_the_answer_and_lowers_its_savings() -> None:
    without, one = closed(guided()), warmed()
    assert one.warmup is not None
    assert one.cost_usd == without.cost_usd + one.warmup.cost_usd
    assert one.baseline_usd == without.baseline_usd
    assert one.savings_usd == without.savings_usd - one.warmup.cost_usd
    assert one.tokens == without.tokens + 101
    assert one.student == without.student


def test_sums_and_exports_count_the_warmup_as_student_cost() -> None:
    one = warmed()
    row = SumRow.of(one)
    assert row.teacher_pico + row.student_pico + row.failed_pico == row.cost_pico == pico(one.cost_usd)
    assert sum(row.engines.values()) == row.cost_pico
    assert row.savings_pico == pico(one.savings_usd)
    assert row.student.output == 161
    cells = columns_of(one)
    assert cells["teacher_cost_usd"] + cells["student_cost_usd"] + cells["replaced_cost_usd"] == cells["cost_usd"]


def test_the_reservation_includes_the_warmup() -> None:
    warm, without = (worst_case(one, chat(), PRICES) for one in (PLAN, plan()))
    assert warm.likely_tokens == without.likely_tokens + 101
    share = warmed().warmup
    assert share is not None
    assert warm.usd - without.usd >= share.cost_usd
    assert ("warmup", "small") in warm.bounds
    assert ("warmup", "small") not in without.bounds


def test_a_warmup_without_usage_is_charged_its_upper_bound() -> None:
    """A canceled call may have read the whole prompt and generated its token."""
    unknown = guided(plan=PLAN, warmup=call("small", None, role="warmup", lost_tokens=1))
    unknown.request, unknown.reserved = chat(), worst_case(PLAN, chat(), PRICES)
    assert unknown.needs_estimate
    receipt = closed(unknown)
    assert receipt.warmup is not None
    assert (receipt.warmup.estimated, receipt.warmup.output_tokens, receipt.estimated) == (True, 1, True)
    assert 8 <= receipt.warmup.input_tokens <= unknown.reserved.bounds["warmup", "small"].input_tokens
    assert receipt.cost_usd <= unknown.reserved.usd


def test_a_receipt_of_an_earlier_version_has_no_warmup() -> None:
    fields = msgspec.json.decode(warmed().to_json())
    del fields["warmup"]
    assert Receipt.from_json(msgspec.json.encode(fields)).warmup is None
    again = Receipt.from_json(warmed().to_json()).warmup
    assert again is not None
    assert (again.model, again.input_tokens, again.output_tokens) == ("small", 100, 1)


def test_a_receipt_without_a_warmup_does_not_have_the_field() -> None:
    """So it is stored as small as before."""
    assert b"warmup" not in closed(guided()).to_json()
    assert "warmup" not in closed(guided()).as_dict()


def test_hidden_costs_hide_the_warmups_cost() -> None:
    assert "cost_usd" not in warmed().as_dict(show_cost=False)["warmup"]
    assert Decimal(warmed().as_dict()["warmup"]["cost_usd"]) > 0
