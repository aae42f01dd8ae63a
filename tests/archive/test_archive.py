"""The archive keeps each receipt once, and the true one: in SQLite and in PostgreSQL alike."""

from __future__ import annotations

import asyncio
import re
import stat
import sys
import threading
import time
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from threading import Barrier, Thread
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from gateway.archive.archive import Archive
from gateway.archive.database import ArchiveDatabase, ArchiveError, Entry, Where
from gateway.archive.tables import SCHEMA
from gateway.archive_address import FILE, check_archive, shown
from gateway.errors import StartupError, StoreUnavailable
from gateway.ledger.intent import abandoned
from gateway.rollups.rebuild import Archived
from gateway.rollups.rollup import Row, pico
from gateway.units import Wrong
from tests.archive.archives import address, entry
from tests.batching.process import until
from tests.ledger.drafts import call, closed, draft, guided, intent, plan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.ledger.receipt import Receipt


@asynccontextmanager
async def an_archive(url: str, data: Path) -> AsyncIterator[Archive]:
    archive = Archive(address(url, data))
    try:
        yield archive
    finally:
        await archive.close()


async def held(archive: Archive, **more: Any) -> list[tuple[str, str, Receipt]]:
    return [(one.tenant, one.entry, one.receipt) for one in await whole(archive, **more)]


async def whole(archive: Archive, **more: Any) -> list[Archived]:
    return [one async for some in archive.batches(**more) for one in some]


async def sql(archive: Archive, query: str) -> list[Any]:
    engine = archive._database._ready()
    with engine.connect() as connection:
        return list(connection.execute(text(query)))


async def test_to_ask_whether_it_is_there_makes_none(archive_url: str, data: Path) -> None:
    async with an_archive(archive_url, data) as archive:
        assert not await archive.is_there()
        assert not (data / FILE).exists()
        assert not await archive.is_there()
        await archive.open()
        assert await archive.is_there()
    async with an_archive(archive_url, data) as archive:
        assert await archive.is_there()


async def test_a_receipt_is_found_by_its_tenant_alone(archive_url: str, data: Path) -> None:
    async with an_archive(archive_url, data) as archive:
        one = closed(guided())
        await archive.write([entry(one, "5-1")])
        assert await archive.find("acme", one.id) == one.to_json()
        assert await archive.find("globex", one.id) is None
        assert await archive.find("acme", "another") is None
        assert await held(archive) == [("acme", "5-1", one)]


async def test_what_is_brought_twice_is_kept_once_and_belongs_to_its_newer_entry(archive_url: str, data: Path) -> None:
    """Redis forgot it, and was told again: who adds up from there on finds it once."""
    async with an_archive(archive_url, data) as archive:
        one = closed(guided())
        for brought in ("5-1", "5-1", "9-0", "7-0"):
            await archive.write([entry(one, brought), entry(one, brought)])
        assert await held(archive) == [("acme", "9-0", one)]


async def test_the_columns_say_what_rollups_count(archive_url: str, data: Path) -> None:
    """Money to the picodollar, tokens as they were read; of shadows and shared calls too."""
    receipts = [
        closed(guided()),
        closed(guided(shadow_of="req-x")),
        closed(guided(teacher=call("big", 100, 40, shared="cache"))),
        closed(draft(plan("student"), student=call("small", 150, 160, 20)), "engine_timeout"),
        msgspec.structs.replace(closed(guided()), cost_usd=Decimal("0.000000000001"), baseline_usd=Decimal(0)),
    ]
    total = Row()
    for one in receipts:
        total.add(one)
    async with an_archive(archive_url, data) as archive:
        await archive.write([entry(one, f"{place}-0") for place, one in enumerate(receipts)])
        names = ("cost_pico", "baseline_pico", "savings_pico", "teacher_cost_pico", "student_cost_pico")
        tokens = [f"{role}_{what}_tokens" for role in ("teacher", "student") for what in ("input", "cached", "output")]
        (sums,) = await sql(archive, f"SELECT {', '.join(f'SUM({one})' for one in (*names, *tokens))} FROM receipts")
        assert [int(one) for one in sums] == [
            total.cost_pico,
            total.baseline_pico,
            total.savings_pico,
            total.teacher_pico,
            total.student_pico,
            *(total.teacher.input, total.teacher.cached, total.teacher.output),
            *(total.student.input, total.student.cached, total.student.output),
        ]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first", "late"])
async def test_a_true_receipt_stands_whenever_the_abandoned_one_comes(
    archive_url: str, data: Path, order: tuple[int, int]
) -> None:
    """And the archive can say what it held before: the abandoned one."""
    one = intent()
    gone = abandoned(one, time.time())
    true = msgspec.structs.replace(closed(guided()), id=one.id)
    brought = [entry(gone, "5-0"), entry(true, "8-0")]
    async with an_archive(archive_url, data) as archive:
        for place in (*order, *order):
            await archive.write([brought[place]])
        assert await held(archive) == [("acme", "8-0", true)]
        assert await whole(archive) == [Archived("acme", "8-0", true, gone, "5-0")]
        assert await held(archive, since={"acme": "7-9", "globex": "9-0"}) == [("acme", "8-0", true)]
        assert await held(archive, since={"acme": "8-0"}) == []
        assert [row.cost_pico for row in await sql(archive, "SELECT cost_pico FROM receipts")] == [pico(true.cost_usd)]


async def test_both_in_one_batch_are_the_true_one(archive_url: str, data: Path) -> None:
    one = intent()
    true = msgspec.structs.replace(closed(guided()), id=one.id)
    async with an_archive(archive_url, data) as archive:
        await archive.write([entry(true, "8-0"), entry(abandoned(one, time.time()), "5-0")])
        (found,) = await whole(archive)
        assert (found.instead_entry, found.instead and found.instead.status) == ("5-0", "abandoned")
        assert await held(archive) == [("acme", "8-0", true)]


async def test_what_cannot_be_read_stands_aside_and_holds_nobody_up(archive_url: str, data: Path) -> None:
    """A newer version's receipt, one beyond what a column takes, one whose money is no number, and one with a character
    that a text cannot have.
    """
    good = closed(guided())
    large = msgspec.structs.replace(closed(guided()), cost_usd=Decimal(10_000_000_000))
    odd = msgspec.structs.replace(closed(guided()), route="a\0b")
    no_number = msgspec.structs.replace(closed(guided()), baseline_usd=Decimal("NaN"))
    async with an_archive(archive_url, data) as archive:
        entries = [Entry("acme", "4-0", b'{"id": "new"}'), entry(large, "5-0"), entry(good, "6-0"), entry(odd, "7-0")]
        entries.append(entry(no_number, "8-0"))
        assert await archive.write(entries) == 3
        assert await archive.write(entries) == 3
        assert sorted(found.id for _, _, found in await held(archive)) == sorted([good.id, odd.id])
        assert await archive.find("acme", odd.id) == odd.to_json()
        aside = await sql(archive, "SELECT entry_ms, receipt FROM unreadable ORDER BY entry_ms")
        assert [(row.entry_ms, row.receipt) for row in aside] == [
            (4, '{"id": "new"}'),
            (5, large.to_json().decode()),
            (8, no_number.to_json().decode()),
        ]
        assert await archive.unreadable() == 3


async def test_old_receipts_are_deleted_a_few_at_a_time(archive_url: str, data: Path) -> None:
    async with an_archive(archive_url, data) as archive:
        receipts = [
            msgspec.structs.replace(closed(guided()), id=f"r{place:04d}", created=1_000 + place)
            for place in range(1_205)
        ]
        await archive.write([entry(one, f"{place}-0") for place, one in enumerate(receipts)])
        assert [await archive.delete_before(1_000 + 1_200) for _ in range(3)] == [1_000, 200, 0]
        assert [found.id for _, _, found in await held(archive)] == [f"r{place:04d}" for place in range(1_200, 1_205)]
        assert await archive.span() == (2_200, 2_204)


async def test_rows_come_by_time_and_once_however_small_the_lists(archive_url: str, data: Path) -> None:
    """Of one tenant and time too; many share a second."""
    receipts = [
        msgspec.structs.replace(
            closed(guided()), id=f"r{place:03d}", created=1_000 + place // 10, tenant="beta" if place % 3 else "acme"
        )
        for place in range(100)
    ]
    async with an_archive(archive_url, data) as archive:
        await archive.write([entry(one, f"{place}-0") for place, one in enumerate(receipts)])
        assert [found.id for _, _, found in await held(archive, size=7)] == [one.id for one in receipts]
        some = Where(1_002, 1_005, "beta")
        wanted = [one.id for one in receipts[20:50] if one.tenant == "beta"]
        assert [found.id for _, _, found in await held(archive, where=some, size=7)] == wanted
        assert await archive.count(some) == len(wanted)


async def test_two_may_start_and_write_the_same_at_once(archive_url: str, data: Path) -> None:
    """Four processes' databases, one new archive: the tables are made once, each receipt is kept once."""
    databases = [ArchiveDatabase(address(archive_url, data)) for _ in range(4)]
    receipts = [closed(guided()) for _ in range(200)]
    entries = [entry(one, f"{place}-0") for place, one in enumerate(receipts)]
    together, failed = Barrier(4), list[Exception]()

    def work(database: ArchiveDatabase, mine: list[Entry]) -> None:
        try:
            together.wait()
            database.open()
            for start in range(0, len(mine), 50):
                database.write(mine[start : start + 50])
        except Exception as error:  # noqa: BLE001  whatever it was
            failed.append(error)

    threads = [
        Thread(target=work, args=(one, entries[::-1] if place % 2 else entries)) for place, one in enumerate(databases)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert databases[0].count(Where()) == 200
    for one in databases:
        one.close()


async def test_a_newer_schema_is_refused_and_says_what_to_do(archive_url: str, data: Path) -> None:
    async with an_archive(archive_url, data) as archive:
        await archive.open()
        with archive._database._writing() as connection:
            connection.execute(text(f"INSERT INTO gkt_archive VALUES ({SCHEMA + 1})"))
    async with an_archive(archive_url, data) as archive:
        with pytest.raises(
            StartupError, match=rf"version {SCHEMA + 1}, and this gateway knows {SCHEMA}: start the newer"
        ):
            await archive.open()


async def test_the_file_is_its_owners_alone(data: Path) -> None:
    async with an_archive("sqlite", data) as archive:
        await archive.write([entry(closed(guided()), "1-0")])
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        assert stat.S_IMODE((data / "gkt-archive.db").stat().st_mode) == 0o600


@pytest.mark.parametrize("put", ["nothing", "another"])
async def test_a_file_that_is_removed_or_replaced_is_noticed_by_the_next_write(data: Path, put: str) -> None:
    """SQLite itself would go on with the file that has no name any more, and all that is written would be nowhere."""
    one, two = (msgspec.structs.replace(closed(guided()), id=name) for name in ("one", "two"))
    async with an_archive("sqlite", data) as archive, an_archive("sqlite", data) as other:
        await archive.write([entry(one, "1-1")])
        for file in data.iterdir():
            file.unlink()
        if put == "another":
            (data / FILE).touch(mode=0o600)
        await archive.write([entry(two, "2-1")])
        assert await held(other) == await held(archive) == [("acme", "2-1", two)]


async def test_tables_that_are_dropped_are_made_anew_and_no_receipt_stands_aside(archive_url: str, data: Path) -> None:
    """Somebody emptied the archive: the next write fails, and goes well when it is tried again."""
    one = closed(guided())
    async with an_archive(archive_url, data) as archive:
        await archive.open()
        with archive._database._ready().begin() as connection:
            connection.execute(text("DROP TABLE receipts"))
        with pytest.raises(ArchiveError):
            await archive.write([entry(one, "2-1")])
        assert await archive.write([entry(one, "2-1")]) == 0
        assert await held(archive) == [("acme", "2-1", one)]
        assert await archive.unreadable() == 0


async def test_an_archive_that_is_away_says_so_to_who_looks_for_a_receipt(tmp_path: Path) -> None:
    """And never what its address is."""
    for url in ("postgresql://gkt:s3cret@127.0.0.1:1/gkt", f"sqlite:///{tmp_path}/config.yaml/archive.db"):
        (tmp_path / "config.yaml").touch()
        async with an_archive(url, tmp_path) as archive:
            with pytest.raises(StoreUnavailable, match="archive"):
                await archive.find("acme", "one")
            with pytest.raises(ArchiveError) as failed:
                await archive.write([entry(closed(guided()), "1-0")])
            assert "s3cret" not in str(failed.value)
            assert "s3cret" not in archive.where


async def test_look_ups_of_one_tenant_do_not_keep_another_one_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is slow, and a tenant asks for more than it answers. Another tenant is served next but one."""
    may_find, asked = threading.Semaphore(0), list[str]()

    def find(tenant: str, _: str) -> None:
        asked.append(tenant)
        may_find.acquire()

    async with an_archive(f"sqlite:///{tmp_path}/archive.db", tmp_path) as archive:
        monkeypatch.setattr(archive._database, "find", find)
        crowd = [asyncio.ensure_future(archive.find("flood", "one")) for _ in range(40)]  # noqa: TID251
        await until(lambda: len(asked) == 2)
        other = asyncio.ensure_future(archive.find("quiet", "one"))  # noqa: TID251
        await asyncio.sleep(0)
        may_find.release(41)
        assert await asyncio.gather(other, *crowd) == [None] * 41
    assert asked.index("quiet") <= 3


async def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    async with an_archive("postgresql://gkt:s3cret@127.0.0.1:1/gkt", tmp_path) as archive:
        with pytest.raises(StartupError, match=r"needs the extra `postgres`") as failed:
            await archive.open()
        assert "s3cret" not in str(failed.value)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite",
        "sqlite:////var/lib/gkt.db",
        "sqlite:///archive.db",
        "postgresql://db/gkt",
        "postgresql+psycopg://a:b%2F@db:5432/gkt?sslmode=require",
        "postgresql:///gkt?host=/run/postgresql",
    ],
)
def test_addresses_that_can_be(url: str, tmp_path: Path) -> None:
    check_archive(url)
    assert sqlalchemy.make_url(address(url, tmp_path)).get_backend_name() == url.partition(":")[0].partition("+")[0]
    assert "b%2F" not in shown(address(url, tmp_path))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "mysql://db/x",
        "postgresql:gkt",
        "postgresql://db",
        "postgresql://a:b/c@d:x/y",
    ],
)
def test_addresses_that_cannot_be(url: str) -> None:
    with pytest.raises(Wrong) as wrong:
        check_archive(url)
    assert "b/c" not in str(wrong.value)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(1, 6)), max_size=12))
def test_any_order_and_repetition_ends_the_same(
    tmp_path_factory: pytest.TempPathFactory, brought: list[tuple[int, bool, int]]
) -> None:
    """Each receipt once; true where a true one came after, in the outbox, what was abandoned."""
    database = ArchiveDatabase(address("sqlite", tmp_path_factory.mktemp("archive")))
    try:
        for name, is_true, at in brought:
            one = msgspec.structs.replace(intent(), id=f"r{name}")
            # In an outbox the abandoned one stands before the true one.
            receipt = msgspec.structs.replace(closed(guided()), id=one.id) if is_true else abandoned(one, 1.0)
            database.write([entry(receipt, f"{at + 10 * is_true}-0")])
        found = {row.id: row for rows in database.rows(Where(), 5) for row in rows}
        assert set(found) == {f"r{name}" for name, _, _ in brought}
        for row in found.values():
            mine = [(is_true, at) for name, is_true, at in brought if f"r{name}" == row.id]
            assert (row.status != "abandoned") == any(is_true for is_true, _ in mine)
            assert row.entry_ms == max(at + 10 * is_true for is_true, at in mine)
    finally:
        database.close()


QUERIES = re.findall(
    r"```sql\n(.*?)```", (Path(__file__).parents[2] / "docs" / "archive.md").read_text("utf-8"), re.DOTALL
)


async def test_the_queries_of_the_page_can_be_asked(archive_url: str, data: Path) -> None:
    """And the first says what was paid."""
    receipts = [msgspec.structs.replace(closed(guided()), created=1_793_491_200 + place) for place in range(3)]
    other = "SQLite" if archive_url != "sqlite" else "PostgreSQL"
    async with an_archive(archive_url, data) as archive:
        await archive.write([entry(one, f"{place}-0") for place, one in enumerate(receipts)])
        found = [await sql(archive, query) for query in QUERIES if f"-- {other}" not in query]
    assert len(found) == len(QUERIES) - 1 >= 4
    ((tenant, requests, cost_usd, *_),) = found[0]
    assert (tenant, requests) == ("acme", 3)
    assert float(cost_usd) == pytest.approx(float(sum(one.cost_usd for one in receipts)))
    assert str(found[1][0][0]) == "2026-11-01"
