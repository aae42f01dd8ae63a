"""Sums do not depend on the order, the process or the repetition of additions. Quantiles are approximate."""

from __future__ import annotations

import math
import time
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.accounting.receipt import Timings, class_of, savings_of
from gateway.accounting.savings import CLASSES, MEASURING
from gateway.usage.counters import STAGES, pico
from gateway.usage.histogram import Histogram, bucket_of
from gateway.usage.rollup import SumRow
from gateway.usage.sums import Sums
from tests.accounting.receipt_builders import closed, guided

if TYPE_CHECKING:
    from gateway.accounting.receipt import Receipt

TIMES_US = st.integers(1, 3_600_000_000)


def histogram(times_us: list[int]) -> Histogram:
    return Histogram(len(times_us), sum(times_us), Counter(map(bucket_of, times_us)))


@given(st.lists(TIMES_US, min_size=1, max_size=60), st.floats(0.01, 1))
def test_quantiles_of_a_histogram_are_close_to_the_measured_ones(times_us: list[int], part: float) -> None:
    exact = sorted(times_us)[max(1, math.ceil(part * len(times_us))) - 1]
    (read,) = histogram(times_us).quantiles_us([part])
    assert read is not None
    assert abs(read - exact) <= 0.05 * exact


@st.composite
def many(draw: st.DrawFn, max_size: int = 12) -> list[Receipt]:
    """Return receipts of two hours with few dimensions."""
    now = int(time.time())
    first = closed(guided())
    return [
        msgspec.structs.replace(
            closed(guided(), draw(st.sampled_from(("ok", "engine_timeout", "client_gone")))),
            id=f"r{index}",
            tenant=draw(st.sampled_from(("acme", "beta"))),
            key=draw(st.sampled_from(("ci", "prod"))),
            created=now - draw(st.integers(0, 3_000)),
            cost_usd=Decimal(draw(st.integers(0, 10**15))).scaleb(-12),
            unguided=draw(st.sampled_from((None, "teacher_late"))),
            student=draw(st.sampled_from((None, first.student))),
        )
        for index in range(draw(st.integers(1, max_size)))
    ]


@given(many(), st.lists(st.integers(0, 11), max_size=6), st.randoms())
def test_rows_are_commutative_and_support_subtraction(counted: list[Receipt], out: list[int], dice: Any) -> None:
    removed = [counted[index] for index in sorted(set(out)) if index < len(counted)]
    acts = [(one, 1) for one in counted] + [(one, -1) for one in removed]
    dice.shuffle(acts)
    sums = Sums()
    for one, times in acts:
        sums.add(one, times, dice.choice(("minute", "minute", "hour")))
    found = sums.spread()
    expected = Sums()
    for one in counted:
        if one not in removed:
            expected.add(one)
    expected.spread()
    for period, rows in found.rows.items():
        if period.granularity != "minute":
            left = {where: row for where, row in rows.items() if row != SumRow()}
            assert left == expected.rows.get(period, {})
            assert found.totals[period] == expected.totals.get(period, SumRow())


@given(many(), st.sampled_from((None, "guided", "unknown")), st.sampled_from((0, 10**20)))
def test_a_row_is_encoded_and_made_of_its_attributes(counted: list[Receipt], of_class: str | None, usd: int) -> None:
    """The rows include one with an unknown savings class, and one with money beyond 64 bits."""
    row = SumRow()
    for one in counted:
        timings = msgspec.structs.replace(one.timings, handover_ms=None)  # a stage that rows of that version lack
        changed = {"savings_class": of_class, "cost_usd": one.cost_usd + usd, "timings": timings}
        row.merge(SumRow.of(msgspec.structs.replace(one, **changed)))
    assert SumRow.from_bytes(row.to_bytes()) == row
    assert sum(one.cost_pico for one in row.classes.values()) == row.cost_pico


def test_the_time_of_the_handover_is_counted() -> None:
    times = [Timings(total_ms=9, handover_ms=ms) for ms in (2.5, 7.5, 0.0, None)]
    counted = [msgspec.structs.replace(closed(guided()), timings=one) for one in times]
    row = SumRow()
    for one in counted:
        row.merge(SumRow.of(one))
    handover = row.stages[STAGES.index("handover")]
    assert (handover.count, handover.sum_us) == (3, 10_000)
    assert handover.quantiles_us((1.0,))[0] == pytest.approx(7500, rel=0.05)
    assert row.stages[STAGES.index("total")].count == 4
    assert SumRow.from_bytes(row.to_bytes()) == row
    for one in counted:
        row.merge(SumRow.of(one, -1))
    assert not row


@given(
    many(1),
    st.sampled_from((None, *CLASSES, "unknown")),
    st.integers(0, 10**10),
    st.sampled_from((None, Decimal("0.0000003"))),
    st.sampled_from((None, "another")),
)
def test_a_row_has_the_savings_of_its_receipt(
    counted: list[Receipt],
    of_class: Any,
    baseline: int,
    error_usd: Decimal | None,
    shadow_of: str | None,
) -> None:
    one = msgspec.structs.replace(
        counted[0],
        savings_class=of_class,
        cost_usd=counted[0].cost_usd + Decimal("0.000007"),
        baseline_usd=Decimal(baseline).scaleb(-12),
        baseline_error_usd=error_usd,
        shadow_of=shadow_of,
    )
    row, found = SumRow.of(one), savings_of(one)
    assert row.savings_pico == pico(found.usd)
    assert row.savings_error_pico == pico(found.error_usd)
    assert sum(sums.cost_pico for sums in row.classes.values()) == row.cost_pico
    if class_of(one) == MEASURING:
        assert row.classes[MEASURING].cost_pico == pico(found.measuring_usd)


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        SumRow.from_bytes(SumRow([0]).to_bytes())
