"""Usage queries: the rows that they use, their results, and their errors."""

from __future__ import annotations

import asyncio
import csv
import io
import itertools
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.admin.usage import as_csv, columns
from gateway.api.usage import encoded
from gateway.errors import InvalidRequest, Overloaded
from gateway.usage import threads as usage_threads
from gateway.usage.counters import ClassSum, pico
from gateway.usage.reader import UsageReader
from gateway.usage.rollup import SumDimensions, SumRow
from gateway.usage.span import GRANULARITIES, RequestedRange, UsageSpan, duration_text, requested_range, span
from gateway.usage.sums import SECONDS, Granularity, Period, Retention, StoredRow
from gateway.usage.usage import MAX_ROWS, MAX_SUMS_OF_ALL, UsageQuery, UsageResult, escape_formula, figures
from tests.accounting.receipt_builders import builder, call, closed, guided, plan
from tests.usage.books import as_json
from tests.usage.sum_rows import sum_row

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.accounting.receipt import Receipt
    from tests.usage.books import UsageBook

DEFAULT = Retention(minute=6 * 3600, hour=14 * 86_400, day=400 * 86_400)
NOW = datetime(2026, 11, 25, 18, 24, 30, tzinfo=UTC).timestamp()


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        ("24h", "", (NOW - 86_400, NOW)),
        ("24h", "now", (NOW - 86_400, NOW)),
        ("7d", "24h", (NOW - 7 * 86_400, NOW - 86_400)),
        ("today", "", (at("2026-11-25"), NOW)),
        ("yesterday", "yesterday", (at("2026-11-24"), at("2026-11-25"))),
        ("this_month", "this_month", (at("2026-11-01"), NOW)),
        ("last_month", "last_month", (at("2026-10-01"), at("2026-11-01"))),
        ("2026-11-20", "2026-11-21", (at("2026-11-20"), at("2026-11-22"))),
        ("2026-11-20T12:00:00Z", "2026-11-20T13:30:00+01:00", (at("2026-11-20T12:00"), at("2026-11-20T12:30"))),
        ("2026-11-20T12:00:00", "2026-11-20T13:30:00 01:00", (at("2026-11-20T12:00"), at("2026-11-20T12:30"))),
        ("2026-11-25", "2999-01-01", (at("2026-11-25"), NOW)),
    ],
)
def test_both_ends_of_a_range_accept_several_formats(since: str, until: str, expected: tuple[float, float]) -> None:
    """Days and months include their end, and no range exceeds the current time."""
    assert requested_range(since, until, NOW) == expected


def test_december_and_january_are_months_like_others() -> None:
    assert requested_range("last_month", "last_month", at("2027-01-31")) == (at("2026-12-01"), at("2027-01-01"))
    assert requested_range("this_month", "", at("2026-12-31T12:00"))[0] == at("2026-12-01")


def rows_of(found: UsageSpan) -> Counter[str]:
    return Counter(one.granularity for one in found.periods)


def test_a_long_range_is_answered_by_few_rows() -> None:
    """Whole days use day sums. The start of the range uses hours, and current periods are used whole."""
    found = span(RequestedRange(NOW - 7 * 86_400, NOW), None, DEFAULT, NOW)
    assert (found.since, found.until) == (at("2026-11-18T18:00"), at("2026-11-25T18:25"))
    assert rows_of(found) == {"hour": 6, "day": 7}
    assert rows_of(span(RequestedRange(NOW - 3600, NOW), None, DEFAULT, NOW)) == {"minute": 36, "hour": 1}
    past = span(RequestedRange(at("2026-06-03T05:00"), at("2026-06-05T06:00")), None, DEFAULT, NOW)
    assert (past.since, past.until) == (at("2026-06-03"), at("2026-06-06"))
    assert rows_of(past) == {"day": 3}


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_with_a_granularity_the_range_is_in_whole_periods_of_it(granularity: Granularity) -> None:
    found = span(RequestedRange(NOW - 4000, NOW - 3000), granularity, DEFAULT, NOW)
    assert {one.granularity for one in found.periods} == {granularity}
    length = SECONDS[granularity]
    assert found.since == (NOW - 4000) // length * length
    assert found.until - found.since == length * len(found.periods)
    assert found.until >= NOW - 3000 > found.until - length


AGES_S = st.floats(0, 500 * 86_400) | st.floats(0, 20 * 86_400) | st.floats(0, 8 * 3600)
RETENTIONS = st.builds(
    Retention,
    minute=st.sampled_from([3600.0, 6 * 3600.0, 2 * 86_400.0]),
    hour=st.sampled_from([2 * 86_400.0, 14 * 86_400.0, 100 * 86_400.0]),
    day=st.sampled_from([30 * 86_400.0, 400 * 86_400.0]),
)


@given(AGES_S, AGES_S, st.none() | st.sampled_from(GRANULARITIES), RETENTIONS, st.integers(0, 86_400))
def test_rows_cover_each_moment_once_and_are_kept(
    age_s: float, other_s: float, granularity: Granularity | None, retention: Retention, later_s: int
) -> None:
    """For any query and retention, periods cover the whole range, except for sums that are about to expire."""
    now = NOW + later_s
    requested = RequestedRange(now - max(age_s, other_s), now - min(age_s, other_s))
    assume(requested.since < requested.until)
    kept_s = max(map(retention.of, GRANULARITIES)) if granularity is None else retention.of(granularity)
    try:
        found = span(requested, granularity, retention, now)
    except InvalidRequest:
        assert requested.since < now - kept_s + 2
        return
    ends = [one.start + SECONDS[one.granularity] for one in found.periods]
    assert [found.since, *ends[:-1]] == [one.start for one in found.periods]
    assert all(retention.expires(one.granularity, one.start) > now for one in found.periods)
    assert all(one.start % SECONDS[one.granularity] == 0 for one in found.periods)
    longest = SECONDS[granularity or "day"]
    assert found.since < requested.since + longest
    assert requested.until <= found.until < requested.until + longest
    assert found.until == ends[-1] or (requested.until >= now and found.until < ends[-1])
    assert len(found.periods) <= 3661


def test_a_rejection_states_the_retention() -> None:
    with pytest.raises(InvalidRequest, match="minute for 6h, by the hour for 14d, by the day for 400d: set granula"):
        span(RequestedRange(NOW - 2 * 86_400, NOW), "minute", DEFAULT, NOW)
    with pytest.raises(InvalidRequest, match="set since to 2025-10-21T18:24:30Z or later"):
        span(RequestedRange(NOW - 402 * 86_400, NOW), None, DEFAULT, NOW)


@pytest.mark.parametrize(("seconds", "text"), [(86_400, "1d"), (5400, "90m"), (36 * 3600, "36h"), (0.5, "0.5s")])
def test_durations_have_the_format_of_settings(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def figures_of(*receipts: Receipt) -> Any:
    row = SumRow()
    for one in receipts:
        row.merge(SumRow.of(one))
    return figures(row)


def test_the_teachers_share_counts_tokens_of_answers() -> None:
    """Guidance of 40 tokens before 160 of the student, a whole teacher answer, and no tokens of a shadow request."""
    assert figures_of(closed(guided()))["teacher_token_share"] == 0.2
    as_context = guided(plan=plan(placement="context"))
    assert figures_of(closed(as_context))["tokens"]["answer_by_teacher"] == 0
    alone = closed(builder(plan("teacher"), teacher=call("big", 100, 60)))
    assert figures_of(alone)["teacher_token_share"] == 1
    assert figures_of(closed(builder(plan("student"), student=call("small", 100, 60))))["teacher_token_share"] == 0
    assert figures_of(alone, closed(guided()))["tokens"]["answer"] == 260
    ended_itself = closed(guided(student=None, complete=True, plan=plan(placement="context")))
    assert figures_of(ended_itself)["tokens"]["answer_by_teacher"] == 40
    shadow = closed(guided(shadow_of="req-1"))
    result = figures_of(shadow)
    assert (result["tokens"]["answer"], result["teacher_token_share"], result["cost_share"]) == (0, None, None)
    assert Decimal(result["savings_usd"]) == -shadow.cost_usd
    assert Decimal(result["measuring_usd"]) == shadow.cost_usd


def test_tokens_written_to_the_cache_are_counted_apart() -> None:
    row = SumRow()
    for one in (closed(builder(plan("teacher"), teacher=call("big", 100, 5, 10, 60))), closed(guided())):
        row.merge(SumRow.of(one))
    assert figures(row)["tokens"]["teacher"] == {"input": 130, "cached": 10, "output": 45, "cache_write": 60}
    assert row.teacher.read == 200
    assert SumRow.from_bytes(row.to_bytes()).teacher == row.teacher


def test_shares_of_nothing_are_null_and_money_has_no_exponent() -> None:
    result = figures(SumRow())
    assert (result["cost_share"], result["teacher_token_share"], result["batches"]["mean_size"]) == (None, None, None)
    assert (result["cost_usd"], result["latency_ms"]["total"]["p95"]) == ("0", None)
    lost = ClassSum(1, 1, 0, -1)
    dear = figures(sum_row(requests=1, cost_pico=1, classes={"guided": lost}))
    assert (dear["cost_usd"], dear["savings_usd"], dear["cost_share"]) == ("0.000000000001", "-0.000000000001", None)


def test_a_batch_that_tenants_share_is_counted_in_parts() -> None:
    assert figures(sum_row(batches={4: 4, 1: 2}))["batches"] == {"count": 3, "mean_size": 2.0}
    assert figures(sum_row(batches={4: 1}))["batches"] == {"count": 0.25, "mean_size": 4.0}


def query(*by: str, granularity: Granularity | None = None, **only: str) -> UsageQuery:
    return UsageQuery(span(RequestedRange(NOW - 3600, NOW), granularity, DEFAULT, NOW), granularity, by, only)


def rows(tenant: str, count: int, start: int = 0) -> list[StoredRow]:
    raw = sum_row(requests=1).to_bytes()
    routes = [f"r{index}" for index in range(start, start + count)]
    return [
        StoredRow(Period.of("hour", NOW), SumDimensions(tenant, "k", one, "guided", "big", "small"), raw)
        for one in routes
    ]


def test_an_answer_has_a_bound() -> None:
    """The rows and the summands of a result are limited. The error describes how to reduce them."""
    answer = UsageResult(query("route"))
    answer.add_rows(rows("acme", MAX_ROWS))
    answer.add_rows(rows("beta", MAX_ROWS))
    assert len(answer.rows()) == MAX_ROWS
    with pytest.raises(InvalidRequest, match=r"more than 10,000 rows. Use a shorter time range") as refused:
        answer.add_rows(rows("beta", 1, start=MAX_ROWS))
    assert refused.value.param == "by"
    total = UsageResult(query())
    total.count_sums(MAX_SUMS_OF_ALL)
    with pytest.raises(InvalidRequest, match="more than 500,000 sums"):
        total.add_rows(rows("acme", 1))


def test_a_name_is_no_formula() -> None:
    """CSV cells that a spreadsheet would evaluate are text. Amounts stay numbers."""
    lost = ClassSum(1, 5 * 10**11, 0, -5 * 10**11)
    row = sum_row(requests=1, cost_pico=5 * 10**11, classes={"guided": lost})
    answer = UsageResult(query("tenant", "key", "route", "teacher"))
    names = ('=HYPERLINK("x")', "+1", "-1", "", "@x", "")
    answer.add_rows([StoredRow(Period.of("hour", NOW), SumDimensions(*names), row.to_bytes())])
    (line,) = csv.DictReader(io.StringIO(as_csv(answer).decode()))
    assert [line[name] for name in answer.by] == ['\'=HYPERLINK("x")', "'+1", "'-1", "'@x"]
    assert (line["savings_usd"], line["cost_usd"], line["cost_share"]) == ("-0.5", "0.5", "")
    assert list(line)[6:] == list(columns(SumRow()))
    assert [escape_formula(name) for name in ("\tx", "\rx", "a=b", "")] == ["'\tx", "'\rx", "a=b", ""]


def test_hidden_money_does_not_affect_the_order() -> None:
    """Rows with hidden money are last, ordered by name."""
    costs = {"dear": 9, "cheap": 1, "b-hidden": 99, "a-hidden": 5}
    answer = UsageResult(query("route"), lambda where: "hidden" not in where.route)
    for route, cost in costs.items():
        where, row = (
            SumDimensions("acme", "k", route, "guided", "big", "small"),
            sum_row(requests=1, cost_pico=cost),
        )
        answer.add_rows([StoredRow(Period.of("hour", NOW), where, row.to_bytes())])
    result = as_json(answer)
    assert [row["route"] for row in result["rows"]] == ["dear", "cheap", "a-hidden", "b-hidden"]
    assert ["cost_usd" in row for row in (*result["rows"], result["total"])] == [True, True, False, False, False]


class StoredReceipts:
    """Return a usage database with receipts of three tenants of the last days."""

    def __init__(self, book: UsageBook) -> None:
        now = time.time()
        self.receipts = [
            msgspec.structs.replace(
                closed(guided()),
                id=f"r{index}",
                tenant=("acme", "beta", "gamma")[index % 3],
                key=f"k{index % 2}",
                created=int(now - index * 4000),
                cost_usd=Decimal(f"0.{index + 1:012d}"),
                baseline_error_usd=Decimal(f"0.{2**index % 999_999_999_989:012d}"),
            )
            for index in range(90)
        ]
        book.add(self.receipts)

    def of(self, found: UsageSpan, **only: str) -> list[Receipt]:
        within = [one for one in self.receipts if found.since <= one.created < found.until]
        return [one for one in within if all(getattr(one, name) == expected for name, expected in only.items())]


async def test_a_result_is_the_sum_of_the_receipts_in_its_range(book: UsageBook) -> None:
    """The queries use totals of all tenants, one tenant, or groups."""
    stored_receipts = StoredReceipts(book)
    reader = UsageReader(book.reader, DEFAULT)
    for back_s in (3600, 5 * 3600, 30 * 3600, 4 * 86_400):
        for granularity in (None, "hour", "day"):
            now = time.time()
            found = span(RequestedRange(now - back_s, now), granularity, DEFAULT, now)  # type: ignore[arg-type]
            for by, only in (
                ((), {}),
                ((), {"tenant": "beta"}),
                (("tenant", "key"), {}),
                (("key",), {"key": "k1"}),
            ):
                result = await reader.read(UsageQuery(found, granularity, by, only), as_json)  # type: ignore[arg-type]
                expected = stored_receipts.of(found, **only)
                assert result["total"]["requests"] == len(expected)
                cost = sum((one.cost_usd for one in expected), Decimal(0))
                assert Decimal(result["total"]["cost_usd"]) == cost
                assert sum(Decimal(row["cost_usd"]) for row in result["rows"]) == cost
                error = sum((one.baseline_error_usd or Decimal(0) for one in expected), Decimal(0))
                assert Decimal(result["total"]["savings_error_usd"]) == error
                assert sum(Decimal(row["savings_error_usd"]) for row in result["rows"]) == error
                if granularity and not by:
                    assert len(result["rows"]) == len(found.periods)


def held_back() -> tuple[threading.Event, Callable[[UsageResult], dict[str, Any]]]:
    """Return an event, and a function that waits for it before it writes a result."""
    gate = threading.Event()

    def write(result: UsageResult) -> dict[str, Any]:
        assert gate.wait(10)
        return as_json(result)

    return gate, write


async def test_concurrent_queries_of_one_tenant_are_limited(sqlite_book: UsageBook) -> None:
    """Another tenant still gets an answer."""
    reader = UsageReader(sqlite_book.reader, DEFAULT, max_tenant_queries=3)
    now = time.time()
    usage_query = UsageQuery(span(RequestedRange(now - 3600, now), None, DEFAULT, now), None, (), {"tenant": "acme"})
    gate, write = held_back()
    requested = [reader.read(usage_query, write, tenant="acme") for _ in range(5)] + [
        reader.read(usage_query, write, tenant="beta")
    ]
    pending = asyncio.gather(*requested, return_exceptions=True)
    await asyncio.sleep(0)  # all have begun
    gate.set()
    done = await pending
    assert [type(one) for one in done] == [dict] * 3 + [Overloaded] * 2 + [dict]
    assert await reader.read(usage_query, as_json, tenant="acme")


async def test_no_crowd_of_tenants_leaves_another_one_without_an_answer(sqlite_book: UsageBook) -> None:
    """Two tenants use the whole limit of queries. A third tenant without queries still gets an answer."""
    reader = UsageReader(sqlite_book.reader, DEFAULT, max_queries=4)
    now = time.time()
    usage_query = UsageQuery(span(RequestedRange(now - 3600, now), None, DEFAULT, now), None, (), {"tenant": "acme"})
    gate, write = held_back()
    requested = [
        reader.read(usage_query, write, tenant=name) for name in ("acme", "acme", "beta", "beta", "acme", "gamma")
    ]
    pending = asyncio.gather(*requested, return_exceptions=True)
    await asyncio.sleep(0)  # all have begun
    gate.set()
    done = await pending
    assert [type(one) for one in done] == [dict] * 4 + [Overloaded, dict]


@pytest.mark.parametrize("leaves", [False, True])
async def test_an_answer_is_written_within_its_turn(sqlite_book: UsageBook, leaves: bool) -> None:
    """A disconnected caller occupies its slot until its thread ends, because tenants share the threads."""
    began, gate = threading.Event(), threading.Event()

    def write(_: UsageResult) -> bool:
        began.set()
        return gate.wait(10)

    reader = UsageReader(sqlite_book.reader, DEFAULT, max_tenant_queries=1)
    now = time.time()
    usage_query = UsageQuery(span(RequestedRange(now - 3600, now), None, DEFAULT, now), None, (), {"tenant": "acme"})
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(reader.read(usage_query, write, tenant="acme"))
        await asyncio.to_thread(began.wait, 10)
        if leaves:
            first.cancel()
            await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            await reader.read(usage_query, as_json, tenant="acme")
        gate.set()
    assert first.cancelled() if leaves else first.result()
    assert await reader.read(usage_query, as_json, tenant="acme")


@pytest.mark.parametrize("write", [encoded, as_csv])
def test_a_thread_that_encodes_a_result_pauses_between_rows(
    write: Callable[[UsageResult], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pauses let the event loop acquire the interpreter lock."""
    pauses: list[float] = []
    monkeypatch.setattr(usage_threads.time, "perf_counter", itertools.count().__next__)
    monkeypatch.setattr(usage_threads.time, "sleep", pauses.append)
    answer = UsageResult(query("route"))
    answer.add_rows(rows("acme", 5))
    write(answer)
    assert len(pauses) >= len(answer.rows())


def test_a_receipts_cost_is_whole_picodollars() -> None:
    """No precision is lost in sums."""
    one = closed(guided())
    assert figures_of(one, one)["cost_usd"] == f"{2 * one.cost_usd.normalize():f}"
    assert pico(one.cost_usd) == int(one.cost_usd.scaleb(12))


def test_names_a_question_does_not_ask_for_are_together() -> None:
    answer = UsageResult(query("mode"))
    answer.add_rows(rows("acme", 5))
    ((group, row),) = answer.rows()
    assert (group.names, row.requests) == (("guided",), 5)
