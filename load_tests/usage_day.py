"""Measure the usage database with a day of receipts: writing, size, and the dashboard's first chart.

    PYTHONPATH=. python load_tests/usage_day.py --help

The receipts are those of the busiest hours of a day, or of all of it. `UsageDatabase.add` writes them in batches, as in
the worker, without Redis. The database is SQLite in a temporary folder. With `--address`, it is an empty database in
PostgreSQL, whose own CPU time does not count. The chart is the usage of 24 hours by hour: encoded, without HTTP.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import pstats
import statistics
import time
from contextlib import nullcontext
from itertools import islice
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.api.usage import encoded
from gateway.server.usage_worker import collect_less_often
from gateway.usage.database import UsageDatabase
from gateway.usage.database_reader import DatabaseReader
from gateway.usage.engine import UsageEngine
from gateway.usage.entries import OutboxEntry
from gateway.usage.reader import UsageReader
from gateway.usage.span import RequestedRange, span
from gateway.usage.sums import Retention
from gateway.usage.threads import QueryThreads
from gateway.usage.usage import UsageQuery
from gateway.usage.worker import MAX_ENTRIES
from load_tests.day_receipts import DAY_S, day_of_receipts
from load_tests.machine import machine

if TYPE_CHECKING:
    from collections.abc import Iterator

# The defaults of config.yaml.
_RETENTION = Retention(minute=6 * 3600, hour=14 * DAY_S, day=400 * DAY_S)
_SQLITE = "SELECT name, SUM(pgsize) FROM dbstat GROUP BY name"
_POSTGRES = "SELECT relname, pg_relation_size(oid) FROM pg_class WHERE relname LIKE 'usage%%' AND relkind IN ('r', 'i')"
_CHARTS = 5


def main(
    receipts: Annotated[int, typer.Option(min=1, help="Receipts to write.")] = 50_000,
    per_day: Annotated[int, typer.Option(min=1, help="Receipts of a whole day.")] = 1_000_000,
    tenants: Annotated[int, typer.Option(min=1, help="Tenants. A few have most of the receipts.")] = 200,
    batch: Annotated[int, typer.Option(min=1, help="Receipts of one transaction.")] = MAX_ENTRIES,
    address: Annotated[str, typer.Option(help="Address of an empty database for SQLAlchemy.")] = "sqlite",
    profile: Annotated[bool, typer.Option("--profile", help="Show the functions that take most time.")] = False,
) -> None:
    """Write receipts as the usage worker does, read the chart, and print the figures as JSON."""
    with TemporaryDirectory() as folder:
        engine = UsageEngine(f"sqlite:///{folder}/usage.db" if address == "sqlite" else address)
        try:
            engine.open()
            collect_less_often()
            figures = measure(engine, entries(min(receipts, per_day), per_day, tenants), batch, profile=profile)
            figures |= asyncio.run(chart_times(engine))
        finally:
            engine.close()
    typer.echo(json.dumps({"machine": machine(), **figures}, indent=2))


def entries(receipts: int, per_day: int, tenants: int) -> Iterator[OutboxEntry]:
    """Yield receipts from the middle of a day."""
    first = (per_day - receipts) // 2
    made = day_of_receipts(per_day, tenants, time.time(), numbers=range(first, first + receipts))
    for number, receipt in enumerate(made):
        yield OutboxEntry(receipt.tenant, f"{receipt.created * 1000}-{number}", receipt.to_json())


def measure(engine: UsageEngine, sent: Iterator[OutboxEntry], batch: int, *, profile: bool) -> dict[str, Any]:
    """Write the receipts. Return the figures. The clock of the database is that of the receipts."""
    now = 0.0
    database = UsageDatabase(engine, _RETENTION, lambda: now)
    count, cpu_s, wall_s = 0, 0.0, 0.0
    profiler = cProfile.Profile()
    while some := list(islice(sent, batch)):
        now = int(some[-1].id.partition("-")[0]) / 1000
        cpu, wall = time.process_time(), time.perf_counter()
        with profiler if profile else nullcontext():
            count += database.add(some).inserted
        cpu_s += time.process_time() - cpu
        wall_s += time.perf_counter() - wall
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
    sizes = size_by_table(engine)
    return {
        "receipts_per_cpu_s": round(count / cpu_s),
        "receipts_per_s": round(count / wall_s),
        "bytes_per_receipt": round(sum(sizes.values()) / count),
        "bytes_by_table": {name: round(size / count) for name, size in sizes.items() if size >= count},
    }


def size_by_table(engine: UsageEngine) -> dict[str, int]:
    """Return the bytes of each table and index."""
    with engine.reading() as connection:
        query = _POSTGRES if connection.dialect.name == "postgresql" else _SQLITE
        return {name: int(size) for name, size in connection.exec_driver_sql(query)}


async def chart_times(engine: UsageEngine) -> dict[str, float]:
    """Return the time of the chart of all tenants and of the largest tenant, in ms. No reader has a cache."""
    threads = QueryThreads(engine.reading)
    try:
        reader = DatabaseReader(threads)
        all_ms = [await _chart_ms(reader, {}) for _ in range(_CHARTS)]
        tenant_ms = [await _chart_ms(reader, {"tenant": "tenant-000"}) for _ in range(_CHARTS)]
    finally:
        threads.close()
    return {
        "chart_first_ms": round(all_ms[0], 1),
        "chart_p50_ms": round(statistics.median(all_ms), 1),
        "tenant_chart_p50_ms": round(statistics.median(tenant_ms), 1),
    }


async def _chart_ms(reader: DatabaseReader, only: dict[str, str]) -> float:
    now = time.time()
    covered = span(RequestedRange(now - DAY_S, now), "hour", _RETENTION, now)
    began = time.perf_counter()
    await UsageReader(reader, _RETENTION).read(UsageQuery(covered, "hour", (), only), encoded)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
