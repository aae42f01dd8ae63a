"""A month of receipts with figures computed by hand, for each place that shows savings.

Prices per 1M tokens: `big` reads at 2 and writes at 10 USD, cached at 1; `small` reads at 0.2 and writes at 0.5 USD.
Amounts in the comments are millionths of a dollar.

    G  guided          big reads 100 and writes 40: 600; small reads 150 and writes 160: 30 + 80.   Cost 710.
                       big alone reads 100 and writes 200: 200 + 2000.                          Baseline 2200.
    S  student alone   small reads 100 and writes 60: 20 + 30.                                      Cost 50.
                       big alone: 200 + 600.                                                     Baseline 800.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

import msgspec

from gateway.accounting.receipt import Receipt, with_savings
from tests.accounting.receipt_builders import builder, call, closed, guided, plan

SINCE = int(datetime(2025, 11, 1, tzinfo=UTC).timestamp())
UNTIL = int(datetime(2025, 12, 1, tzinfo=UTC).timestamp())


class ShownSavings(NamedTuple):
    """The values that each place must show of a tenant. Money is in millionths of a dollar.

    `measuring` and `failed` are parts of `cost`. The baseline less the cost is the savings.
    """

    requests: int
    cost: str
    measuring: str
    baseline: str
    savings: str
    error: str
    shown: str
    color: str
    teacher_away: int = 0
    failed: str = "0"


MONTH = {
    # Saved: G 1490, S 750, and S 750 of a spent budget. Nothing: tools, the teacher's own answer, a caller that
    # left. Their baseline is their cost. A failed S has no baseline: -50.
    # Cost: 710 + 50 + 50 + 50 + 800 + 710 + 50. Baseline: 2200 + 800 + 800 + 50 + 800 + 710. Error: 1000 + 100 + 100.
    "acme": ShownSavings(7, "2420", "0", "5360", "2940", "1200", "0.002940", "good", failed="50"),
    # The teacher was down: three times S, of which two by teacher_unreachable and one by queue_full.
    "dusk": ShownSavings(3, "150", "0", "150", "0", "0", "0.000000", "", teacher_away=3),
    # It was late, and is paid: big 200 + 400, small 20 + 5. The answer alone: 200 + 100. A loss: 300 - 625.
    "tardy": ShownSavings(1, "625", "0", "300", "-325", "100", "-0.000325", "bad", teacher_away=1),
    # Served: G and S. Beside G the sampler ran big, 40 x 2 + 60 x 1 + 100 x 10 = 1140, and small, 50; beside S a shadow
    # ran G, 710. The sampler measured 100 x 2 + 100 x 10 = 1200 in the place of 2200, without an error.
    # Saved: 1490 - 1000 + 750 - 1900. Cost: 710 + 50 + 1140 + 50 + 710. Error: 1000 - 1000 + 100.
    "lab": ShownSavings(2, "2660", "1900", "2000", "-660", "100", "-0.000660", "bad"),
    # G with a baseline of 1410 that may be off by 800.
    "haze": ShownSavings(1, "710", "0", "1410", "700", "800", "about 0", ""),
}
TOTAL = ShownSavings(14, "6565", "1900", "9220", "2655", "2200", "0.002655", "good", teacher_away=4, failed="50")

CLASSES = {
    "acme-0": ("guided", "1490"),
    "acme-1": ("student_by_policy", "750"),
    "acme-2": ("student_by_policy", "750"),
    "acme-3": ("not_guidable", "0"),
    "acme-4": ("teacher", "0"),
    "acme-5": ("disconnected", "0"),
    "acme-6": ("failed", "-50"),
    "dusk-0": ("teacher_unavailable", "0"),
    "dusk-1": ("teacher_unavailable", "0"),
    "dusk-2": ("teacher_unavailable", "0"),
    "tardy-0": ("teacher_unavailable", "-325"),
    "lab-0": ("guided", "1490"),
    "lab-0-shadow-teacher": ("measuring", "-2140"),
    "lab-0-shadow-student": ("measuring", "-50"),
    "lab-1": ("student_by_policy", "750"),
    "lab-1-shadow": ("measuring", "-710"),
    "haze-0": ("guided", "700"),
}
"""By receipt, its class and the savings that count."""


def micro(text: str) -> Decimal:
    """Convert millionths of a dollar to USD."""
    return Decimal(text).scaleb(-6)


def receipts() -> list[Receipt]:
    """Return the receipts of the month, one per day from the 2nd on."""
    alone = {"student": call("small", 100, 60)}
    served, sample = _of("lab-0", closed(guided())), guided(shadow_of="lab-0", plan=plan("teacher"), student=None)
    sample.teacher = call("big", 100, 100, cached=60)
    sample.measures = guided()
    sample.measures.receipt = served
    student = builder(plan("student"), shadow_of="lab-0", **alone)
    found = [
        _of("acme-0", closed(guided())),
        _of("acme-1", closed(builder(plan("student"), **alone))),
        _of("acme-2", closed(builder(plan(), unguided="budget", **alone))),
        _of("acme-3", closed(builder(plan(), unguided="tools", **alone))),
        _of("acme-4", closed(builder(plan("teacher"), teacher=call("big", 100, 60))), "0"),
        _of("acme-5", closed(guided(), "client_gone")),
        _of("acme-6", closed(builder(plan("student"), **alone), "engine_failed")),
        _of("dusk-0", closed(builder(plan(), unguided="teacher_unreachable", **alone))),
        _of("dusk-1", closed(builder(plan(), unguided="queue_full", **alone))),
        _of("dusk-2", closed(builder(plan(), unguided="teacher_unreachable", **alone))),
        _of(
            "tardy-0",
            closed(
                builder(plan(), unguided="teacher_late", teacher=call("big", 100, 40), student=call("small", 100, 10))
            ),
        ),
        served,
        _of("lab-0-shadow-teacher", closed(sample)),
        _of("lab-0-shadow-student", closed(student)),
        _of("lab-1", closed(builder(plan("student"), **alone))),
        _of("lab-1-shadow", closed(guided(shadow_of="lab-1"))),
        _of("haze-0", msgspec.structs.replace(closed(guided()), baseline_usd=micro("1410")), "800"),
    ]
    return [msgspec.structs.replace(one, created=SINCE + 86_400 * place + 90_000) for place, one in enumerate(found)]


def _of(receipt_id: str, receipt: Receipt, error: str | None = None) -> Receipt:
    """Return a tenant's receipt with a round error: 1000 for a guided answer, 100 for the student's."""
    error = error or ("1000" if receipt.guidance is not None else "100")
    tenant = receipt_id.partition("-")[0]
    return with_savings(msgspec.structs.replace(receipt, id=receipt_id, tenant=tenant, baseline_error_usd=micro(error)))
