"""Receipts of earlier versions with a confidence probe: its cost is in every sum, and not in the baseline."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from gateway.accounting.receipt import EngineShare, Receipt, with_savings
from gateway.cli.usage_db_export import columns_of
from gateway.usage.counters import pico
from gateway.usage.rollup import SumRow
from tests.accounting.receipt_builders import closed, guided


def probed() -> Receipt:
    one, probe = closed(guided()), EngineShare("small", 100, 1, Decimal("0.0000205"))
    fields = msgspec.json.decode(msgspec.structs.replace(one, cost_usd=one.cost_usd + probe.cost_usd).to_json())
    fields["probe"] = msgspec.to_builtins(probe)
    fields["length"] = {"by": "default", "prompt": "other", "probe": {"outcome": "unsure", "p1": 0.5}}
    return with_savings(Receipt.from_json(msgspec.json.encode(fields)))


def test_the_probes_cost_is_part_of_the_cost_but_not_of_the_baseline() -> None:
    without, one = closed(guided()), probed()
    assert one.probe is not None
    assert one.cost_usd == without.cost_usd + one.probe.cost_usd
    assert one.baseline_usd == without.baseline_usd
    assert one.savings_usd == without.savings_usd - one.probe.cost_usd
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
    assert row["teacher_cost_usd"] + row["student_cost_usd"] + row["replaced_cost_usd"] == row["cost_usd"]
    assert row["student_output_tokens"] == 161
    alone = msgspec.structs.replace(
        one, student=None, cost_usd=one.cost_usd - (one.student.cost_usd if one.student else 0)
    )
    row = columns_of(alone)
    assert (row["student"], row["student_output_tokens"]) == (None, 1)


def test_hidden_costs_hide_the_probes_cost() -> None:
    assert "cost_usd" not in probed().as_dict(show_cost=False)["probe"]
    assert "cost_usd" in probed().as_dict()["probe"]
