"""PostgreSQL has a partition for each day, whoever writes."""

from __future__ import annotations

import itertools
import re
import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import ProgrammingError
from structlog.testing import capture_logs

from gateway.usage import partitions as partitions_module
from gateway.usage import upkeep
from gateway.usage.database import UsageDatabase, WriteResult
from gateway.usage.partition_upkeep import keep_partitions
from gateway.usage.partitions import (
    AHEAD_DAYS,
    PARTITIONED,
    create_defaults,
    day_windows,
    days_in_default,
    drop_expired,
    expired,
    partition_name,
    partitions,
)
from gateway.usage.queries import ReceiptFilter, UsageQueries
from gateway.usage.receipt_sum_query import receipt_sums
from gateway.usage.search import ReceiptSearch
from gateway.usage.span import UsageSpan
from gateway.usage.store import UsageStore
from gateway.usage.tables import DAY_S, RECEIPTS, TAGS
from tests.postgres import new_database
from tests.usage.databases import DAY, FOREVER, NOW, check_sums, database, entries, entry, held, opened, receipt
from tests.usage.test_database import pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.accounting.receipt import Receipt
    from gateway.usage.engine import UsageEngine
    from tests.postgres import Postgres


_LOCKED = text(
    "SELECT COUNT(DISTINCT relation) FROM pg_locks JOIN pg_inherits ON inhrelid = relation "
    "WHERE pid = pg_backend_pid() AND inhparent = 'usage_receipts'::regclass"
)


@pytest.fixture
def engine(postgres: Postgres) -> Iterator[UsageEngine]:
    with opened(new_database(postgres).replace("postgresql:", "postgresql+psycopg:", 1)) as engine:
        yield engine


def names(engine: UsageEngine, table: Any = RECEIPTS) -> list[str]:
    with engine.reading() as connection:
        return [one.name for one in partitions(connection, table)]


def keep(engine: UsageEngine, now: float = NOW) -> None:
    keep_partitions(engine, lambda: now)


def without_partitions(engine: UsageEngine) -> UsageDatabase:
    """Return a writer that could not create partitions."""
    writer = database(engine)
    writer._partitions = SimpleNamespace(ensure=lambda _: None)  # type: ignore[assignment]
    return writer


def on_days(*days: int, **more: Any) -> list[Receipt]:
    return [receipt(day * DAY_S + 3_600, **more) for day in days]


def same(engine: UsageEngine, receipts: list[Receipt]) -> None:
    """Assert that the database has exactly these receipts, and correct sums."""
    assert {one.id: one for one in held(engine)} == {one.id: one for one in receipts}
    check_sums(engine)


def test_each_day_has_a_partition_before_its_first_row(engine: UsageEngine) -> None:
    receipts = on_days(DAY, DAY - 1, DAY - 400, stored_tags=("a", "b"))
    assert database(engine).add(entries(receipts)).inserted == 3
    for table in PARTITIONED:
        days = [partition_name(table, day) for day in (DAY - 400, DAY - 1, DAY)]
        assert names(engine, table) == [*days, f"{table.name}_default"]
    with engine.reading() as connection:
        assert days_in_default(connection) == set()
        assert connection.execute(text(f"SELECT COUNT(*) FROM {partition_name(TAGS, DAY)}")).scalar() == 2
    same(engine, receipts)
    keep(engine)
    assert names(engine)[-2] == partition_name(RECEIPTS, DAY + AHEAD_DAYS)


def test_a_time_far_from_now_has_no_partition(engine: UsageEngine) -> None:
    receipts = on_days(0, 5, DAY + 100)
    assert database(engine).add(entries(receipts)).inserted == 3
    keep(engine)
    assert len(names(engine)) == 1 + AHEAD_DAYS + 1
    assert {one.id for one in held(engine)} == {one.id for one in receipts}


def test_workers_that_create_the_same_partitions_at_once_write_all_receipts(engine: UsageEngine) -> None:
    engine.open()
    parts = [on_days(*range(DAY - 5, DAY + 1)) for _ in range(4)]
    start, failures = threading.Barrier(4), []

    def write(part: list[Receipt]) -> None:
        try:
            start.wait()
            writer = database(engine)
            keep(engine)
            writer.add(entries(part))
        except Exception as error:  # noqa: BLE001 - the test fails with it
            failures.append(error)

    threads = [threading.Thread(target=write, args=(part,)) for part in parts]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failures == []
    same(engine, [one for part in parts for one in part])
    with engine.reading() as connection:
        assert days_in_default(connection) == set()


def test_rows_of_the_default_partition_move_to_the_partition_of_their_day(engine: UsageEngine) -> None:
    receipts = on_days(DAY - 30, DAY, DAY + 9, stored_tags=("a",))
    assert without_partitions(engine).add(entries(receipts)).inserted == 3
    keep(engine)
    assert partition_name(RECEIPTS, DAY - 30) in names(engine)
    with engine.reading() as connection:
        assert days_in_default(connection) == {DAY + 9}
    keep(engine, NOW + 3 * DAY_S)
    with engine.reading() as connection:
        assert days_in_default(connection) == set()
    same(engine, receipts)


def test_the_true_receipt_replaces_an_abandoned_one_in_a_partition(engine: UsageEngine) -> None:
    gone, true = pair()
    writer = database(engine)
    writer.add([entry(gone), *entries(on_days(*range(DAY - 40, DAY)))])
    assert writer.add([entry(true)]) == WriteResult(replaced=1)
    assert len(held(engine)) == 41
    assert true in held(engine)
    check_sums(engine)


def test_retention_drops_whole_days(engine: UsageEngine) -> None:
    old, new = on_days(*[DAY - 5] * 30, *[DAY - 4] * 20, stored_tags=("a",)), on_days(DAY - 1, DAY)
    writer = database(engine)
    writer.add(entries([*old, *new]))
    assert [writer.delete_receipts(NOW - 2 * DAY_S) for _ in range(3)] == [30, 20, 0]
    same(engine, new)
    for table in PARTITIONED:
        assert names(engine, table) == [partition_name(table, day) for day in (DAY - 1, DAY)] + [
            f"{table.name}_default"
        ]


def test_no_rows_are_counted_while_a_table_is_locked(engine: UsageEngine) -> None:
    database(engine).add(entries(on_days(*[DAY - 5] * 3, stored_tags=("a",), stored_labels={"team": "a"})))
    keep(engine, (DAY - 8) * DAY_S)  # partitions without receipts come first
    statements: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        statements.extend(word for word in ("COUNT(", "DETACH") if word in statement)

    event.listen(engine.open(), "before_cursor_execute", note)
    assert database(engine).delete_receipts(NOW - 2 * DAY_S) == 3
    event.remove(engine.open(), "before_cursor_execute", note)
    assert statements == ["COUNT("] * statements.count("COUNT(") + ["DETACH"] * statements.count("DETACH")
    assert (statements.count("COUNT("), statements.count("DETACH")) == (4, 3 * 4)


def test_a_partition_that_another_worker_has_dropped_counts_once(engine: UsageEngine) -> None:
    database(engine).add(entries(on_days(*[DAY - 5] * 3)))
    with engine.reading() as connection:
        found, receipts = expired(connection, DAY - 2)
    assert receipts == 3
    for is_first in (True, False):
        with engine.writing() as connection:
            assert drop_expired(connection, found) is is_first
    assert held(engine) == []


def test_a_partition_that_is_dropped_during_the_count_is_not_counted(
    engine: UsageEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker drops the partition after this worker has listed it."""
    writer = database(engine)
    writer.add(entries([*on_days(*[DAY - 5] * 3), *on_days(*[DAY - 4] * 2), *(new := on_days(DAY))]))
    listed, calls = partitions_module.partitions, []

    def list_slowly(connection: Any, table: Any) -> Any:
        found = listed(connection, table)
        if not calls:
            calls.append(table)
            with engine.writing() as other:
                assert drop_expired(other, [(table, found[0])])
        return found

    monkeypatch.setattr(partitions_module, "partitions", list_slowly)
    assert writer.delete_receipts(NOW - 2 * DAY_S) == 2
    assert calls
    assert [one.id for one in held(engine)] == [one.id for one in new]


def test_a_partition_that_is_dropped_before_its_rows_are_deleted_has_none(
    engine: UsageEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.open()
    with engine.writing() as connection:
        bounds = f"FOR VALUES FROM ({DAY - 9}) TO ({DAY - 3})"
        connection.exec_driver_sql(f"CREATE TABLE of_operator PARTITION OF usage_receipts {bounds}")
    writer, trim = database(engine), partitions_module.tables_to_trim
    writer.add(entries(on_days(DAY - 5)))

    def list_slowly(connection: Any, table: Any) -> Any:
        found = trim(connection, table)
        with engine.writing() as other:
            drop_expired(other, [(table, one) for one in partitions(other, table) if one.name == "of_operator"])
        return found

    monkeypatch.setattr("gateway.usage.database.tables_to_trim", list_slowly)
    assert writer.delete_receipts((DAY - 4) * DAY_S) == 0
    assert held(engine) == []


def test_partitions_of_an_operator_are_no_default_partitions(engine: UsageEngine) -> None:
    """A partition may have several days, or no last day."""
    engine.open()
    with engine.writing() as connection:
        connection.exec_driver_sql("DROP TABLE usage_receipts_default")
        for name, first, last in (("some", DAY - 9, DAY - 5), ("rest", DAY + 1, "MAXVALUE")):
            bounds = f"FOR VALUES FROM ({first}) TO ({last})"
            connection.exec_driver_sql(f"CREATE TABLE of_{name} PARTITION OF usage_receipts {bounds}")
        create_defaults(connection)
    before = on_days(DAY - 9, DAY - 8, DAY - 6)
    after = on_days(DAY, DAY + 3)
    writer = database(engine)
    writer.add(entries([*before, *after]))
    keep(engine)
    assert names(engine) == ["of_some", partition_name(RECEIPTS, DAY), "of_rest", "usage_receipts_default"]
    with engine.reading() as connection:
        assert [one.name for one in partitions(connection, RECEIPTS) if one.until is None] == ["usage_receipts_default"]
        assert days_in_default(connection) == set()
    same(engine, [*before, *after])
    assert writer.delete_receipts((DAY - 7) * DAY_S) == 2
    same(engine, [before[2], *after])
    assert writer.delete_receipts((DAY + 2) * DAY_S) == 1
    assert names(engine)[0] != "of_some"


@pytest.mark.parametrize("name", ["cold.of_operator", '"Of operator"'])
def test_partitions_in_another_schema_or_with_a_quoted_name_expire(engine: UsageEngine, name: str) -> None:
    """Rows of a partition with several days are deleted, and the partition is dropped after its last day."""
    engine.open()
    with engine.writing() as connection:
        connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS cold")
        bounds = f"FOR VALUES FROM ({DAY - 9}) TO ({DAY - 5})"
        connection.exec_driver_sql(f"CREATE TABLE {name} PARTITION OF usage_receipts {bounds}")
    receipts = on_days(DAY - 9, DAY - 8, DAY - 6, DAY)
    writer = database(engine)
    writer.add(entries(receipts))
    assert names(engine)[0] == name
    assert writer.delete_receipts((DAY - 7) * DAY_S) == 2
    same(engine, receipts[2:])
    assert writer.delete_receipts((DAY - 2) * DAY_S) == 1
    assert name not in names(engine)
    same(engine, receipts[3:])


def test_a_partition_that_no_statement_finds_is_an_error(engine: UsageEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this error, the worker would list the partitions forever, and write no receipts."""
    engine.open()
    gone = partitions_module.Partition("gone", DAY - 9, DAY - 8)
    monkeypatch.setattr(partitions_module, "partitions", lambda *_: [gone])
    with engine.reading() as connection, pytest.raises(ProgrammingError, match="gone"):
        expired(connection, DAY)


def test_a_reader_delays_the_end_of_a_partition_only(engine: UsageEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.usage.partitions.LOCK_WAIT_MS", 100)
    writer = database(engine)
    writer.add(entries([*on_days(*[DAY - 5] * 3), *(new := on_days(DAY))]))
    with engine.reading() as reader:
        reader.execute(text("SELECT COUNT(*) FROM usage_receipts"))
        assert writer.delete_receipts(NOW) == 0
        more = on_days(DAY)
        assert writer.add(entries(more)).inserted == 1
    assert writer.delete_receipts(NOW) == 3
    same(engine, [*new, *more])


@contextmanager
def planned(engine: UsageEngine, table: str = "usage_receipts") -> Iterator[list[int]]:
    """Yield a list that receives, for each statement on a table, the number of its partitions in the plan."""
    counts: list[int] = []

    def plan(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if table in statement and "pg_" not in statement and "EXPLAIN" not in statement:
            with engine.reading() as connection:
                lines = connection.exec_driver_sql(f"EXPLAIN (COSTS OFF) {statement}", parameters).scalars()
                counts.append(len(set(re.findall(rf" on ({table}_\w+)", "\n".join(lines)))))

    event.listen(engine.open(), "before_cursor_execute", plan)
    yield counts
    event.remove(engine.open(), "before_cursor_execute", plan)


def test_queries_touch_few_partitions(engine: UsageEngine) -> None:
    """A lock on each of hundreds of partitions and their indexes would fill the lock table of the server."""
    receipts = on_days(*range(DAY - 79, DAY + 1), tenant="acme")
    database(engine).add(entries(receipts))
    with engine.reading() as connection:
        assert len(partitions(connection, RECEIPTS)) == 81
    newest, oldest = receipts[-1], receipts[0]
    queries: list[tuple[Callable[[UsageQueries], Any], int, int]] = [
        (lambda queries: queries.search(ReceiptSearch(), 5, None).found, 10, 4),
        (lambda queries: queries.search(ReceiptSearch(tenant="acme"), 5, None).found, 10, 2),
        (lambda queries: queries.search(ReceiptSearch(since=NOW - DAY_S), 50, None).found, 5, 6),
        (lambda queries: queries.search(ReceiptSearch(until=float(oldest.created + 60)), 5, None).found, 18, 6),
        (lambda queries: queries.receipt("acme", newest.id), 1, 1),
        (lambda queries: queries.with_shadows(oldest.id, None), 1, 2),
        (lambda queries: queries.page(ReceiptFilter(), None, 5), 18, 2),
        (lambda queries: queries.count(ReceiptFilter()), 18, 6),
    ]
    for query, partitions_each, statements in queries:
        with planned(engine) as counts, engine.reading() as connection:
            assert query(UsageQueries(connection))
            assert connection.execute(_LOCKED).scalar() == 0
        assert 0 < max(counts) <= partitions_each
        assert len(counts) <= statements


def test_sums_by_two_labels_touch_the_partitions_of_their_days(engine: UsageEngine) -> None:
    labels = {"team": "a", "environment": "prod"}
    database(engine).add(entries(on_days(*range(DAY - 39, DAY + 1), stored_labels=labels)))
    when = UsageSpan(DAY * DAY_S, (DAY + 1) * DAY_S, [])
    with planned(engine, "usage_labels") as counts, engine.reading() as connection:
        (found,) = receipt_sums(connection, when, ["label:team", "label:environment"], {})
    assert found.names == ("a", "prod")
    assert 0 < max(counts) <= 3  # of the day, the day before, and the default


def test_a_write_touches_the_partitions_of_its_receipts(engine: UsageEngine) -> None:
    """Known receipts are looked up, and others are inserted."""
    receipts = on_days(*range(DAY - 79, DAY + 1))
    database(engine).add(entries(receipts))
    with engine.writing() as connection:
        writer = database(engine)
        writer._engine = SimpleNamespace(writing=lambda: nullcontext(connection))  # type: ignore[assignment]
        writer._partitions = SimpleNamespace(ensure=lambda _: None)  # type: ignore[assignment]
        assert writer.add(entries([receipts[-1], *on_days(DAY - 3)])) == WriteResult(inserted=1, known=1)
        assert connection.execute(_LOCKED).scalar() == 2


def test_windows_have_each_day_once(engine: UsageEngine) -> None:
    days = [*range(DAY - 60, DAY - 30), *range(DAY - 10, DAY)]
    database(engine).add(entries(on_days(*days)))
    with engine.reading() as connection:
        for first, last in ((None, None), (DAY - 45, None), (None, DAY - 20), (DAY - 45, DAY - 5), (DAY - 3, DAY - 3)):
            for newest_first in (False, True):
                windows = list(day_windows(connection, first, last, newest_first=newest_first))
                windows = windows[::-1] if newest_first else windows
                assert (windows[0][0], windows[-1][1]) == (first, last)
                for (_, before), (after, _) in itertools.pairwise(windows):
                    assert before is not None
                    assert after == before + 1
    with engine.reading() as connection:
        queries = UsageQueries(connection)
        assert queries.count(ReceiptFilter()) == len(days)
        assert queries.span() == (days[0] * DAY_S + 3_600, days[-1] * DAY_S + 3_600)


async def test_the_upkeep_logs_a_failure_once(engine: UsageEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    store = UsageStore(engine._address, FOREVER)
    calls: list[int] = []

    class Enough(Exception):
        pass

    async def sleep(pause_s: float) -> None:
        calls.append(int(pause_s))
        if len(calls) == 3:
            engine.close()
            with engine.writing() as connection:
                connection.execute(text("ALTER TABLE gone RENAME TO usage_receipts_default"))
        if len(calls) == 4:
            raise Enough

    with engine.writing() as connection:
        connection.execute(text("ALTER TABLE usage_receipts_default RENAME TO gone"))
    monkeypatch.setattr(upkeep.asyncio, "sleep", sleep)
    try:
        with capture_logs() as logs, pytest.raises(Enough):
            await upkeep.keep_partitions(store, every_s=100, retry_s=3)
    finally:
        await store.close()
    assert calls == [3, 3, 3, 100]
    failed = [one for one in logs if one["event"] == "usage_partitions_failed"]
    assert len(failed) == 1
    assert failed[0]["error"] == "UndefinedTable"
