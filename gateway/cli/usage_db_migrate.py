"""Complete an upgrade from a version that kept sums in Redis and receipts in an archive, and compare both sides."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import Counter, defaultdict
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from gateway.cli.stores import stores
from gateway.cli.usage_db_export import progress
from gateway.errors import StartupError
from gateway.telemetry.metrics import Metrics
from gateway.usage.archive_import import archives_of
from gateway.usage.feed import OutboxFeed
from gateway.usage.previous_sums import PreviousSums
from gateway.usage.queries import UsageQueries
from gateway.usage.state import WorkerLease, WorkerStateReader
from gateway.usage.sums import Period
from gateway.usage.sums_writer import TOTAL, end_of, fill_sums
from gateway.usage.tables import DAY_S
from gateway.usage.uptime_table import minutes_in_redis
from gateway.usage.usage import usd_text
from gateway.usage.worker import UsageWorker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.cli.stores import Stores
    from gateway.config.settings import Settings
    from gateway.usage.archive_import import ArchiveImport
    from gateway.usage.rollup import SumRow
    from gateway.usage.store import UsageStore

_SETTLED_S = 3600.0
"""A request is settled within this time. So receipts of a day may come until this long after its end."""
_IMPORTED_AT_ONCE = 5_000
FIGURES = ("receipts", "requests", "cost USD", "baseline USD", "savings USD", "tokens")


class PeriodFigures(NamedTuple):
    """Counts and money of some days. `receipts` counts receipts; the others come from sums by the day."""

    receipts: int = 0
    requests: int = 0
    cost_pico: int = 0
    baseline_pico: int = 0
    savings_pico: int = 0
    tokens: int = 0


class PeriodComparison(NamedTuple):
    """Figures of a month, or of the days since the upgrade. Those of `growing` may have become larger meanwhile."""

    name: str
    growing: frozenset[str] = frozenset()
    before: PeriodFigures = PeriodFigures()
    after: PeriodFigures = PeriodFigures()

    @property
    def same(self) -> bool:
        """Return whether nothing is missing, and nothing counts twice."""
        return all(
            before == after or (name in self.growing and (after > before or name == "savings_pico"))
            for name, before, after in zip(PeriodFigures._fields, self.before, self.after, strict=True)
        )

    def lines(self) -> list[tuple[str, ...]]:
        """Return two lines of a table, with `FIGURES` from the third column on."""
        after = ("" if self.same else "DIFFERS", "after", *_texts(self.after))
        return [(self.name, "before", *_texts(self.before)), after]


async def migrated(settings: Settings, *, accept: bool) -> tuple[bool, list[tuple[str, ...]], str]:
    """Migrate an installation, and compare it before and after. `accept`: delete the old sums despite a difference.

    Return whether both sides are the same, lines of a table of both sides, and a note. Raises StartupError where a
    process of the previous version runs.
    """
    async with stores(settings) as here:
        previous = PreviousSums(here.client.commands, here.keys)
        if await previous.is_written():
            raise StartupError("A process of the previous version still runs on this Redis: stop it, and try again.")
        await previous.scan()
        await here.usage.open()
        board = WorkerStateReader(here.client.commands, here.keys.ledger(), Metrics(), "")
        alone = (await board.read()).up is None
        days = sorted((one for one in previous.tenants if one.granularity == "day"), key=lambda one: one.start)
        old, until = await previous.totals(days), await previous.until()
        closed = until - _SETTLED_S if until else math.inf
        archives = archives_of(settings)
        try:
            await _write_outboxes(here, until)
            stored, archived = Counter(await here.usage.read(UsageQueries.count_by_day)), Counter[int]()
            for archive in archives:
                archived.update(await asyncio.to_thread(archive.count))
            known = await _import(here.usage, archives, archived.total())
        finally:
            for archive in archives:
                await asyncio.to_thread(archive.close)
        filled = await _fill(here.usage, previous, days, closed)
        after = await here.usage.read(UsageQueries.count_by_day)
        # Where a worker imported receipts too, some were counted in both places, or in none.
        is_exact = alone and not known
        before = stored + archived if is_exact else stored | archived
        new = await here.usage.read(UsageQueries.totals, list(old))
        compared = _compared(old, new, before, after, closed)
        if not is_exact:
            compared = [one._replace(growing=one.growing | {"receipts"}) for one in compared]
        same = all(one.same for one in compared)
        if same or accept:
            await previous.delete()
        note = f"Sums of {filled} minutes, hours and days were taken from Redis."
        return same, [line for one in compared for line in one.lines()], note


async def _write_outboxes(here: Stores, until: float) -> None:
    """Write the receipts that wait in Redis. Raises StartupError where some of the previous version cannot be."""
    redis, keys = here.client.commands, here.keys
    seat = WorkerLease(redis, keys.ledger(), f"migrate-{secrets.token_hex(6)}")
    await seat.join()
    feed = OutboxFeed(redis, keys, f"worker-{seat.number}")
    minutes = partial(minutes_in_redis, redis, keys.ledger())
    stop = asyncio.Event()
    stop.set()
    await UsageWorker(here.client, feed, here.usage, seat, minutes, keep_s=None).run(stop)
    backlog = await feed.backlog()
    seconds, micros = await redis.time()
    if backlog.waiting and seconds + micros / 1e6 - backlog.lag_s <= until:
        raise StartupError(
            f"{backlog.waiting} receipts wait that another usage worker has taken. It writes them, or a worker does so "
            "a minute after that one ended. Try again then."
        )


async def _import(store: UsageStore, archives: Sequence[ArchiveImport], total: int) -> int:
    """Move all receipts of the archives, and return the number of those that were in the database already."""
    done = known = 0
    with progress("importing the archive", total) as on_progress:
        for archive in archives:
            while entries := await asyncio.to_thread(archive.read, _IMPORTED_AT_ONCE):
                added = await store.write(entries)
                await asyncio.to_thread(archive.delete_read)
                known += added.known + added.replaced
                done += len(entries)
                on_progress(done)
    return known


async def _fill(store: UsageStore, previous: PreviousSums, days: Sequence[Period], closed: float) -> int:
    """Take sums from Redis where the database lacks them. Return the number of periods."""
    by_day: dict[int, list[Period]] = defaultdict(list)
    for period in previous.tenants:
        by_day[period.start // DAY_S].append(period)
    span, filled = await store.read(UsageQueries.span), 0
    first = math.inf if span is None else span[0]
    with progress("comparing sums", len(days)) as on_progress:
        for done, day in enumerate(sorted(by_day), 1):
            whole = await previous.totals(by_day[day])
            rows = await previous.rows(whole)
            sums = {period: rows.get(period, {}) | {TOTAL: row.to_bytes()} for period, row in whole.items()}
            filled += await store.change(fill_sums, sums, closed, first)
            on_progress(done)
    return filled


def _compared(
    old: Mapping[Period, SumRow],
    new: Mapping[Period, SumRow],
    before: Mapping[int, int],
    after: Mapping[int, int],
    closed: float,
) -> list[PeriodComparison]:
    """Compare by month. The days that were not over at the upgrade come last, together."""
    found: dict[str, PeriodComparison] = {}
    for day in sorted({*before, *(one.start // DAY_S for one in old)}):
        period = Period("day", day * DAY_S)
        is_open = end_of(period) > closed
        name = "since the upgrade" if is_open else f"{datetime.fromtimestamp(period.start, UTC):%Y-%m}"
        one = found.get(name) or PeriodComparison(name, frozenset(PeriodFigures._fields if is_open else ()))
        there = old.get(period)
        # Without an old sum there is nothing to compare a new one with.
        right = new.get(period) if there is not None else None
        found[name] = one._replace(
            before=_sum(one.before, _figures(before.get(day, 0), there)),
            after=_sum(one.after, _figures(after.get(day, 0), right)),
        )
    return list(found.values())


def _sum(one: PeriodFigures, other: PeriodFigures) -> PeriodFigures:
    return PeriodFigures(*map(sum, zip(one, other, strict=True)))


def _figures(receipts: int, row: SumRow | None) -> PeriodFigures:
    if row is None:
        return PeriodFigures(receipts)
    tokens = sum(one.read + one.output for one in (row.teacher, row.student, row.failed))
    return PeriodFigures(receipts, row.requests, row.cost_pico, row.baseline_pico, row.savings_pico, tokens)


def _texts(figures: PeriodFigures) -> list[str]:
    money = ("cost_pico", "baseline_pico", "savings_pico")
    return [usd_text(value) if name in money else str(value) for name, value in figures._asdict().items()]
