"""Sums by label in a usage database: each receipt has one value of each label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from sqlalchemy import text

from gateway.errors import InvalidRequest
from gateway.policy.labels import NONE
from gateway.usage.receipt_sums import SUMS
from gateway.usage.rollup import SumRow
from gateway.usage.search import ReceiptSearch
from gateway.usage.span import UsageSpan
from gateway.usage.sums import OTHER
from gateway.usage.tables import DAY_S
from tests.usage.databases import NOW, database, receipt

if TYPE_CHECKING:
    from gateway.accounting.receipt import Receipt
    from gateway.usage.sums import Granularity
    from tests.usage.books import UsageBook

DAY = UsageSpan(NOW - DAY_S, NOW + 1, [])
TEAM, ENV = "label:team", "label:environment"


def labeled(team: str | None = None, environment: str | None = None, **more: Any) -> Receipt:
    labels = {name: value for name, value in (("team", team), ("environment", environment)) if value is not None}
    return receipt(stored_labels=labels or msgspec.UNSET, **more)


async def sums(
    book: UsageBook, *by: str, when: UsageSpan = DAY, granularity: Granularity | None = None, **only: str
) -> dict[tuple[str, ...], dict[str, int]]:
    required = {name.replace("label_", "label:"): value for name, value in only.items()}
    found = await book.reader.receipt_sums(when, by, required, granularity)
    starts = [() if one.start is None else (str(one.start),) for one in found]
    return {
        (*start, *one.names): dict(zip(SUMS, one.sums, strict=True)) for start, one in zip(starts, found, strict=True)
    }


async def test_a_receipt_counts_for_its_value(book: UsageBook) -> None:
    one, other, failed = labeled("a"), labeled("b"), labeled("b", status="engine_failed")
    book.add([one, other, failed, receipt()])
    book.add([one])  # delivered again
    found = await sums(book, TEAM)
    assert {names: (row["requests"], row["errors"]) for names, row in found.items()} == {("a",): (1, 0), ("b",): (2, 1)}
    assert found["a",]["cost_pico"] == SumRow.of(one).cost_pico > 0
    assert found["b",]["cost_pico"] == sum(SumRow.of(each).cost_pico for each in (other, failed))


async def test_sums_are_grouped_by_labels_and_dimensions(book: UsageBook) -> None:
    book.add(
        [labeled("a", "prod"), labeled("a", "dev", tenant="beta", route="r"), labeled("b", tenant="beta", key="k2")]
    )
    assert set(await sums(book, TEAM, ENV)) == {("a", "prod"), ("a", "dev"), ("b", NONE)}
    assert set(await sums(book, "tenant", TEAM, "route")) == {
        ("acme", "a", "chat"), ("beta", "a", "r"), ("beta", "b", "chat")
    }  # fmt: skip
    assert set(await sums(book, "route", tenant="beta", label_team="a")) == {("r",)}
    assert set(await sums(book, ENV, label_team="a")) == {("prod",), ("dev",)}
    assert set(await sums(book, TEAM, label_environment=NONE)) == set()
    assert set(await sums(book, "key", label_team="b")) == {("k2",)}
    assert (await sums(book, label_team="a"))[()]["requests"] == 2
    assert await sums(book, label_team="c") == {}


async def test_tags_and_labels_can_be_combined(book: UsageBook) -> None:
    book.add([labeled("a", stored_tags=("x", "y")), labeled("b", stored_tags=("x",)), receipt(stored_tags=("x",))])
    assert set(await sums(book, "tag", TEAM)) == {("x", "a"), ("y", "a"), ("x", "b"), ("x", NONE)}
    assert set(await sums(book, "tag", label_team="a")) == {("x",), ("y",)}


async def test_sums_have_periods(book: UsageBook) -> None:
    midnight = NOW - NOW % DAY_S
    book.add([labeled("a", created=midnight - days * DAY_S) for days in (0, 0, 1)])
    when = UsageSpan(midnight - 3 * DAY_S, midnight + DAY_S, [])
    found = await sums(book, when=when, granularity="day", label_team="a")
    assert {names: row["requests"] for names, row in found.items()} == {
        (str(midnight - DAY_S),): 1, (str(midnight),): 2
    }  # fmt: skip
    assert len(await sums(book, TEAM, when=when, granularity="day")) == 2


async def test_the_real_receipt_replaces_the_abandoned_one(book: UsageBook) -> None:
    real = labeled("a")
    book.add([msgspec.structs.replace(real, status="abandoned", stored_labels={"team": "abandoned"})])
    book.add([real])
    found = await sums(book, TEAM)
    assert {names: (row["requests"], row["errors"]) for names, row in found.items()} == {("a",): (1, 0)}


async def test_labels_are_deleted_with_their_receipts(book: UsageBook) -> None:
    book.add([labeled("a", "prod", created=NOW - days * DAY_S) for days in range(4)])
    database(book.engine).delete_receipts(NOW - 2 * DAY_S)
    assert (await sums(book, TEAM, when=UsageSpan(0, NOW + 1, [])))["a",]["requests"] == 3


async def test_values_beyond_the_limit_of_rows_are_one_row(book: UsageBook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.usage.receipt_sum_query.MAX_ROWS", 2)
    book.add([labeled(f"t{one}") for one in range(5)])
    found = await sums(book, TEAM)
    assert len(found) == 3
    assert found[OTHER,]["requests"] == 3
    with pytest.raises(InvalidRequest, match="more than 2 rows"):
        await sums(book, TEAM, granularity="day")
    monkeypatch.setattr("gateway.usage.receipt_sum_query.MAX_TAG_ROWS", 4)
    with pytest.raises(InvalidRequest, match="add up more than 4 tags or labels"):
        await sums(book, TEAM)


async def test_the_search_finds_receipts_by_label(book: UsageBook) -> None:
    one, other = labeled("a"), labeled("b", unguided="budget")
    book.add([one, other, receipt()])

    async def found(**where: Any) -> list[str]:
        page = await book.reader.search(ReceiptSearch(**where), 10)
        return [msgspec.json.decode(each.receipt)["id"] for each in page.found]

    assert await found(label=("team", "a")) == [one.id]
    assert await found(label=("team", "b"), unguided="any") == [other.id]
    assert await found(label=("team", "a"), unguided="any") == []
    assert await found(label=("app", "a")) == []


async def test_invented_values_have_as_many_rows_as_receipts(sqlite_book: UsageBook) -> None:
    """The gateway bounds the values of receipts. The table has one row for each receipt and label."""
    sqlite_book.add([labeled(f"v{one}" if one < 100 else OTHER) for one in range(1_000)])
    with sqlite_book.engine.reading() as connection:
        assert connection.execute(text("SELECT COUNT(*), COUNT(DISTINCT value) FROM usage_labels")).one() == (
            1_000,
            101,
        )
    assert (await sums(sqlite_book, TEAM))[OTHER,]["requests"] == 900
