"""Settling: each request once, off the event loop where tokens must be counted, with equal log, store and metrics."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from decimal import Decimal
from io import StringIO
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from gateway.accounting import baseline as baseline_module
from gateway.accounting import receipt_builder as draft_module
from gateway.accounting import shares as shares_module
from gateway.accounting.engine_set import EngineSet
from gateway.accounting.estimate import Encoding
from gateway.accounting.ledger import Ledger
from gateway.accounting.request_log import LogSample
from gateway.accounting.worst_case import worst_case
from gateway.engines.base import TokenUsage
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import ENCODINGS, PRICES, builder, call, chat, closed, guided, plan

if TYPE_CHECKING:
    from gateway.accounting.receipt import Receipt


class ListStore:
    """A store that keeps the receipts it got."""

    def __init__(self) -> None:
        self.receipts: list[Receipt] = []

    def put(self, receipt: Receipt) -> None:
        self.receipts.append(receipt)


class Books:
    """A ledger with its store, log and metrics."""

    def __init__(self, **limits: int) -> None:
        self.store = ListStore()
        self.metrics = Metrics()
        self.tasks = BackgroundTasks()
        self.ledger = Ledger(
            self.store,
            process_id="ann",
            metrics=self.metrics,
            tasks=self.tasks,
            sample=LogSample(1.0, None),
            **limits,
        )

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def counting_thread(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the threads in which text was counted."""
    threads: list[int] = []
    count = shares_module.count_text

    def counted(encoding: str, text: str) -> int:
        threads.append(threading.get_ident())
        return count(encoding, text)

    monkeypatch.setattr(shares_module, "count_text", counted)
    return threads


def uncounted_draft() -> draft_module.ReceiptBuilder:
    return builder(plan("student"), student=call("small", None, text=StringIO("a story")))


async def test_a_counted_receipt_settles_right_after_its_reply(books: Books) -> None:
    """No task and no thread: `settle` computes the sums, and the loop's next pass publishes them."""
    one = guided()
    books.ledger.settle(one, "ok")
    assert one.receipt is not None
    assert books.store.receipts == []
    await asyncio.sleep(0)
    assert books.store.receipts == [one.receipt]
    assert await books.tasks.drain(0) == 0


async def test_estimates_do_not_hold_the_event_loop(books: Books, counting_thread: list[int]) -> None:
    """Counting takes milliseconds, so it runs in a thread. Draining waits for it."""
    books.ledger.settle(uncounted_draft(), "client_gone")
    assert books.store.receipts == []
    assert await books.tasks.drain(5) == 0
    (receipt,) = books.store.receipts
    assert receipt.status == "client_gone"
    assert receipt.student is not None
    assert receipt.student.estimated
    await books.ledger.close(uncounted_draft())
    assert len(counting_thread) == 2
    assert threading.get_ident() not in counting_thread


@pytest.fixture
def recounting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the threads in which the baseline model's own tokenizer counted."""
    threads: list[int] = []
    count = baseline_module.count_text

    def counted(encoding: str, text: str) -> int:
        threads.append(threading.get_ident())
        return count(encoding, text)

    monkeypatch.setattr(baseline_module, "count_text", counted)
    return threads


TOKENIZING = EngineSet({}, PRICES, ENCODINGS | {"big": Encoding("cl100k_base", own=True)})
"""The set has the tokenizer of `big`."""


def written() -> draft_module.ReceiptBuilder:
    return guided(
        teacher=call("big", 100, 4), student=call("small", 150, 5, text=StringIO(" sailed far away.")),
        kept_tokens=4, guidance_text="Once a ship", engine_set=TOKENIZING,
    )  # fmt: skip


async def test_a_baseline_is_counted_after_the_reply_and_off_the_event_loop(recounting: list[int]) -> None:
    """A reply without a baseline does not wait for the count. All other fields equal the preliminary receipt."""
    books, one = Books(), written()
    preliminary = await books.ledger.close(one, shown=False)
    assert (one.receipt, recounting, preliminary.baseline_basis) == (None, [], "estimate")
    books.ledger.settle(one, "ok")
    assert books.store.receipts == []
    assert await books.tasks.drain(5) == 0
    (stored,) = books.store.receipts
    assert stored.baseline_basis == "tokenizer"
    assert stored.baseline_error_usd is not None
    assert preliminary.baseline_error_usd is not None
    assert stored.baseline_error_usd < preliminary.baseline_error_usd
    same = {"baseline_basis", "baseline_error_usd", "baseline_usd", "baseline_estimated", "savings_usd"}
    assert all(getattr(stored, name) == getattr(preliminary, name) for name in set(stored.__struct_fields__) - same)
    assert recounting
    assert threading.get_ident() not in recounting


async def test_a_baseline_that_the_reply_shows_is_counted_before(recounting: list[int]) -> None:
    """The reply and the receipt agree, and the answer is counted once."""
    books, one = Books(), written()
    shown = await books.ledger.close(one)
    assert shown.baseline_basis == "tokenizer"
    times = len(recounting)
    books.ledger.settle(one, "ok")
    await asyncio.sleep(0)
    assert books.store.receipts == [shown]
    assert len(recounting) == times > 0
    assert threading.get_ident() not in recounting


async def test_a_failure_after_the_reply_is_on_the_receipt() -> None:
    """The preliminary receipt is discarded."""
    books, one = Books(), written()
    await books.ledger.close(one, shown=False)
    books.ledger.settle(one, "internal")
    await books.tasks.drain(5)
    assert [receipt.status for receipt in books.store.receipts] == ["internal"]


@pytest.mark.parametrize("shown", [False, True])
async def test_a_process_that_cannot_keep_up_with_counting_states_estimates(
    recounting: list[int], *, shown: bool
) -> None:
    """The number of parallel counts is limited. Further receipts keep their estimate."""
    books, one = Books(max_recounts=0), written()
    await books.ledger.close(one, shown=shown)
    books.ledger.settle(one, "ok")
    await asyncio.sleep(0)
    assert [receipt.baseline_basis for receipt in books.store.receipts] == ["estimate"]
    assert recounting == []


async def test_no_more_baselines_are_counted_at_a_time_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Receipts keep their estimate during the overload. Later ones are counted again."""
    go = threading.Event()
    count = baseline_module.count_text

    def slow(encoding: str, text: str) -> int:
        assert go.wait(5)
        return count(encoding, text)

    monkeypatch.setattr(baseline_module, "count_text", slow)
    books = Books(max_recounts=3)
    for _ in range(8):
        books.ledger.settle(written(), "ok")
    while len(books.store.receipts) < 5:
        await asyncio.sleep(0)
    assert {receipt.baseline_basis for receipt in books.store.receipts} == {"estimate"}
    go.set()
    assert await books.tasks.drain(5) == 0
    assert Counter(one.baseline_basis for one in books.store.receipts) == {"estimate": 5, "tokenizer": 3}
    books.ledger.settle(written(), "ok")
    assert await books.tasks.drain(5) == 0
    assert books.store.receipts[-1].baseline_basis == "tokenizer"


async def test_an_exact_baseline_is_never_counted_again(recounting: list[int]) -> None:
    books = Books()
    books.ledger.settle(builder(plan("teacher"), teacher=call("big", 100, 200), engine_set=TOKENIZING), "ok")
    await asyncio.sleep(0)
    assert [receipt.baseline_basis for receipt in books.store.receipts] == ["engine"]
    assert recounting == []


async def test_a_receipt_that_was_shown_is_the_one_that_is_kept(books: Books, counting_thread: list[int]) -> None:
    """The reply shows the receipt, then the request settles: both are equal, and the baseline is counted once."""
    for one in (guided(), uncounted_draft()):
        shown = await books.ledger.close(one)
        assert await books.ledger.close(one) is shown
        books.ledger.settle(one, "client_gone")
        await asyncio.sleep(0)
        assert books.store.receipts.pop() is shown
        assert shown.status == "ok"
    assert books.store.receipts == []
    assert len(counting_thread) == 1


async def test_counts_without_capacity_are_bounded_by_bytes(counting_thread: list[int]) -> None:
    """Many disconnects queue no bodies. Their answers settle at once, and not for less."""
    books = Books(max_estimates=1)
    ones = [uncounted_draft() for _ in range(3)]
    for one in ones:
        one.request = chat()
        one.reserved = worst_case(one.plan, one.request, PRICES)
        books.ledger.settle(one, "client_gone")
    await books.tasks.drain(5)
    shares = [receipt.student for receipt in books.store.receipts]
    reserved = worst_case(ones[0].plan, chat(), PRICES).bounds["student", "small"]
    read = sorted(share.input_tokens for share in shares if share is not None)
    assert read[0] < read[1] == read[2] == reserved.input_tokens
    assert len(counting_thread) == 1


async def test_usage_that_cannot_be_is_counted_by_engine_and_reason(books: Books) -> None:
    for usage in (TokenUsage(10**9, 1), TokenUsage(9, 10**9), TokenUsage(9, 0), TokenUsage(9, 3)):
        one = uncounted_draft()
        one.request = chat()
        one.reserved = worst_case(one.plan, one.request, PRICES)
        assert one.student is not None
        one.student.usage = usage
        books.ledger.settle(one, "ok")
    await books.tasks.drain(5)
    await asyncio.sleep(0)
    assert books.value("gkt_engine_usage_errors_total", engine="small", reason="too_high") == 2
    assert books.value("gkt_engine_usage_errors_total", engine="small", reason="too_low") == 1


async def test_a_caller_that_leaves_while_tokens_are_counted_is_on_the_receipt(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread continues after its waiter is canceled, and must not fix a receipt with the status ok."""
    go, begun, counted = threading.Event(), threading.Event(), threading.Event()
    count = shares_module.count_text

    def slow(encoding: str, text: str) -> int:
        begun.set()
        assert go.wait(5)
        try:
            return count(encoding, text)
        finally:
            counted.set()

    monkeypatch.setattr(shares_module, "count_text", slow)
    one = uncounted_draft()
    closing = asyncio.ensure_future(books.ledger.close(one))  # noqa: TID251
    assert await asyncio.to_thread(begun.wait, 5)
    closing.cancel()
    await asyncio.wait([closing])
    go.set()
    assert await asyncio.to_thread(counted.wait, 5)
    await asyncio.sleep(0.02)  # the end of the thread
    books.ledger.settle(one, "client_gone")
    assert await books.tasks.drain(5) == 0
    assert [receipt.status for receipt in books.store.receipts] == ["client_gone"]


async def test_an_unguided_shadow_is_not_counted_as_an_unguided_answer(books: Books) -> None:
    """A failed shadow is no unguided answer of its route."""
    shadow = builder(plan(), student=call("small", 10, 5), unguided="teacher_late")
    shadow.shadow_of = "req_1"
    for one in (shadow, builder(plan(), student=call("small", 10, 5), unguided="teacher_failed")):
        books.ledger.settle(one, "ok")
    await asyncio.sleep(0)  # counting follows the reply
    assert len(books.store.receipts) == 2
    assert books.value("gkt_unguided_total", route="chat", reason="teacher_late") == 0
    assert books.value("gkt_unguided_total", route="chat", reason="teacher_failed") == 1


async def test_the_metrics_equal_the_receipts(books: Books) -> None:
    """Counters equal the sums over the receipts: outcomes, amounts, tokens, batches and stages."""
    builders = [
        guided(student=call("small", 150, 160, 20, 30)),
        guided(student=None, complete=True),
        builder(plan("teacher"), teacher=call("big", 50, 60, 10, 15)),
        builder(plan("student"), student=call("small", 70, 80)),
        builder(plan(), student=call("small", 10, 5), unguided="teacher_late"),
        builder(plan()),
        uncounted_draft(),
        guided(teacher=call("big", 100, 40, shared="flight"), batch=None, granted=None),
        guided(teacher=call("big", 100, 40, shared="cache"), batch=None, granted=None),
    ]
    for one in builders:
        books.ledger.settle(one, "overloaded" if one is builders[5] else "ok")
    await books.tasks.drain(5)
    receipts = books.store.receipts
    assert sorted(receipt.id for receipt in receipts) == sorted(one.id for one in builders)

    where = {"tenant": "acme", "route": "chat"}
    outcomes = Counter((receipt.mode, receipt.status) for receipt in receipts)
    assert len(outcomes) == 5
    for (mode, status), count in outcomes.items():
        assert books.value("gkt_requests_total", **where, mode=mode, status=status) == count
    assert books.value("gkt_unguided_total", route="chat", reason="teacher_late") == 1
    cost = sum((receipt.cost_usd for receipt in receipts), Decimal(0))
    assert books.value("gkt_cost_usd_total", **where) == pytest.approx(float(cost))
    for role, engine in (("teacher", "big"), ("student", "small")):
        shares = [share for receipt in receipts if (share := getattr(receipt, role)) is not None and not share.shared]
        expected = {
            "input": sum(
                share.input_tokens - share.cached_input_tokens - share.cache_write_input_tokens for share in shares
            ),
            "cached": sum(share.cached_input_tokens for share in shares),
            "cache_write": sum(share.cache_write_input_tokens for share in shares),
            "output": sum(share.output_tokens for share in shares),
        }
        for direction, tokens in expected.items():
            labels = {"tenant": "acme", "role": role, "engine": engine, "direction": direction}
            assert books.value("gkt_tokens_total", **labels) == tokens > 0
    for source, count in (("teacher", 2), ("flight", 1), ("cache", 1)):
        assert books.value("gkt_guidance_total", teacher="big", source=source) == count
    assert books.value("gkt_stage_seconds_sum", stage="teacher", mode="guided") == pytest.approx(0.75)
    assert books.value("gkt_stage_seconds_sum", stage="handover", mode="guided") == pytest.approx(1.5)
    assert books.value("gkt_stage_seconds_count", stage="total", mode="student") == 3
    assert books.value("gkt_stage_seconds_count", stage="batch_wait", mode="student") == 0


async def test_a_warmup_counts_as_the_students_tokens(books: Books) -> None:
    books.ledger.settle(guided(warmup=call("small", 100, 1)), "ok")
    await asyncio.sleep(0)
    labels = {"tenant": "acme", "role": "student", "engine": "small"}
    assert books.value("gkt_tokens_total", **labels, direction="output") == 161
    cost_usd = sum(float(one.cost_usd) for one in books.store.receipts)
    engines = [("big", "teacher"), ("small", "student")]
    counted = [books.value("gkt_engine_cost_usd_total", engine=engine, role=role) for engine, role in engines]
    assert sum(counted) == pytest.approx(cost_usd)


async def test_each_request_is_one_line_in_the_log(books: Books) -> None:
    """The log line contains the whole receipt, so that sums can be rebuilt from it, and no text of the request."""
    one = guided()
    with capture_logs() as logs:
        books.ledger.settle(one, "ok")
        await asyncio.sleep(0)
    (line,) = logs
    assert line["event"] == "request"
    assert line["id"] == one.id
    assert line["cost_usd"] == "0.000710000000"
    assert "ship" not in str(line)


async def test_a_receipt_with_an_unknown_model_raises() -> None:
    """A model without a price is a configuration error. No receipt may state 0."""
    with pytest.raises(KeyError):
        closed(builder(plan("teacher"), teacher=call("unpriced", 10, 10)))
