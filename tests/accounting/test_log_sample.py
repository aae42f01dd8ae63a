"""The log sample: all requests with failures, and the configured share of the others."""

from __future__ import annotations

import asyncio
import re
import secrets
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from gateway.accounting.ledger import Ledger
from gateway.accounting.receipt import Attempt, Receipt
from gateway.accounting.request_log import EXPECTED_REASONS, LogSample
from gateway.errors import EngineTimeout
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import builder, call, closed, guided, plan

ROOT = Path(__file__).parents[2]
NONE = LogSample(0.0, 10.0)
PAGE = (ROOT / "docs/reference/receipts.md").read_text("utf-8")
REASONS = re.findall(r"`(\w+)`", PAGE.partition("## Why an answer was unguided")[2])


def ordinary(request_id: str = "req_1", **more: object) -> Receipt:
    return msgspec.structs.replace(closed(guided()), id=request_id, **more)  # type: ignore[arg-type]


def test_every_request_is_logged_by_default() -> None:
    assert all(LogSample(1.0, None).includes(ordinary(f"req_{number}")) for number in range(1000))


def test_the_configured_fraction_is_logged() -> None:
    ids = [f"req_{secrets.token_hex(12)}" for _ in range(20_000)]
    taken = sum(LogSample(0.1, None).includes(ordinary(one)) for one in ids)
    assert 1_750 < taken < 2_250  # six standard deviations


def test_the_id_alone_draws_the_lot_and_a_larger_part_holds_the_smaller_one() -> None:
    """Every process, and every larger sample, selects the same requests."""
    ids = [f"req_{number}" for number in range(2000)]
    few = {one for one in ids if LogSample(0.05, 1.0).includes(ordinary(one))}
    again = {one for one in ids if LogSample(0.05, None).includes(ordinary(one, tenant="globex", stream=True))}
    more = {one for one in ids if LogSample(0.5, None).includes(ordinary(one))}
    assert few == again
    assert few < more


@pytest.mark.parametrize("status", ["engine_timeout", "client_gone", "shutdown", "abandoned", "internal"])
def test_failed_requests_are_always_logged(status: str) -> None:
    assert NONE.includes(ordinary(status=status))


@pytest.mark.parametrize(
    "more",
    [
        {"attempts": (Attempt("big", EngineTimeout.label),)},
        {"unguided": "teacher_late"},
        {"unguided": "queue_full"},
        {"unguided": "a_reason_that_comes_later"},
    ],
    ids=str,
)
def test_requests_with_a_failed_attempt_are_always_logged(more: dict[str, object]) -> None:
    assert NONE.includes(ordinary(**more))


def test_requests_with_incomplete_guidance_are_always_logged() -> None:
    one = ordinary()
    assert one.guidance is not None
    assert NONE.includes(
        msgspec.structs.replace(one, guidance=msgspec.structs.replace(one.guidance, cut_short="teacher_late"))
    )


@pytest.mark.parametrize("reason", sorted(EXPECTED_REASONS))
def test_outcomes_requested_by_the_caller_are_no_failure(reason: str) -> None:
    assert reason in REASONS
    assert not NONE.includes(ordinary(unguided=reason))


def test_the_slow_ones_always_have_a_line() -> None:
    one = ordinary()
    for total_ms, taken in ((9_999.9, False), (10_000.0, True), (60_000.0, True)):
        slow = msgspec.structs.replace(one, timings=msgspec.structs.replace(one.timings, total_ms=total_ms))
        assert NONE.includes(slow) is taken
        assert not LogSample(0.0, None).includes(slow)


def test_a_shadow_is_logged_with_its_request() -> None:
    half = LogSample(0.5, None)
    ids = [f"req_{number}" for number in range(500)]
    assert [half.includes(ordinary(one)) for one in ids] == [
        half.includes(ordinary(f"{one}-shadow", shadow_of=one, mode="shadow")) for one in ids
    ]


class Nowhere:
    def __init__(self) -> None:
        self.receipts: list[Receipt] = []

    def put(self, receipt: Receipt) -> None:
        self.receipts.append(receipt)


async def test_a_line_that_is_left_out_is_counted_and_its_receipt_is_kept() -> None:
    """An omitted request counts in all other metrics."""
    metrics, store = Metrics(), Nowhere()
    ledger = Ledger(
        store,  # type: ignore[arg-type]
        process_id="ann",
        metrics=metrics,
        tasks=BackgroundTasks(),
        sample=LogSample(0.0, None),
    )
    with capture_logs() as lines:
        for status in ("ok", "ok", "engine_failed"):
            ledger.settle(builder(plan("student"), student=call("small", 10, 10)), status)
        ledger.record_abandoned(closed(guided(), "abandoned"))
        await asyncio.sleep(0)
    assert [line["status"] for line in lines] == ["abandoned", "engine_failed"]
    assert metrics.registry.get_sample_value("gkt_log_requests_left_out_total") == 2
    assert len(store.receipts) == 3
    labels = {"tenant": "acme", "route": "chat", "mode": "student"}
    assert metrics.registry.get_sample_value("gkt_requests_total", labels | {"status": "ok"}) == 2
