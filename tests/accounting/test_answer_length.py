"""The length of a baseline's answer: measured on the route, else nothing is saved by an answer that is in doubt."""

from __future__ import annotations

import asyncio
import secrets
from decimal import Decimal
from io import StringIO
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from gateway.accounting import answer_length_book
from gateway.accounting.answer_length import MIN_ANSWERS, LengthSums, MeasuredLengths, RouteLengths, repeats
from gateway.accounting.answer_length_book import PERIOD_S, AnswerLengths
from gateway.accounting.receipt import Receipt
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from gateway.usage.rollup import SumRow
from tests.accounting.receipt_builders import PRICES, builder, call, closed, guided, plan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.accounting.receipt_builder import ReceiptBuilder

LOOP = "The captain looked at the sea, and the sea looked at the captain. " * 24
BIG = PRICES["big"]
MEASURED = MeasuredLengths(mean_tokens=60.0, mean_error=5.0, ratio=0.75, ratio_error=0.05)


def rambling(**more: Any) -> ReceiptBuilder:
    """The teacher's 40 tokens are followed by 322 tokens of a loop, as one of the student's answers."""
    return guided(student=call("small", 150, 322, text=StringIO(LOOP)), **more)


def in_steps(count: int, start: int = 0) -> str:
    digits = Random(start)
    return "\n".join(
        f"{step}. {digits.randbytes(8).hex()} leads to {digits.randbytes(8).hex()}" for step in range(start, count)
    )


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ({}, "repeats"),
        ({"finish_reason": "length"}, "at_limit"),
        ({"plan": plan("student"), "teacher": None, "kept_tokens": 0}, "repeats"),
    ],
)
def test_a_rambling_answer_saves_nothing(more: dict[str, Any], rule: str) -> None:
    receipt = closed(rambling(**more))
    assert (receipt.savings_usd, receipt.baseline_usd) == (0, receipt.cost_usd)
    assert receipt.as_dict()["length_rule"] == rule
    assert receipt.baseline_error_usd is not None
    longest = BIG.input_usd * 100 + BIG.output_usd * 362
    assert receipt.baseline_usd + receipt.baseline_error_usd > longest, "the true baseline may be the whole loop"
    sums = SumRow.of(receipt)
    assert (sums.savings_pico, sums.baseline_pico) == (0, sums.cost_pico)
    assert Receipt.from_json(receipt.to_json()) == receipt


def test_a_rambling_answer_still_counts_as_a_loss() -> None:
    receipt = closed(guided(student=call("huge", 150, 322, text=StringIO(LOOP))))
    assert receipt.savings_usd == receipt.baseline_usd - receipt.cost_usd < 0


def test_an_answer_of_the_baseline_model_has_its_own_length() -> None:
    """An engine counted it. It is no evidence about another model."""
    receipt = closed(
        builder(plan("teacher"), teacher=call("big", 100, 362, text=StringIO(LOOP)), finish_reason="length")
    )
    assert receipt.baseline_usd == BIG.input_usd * 100 + BIG.output_usd * 362
    assert "length_rule" not in receipt.as_dict()


def test_an_answer_that_ends_by_itself_has_its_own_length_until_lengths_are_measured() -> None:
    receipt = closed(guided(finish_reason="stop"))
    assert receipt.baseline_usd == BIG.input_usd * 100 + BIG.output_usd * 200
    assert "length_rule" not in receipt.as_dict()


def test_measured_lengths_scale_an_answer_and_bound_a_rambling_one() -> None:
    lengths = RouteLengths(guided=MEASURED)
    receipt = closed(guided(finish_reason="stop", lengths=lengths))
    assert receipt.baseline_usd == BIG.input_usd * 100 + BIG.output_usd * 150
    assert (receipt.as_dict()["length_rule"], receipt.baseline_estimated) == ("measured", True)
    receipt = closed(rambling(lengths=lengths))
    assert receipt.baseline_usd == BIG.input_usd * 100 + BIG.output_usd * 60
    assert receipt.as_dict()["length_rule"] == "measured_mean"
    # Answers of the student alone are measured apart.
    receipt = closed(rambling(plan=plan("student"), teacher=None, kept_tokens=0, lengths=lengths))
    assert (receipt.savings_usd, receipt.as_dict()["length_rule"]) == (0, "repeats")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", False),
        ("Yes. " * 20, False),
        (LOOP, True),
        (in_steps(20) + "\n" + LOOP + "The end.", True),
        (in_steps(200), False),
        ("I do not know. " + in_steps(80) + " I do not know.", False),
        ("ab" * 100_000, True),
    ],
    ids=["no text", "short text", "loop", "loop after steps", "steps", "repeated sentence", "two letters"],
)
def test_a_loop_is_found_and_other_text_is_not(text: str, found: bool) -> None:
    assert repeats(text) is found


def test_thirty_answers_give_a_mean_and_a_ratio_with_their_errors() -> None:
    sums = LengthSums()
    for number in range(MIN_ANSWERS):
        assert sums.measured() is None
        sums = sums.plus(LengthSums.of(50 if number % 2 else 70, 120))
    found = sums.measured()
    assert found is not None
    assert (found.mean_tokens, found.ratio) == (60.0, 0.5)
    assert found.mean_error == pytest.approx(2.05 * 10 * (30 / 29) ** 0.5 / 30**0.5)
    assert found.ratio_error == pytest.approx(found.mean_error / 120)
    longer = LengthSums(*(MIN_ANSWERS * one for one in LengthSums.of(200, 100))).measured()
    assert longer is not None
    assert (longer.ratio, longer.ratio_error) == (1.0, 0.0), "a terse student saves no more than it wrote"


class Fleet:
    """Processes with one Redis and one clock."""

    def __init__(self, redis: RedisClient) -> None:
        self.redis, self.keys, self.now = redis, RedisKeys(f"t{secrets.token_hex(6)}"), 1_700_000_000.0

    def process(self) -> AnswerLengths:
        return AnswerLengths(self.redis, self.keys, lambda: self.now)


@pytest_asyncio.fixture
async def fleet(redis_url: str) -> AsyncIterator[Fleet]:
    redis = RedisClient(redis_url, timeout_s=5.0, metrics=Metrics())
    yield Fleet(redis)
    await redis.close()


def sampled(written: int = 60, status: str = "ok", **more: Any) -> ReceiptBuilder:
    """Return the closed sample of the teacher, which answered alone, beside a rambling answer."""
    served = rambling()
    closed(served)
    facts = {"teacher": call("big", 100, written), "shadow_of": served.id, "measures": served}
    sample = builder(plan("teacher"), **(facts | more))
    closed(sample, status)
    return sample


async def test_processes_share_the_lengths_that_they_measured(fleet: Fleet) -> None:
    ann, bob, cal = (fleet.process() for _ in range(3))
    for number in range(MIN_ANSWERS):
        (ann if number % 2 else bob).add(sampled())
    assert ann.of_route("acme", "chat", "big") == RouteLengths(), "adding waits for nothing"
    for process in (ann, bob, cal):
        await process.sync()
    found = cal.of_route("acme", "chat", "big")
    assert found == RouteLengths(guided=MeasuredLengths(60.0, 0.0, 1.0, 0.0))
    assert closed(rambling(lengths=found)).baseline_usd == BIG.input_usd * 100 + BIG.output_usd * 60
    for other in (("globex", "chat", "big"), ("acme", "mail", "big"), ("acme", "chat", "huge")):
        assert cal.of_route(*other) == RouteLengths()
    fleet.now += PERIOD_S
    await cal.sync()
    assert cal.of_route("acme", "chat", "big") == found
    fleet.now += PERIOD_S
    await cal.sync()
    assert cal.of_route("acme", "chat", "big") == RouteLengths()


async def test_new_answers_are_written_at_once_and_do_not_cause_reads(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_length_book, "_READ_EVERY_S", 3600.0)
    ann, commands = fleet.process(), fleet.redis.commands
    reads: list[str] = []
    scan = commands.hscan_iter
    monkeypatch.setattr(commands, "hscan_iter", lambda key, **more: reads.append(key) or scan(key, **more))
    key = fleet.keys.ledger().answer_lengths(int(fleet.now) // PERIOD_S * PERIOD_S)
    tasks = BackgroundTasks()
    tasks.keep("answer_lengths", ann.run())
    try:
        for number in range(1, 5):
            ann.add(sampled())
            async with asyncio.timeout(20):
                while sorted(map(int, await commands.hvals(key)))[:1] != [number]:
                    await asyncio.sleep(0.01)
    finally:
        await tasks.close()
    assert len(reads) == 2, "one read of the current and of the previous period"


async def test_a_lost_connection_loses_no_lengths(fleet: Fleet) -> None:
    ann = fleet.process()
    for _ in range(MIN_ANSWERS):
        ann.add(sampled())
    key = fleet.keys.ledger().answer_lengths(int(fleet.now) // PERIOD_S * PERIOD_S)
    await fleet.redis.commands.set(key, "not a hash")
    with pytest.raises(Exception, match="WRONGTYPE"):
        await ann.sync()
    await fleet.redis.commands.delete(key)
    await ann.sync()
    assert ann.of_route("acme", "chat", "big").guided is not None


@pytest.mark.parametrize(
    "sample",
    [
        lambda: sampled(status="engine_failed"),
        lambda: sampled(teacher=call("big", None)),
        lambda: sampled(teacher=call("huge", 100, 60)),
        lambda: sampled(measures=None),
        lambda: sampled(measures=rambling()),
    ],
    ids=["failed", "not counted", "another model", "no sample", "not settled"],
)
async def test_other_answers_measure_nothing(fleet: Fleet, sample: Any) -> None:
    ann = fleet.process()
    for _ in range(MIN_ANSWERS):
        ann.add(sample())
    await ann.sync()
    assert ann.of_route("acme", "chat", "big") == ann.of_route("acme", "chat", "huge") == RouteLengths()


async def test_a_shadow_measures_guided_answers_and_a_sample_those_of_the_student(fleet: Fleet) -> None:
    ann = fleet.process()
    for _ in range(MIN_ANSWERS):
        served = builder(plan("teacher"), teacher=call("big", 100, 150))
        closed(served)
        shadow = guided(shadow_of=served.id, measures=served)
        alone = builder(plan("student"), student=call("small", 100, 300), shadow_of=served.id, measures=served)
        for one in (shadow, alone):
            closed(one)
            ann.add(one)
    await ann.sync()
    found = ann.of_route("acme", "chat", "big")
    assert found == RouteLengths(MeasuredLengths(150.0, 0.0, 0.75, 0.0), MeasuredLengths(150.0, 0.0, 0.5, 0.0))
    assert Decimal(closed(guided(lengths=found)).baseline_usd) == BIG.input_usd * 100 + BIG.output_usd * 150
