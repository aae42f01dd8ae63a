"""A day of synthetic receipts, for load tests of the ledger."""

from __future__ import annotations

import bisect
import itertools
import math
import random
from decimal import Decimal
from typing import TYPE_CHECKING

from gateway.accounting.receipt import BatchFacts, EngineShare, GuidanceFacts, Receipt, Timings, with_savings

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY_S = 86_400


def day_of_receipts(
    count: int, tenants: int, now: float, seed: int = 7, numbers: range | None = None
) -> Iterator[Receipt]:
    """Yield receipts in the order of their time. Few tenants have most of them. There are more at noon than at night.

    Args:
        count: receipts of the whole day, which ends at `now`.
        numbers: receipts to yield, as a part of `range(count)`.
    """
    dice = random.Random(seed)
    weights = [*itertools.accumulate(1 / (place + 1) for place in range(tenants))]
    names = [f"tenant-{place:03}" for place in range(tenants)]
    start = int(now) - DAY_S + 60
    for number in range(count) if numbers is None else numbers:
        part = number / count
        moment = start + (DAY_S - 120) * (part - 0.12 * math.sin(2 * math.pi * part))
        tenant = bisect.bisect_left(weights, dice.random() * weights[-1])
        yield _receipt(dice, number, int(moment), names[min(tenant, tenants - 1)])


def _receipt(dice: random.Random, number: int, created: int, tenant: str) -> Receipt:
    route = dice.choices(("chat", "chat", "search", "mail"), k=1)[0]
    mode = dice.choices(("guided", "teacher_complete", "student", "teacher"), (80, 5, 10, 5))[0]
    ok = dice.random() > 0.01
    read, written = dice.randint(50, 2_000), dice.randint(20, 600)
    teacher = None if mode == "student" else EngineShare("big", read, 40, Decimal(read + 40).scaleb(-6))
    student = (
        EngineShare(("small", "tiny")[route == "mail"], read + 40, written, Decimal(read + written).scaleb(-7), 20)
        if mode in {"guided", "student"}
        else None
    )
    cost = sum((share.cost_usd for share in (teacher, student) if share is not None), Decimal(0))
    baseline = Decimal(read + written).scaleb(-6)
    first = dice.lognormvariate(6, 0.6)
    receipt = Receipt(
        id=f"req_{created:08x}{dice.getrandbits(64):016x}",
        created=created,
        tenant=tenant,
        key=f"key-{dice.choices(range(5), (50, 25, 15, 8, 2))[0]}",
        route=route,
        mode=mode,
        stream=dice.random() < 0.5,
        status="ok" if ok else dice.choice(("engine_timeout", "client_gone", "engine_unavailable")),
        finish_reason="stop" if ok else None,
        unguided="teacher_late" if mode == "student" else None,
        teacher=teacher,
        student=student,
        guidance=GuidanceFacts("cutoff", "prefix", 40, 38, complete=False) if mode == "guided" else None,
        batch=BatchFacts(f"b{number // 8}", dice.randint(1, 16)) if teacher is not None else None,
        cost_usd=cost,
        baseline_model="big",
        baseline_usd=baseline,
        baseline_estimated=True,
        savings_usd=baseline - cost,
        timings=Timings(
            total_ms=round(first * dice.uniform(1.5, 6), 3),
            admission_ms=round(dice.uniform(0.3, 2), 3),
            batch_wait_ms=round(dice.uniform(0, 10), 3) if teacher is not None else None,
            teacher_ms=round(first * 0.9, 3) if teacher is not None else None,
            first_token_ms=round(first, 3),
        ),
    )
    return with_savings(receipt)
