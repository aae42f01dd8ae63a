"""`gkt-gateway archive` on a real archive and a real Redis."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import secrets
import sqlite3
from contextlib import closing
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.archive.archive import Archive
from gateway.ledger.redis_ledger import RedisLedger, Settlement
from gateway.metrics import Metrics
from gateway.redis_client import RedisClient
from gateway.redis_keys import RedisKeys
from gateway.rollups.roller import Roller
from gateway.rollups.rollup import Row, usd
from gateway.rollups.rollups import Period, Retention, Rollups
from tests.archive.archives import Fed, address
from tests.cli import in_process
from tests.ledger.drafts import closed, guided

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.ledger.receipt import Receipt

run = partial(in_process.run, "archive")
DAY = 1_764_547_200  # 2025-12-01
CONFIG = """
redis: {{url: "{url}", prefix: "{prefix}"}}
archive: {{run: command{archive}}}
rollups: {{days: 3660d}}
models:
  - {{name: big, protocol: openai, api_base: "http://big", price: {{input_per_1m: 1, output_per_1m: 1}}}}
"""
POLICY = "tenant: acme\nroutes: [{model: chat, mode: student, student: big, baseline: big}]\n"


class Place:
    """A configuration, the archive that it names, and the Redis."""

    def __init__(self, folder: Path, url: str, archive: str = "") -> None:
        self.url, self.keys = url, RedisKeys(f"c{secrets.token_hex(6)}")
        self.folder = folder
        (folder / "policies").mkdir()
        (folder / "policies" / "acme.yaml").write_text(POLICY)
        self.config = folder / "config.yaml"
        self.config.write_text(CONFIG.format(url=url, prefix=self.keys.prefix, archive=archive))

    def run(self, command: str, *more: str) -> in_process.Done:
        return run(command, "--config", str(self.config), *more)

    async def settle(self, receipts: list[Receipt], *, fill: bool = True) -> None:
        client = RedisClient(self.url, timeout_s=2, metrics=Metrics())
        archive = Archive(address("sqlite", self.folder / "data"))
        async with Redis.from_url(self.url) as redis:
            fed = Fed(redis, client, archive)
            fed.keys = self.keys
            ledger = RedisLedger(redis, self.keys, "ann", 100, 10)
            await ledger.exchange([], [Settlement(one, None) for one in receipts])
            if fill:
                fed.feed = type(fed.feed)(redis, self.keys)
                ann = fed.archiver("ann")
                await ann._turn()
                await ann._lease.leave()
        await archive.close()
        await client.close()

    async def day(self) -> Row:
        async with Redis.from_url(self.url) as redis:
            rollups = Rollups(redis, self.keys, Retention(1, 1, 1))
            ((_, row),) = await rollups.totals([Period.of("day", DAY)])
        return row


def receipts(count: int, tenant: str = "acme", at: int = DAY) -> list[Receipt]:
    return [
        msgspec.structs.replace(
            closed(guided()),
            id=f"req_{secrets.token_hex(12)}",
            tenant=tenant,
            created=at + 60 * place,
            cost_usd=Decimal(f"0.{place + 1:012d}"),
        )
        for place in range(count)
    ]


@pytest.fixture
def place(tmp_path: Path, redis_url: str) -> Place:
    return Place(tmp_path, redis_url)


def test_receipts_are_exported_as_csv_with_money_in_usd(place: Place) -> None:
    """A month of one tenant; what a spreadsheet would run is text."""
    told = receipts(3)
    odd = msgspec.structs.replace(receipts(1)[0], route="=HYPERLINK(1)", shadow_of="req_x")
    asyncio.run(place.settle([*told, odd, *receipts(2, "beta"), *receipts(2, at=DAY - 86_400)]))
    done = place.run("export", "--since", "2025-12-01", "--until", "2025-12-01", "-t", "acme")
    assert (done.returncode, done.stderr) == (0, "4 receipts\n")
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    assert {name: row["cost_usd"] for name, row in rows.items()} == {
        one.id: f"{one.cost_usd:f}" for one in (*told, odd)
    }
    assert rows[told[1].id]["created"] == "2025-12-01T00:01:00Z"
    assert (rows[odd.id]["route"], Decimal(rows[odd.id]["baseline_usd"])) == ("'=HYPERLINK(1)", 0)


def test_receipts_are_exported_whole_as_json_lines_into_a_file(place: Place, tmp_path: Path) -> None:
    told = receipts(2_500)
    asyncio.run(place.settle(told[:1_000]))
    asyncio.run(place.settle(told[1_000:2_000]))
    asyncio.run(place.settle(told[2_000:]))
    done = place.run("export", "--format", "jsonl", "--output", str(tmp_path / "all.jsonl"))
    assert (done.returncode, done.stdout) == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert lines == json.loads(json.dumps([one.as_dict() for one in told]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--since", "soon"), "duration like 24h or 7d"),
        (("--since", "2025-13-01"), "duration like 24h or 7d"),
        (("--since", "1d", "--until", "2d"), "must lie before --until"),
        (("--format", "xlsx"), "jsonl"),
    ],
)
def test_a_wrong_range_is_refused_in_one_line(place: Place, arguments: tuple[str, ...], said: str) -> None:
    done = place.run("export", *arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())


def test_a_file_that_cannot_be_written_is_named(place: Place, tmp_path: Path) -> None:
    asyncio.run(place.settle(receipts(1)))
    done = place.run("export", "--output", str(tmp_path / "none" / "x.csv"))
    assert (done.returncode, "x.csv cannot be written: No such file" in done.stderr) == (1, True)


def test_status_tells_what_waits_and_who_fills_it(place: Place) -> None:
    asyncio.run(place.settle(receipts(3)))
    asyncio.run(place.settle(receipts(4), fill=False))
    done = place.run("status", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert (found["up"], found["by"], found["waiting"], found["receipts"]) == (True, "ann", 4, 3)
    assert (found["first"], found["last"]) == ("2025-12-01T00:00:00Z", "2025-12-01T00:02:00Z")
    assert "4 receipts, the oldest for" in place.run("status").stdout


def test_status_of_an_archive_that_nobody_fills_leaves_with_1(place: Place) -> None:
    done = place.run("status")
    assert (done.returncode, "nobody fills it" in done.stdout) == (1, True)


def test_sums_are_made_anew_from_the_archive(place: Place) -> None:
    """What Redis has lost is there again, exactly, and what came since is counted once."""
    told = receipts(30)
    asyncio.run(place.settle(told))

    async def forget() -> None:
        async with Redis.from_url(place.url) as redis:
            await redis.delete(*await redis.keys(f"*{place.keys.prefix}*"))

    asyncio.run(forget())
    assert asyncio.run(place.day()).requests == 0
    asyncio.run(place.settle(more := receipts(5), fill=False))
    done = place.run("rebuild")
    assert (done.returncode, done.stdout) == (0, "made anew from 30 receipts\n"), done.stderr

    async def roll() -> None:
        client = RedisClient(place.url, timeout_s=2, metrics=Metrics())
        async with Redis.from_url(place.url) as redis:
            from gateway.rollups.state import LedgerState

            rollups = Rollups(redis, place.keys, Retention(3600, 86_400, 3660 * 86_400))
            state = LedgerState(Metrics())
            assert await Roller(client, redis, place.keys, rollups, "ann", state).roll() == 5
        await client.close()

    asyncio.run(roll())
    row = asyncio.run(place.day())
    assert (row.requests, usd(row.cost_pico)) == (35, sum(one.cost_usd for one in (*told, *more)))


def test_sums_that_the_archive_does_not_reach_are_not_forgotten_unasked(place: Place) -> None:
    """It is a new one, or keeps receipts for less long."""

    async def add_up() -> None:
        client = RedisClient(place.url, timeout_s=2, metrics=Metrics())
        async with Redis.from_url(place.url) as redis:
            rollups = Rollups(redis, place.keys, Retention(3600, 86_400, 3660 * 86_400))
            while await Roller(client, redis, place.keys, rollups, "ann").roll():
                pass
        await client.close()

    asyncio.run(place.settle([*receipts(3), *receipts(2, at=DAY + 86_400)]))
    asyncio.run(add_up())
    assert place.run("rebuild").stdout == "made anew from 5 receipts\n"
    with closing(sqlite3.connect(place.folder / "data" / "gkt-archive.db")) as file:
        file.execute("DELETE FROM receipts WHERE created < ?", (DAY + 86_400,))
        file.commit()
        done = place.run("rebuild")
        assert (done.returncode, "3 requests" in " ".join(done.stderr.split())) == (1, True)
        assert asyncio.run(place.day()).requests == 3
        file.execute("DELETE FROM receipts")
        file.commit()
    done = place.run("rebuild")
    assert (done.returncode, "is empty" in done.stderr, asyncio.run(place.day()).requests) == (1, True, 3)
    assert place.run("rebuild", "--forget-older").stdout == "made anew from 0 receipts\n"
    assert asyncio.run(place.day()).requests == 0


def test_a_password_is_never_shown(tmp_path: Path, redis_url: str) -> None:
    """Of an archive that is away: in no command."""
    place = Place(tmp_path, redis_url, ', url: "env:ARCHIVE"')
    url = {"ARCHIVE": "postgresql://gkt:s3cret-word@127.0.0.1:1/receipts"}
    for command in ("status", "export", "rebuild", "run"):
        done = run(command, "--config", str(place.config), **url)
        assert done.returncode == 1
        assert "s3cret-word" not in done.stdout + done.stderr
        assert "away" in done.stdout or "The archive cannot be read or written" in done.stderr


def test_without_an_archive_it_says_so(tmp_path: Path, redis_url: str) -> None:
    place = Place(tmp_path, redis_url, ", url: null")
    done = place.run("export")
    assert (done.returncode, "archive.url" in done.stderr) == (1, True)
