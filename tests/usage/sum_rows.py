"""Rows of sums with chosen counters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.usage.counters import BATCHES, class_counts
from gateway.usage.rollup import SumRow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.usage.counters import ClassSum


def sum_row(
    *,
    requests: int = 0,
    cost_pico: int = 0,
    batches: Mapping[int, int] | None = None,
    classes: Mapping[str, ClassSum] | None = None,
) -> SumRow:
    """Return a row of sums. `batches`: receipts by the size of their batch."""
    row = SumRow()
    row.fixed = [requests, 0, cost_pico, *row.fixed[3:]]
    row.sparse = {BATCHES + size: count for size, count in (batches or {}).items()}
    for name, sums in (classes or {}).items():
        row.sparse |= class_counts(name, sums)
    assert (row.requests, row.cost_pico) == (requests, cost_pico)
    return row
