"""The usage database stores each receipt once, and its sums match its receipts."""

from __future__ import annotations

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, update
from sqlalchemy.exc import SQLAlchemyError

from gateway.accounting.intent import abandoned
from gateway.usage.database import WriteResult
from gateway.usage.entries import OutboxEntry
from gateway.usage.packing import pack, unpack
from gateway.usage.queries import UsageQueries
from gateway.usage.rollup import SumRow
from gateway.usage.sums import OTHER, SECONDS, Retention, Sums
from gateway.usage.tables import DAY_S, RECEIPTS, SUMS, UNREADABLE, day_of
from gateway.usage.verify import differences
from tests.accounting.receipt_builders import intent
from tests.usage.databases import (
    DAY,
    NOW,
    check_sums,
    database,
    entries,
    entry,
    held,
    opened,
    receipt,
    receipts_of_a_day,
)
from tests.usage.sum_rows import sum_row

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.accounting.receipt import Receipt
    from gateway.usage.sums import Granularity


def pair() -> tuple[Receipt, Receipt]:
    """Return an abandoned receipt and the real receipt of the same request."""
    true = receipt()
    gone = msgspec.structs.replace(abandoned(intent(), NOW + 60), id=true.id, created=NOW, key="ci", route="chat")
    return gone, true


def total(engine: Any, seconds: int = DAY_S) -> SumRow:
    """Return the sum over all tenants and days."""
    found = SumRow()
    with engine.reading() as connection:
        for row in connection.scalars(select(SUMS.c.row).where(SUMS.c.tenant == "", SUMS.c.seconds == seconds)):
            found.merge(SumRow.from_bytes(row))
    return found


def sum_of(*receipts: Receipt) -> SumRow:
    found = SumRow()
    for one in receipts:
        found.merge(SumRow.of(one))
    return found


def test_receipts_are_stored_with_their_sums(address: str) -> None:
    receipts = receipts_of_a_day(300)
    with opened(address) as engine:
        writer = database(engine)
        assert writer.add(entries(receipts[:200])) == WriteResult(inserted=200)
        assert writer.add(entries(receipts[200:])) == WriteResult(inserted=100)
        assert {one.id: one for one in held(engine)} == {one.id: one for one in receipts}
        for seconds in (60, 3600, DAY_S):
            assert total(engine, seconds) == sum_of(*receipts)
        check_sums(engine)


def test_columns_contain_the_facts_of_the_receipt(address: str) -> None:
    one = receipt(cost_usd=Decimal("0.000000000001"), key="ci", route="chat")
    with opened(address) as engine:
        database(engine).add([entry(one)])
        with engine.reading() as connection:
            (row,) = connection.execute(select(RECEIPTS)).mappings()
        assert unpack(row["receipt"]) == one.to_json()
        assert (row["day"], row["id"], row["created"], row["tenant"]) == (DAY, one.id, NOW, one.tenant)
        assert (row["key"], row["route"], row["mode"], row["status"]) == ("ci", "chat", "guided", "ok")
        assert (row["teacher"], row["student"], row["cost_pico"]) == ("big", "small", 1)
        assert row["savings_pico"] == int(one.savings_usd.scaleb(12))


def test_an_entry_that_comes_twice_counts_once(address: str) -> None:
    receipts = receipts_of_a_day(50)
    with opened(address) as engine:
        writer = database(engine)
        assert writer.add(entries([*receipts, *receipts[:20]])) == WriteResult(inserted=50, known=20)
        assert writer.add(entries(receipts[10:40])) == WriteResult(known=30)
        assert total(engine) == sum_of(*receipts)
        check_sums(engine)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_true_receipt_replaces_the_abandoned_one(address: str, order: tuple[int, ...], together: bool) -> None:
    """The two receipts arrive twice in any order, with another receipt in between."""
    gone, true = pair()
    other = receipt()
    brought = [entry((gone, true, other)[place]) for place in (*order, *order)]
    with opened(address) as engine:
        writer = database(engine)
        for some in [brought] if together else [[one] for one in brought]:
            writer.add(some)
        assert {one.id: one for one in held(engine)} == {true.id: true, other.id: other}
        assert total(engine) == sum_of(true, other)
        check_sums(engine)


def test_nothing_is_left_in_the_sums_of_an_abandoned_receipt(address: str) -> None:
    """The abandoned receipt may have another key, mode and engine than the real one."""
    gone, true = pair()
    gone = msgspec.structs.replace(gone, mode="student", key="other")
    with opened(address) as engine:
        writer = database(engine)
        assert writer.add([entry(gone)]) == WriteResult(inserted=1)
        assert writer.add([entry(true)]) == WriteResult(replaced=1)
        with engine.reading() as connection:
            keys = set(connection.scalars(select(SUMS.c.key)))
        assert keys == {"", "ci"}
        assert total(engine) == sum_of(true)


def test_unreadable_and_refused_entries_do_not_keep_others_out(address: str) -> None:
    good = [receipt() for _ in range(5)]
    bad = {
        "1-0": b'{"id": "new"}',
        "2-0": receipt(cost_usd=Decimal(10_000_000_000)).to_json(),  # exceeds the range of a column
        "3-0": receipt(baseline_usd=Decimal("NaN")).to_json(),
        "4-0": b"\xff",
    }
    nul = entry(receipt(route="a\0b"), "5-0")
    sent = [*entries(good), *(OutboxEntry("acme", id_, raw) for id_, raw in bad.items()), nul]
    random.Random(1).shuffle(sent)
    refused = {**bad, **({"5-0": nul.raw} if "postgresql" in address else {})}
    with opened(address) as engine:
        writer = database(engine)
        for _ in range(2):
            added = writer.add(sent)
            assert added.unreadable == len(refused)
            with engine.reading() as connection:
                stored = connection.execute(select(UNREADABLE.c.entry, UNREADABLE.c.receipt))
                assert dict(stored.all()) == refused
                assert UsageQueries(connection).count_unreadable() == len(refused)
        assert {one.id for one in held(engine)} >= {one.id for one in good}
        check_sums(engine)


def test_a_transaction_that_fails_leaves_nothing(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    receipts = receipts_of_a_day(40)
    with opened(address) as engine:
        writer = database(engine)
        writer.add(entries(receipts[:20]))
        with monkeypatch.context() as patch:
            patch.setattr("gateway.usage.database.add_sums", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                writer.add(entries(receipts[20:]))
        assert len(held(engine)) == 20
        check_sums(engine)
        assert writer.add(entries(receipts)) == WriteResult(inserted=20, known=20)
        check_sums(engine)


def test_two_writers_at_once_stay_exactly_once(address: str) -> None:
    """The writers write all receipts in different orders and batches, and abandoned receipts of some."""
    receipts = receipts_of_a_day(400)
    gone = [
        msgspec.structs.replace(abandoned(intent(), NOW), id=one.id, created=one.created, tenant=one.tenant)
        for one in receipts[::5]
    ]
    failures: list[Exception] = []

    def write(seed: int) -> None:
        sent = entries([*receipts, *gone])
        random.Random(seed).shuffle(sent)
        try:
            with opened(address) as engine:
                for place in range(0, len(sent), 37):
                    database(engine).add(sent[place : place + 37])
        except Exception as error:  # noqa: BLE001 - the test fails with it
            failures.append(error)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in (1, 2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failures == []
    with opened(address) as engine:
        assert {one.id: one for one in held(engine)} == {one.id: one for one in receipts}
        assert total(engine) == sum_of(*receipts)
        check_sums(engine)


@pytest.mark.long
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), max_rows=st.integers(1, 8), sizes=st.lists(st.integers(1, 40), min_size=1))
def test_folded_sums_are_exact(tmp_path_factory: Any, seed: int, max_rows: int, sizes: list[int]) -> None:
    folder = tmp_path_factory.mktemp("folded")
    check_folded(f"sqlite:///{folder}/usage.db", seed, max_rows, sizes)


def test_sums_beyond_the_bound_count_together(address: str) -> None:
    check_folded(address, 3, 4, [10, 50, 40])


def check_folded(address: str, seed: int, max_rows: int, sizes: list[int]) -> None:
    receipts = receipts_of_a_day(100, seed, tenants=2)
    with opened(address) as engine:
        writer = database(engine, Retention(1e9, 1e9, 1e9, max_rows))
        sent, place = entries(receipts), 0
        for size in itertools.cycle(sizes):
            if place >= len(sent):
                break
            writer.add(sent[place : place + size])
            place += size
        check_sums(engine)
        assert total(engine) == sum_of(*receipts)
        with engine.reading() as connection:
            apart = connection.execute(
                select(SUMS.c.seconds, SUMS.c.start, SUMS.c.tenant).where(SUMS.c.tenant != "", SUMS.c.key != OTHER)
            ).all()
            days = connection.scalars(select(SUMS.c.key).where(SUMS.c.seconds == DAY_S)).all()
        assert max(list(apart).count(one) for one in apart) <= max_rows
        assert OTHER in days


def test_periods_that_share_a_row_count_apart() -> None:
    """Receipts of one key and hour have a retained minute, or only a retained hour or day."""
    created = [NOW - NOW % 3600 + 60 * place for place in (0, 0, 1, 2)]
    receipts = [receipt(moment) for moment in created] * 3
    kinds: list[Granularity] = [*["minute"] * 4, *["hour"] * 4, *["day"] * 4]
    for seed in range(20):
        sent = list(zip(receipts, kinds, strict=True))
        random.Random(seed).shuffle(sent)
        sums = Sums()
        for one, finest in sent[: 3 + seed % 10]:
            sums.add(one, 1, finest)
        sums.spread()
        lengths = list(SECONDS)
        for length in lengths:
            counted = [one for one, finest in sent[: 3 + seed % 10] if lengths.index(finest) <= lengths.index(length)]
            rows = [by_dims for period, by_dims in sums.rows.items() if period.granularity == length]
            assert sum(row.requests for by_dims in rows for row in by_dims.values()) == len(counted)
            totals = [row for period, row in sums.totals.items() if period.granularity == length]
            assert sum(row.cost_pico for row in totals) == sum_of(*counted).cost_pico


def test_a_difference_is_found(address: str) -> None:
    """A sum is wrong, another is missing, and one is superfluous."""
    receipts = receipts_of_a_day(30)
    with opened(address) as engine:
        database(engine).add(entries(receipts))
        day = SUMS.c.seconds == DAY_S
        with engine.writing() as connection:
            row, start = connection.execute(select(SUMS.c.row, SUMS.c.start).where(day, SUMS.c.tenant == "")).first()
            wrong = SumRow.from_bytes(row)
            wrong.merge(sum_row(cost_pico=1))
            connection.execute(
                update(SUMS).where(day, SUMS.c.tenant == "", SUMS.c.start == start).values(row=wrong.to_bytes())
            )
            tenant = receipts[0].tenant
            gone = connection.execute(delete(SUMS).where(day, SUMS.c.tenant == tenant, SUMS.c.start == start)).rowcount
        with engine.reading() as connection:
            found = list(differences(connection, start // DAY_S))
        assert len(found) == 1 + gone
        assert [(there, right.cost_pico + 1) for (_, _, dims), there, right in found if dims.tenant == ""] == [
            (wrong, wrong.cost_pico)
        ]


def test_a_receipt_counts_in_the_periods_that_are_kept(address: str) -> None:
    retention = Retention(minute=3600, hour=7 * DAY_S, day=100 * DAY_S)
    created = {60: NOW - 60, 3600: NOW - 2 * DAY_S, DAY_S: NOW - 30 * DAY_S, 0: NOW - 200 * DAY_S}
    with opened(address) as engine:
        database(engine, retention).add([entry(receipt(moment)) for moment in created.values()])
        assert len(held(engine)) == 4
        with engine.reading() as connection:
            counted = list(connection.execute(select(SUMS.c.seconds).where(SUMS.c.tenant == "")).scalars())
        assert {seconds: counted.count(seconds) for seconds in (60, 3600, DAY_S)} == {60: 1, 3600: 2, DAY_S: 3}


def test_old_receipts_and_sums_are_deleted_in_steps(address: str) -> None:
    receipts = [receipt(NOW - 3 * DAY_S + place) for place in range(1_200)] + [receipt(), receipt(NOW - DAY_S)]
    with opened(address) as engine:
        writer = database(engine)
        writer.add(entries(receipts))
        deleted = [1_200, 0, 0] if "postgresql" in address else [1_000, 200, 0]
        assert [writer.delete_receipts(NOW - DAY_S) for _ in range(3)] == deleted
        assert {one.id for one in held(engine)} == {one.id for one in receipts[-2:]}
        short = database(engine, Retention(minute=3600, hour=2 * DAY_S, day=100 * DAY_S))
        steps = list(itertools.takewhile(bool, (short.delete_sums() for _ in range(10))))
        assert sum(steps) > 0
        with engine.reading() as connection:
            left = list(connection.execute(select(SUMS.c.seconds, SUMS.c.start).where(SUMS.c.tenant == "")))
        assert sorted(seconds for seconds, _ in left) == [60, 3600, 3600, DAY_S, DAY_S, DAY_S]
        check_sums_of = [DAY, DAY - 1]
        with engine.reading() as connection:
            assert [list(differences(connection, day)) for day in check_sums_of] == [[], []]


def test_devices_of_two_tenants_may_choose_the_same_id(address: str) -> None:
    """Each tenant has its receipt, and does not count the other's."""
    same = "edge_" + "7" * 32
    one, other = (receipt(DAY * DAY_S, id=same, tenant=tenant) for tenant in ("acme", "globex"))
    with opened(address) as engine:
        writer = database(engine)
        assert writer.add([entry(one), entry(other)]).inserted == 2
        assert writer.add([entry(other), entry(one)]).known == 2
        with engine.reading() as connection:
            for mine in (one, other):
                assert UsageQueries(connection).receipt(mine.tenant, same) == mine.to_json()
        with engine.reading() as connection:
            assert list(differences(connection, DAY)) == []


def test_the_day_of_a_receipt_is_that_of_its_id() -> None:
    midnight = DAY * DAY_S
    before = f"req_{midnight - 1:08x}{'0' * 16}"
    assert day_of(receipt(midnight, id=before)) == DAY - 1
    assert day_of(receipt(midnight, id=f"{before}-edge")) == DAY - 1
    assert day_of(receipt(midnight, id="edge_" + "0" * 32)) == DAY
    assert day_of(receipt(midnight, id="req_" + "0" * 24)) == DAY  # its time is far from `created`
    assert day_of(receipt(midnight, id="req_zzzz")) == DAY


def test_packed_receipts_are_small_and_exact() -> None:
    receipts = receipts_of_a_day(200)
    raws = [one.to_json() for one in receipts]
    packed = [pack(raw) for raw in raws]
    assert [unpack(one) for one in packed] == raws
    assert sum(map(len, packed)) < 0.2 * sum(map(len, raws))
    assert unpack(pack(b"{" + b" " * 500_000)) == b"{" + b" " * 500_000
    for damaged in (b"", packed[0][:-1], packed[0][:1], b"\xff" * 40):
        with pytest.raises(ValueError, match="damaged"):
            unpack(damaged)


def test_threads_may_pack_at_once() -> None:
    raws = [one.to_json() for one in receipts_of_a_day(200)] * 10
    with ThreadPoolExecutor(4) as threads:
        assert [unpack(one) for one in threads.map(pack, raws)] == raws


def test_an_unavailable_database_raises_and_nothing_is_put_aside(tmp_path: Any) -> None:
    address = f"sqlite:///{tmp_path}/usage.db"
    with opened(address) as engine:
        writer = database(engine)
        writer.add([entry(receipt())])
        with engine.writing() as connection:
            connection.exec_driver_sql("DROP TABLE usage_sums")
        with pytest.raises(SQLAlchemyError):
            writer.add([entry(receipt())])
        assert len(held(engine)) == 1
        with engine.reading() as connection:
            assert connection.execute(select(UNREADABLE)).all() == []


def test_a_damaged_file_raises_and_nothing_is_put_aside(tmp_path: Path) -> None:
    """The error has no single receipt as its cause."""
    file = tmp_path / "usage.db"
    with opened(f"sqlite:///{file}") as engine:
        database(engine).add([entry(receipt())])
        with engine.reading() as connection:
            page = connection.exec_driver_sql(
                "SELECT rootpage FROM sqlite_master WHERE name = 'usage_sums'"
            ).scalar_one()
            size = connection.exec_driver_sql("PRAGMA page_size").scalar_one()
    with file.open("r+b") as raw:
        raw.seek((page - 1) * size)
        raw.write(b"\xff" * size)
    with opened(f"sqlite:///{file}") as engine:
        with pytest.raises(SQLAlchemyError, match="malformed"):
            database(engine).add([entry(receipt()), entry(receipt())])
        with engine.reading() as connection:
            assert UsageQueries(connection).count_unreadable() == 0
