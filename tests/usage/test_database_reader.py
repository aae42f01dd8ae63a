"""Sums and receipts that are read match the receipts in the usage database."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from gateway.config.database_url import sqlalchemy_url
from gateway.errors import UsageUnavailable
from gateway.usage.database_reader import DatabaseReader
from gateway.usage.engine import VERSION_TABLE, UsageEngine
from gateway.usage.rollup import SumDimensions, SumRow
from gateway.usage.search import ReceiptSearch
from gateway.usage.sums import ALL_TENANTS, Period, Sums
from gateway.usage.tables import RECEIPTS, SUMS
from gateway.usage.threads import QueryThreads
from load_tests.day_receipts import day_of_receipts
from tests.accounting.receipt_builders import closed, guided
from tests.postgres import new_database
from tests.usage.books import UsageBook

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway.accounting.receipt import Receipt
    from gateway.usage.sums import StoredRow
    from tests.postgres import Postgres

HOUR_S = 3600


def receipt(created: float, number: int = 0, tenant: str = "acme", *, timed: bool = True) -> Receipt:
    id_ = f"req_{int(created):08x}{number:016x}" if timed else f"req_{number:024x}"
    return replace(closed(guided()), id=id_, created=int(created), tenant=tenant)


def decoded(rows: Iterable[StoredRow]) -> list[tuple[Period, SumDimensions, SumRow]]:
    return [(period, dims, SumRow.from_bytes(row)) for period, dims, row in rows]


async def test_rows_and_totals_are_those_of_the_receipts(book: UsageBook) -> None:
    receipts = list(day_of_receipts(300, 5, time.time()))
    book.add(receipts)
    sums = Sums()
    for one in receipts:
        sums.add(one)
    sums.spread()
    periods = list(sums.rows)
    found = await book.reader.rows(decoded, periods)
    assert {(period, where): row for period, where, row in found} == {
        (period, where): row for period, rows in sums.rows.items() for where, row in rows.items()
    }
    assert len(found) == sum(map(len, sums.rows.values()))
    assert [period for period, *_ in found] == sorted((one[0] for one in found), key=periods.index)
    of_one = await book.reader.rows(decoded, periods, "tenant-001")
    assert sorted(of_one, key=str) == sorted((one for one in found if one[1].tenant == "tenant-001"), key=str)
    nowhere = Period("hour", 0)
    assert await book.reader.totals([*periods, nowhere]) == [
        *((one, sums.totals[one]) for one in periods),
        (nowhere, SumRow()),
    ]
    assert [(period, row) for period, _, row in await book.reader.rows(decoded, periods[:9], ALL_TENANTS)]


async def test_each_addition_changes_the_marks_of_its_periods(book: UsageBook) -> None:
    now = time.time()
    hours = [Period.of("hour", now), Period.of("hour", now - HOUR_S)]
    assert await book.reader.versions(hours) == [None, None]
    marks = []
    abandoned = replace(receipt(now, 2), status="abandoned")
    for one in (receipt(now, 1), abandoned, receipt(now, 2), receipt(now, 3)):
        book.add([one])
        mark, other = await book.reader.versions(hours)
        assert other is None
        marks.append(mark)
    assert len({*marks}) == 4
    book.add([receipt(now, 3)])
    assert (await book.reader.versions(hours))[0] == marks[-1]


async def test_without_tables_usage_is_unavailable(book: UsageBook) -> None:
    with book.engine.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE usage_sums RENAME TO away")
    for call in (book.reader.totals, book.reader.versions, partial(book.reader.rows, decoded)):
        with pytest.raises(UsageUnavailable, match="usage database cannot be read"):
            await call([Period("hour", 0)])
    with book.engine.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO usage_sums")
    assert await book.reader.rows(decoded, [Period("hour", 0)]) == []


@pytest.mark.long
async def test_without_a_server_usage_is_unavailable(postgres: Postgres) -> None:
    book = UsageBook(sqlalchemy_url(new_database(postgres), Path()))
    try:
        book.add([receipt(time.time())])
        assert (await book.reader.search(ReceiptSearch(), 5)).scanned == 1
        postgres.stop()
        try:
            with pytest.raises(UsageUnavailable):
                await book.reader.search(ReceiptSearch(), 5)
            with pytest.raises(UsageUnavailable):
                await book.reader.rows(list, [Period("hour", 0)])
        finally:
            postgres.start()
        assert (await book.reader.search(ReceiptSearch(), 5)).scanned == 1
    finally:
        book.close()


async def test_damaged_rows_are_unavailable(sqlite_book: UsageBook) -> None:
    sqlite_book.add([receipt(time.time())])
    with sqlite_book.engine.writing() as connection:
        connection.execute(RECEIPTS.update().values(receipt=b"damaged"))
        connection.execute(SUMS.update().values(row=b"damaged"))
    with pytest.raises(UsageUnavailable):
        await sqlite_book.reader.search(ReceiptSearch(), 5)
    with pytest.raises(UsageUnavailable):
        await sqlite_book.reader.totals([Period.of("hour", time.time())])


@pytest.mark.parametrize("address", ["postgresql+psycopg://nobody@127.0.0.1:9/none", "sqlite:////proc/none/usage.db"])
async def test_a_database_that_was_never_there_is_unavailable(address: str) -> None:
    threads = QueryThreads(UsageEngine(address).reading)
    with pytest.raises(UsageUnavailable):
        await DatabaseReader(threads).search(ReceiptSearch(), 5)
    with pytest.raises(UsageUnavailable):
        await DatabaseReader(threads).rows(decoded, [Period("hour", 0)])
    threads.close()


async def test_a_database_of_another_version_is_unavailable(book: UsageBook, address: str) -> None:
    with book.engine.writing() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    threads = QueryThreads(UsageEngine(address).reading)
    with pytest.raises(UsageUnavailable):
        await DatabaseReader(threads).search(ReceiptSearch(), 5)
    threads.close()


async def test_scans_do_not_delay_short_queries(sqlite_book: UsageBook) -> None:
    gate = threading.Event()

    def wait(_: Iterator[StoredRow]) -> bool:
        return gate.wait(20)

    scans = [asyncio.ensure_future(sqlite_book.reader.rows(wait, [])) for _ in range(8)]  # noqa: TID251
    hour = Period("hour", 0)
    assert await sqlite_book.reader.totals([hour]) == [(hour, SumRow())]
    gate.set()
    assert all(await asyncio.gather(*scans))


async def test_a_short_query_has_a_limit_in_time(sqlite_book: UsageBook) -> None:
    gate = threading.Event()
    threads = QueryThreads(sqlite_book.engine.reading, timeout_s=0.01)
    with pytest.raises(UsageUnavailable):
        await threads.query(lambda _: gate.wait(20))
    gate.set()
    threads.close()
