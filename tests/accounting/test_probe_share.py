"""The cost of a confidence probe: included in every sum, excluded from the baseline."""

from __future__ import annotations

from decimal import Decimal

import msgspec
from msgspec import structs

from gateway.accounting.receipt import ProbeFacts, Receipt
from gateway.accounting.worst_case import worst_case
from gateway.cli.usage_db_export import columns_of
from gateway.policy.length import AutoRule, ProbeRule, choose_length
from gateway.usage.counters import pico
from gateway.usage.rollup import SumRow
from tests.accounting.receipt_builders import PRICES, call, chat, closed, guided, plan

LENGTH = choose_length(AutoRule(probe=ProbeRule()), chat(), None, {})
PLAN = structs.replace(plan(), length=LENGTH)


def probed() -> Receipt:
    return closed(guided(plan=PLAN, probe=call("small", 100, 1), probed=ProbeFacts("unsure", 0.5, 1.2, 30.0)))


def test_the_probes_cost_is_part_of_the_cost_but_not_of_the_baseline() -> None:
    without, one = closed(guided()), probed()
    assert one.probe is not None
    assert one.cost_usd == without.cost_usd + one.probe.cost_usd
    assert one.baseline_usd == without.baseline_usd
    assert one.savings_usd == without.savings_usd, "the probe is a cost of measuring"
    assert one.tokens == without.tokens + 101
    assert one.student == without.student


def test_sums_count_the_probe_as_student_cost() -> None:
    """The costs of teacher, student and failed calls add up to the cost."""
    one = probed()
    row = SumRow()
    row.merge(SumRow.of(one))
    assert row.teacher_pico + row.student_pico + row.failed_pico == row.cost_pico == pico(one.cost_usd)
    assert sum(row.engines.values()) == row.cost_pico
    row.merge(SumRow.of(one, -1))
    assert (row.student_pico, row.cost_pico) == (0, 0)


def test_the_columns_of_an_export_do_too() -> None:
    one = probed()
    row = columns_of(one)
    assert row["teacher_cost_usd"] + row["student_cost_usd"] + row["failed_cost_usd"] == row["cost_usd"]
    assert row["student_output_tokens"] == 161
    alone = msgspec.structs.replace(
        one, student=None, cost_usd=one.cost_usd - (one.student.cost_usd if one.student else 0)
    )
    row = columns_of(alone)
    assert (row["student"], row["student_output_tokens"]) == (None, 1)


def test_the_reservation_includes_the_probe() -> None:
    with_probe, without = (worst_case(one, chat(), PRICES) for one in (PLAN, plan()))
    assert with_probe.likely_tokens == without.likely_tokens + 101
    more = sum((one.cost_usd for one in with_probe.more), Decimal(0)) - sum(
        (one.cost_usd for one in without.more), Decimal(0)
    )
    probe = probed().probe
    assert probe is not None
    assert more >= probe.cost_usd


def test_a_receipt_of_an_earlier_version_reads_as_one_without() -> None:
    fields = msgspec.json.decode(probed().to_json())
    for name in ("length", "probe"):
        del fields[name]
    one = Receipt.from_json(msgspec.json.encode(fields))
    assert (one.length, one.probe) == (None, None)
    again = Receipt.from_json(probed().to_json())
    assert again.length is not None
    assert again.length.probe is not None
    assert again.length.probe.outcome == "unsure"


def test_hidden_costs_hide_the_probes_cost() -> None:
    assert "cost_usd" not in probed().as_dict(show_cost=False)["probe"]
    assert "cost_usd" in probed().as_dict()["probe"]
