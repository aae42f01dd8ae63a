"""An installation that the code of the previous version made is migrated to the last digit, also after interruptions.

Sums are compared by minute, hour and day, each by tenant, key, route, mode, teacher and student, and receipts by byte.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import pytest
from redis.asyncio import Redis
from sqlalchemy import create_engine, text

from gateway.accounting.receipt import Attempt, EngineShare, Receipt, with_savings
from gateway.cli import usage_db_migrate
from gateway.config.database_url import ARCHIVE_FILE
from gateway.usage.archive_import import ArchiveImport
from gateway.usage.rollup import SumDimensions, SumRow
from gateway.usage.store import UsageStore
from gateway.usage.sums import SECONDS, Period, Retention, Sums
from gateway.usage.sums_writer import TOTAL
from gateway.usage.tables import SUMS
from load_tests.day_receipts import day_of_receipts
from tests.cli.usage_place import Place
from tests.postgres import new_database, running_postgres
from tests.previous_code import extract_previous
from tests.usage.databases import held
from tests.usage.row_facts import added, facts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.postgres import Postgres

DAYS, KEPT_DAYS, DAY_S = 20, 10, 86_400
UNARCHIVED, UNSEEN = 40, 15
"""Receipts that wait: all of these were not archived, and the last ones were not added up either."""
MARGIN_S = 120
_MAKE = "tests/usage/make_installation.py"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return extract_previous(tmp_path_factory.mktemp("previous"))


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.long)])
def place(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> Place:
    usage = "sqlite" if request.param == "sqlite" else new_database(request.getfixturevalue("postgres"))
    return Place(tmp_path, redis_url, usage)


def receipts_until(now: float, count: int) -> list[Receipt]:
    """Receipts of the last days, the oldest first, of all that sums tell apart, with ids of the previous version."""
    dice = random.Random(4)
    found = []
    for ago in reversed(range(DAYS)):
        for one in day_of_receipts(count // DAYS, 5, now - ago * DAY_S, seed=ago):
            more: dict[str, Any] = {"id": f"req_{dice.randbytes(12).hex()}"}
            share = EngineShare("tiny", dice.randint(1, 900), 3, Decimal(dice.randint(1, 999)).scaleb(-9), 1)
            if dice.random() < 0.1:
                more["attempts"] = (Attempt("small", "engine_timeout", share),)
            elif dice.random() < 0.1:
                more |= {"probe": share, "cost_usd": one.cost_usd + share.cost_usd}
            elif dice.random() < 0.05:
                more |= {"mode": "shadow", "shadow_of": "req_other"}
            elif one.teacher is not None and dice.random() < 0.1:
                more["teacher"] = msgspec.structs.replace(one.teacher, shared="req_other")
            found.append(with_savings(msgspec.structs.replace(one, savings_class=None, **more)))
    # Those that wait to be added up came a moment ago: a request is settled within an hour.
    found[-UNSEEN:] = [msgspec.structs.replace(one, created=int(now)) for one in found[-UNSEEN:]]
    return found


Facts: TypeAlias = "dict[tuple[Period, SumDimensions], dict[str, Any]]"
"""Sums as plain values (row_facts.py)."""


@dataclass
class Installation:
    """Attributes:
    sums: those that the previous version showed, and those of receipts that it had not added up yet.
    receipts: JSON of those in the archive, and of those that wait, by id.
    """

    place: Place
    archive: str
    sums: Facts
    receipts: dict[str, bytes]

    def check(self) -> None:
        """Assert that sums and receipts in the usage database are these."""
        book = self.place.book()
        try:
            assert {one.id: one.to_json() for one in held(book.engine)} == self.receipts
            with book.engine.reading() as connection:
                rows = connection.execute(SUMS.select()).all()
        finally:
            book.close()
        names = {seconds: granularity for granularity, seconds in SECONDS.items()}
        found = {
            (Period(names[row[0]], row[1]), SumDimensions(*row[2:8])): facts(SumRow.from_bytes(row[8])) for row in rows
        }
        found, right = _kept(found), _kept(self.sums)
        assert found.keys() == right.keys()
        assert {place: (row, right[place]) for place, row in found.items() if row != right[place]} == {}

    def archived(self) -> int:
        """The number of receipts in the archive."""
        engine = create_engine(self.archive)
        with engine.connect() as connection:
            count = connection.execute(text("SELECT COUNT(*) FROM receipts")).scalar_one()
        engine.dispose()
        return int(count)


def _kept(sums: Facts) -> Facts:
    """Return the sums that both versions still keep."""
    kept = Retention(6 * 3600.0, 14 * 86_400.0, 400 * 86_400.0)
    limit = time.time() + MARGIN_S
    return {at: row for at, row in sums.items() if kept.expires(at[0].granularity, at[0].start) > limit}


def install(place: Place, previous: Mapping[str, str], count: int) -> Installation:
    """Let the previous version settle, add up and archive receipts, and delete old ones from its archive."""
    all_receipts = receipts_until(time.time(), count)
    folder = place.config.parent
    is_file = "sqlite" in place.address
    plan = {"redis": place.url, "prefix": place.keys.prefix, "unarchived": UNARCHIVED, "unseen": UNSEEN}
    plan |= {"archive": "sqlite" if is_file else place.address.replace("+psycopg", ""), "keep_s": KEPT_DAYS * DAY_S}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "receipts.jsonl").write_bytes(b"\n".join(one.to_json() for one in all_receipts))
    subprocess.run([sys.executable, _MAKE, folder], env=previous, stdin=subprocess.DEVNULL, check=True)
    archive = f"sqlite:///{place.data}/{ARCHIVE_FILE}" if is_file else place.address
    engine = create_engine(archive)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id, receipt FROM receipts")).all()
    engine.dispose()
    receipts = {row.id: row.receipt.encode() for row in rows}
    assert 0 < len(receipts) < count - UNARCHIVED
    receipts |= {one.id: one.to_json() for one in all_receipts[-UNARCHIVED:]}
    return Installation(place, archive, _sums(folder / "sums.msgpack", all_receipts[-UNSEEN:]), receipts)


def _sums(file: Path, unseen: list[Receipt]) -> Facts:
    decoder = msgspec.msgpack.Decoder(tuple[str, int, tuple[str, str, str, str, str, str], dict[str, Any]])
    sums: Facts = {}
    content = memoryview(file.read_bytes())
    while content:
        size = int.from_bytes(content[:4], "big")
        granularity, start, where, found = decoder.decode(content[4 : 4 + size])
        sums[Period(granularity, start), SumDimensions(*where)] = found  # type: ignore[arg-type]
        content = content[4 + size :]
    late = Sums()
    for one in unseen:
        late.add(one)
    late.spread()
    for period, rows in late.rows.items():
        for where, row in (*rows.items(), (TOTAL, late.totals[period])):
            sums[period, where] = added(sums.get((period, where), {}), facts(row))
    return sums


def check_migrated(installation: Installation) -> None:
    """Migrate, twice, and check the result and what is printed."""
    for _ in range(2):
        done = installation.place.run("migrate", COLUMNS="80")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "DIFFERS" not in done.stdout
        assert "…" not in done.stdout, "a figure is shortened"
        installation.check()
    assert installation.archived() == 0


def test_all_sums_and_receipts_are_the_same(place: Place, previous: Mapping[str, str]) -> None:
    check_migrated(install(place, previous, 2_000))


@pytest.mark.long
@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_an_interrupted_migration_resumes(
    place: Place, previous: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The migration is interrupted during an import, between two days of sums, and during the deletion of old keys."""
    installation = install(place, previous, 1_000)
    monkeypatch.setattr(usage_db_migrate, "_IMPORTED_AT_ONCE", 100)
    monkeypatch.setattr("gateway.usage.previous_sums._KEYS_PER_CALL", 50)
    for owner, name, calls in (
        (ArchiveImport, "delete_read", 3),
        (UsageStore, "change", 4),
        (Redis, "unlink", 2),
    ):
        with monkeypatch.context() as patch:
            _fail_at(patch, owner, name, calls)
            assert place.run("migrate").returncode == 1
    check_migrated(installation)


def _fail_at(patch: pytest.MonkeyPatch, owner: type, name: str, call: int) -> None:
    """Let a method fail instead of its nth call."""
    calls: dict[str, int] = defaultdict(int)
    method = getattr(owner, name)

    def fail(*arguments: Any) -> Any:
        calls[name] += 1
        if calls[name] == call:
            raise OSError("interrupted")
        return method(*arguments)

    patch.setattr(owner, name, fail)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_100000_receipts_are_the_same_also_where_the_migration_is_killed(
    place: Place, previous: Mapping[str, str]
) -> None:
    """The migration is killed during the import, and during the sums."""
    began = time.monotonic()
    installation = install(place, previous, 100_000)
    made = time.monotonic()
    count = installation.archived()
    command = [sys.executable, "-m", "gateway", "usage-db", "migrate", "--config", str(place.config)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as first:
        while installation.archived() > count // 2:
            assert first.poll() is None
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
    assert 0 < installation.archived() <= count // 2
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as second:
        while installation.archived():
            assert second.poll() is None
            time.sleep(0.02)
        time.sleep(0.3)
        second.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    check_migrated(installation)
    done = time.monotonic()
    print(f"made in {made - began:.1f} s, killed twice in {killed - made:.1f} s, two more runs {done - killed:.1f} s")
