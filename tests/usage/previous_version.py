"""An installation of the previous version: its archive, and its sums in Redis. It made the files in previous/."""

from __future__ import annotations

import base64
import json
import re
import sqlite3
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import create_engine, text

from gateway.usage.counters import FIXED_STAGES
from gateway.usage.previous_sums import PreviousRow
from gateway.usage.rollup import NUMBERS
from gateway.usage.sums import Sums

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis.asyncio import Redis
    from sqlalchemy import Connection

    from gateway.accounting.receipt import Receipt
    from gateway.redis.keys import RedisKeys
    from gateway.usage.rollup import SumRow

FOLDER = Path(__file__).with_name("previous")
RECORDED = json.loads((FOLDER / "totals.json").read_text())
_DUMP = (FOLDER / "archive.sql").read_text()
_TABLES = [one for one in _DUMP.split(";\n") if one.startswith(("CREATE TABLE", 'INSERT INTO "gkt_archive"'))]


def load_archive(file: Path) -> None:
    """Write the recorded archive to a new SQLite file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file)) as archive:
        archive.executescript(_DUMP)


async def load_redis(redis: Redis, keys: RedisKeys) -> None:
    """Write the recorded sums to Redis, under another prefix."""
    recorded: dict[str, tuple[str, Any]] = json.loads((FOLDER / "redis.json").read_text())
    for name_, (kind, value) in recorded.items():
        name = keys.ledger_base + name_.partition(":v1:")[2]
        if kind == "string":
            await redis.set(name, _raw(value))
        elif kind == "hash":
            await redis.hset(name, mapping={_raw(one): _raw(other) for one, other in value.items()})
        elif kind == "set":
            await redis.sadd(name, *map(_raw, value))
        else:
            assert kind == "stream"
            for entry, fields in value:
                await redis.xadd(name, {_raw(one): _raw(other) for one, other in fields.items()}, id=entry)


def make_archive(address: str, receipts: Sequence[Receipt]) -> None:
    """Write receipts to a new archive.

    Args:
        address: URL for SQLAlchemy.
    """
    with _archive(address) as archive:
        for table in _TABLES:
            archive.exec_driver_sql(table)
    add_to_archive(address, receipts)


def add_to_archive(address: str, receipts: Sequence[Receipt]) -> None:
    """Insert or replace receipts. Columns that the import does not read are 0."""
    (table,) = (one for one in _TABLES if one.startswith("CREATE TABLE receipts"))
    names = re.findall(r"^\t\"?(\w+)\"? \w+ NOT NULL", table, re.MULTILINE)
    ms = time.time_ns() // 1_000
    rows: list[dict[str, Any]] = []
    for index, one in enumerate(receipts):
        row: dict[str, Any] = dict.fromkeys(names, 0) | {"stream": False, "baseline_estimated": False}
        row |= {name: getattr(one, name) for name in ("id", "created", "tenant", "key", "route", "mode", "status")}
        rows.append(row | {"baseline_model": "", "entry_ms": ms, "entry_seq": index, "receipt": one.to_json().decode()})
    if not rows:
        return
    columns, values = ", ".join(f'"{name}"' for name in names), ", ".join(f":{name}" for name in names)
    with _archive(address) as archive:
        archive.execute(text("DELETE FROM receipts WHERE id = :id"), [{"id": row["id"]} for row in rows])
        archive.execute(text(f"INSERT INTO receipts ({columns}) VALUES ({values})"), rows)


def put_aside(address: str, tenant: str, raw: bytes) -> None:
    """Write a receipt that the previous version could not read."""
    with _archive(address) as archive:
        values = {"tenant": tenant, "raw": raw.decode()}
        archive.execute(text("INSERT INTO unreadable VALUES (:tenant, 6, 0, 'ValidationError', :raw)"), values)


@contextmanager
def _archive(address: str) -> Iterator[Connection]:
    if address.startswith("sqlite:///"):
        Path(address.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(address)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


async def make_redis(redis: Redis, keys: RedisKeys, receipts: Sequence[Receipt], generation: int = 0) -> None:
    """Write sums of receipts to Redis, as if the last of them had just been added up."""
    sums = Sums()
    for one in receipts:
        sums.add(one)
    base = keys.ledger_base + (f"g{generation}:" if generation else "")
    async with redis.pipeline(transaction=False) as pipe:
        for period, rows in sums.spread().rows.items():
            name = f"{period.granularity}:{period.start}"
            for dims, row in rows.items():
                field = msgspec.msgpack.encode(tuple(dims)[1:])
                pipe.hset(f"{base}rows:{name}:{dims.tenant}", field, previous_bytes(row))
                pipe.sadd(f"{base}seen:{name}", dims.tenant)
            pipe.set(f"{base}total:{name}", previous_bytes(sums.totals[period]))
        pipe.hset(f"{keys.ledger_base}state", mapping={"version": "7", "generation": generation})
        last_ms = 1000 * max(one.created for one in receipts) + 500
        pipe.hset(f"{keys.ledger_base}cursors", receipts[0].tenant, f"{last_ms}-0")
        await pipe.execute()


def previous_bytes(row: SumRow) -> bytes:
    """Return sums in the encoding of the previous version."""
    single: dict[str, Any] = {name: getattr(row, name) for name in NUMBERS}
    roles: dict[str, Any] = {role: getattr(row, role)[:3] for role in ("teacher", "student", "failed")}
    stages = [(one.count, one.sum_us, one.buckets) for one in row.stages[: len(FIXED_STAGES)]]
    named = {name: getattr(row, name) for name in ("errors", "unguided", "batches", "engines", "classes")}
    return msgspec.msgpack.encode(PreviousRow(**single, **roles, stages=stages, **named))


def _raw(text: str) -> bytes:
    return base64.b64decode(text)
