"""`gkt-gateway usage` on a real database and a real Redis."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import sqlite3
from contextlib import closing
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.accounting.receipt import EngineShare
from gateway.usage.state import WorkerLease
from tests.accounting.receipt_builders import closed, guided
from tests.cli.usage_place import Place
from tests.usage.databases import receipt, receipts_of_a_day

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.accounting.receipt import Receipt

DAY = 1_764_547_200  # 2025-12-01
COLUMNS = (
    "id,created,tenant,key,route,mode,status,stream,finish_reason,unguided,shadow_of,budget,"
    "teacher,teacher_input_tokens,teacher_cached_tokens,teacher_output_tokens,teacher_cost_usd,"
    "student,student_input_tokens,student_cached_tokens,student_output_tokens,student_cost_usd,"
    "replaced_cost_usd,kept_tokens,batch_size,cost_usd,baseline_model,baseline_usd,baseline_estimated,savings_usd,"
    "admission_ms,batch_wait_ms,teacher_ms,first_token_ms,total_ms,savings_error_usd,savings_class,"
    "teacher_cache_write_tokens,student_cache_write_tokens,handover_ms,tags,labels\n"
)


def receipts(count: int, tenant: str = "acme", at: int = DAY) -> list[Receipt]:
    return [receipt(at + 60 * place, tenant=tenant, cost_usd=Decimal(f"0.{place + 1:012d}")) for place in range(count)]


@pytest.fixture
def place(tmp_path: Path, redis_url: str) -> Place:
    return Place(tmp_path, redis_url)


def test_receipts_are_exported_as_csv_with_money_in_usd(place: Place) -> None:
    """A month of one tenant; text that a spreadsheet would run is quoted."""
    stored = receipts(3)
    odd = receipt(DAY, route="=HYPERLINK(1)", shadow_of="req_x")
    place.add([*stored, odd, *receipts(2, "beta"), *receipts(2, at=DAY - 86_400)])
    done = place.run("export", "--since", "2025-12-01", "--until", "2025-12-01", "-t", "acme")
    assert (done.returncode, done.stderr) == (0, "4 receipts\n")
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    assert {name: row["cost_usd"] for name, row in rows.items()} == {
        one.id: f"{one.cost_usd:f}" for one in (*stored, odd)
    }
    assert rows[stored[1].id]["created"] == "2025-12-01T00:01:00Z"
    assert (rows[odd.id]["route"], Decimal(rows[odd.id]["baseline_usd"])) == ("'=HYPERLINK(1)", 0)


def test_the_columns_of_a_csv_are_fixed(place: Place) -> None:
    """Tokens that another request paid for are not counted; those of the warm-up are the student's."""
    warmup = EngineShare("small", 30, 2, Decimal("0.000004"), 10, cache_write_input_tokens=5)
    base = closed(guided())
    assert base.teacher is not None
    assert base.student is not None
    one = receipt(DAY, stored_warmup=warmup, teacher=msgspec.structs.replace(base.teacher, shared="cache"))
    place.add([one])
    done = place.run("export")
    assert done.stdout.startswith(COLUMNS)
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    fresh = base.student.input_tokens - base.student.cached_input_tokens + 15
    assert (row["teacher"], row["teacher_input_tokens"]) == (base.teacher.model, "0")
    assert (row["student_input_tokens"], Decimal(row["student_cost_usd"])) == (
        str(fresh),
        base.student.cost_usd + warmup.cost_usd,
    )
    assert (row["teacher_cache_write_tokens"], row["student_cache_write_tokens"]) == ("0", "5")
    assert (row["stream"], row["shadow_of"]) == ("true" if one.stream else "false", "")
    assert place.run("export", "-t", "nobody").stdout == COLUMNS


def test_receipts_are_exported_whole_as_json_lines_into_a_file(place: Place, tmp_path: Path) -> None:
    stored = receipts(2_500)
    place.add(stored)
    done = place.run("export", "--format", "jsonl", "--output", str(tmp_path / "all.jsonl"))
    assert (done.returncode, done.stdout) == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert sorted(lines, key=lambda one: one["created"]) == json.loads(json.dumps([one.as_dict() for one in stored]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--since", "soon"), "duration like 24h or 7d"),
        (("--since", "2025-13-01"), "duration like 24h or 7d"),
        (("--since", "1d", "--until", "2d"), "must be before --until"),
        (("--format", "xlsx"), "jsonl"),
    ],
)
def test_a_wrong_range_is_refused_in_one_line(place: Place, arguments: tuple[str, ...], message: str) -> None:
    done = place.run("export", *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_a_file_that_cannot_be_written_is_named(place: Place, tmp_path: Path) -> None:
    place.add(receipts(1))
    done = place.run("export", "--output", str(tmp_path / "none" / "x.csv"))
    assert (done.returncode, "x.csv cannot be written: No such file" in done.stderr) == (1, True)


def test_export_without_a_database_is_an_error_and_creates_none(place: Place) -> None:
    done = place.run("export")
    assert (done.returncode, "does not exist yet" in done.stderr) == (1, True)
    assert not place.data.exists()


def test_status_shows_the_backlog_and_the_writing_worker(place: Place) -> None:
    async def work() -> None:
        async with Redis.from_url(place.url) as redis:
            await WorkerLease(redis, place.keys.ledger(), "ann").join()

    place.add(receipts(3))
    asyncio.run(place.settle(receipts(4)))
    done = place.run("status", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["up"], found["error"]) == (1, False, "no usage worker runs")
    assert (found["waiting"], found["receipts"]) == (4, 3)
    assert (found["first"], found["last"]) == ("2025-12-01T00:00:00Z", "2025-12-01T00:02:00Z")
    asyncio.run(work())
    done = place.run("status")
    assert re.search(r"^ +waiting +4 *$", done.stdout, re.MULTILINE)
    assert "no usage worker runs" not in done.stdout


def test_verify_finds_a_sum_that_differs_from_its_receipts(place: Place) -> None:
    place.add(receipts_of_a_day(60))
    assert (place.run("verify").returncode, place.run("verify").stdout) == (0, "2 days compared, 0 sums differ\n")
    with closing(sqlite3.connect(place.data / "usage.db")) as file:
        (gone,) = file.execute("SELECT id FROM usage_receipts ORDER BY created DESC LIMIT 1").fetchone()
        file.execute("DELETE FROM usage_receipts WHERE id = ?", (gone,))
        file.commit()
    done = place.run("verify")
    assert done.returncode == 1
    assert "2 days compared" in done.stdout
    assert "all tenants" in done.stdout


def test_unreadable_entries_are_shown_and_repaired(place: Place) -> None:
    """The database has rejected the first entry. The second entry is damaged."""
    assert "does not exist yet" in place.run("repair").stderr
    place.add(receipts(2))
    rejected = receipts(1)[0]
    rows = [("acme", "1-0", "IntegrityError", rejected.to_json()), ("acme", "2-0", "DecodeError", b"{")]
    with closing(sqlite3.connect(place.data / "usage.db")) as file:
        file.executemany("INSERT INTO usage_unreadable VALUES (?, ?, ?, ?)", rows)
        file.commit()
    assert re.search(r"^ +unreadable +2 *$", place.run("status").stdout, re.MULTILINE)
    done = place.run("repair")
    assert (done.returncode, done.stdout) == (1, "1 entries written, 1 entries unreadable\n")
    found = json.loads(place.run("status", "--json").stdout)
    assert (found["receipts"], found["unreadable"]) == (3, 1)
    with closing(sqlite3.connect(place.data / "usage.db")) as file:
        file.execute("DELETE FROM usage_unreadable")
        file.commit()
    assert place.run("repair").returncode == 0


def test_a_password_is_never_shown(tmp_path: Path, redis_url: str) -> None:
    place = Place(tmp_path, redis_url, "env:USAGE")
    for command in ("status", "export", "verify", "repair"):
        done = place.run(command, USAGE="postgresql://gkt:s3cret-word@127.0.0.1:1/receipts")
        assert done.returncode == 1
        assert "s3cret-word" not in done.stdout + done.stderr
        assert (
            re.search(r"reachable +false", done.stdout) or "The usage database cannot be read or written" in done.stderr
        )
