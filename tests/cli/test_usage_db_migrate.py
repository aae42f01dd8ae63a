"""`gkt-gateway usage-db migrate`: an installation of the previous version, with an archive and sums in Redis."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.accounting.receipt import with_savings
from gateway.config.database_url import ARCHIVE_FILE
from gateway.usage.queries import UsageQueries
from gateway.usage.sums import Period, Sums
from load_tests.day_receipts import day_of_receipts
from tests.cli.usage_place import Place
from tests.postgres import new_database, running_postgres
from tests.usage import previous_version
from tests.usage.databases import NOW, held

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gateway.accounting.receipt import Receipt
    from gateway.usage.rollup import SumRow
    from tests.postgres import Postgres

DAY_S = 86_400
TODAY = NOW // DAY_S * DAY_S


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> Place:
    usage = "sqlite" if request.param == "sqlite" else new_database(request.getfixturevalue("postgres"))
    return Place(tmp_path, redis_url, usage)


@pytest.fixture
def sqlite_place(tmp_path: Path, redis_url: str) -> Place:
    return Place(tmp_path, redis_url)


def receipts_of(days: int, count: int) -> list[Receipt]:
    """Receipts of some days before `NOW`, the oldest first, with ids of the previous version."""
    made = random.Random(3)
    return [
        with_savings(msgspec.structs.replace(one, id=f"req_{made.randbytes(12).hex()}"))
        for day in range(days)
        for one in day_of_receipts(count // days, 5, NOW - (days - 1 - day) * DAY_S, seed=day)
    ]


def install(place: Place, receipts: Sequence[Receipt], archived: Sequence[Receipt], generation: int = 0) -> None:
    """Make an installation that has added up `receipts`, and has archived some of them."""

    async def redis() -> None:
        async with Redis.from_url(place.url) as redis:
            await previous_version.make_redis(redis, place.keys, receipts, generation)

    asyncio.run(redis())
    file = f"sqlite:///{place.data}/{ARCHIVE_FILE}"
    previous_version.make_archive(place.address if "postgresql" in place.address else file, archived)


def sums_by_day(place: Place, days: Sequence[int]) -> dict[int, SumRow]:
    book = place.book()
    with book.engine.reading() as connection:
        found = UsageQueries(connection).totals([Period("day", day) for day in days])
    book.close()
    return {period.start: row for period, row in found.items()}


def right_sums(receipts: Sequence[Receipt]) -> dict[int, SumRow]:
    sums = Sums()
    for one in receipts:
        sums.add(one)
    return {period.start: row for period, row in sums.spread().totals.items() if period.granularity == "day"}


async def names(place: Place) -> set[str]:
    async with Redis.from_url(place.url) as redis:
        found = await redis.keys(f"{place.keys.ledger_base.replace('{', '[{]')}*")
    return {raw.decode().removeprefix(place.keys.ledger_base) for raw in found}


def ids(place: Place) -> list[str]:
    book = place.book()
    found = [one.id for one in held(book.engine)]
    book.close()
    return sorted(found)


def check_migration(place: Place, count: int) -> None:
    """Migrate an installation of `count` receipts, whose archive keeps the last nine of ten of them."""
    all_receipts = receipts_of(20, count)
    archived = all_receipts[count // 10 :]
    install(place, all_receipts, archived, generation=3)
    done = place.run("migrate")
    assert done.returncode == 0, done
    right = right_sums(all_receipts)
    assert sums_by_day(place, list(right)) == right
    assert ids(place) == sorted(one.id for one in archived)
    lines = [line.split() for line in done.stdout.splitlines()]
    months = Counter[str]()
    for one in all_receipts:
        day_end = one.created // DAY_S * DAY_S + DAY_S
        is_open = day_end > all_receipts[-1].created + 0.5 - 3600
        months["since" if is_open else f"{datetime.fromtimestamp(one.created, UTC):%Y-%m}"] += 1
    for line, after in pairwise(lines):
        if "before" in line:
            assert line[line.index("before") + 1 :] == after[after.index("after") + 1 :]
            assert int(line[line.index("before") + 2]) == months.pop(line[0])
    assert not months
    assert not {name for name in asyncio.run(names(place)) if "rows:" in name or "total:" in name}
    again = place.run("migrate")
    assert (again.returncode, sums_by_day(place, list(right)) == right) == (0, True)


def test_counts_and_money_are_the_same_before_and_after(place: Place) -> None:
    check_migration(place, 600)


def test_receipts_that_wait_are_counted_once(sqlite_place: Place) -> None:
    """The previous version added up some receipts without archiving them. Another receipt came later."""
    all_receipts = receipts_of(3, 90)
    install(sqlite_place, all_receipts, all_receipts[:70])
    late = with_savings(msgspec.structs.replace(all_receipts[-1], id="req_late", created=all_receipts[-1].created + 1))
    asyncio.run(sqlite_place.settle([*all_receipts[70:], late]))
    done = sqlite_place.run("migrate")
    assert done.returncode == 0, done
    assert ids(sqlite_place) == sorted(one.id for one in (*all_receipts, late))
    right = right_sums([*all_receipts, late])
    assert sums_by_day(sqlite_place, list(right)) == right


def test_without_an_archive_the_sums_of_the_day_of_the_upgrade_are_added(sqlite_place: Place) -> None:
    """The new version has receipts from a later minute on."""
    all_receipts = receipts_of(2, 40)
    new = [
        with_savings(
            msgspec.structs.replace(one, id=f"req_{one.id[5:]}0", created=all_receipts[-1].created + 120 + place)
        )
        for place, one in enumerate(all_receipts[:5])
    ]
    install(sqlite_place, all_receipts, [])
    sqlite_place.add(new)
    done = sqlite_place.run("migrate")
    assert done.returncode == 0, done
    right = right_sums([*all_receipts, *new])
    assert sums_by_day(sqlite_place, list(right)) == right


def test_a_difference_keeps_the_old_sums_until_it_is_accepted(sqlite_place: Place) -> None:
    """Redis lost some of its sums."""
    all_receipts = receipts_of(4, 80)
    install(sqlite_place, all_receipts[20:], all_receipts)
    done = sqlite_place.run("migrate")
    assert (done.returncode, "DIFFERS" in done.stdout) == (1, True)
    assert any("rows:" in name for name in asyncio.run(names(sqlite_place)))
    assert sqlite_place.run("migrate", "--accept-differences").returncode == 0
    assert not any("rows:" in name for name in asyncio.run(names(sqlite_place)))
    right = right_sums(all_receipts)
    assert sums_by_day(sqlite_place, list(right)) == right


def test_while_the_previous_version_runs_nothing_is_migrated(sqlite_place: Place) -> None:
    async def lead() -> None:
        async with Redis.from_url(sqlite_place.url) as redis:
            await redis.set(f"{sqlite_place.keys.ledger_base}lease", "ann")

    install(sqlite_place, all_receipts := receipts_of(1, 10), all_receipts)
    asyncio.run(lead())
    done = sqlite_place.run("migrate")
    assert (done.returncode, "previous version still runs" in done.stderr) == (1, True)
    assert "state" in asyncio.run(names(sqlite_place))
