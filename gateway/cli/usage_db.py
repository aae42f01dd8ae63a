"""`gkt-gateway usage-db`: show, export, verify and repair the usage database."""

from __future__ import annotations

import asyncio
import re
import time
from functools import partial
from pathlib import Path  # noqa: TC003  typer reads it
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from gateway.cli.lazy import CONFIG, SETTINGS
from gateway.cli.stores import ConfigOption, result_of, settings_of, stores, usage_store
from gateway.cli.tables import JsonOption, counted, in_json
from gateway.cli.usage_db_export import export as export_receipts
from gateway.cli.usage_db_export import progress
from gateway.config.scalars import InvalidValue, Moment, duration_s
from gateway.errors import StartupError
from gateway.telemetry.metrics import Metrics
from gateway.usage.engine import UsageDatabaseError
from gateway.usage.feed import OutboxFeed
from gateway.usage.partitions import days_in_default, partitions
from gateway.usage.queries import ReceiptFilter, UsageQueries
from gateway.usage.repair import COMMAND
from gateway.usage.repair import repair as repair_database
from gateway.usage.span import rfc3339
from gateway.usage.state import WorkerStateReader
from gateway.usage.tables import DAY_S, RECEIPTS
from gateway.usage.verify import differences

if TYPE_CHECKING:
    from gateway.config.settings import Settings
    from gateway.usage.repair import Repair
    from gateway.usage.rollup import SumRow
    from gateway.usage.verify import SumPlace

usage_db = typer.Typer(
    name="usage-db",
    help=(
        "Show, export, verify and repair the usage database.\n\nIt has the receipts and their sums, in SQLite or "
        "PostgreSQL (`usage.url` in config.yaml). `gkt-gateway usage-worker` writes it. `gkt-gateway docs "
        "deployment` describes the tables, with SQL examples."
    ),
    **SETTINGS,
)

_MAX_DIFFERENCES = 20
_MOMENT: TypeAdapter[float] = TypeAdapter(Moment)
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)

SinceOption: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Start: a duration before now, a day in UTC, or a time. Default: the first receipt.",
                 metavar="7d|2026-11-01"),
]  # fmt: skip
UntilOption: TypeAlias = Annotated[
    str | None,
    typer.Option(help="End: a duration before now, a day in UTC (inclusive), or a time. Default: now.",
                 metavar="1d|2026-11-30"),
]  # fmt: skip
TenantOption: TypeAlias = Annotated[str | None, typer.Option("--tenant", "-t", help="Only this tenant.")]


@usage_db.command()
def status(as_json: JsonOption = False, config: ConfigOption = CONFIG) -> None:
    """Show the database's URL, its content, and the number of receipts that wait in Redis.

    Exits with 1 if the database is unavailable or no usage worker writes it.
    """
    found = result_of(_status(settings_of(config)))
    if as_json:
        typer.echo(in_json(found))
    else:
        _show(found)
    if not (found["up"] and found["reachable"]):
        raise typer.Exit(1)


@usage_db.command()
def export(
    since: SinceOption = None,
    until: UntilOption = None,
    tenant: TenantOption = None,
    form: Annotated[
        Literal["csv", "jsonl"],
        typer.Option("--format", "-f", help="csv: one line per receipt, money in USD. jsonl: complete receipts."),
    ] = "csv",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. Default: standard output.", metavar="FILE")
    ] = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Write receipts to a file or to standard output, as a stream.

    `gkt-gateway usage-db export --since 2026-11-01 --until 2026-11-30 -o november.csv` exports a month, in UTC.

    Receipts are selected by the time of their request. Progress is shown on standard error. Shadow requests are
    included with mode `shadow`; their baseline is 0.
    """
    where = _where(since, until, tenant)
    count = result_of(_export(settings_of(config), where, form, output))
    typer.echo(counted(count, "receipt") + (f" in {output}" if output is not None else ""), err=True)


@usage_db.command()
def verify(config: ConfigOption = CONFIG) -> None:
    """Recompute the sums of each day from its receipts, and compare them with the sums in the database.

    Exits with 1 on a difference. Gateways and workers may run. Sums of days before the first receipt cannot be
    compared.
    """
    days, found = result_of(_verify(settings_of(config)))
    for place, held, computed in found[:_MAX_DIFFERENCES]:
        typer.echo(_difference(place, held, computed))
    if len(found) > _MAX_DIFFERENCES:
        typer.echo(f"and {len(found) - _MAX_DIFFERENCES} more")
    typer.echo(f"{days} days compared, {len(found)} sums differ")
    if found:
        raise typer.Exit(1)


@usage_db.command()
def repair(config: ConfigOption = CONFIG) -> None:
    """Write receipts again that the database rejected.

    A worker stores an entry that it cannot read or write in the table `usage_unreadable`. Correct the reason that its
    column `error` names, then run this command. Gateways and workers may run. Exits with 1 if entries stay unreadable.
    """
    done = result_of(_repair(settings_of(config)))
    typer.echo(f"{done.written} entries written, {done.unreadable} entries unreadable")
    if done.unreadable:
        raise typer.Exit(1)


async def _repair(settings: Settings) -> Repair:
    async with usage_store(settings) as store:
        if not await store.exists():
            raise StartupError(f"The usage database {store.engine} does not exist yet: a usage worker creates it.")
        return await repair_database(store)


async def _status(settings: Settings) -> dict[str, Any]:
    async with stores(settings) as opened:
        redis, keys = opened.client.commands, opened.keys
        board = WorkerStateReader(redis, keys.ledger(), Metrics(), str(opened.usage.engine))
        await board.read()
        await board.read()  # a worker that is missing twice is gone
        backlog = await OutboxFeed(redis, keys, "status").backlog()
        found: dict[str, Any] = {
            "database": board.database,
            "run": settings.usage.run,
            "up": board.state.up is True,
            "error": board.state.error,
            "by": board.state.by,
            "waiting": backlog.waiting,
            "lag_s": round(backlog.lag_s, 3),
            "reachable": True,
        }
        try:
            if not await opened.usage.exists():
                return found | {"receipts": 0, "unreadable": 0, "first": None, "last": None}
            span = await opened.usage.read(UsageQueries.span)
            unreadable = await opened.usage.read(UsageQueries.count_unreadable)
            found |= {"receipts": await opened.usage.count(), "unreadable": unreadable}
            found |= {"first": span and rfc3339(span[0]), "last": span and rfc3339(span[1])}
            found |= {"partitions": await opened.usage.read(_partitions)}
        except UsageDatabaseError:
            found["reachable"] = False
        if settings.usage.read_url is not None:
            found |= await _replica(settings)
        return found


async def _replica(settings: Settings) -> dict[str, Any]:
    """Return the URL of the replica, and its lag in seconds; None: it is unavailable."""
    async with usage_store(settings, replica=True) as store:
        replica = store.replica
        assert replica is not None
        try:
            lag = await asyncio.to_thread(replica.lag_s)
        except (*UsageDatabaseError, StartupError):
            lag = None
        return {"replica": replica.location, "replica_lag_s": None if lag is None else round(lag, 3)}


def _partitions(queries: UsageQueries) -> dict[str, Any] | None:
    """Return the number of daily partitions and the last day; None without partitions."""
    found = partitions(queries.connection, RECEIPTS)
    days = [one.first for one in found if one.first is not None]
    if not found:
        return None
    last = rfc3339(days[-1] * DAY_S)[:10] if days else None
    return {"days": len(days), "until": last, "in_default": len(days_in_default(queries.connection))}


async def _export(settings: Settings, where: ReceiptFilter, form: str, output: Path | None) -> int:
    async with usage_store(settings, replica=True) as store:
        if not await store.exists():
            raise StartupError(f"The usage database {store.engine} does not exist yet: a usage worker creates it.")
        with progress("exporting", await store.count(where)) as on_progress:
            return await export_receipts(store.receipts(where), form, output, on_progress)


async def _verify(settings: Settings) -> tuple[int, list[tuple[SumPlace, SumRow, SumRow]]]:
    """Return the number of days and the sums that differ."""
    async with usage_store(settings, replica=True) as store:
        span = await store.read(UsageQueries.span) if await store.exists() else None
        if span is None:
            return 0, []
        first, last = (moment // DAY_S for moment in span)
        found: list[tuple[SumPlace, SumRow, SumRow]] = []
        with progress("verifying", last - first + 1) as on_progress:
            for day in range(first, last + 1):
                found += await store.read(partial(_differences, day=day, first=day == first))
                on_progress(day - first + 1)
        return last - first + 1, found


def _differences(queries: UsageQueries, day: int, *, first: bool) -> list[tuple[SumPlace, SumRow, SumRow]]:
    """Return the sums of a day that differ. Sums of the first day may count receipts that are deleted."""
    connection = queries.connection
    if connection.dialect.name == "postgresql":
        connection.execution_options(isolation_level="REPEATABLE READ")
    found = differences(connection, day)
    return [one for one in found if not (first and one[1].requests > one[2].requests)]


def _difference(place: SumPlace, held: SumRow, computed: SumRow) -> str:
    seconds, start, dims = place
    where = ", ".join(f"{name} {value}" for name, value in dims._asdict().items() if value) or "all tenants"
    both = f"{counted(held.requests, 'request')} and {held.cost_pico} picodollars"
    right = f"{computed.requests} and {computed.cost_pico} by the receipts"
    return f"{rfc3339(start)} + {seconds} s, {where}: {both}, {right}"


def _show(found: dict[str, Any]) -> None:
    table = Table(box=None, show_header=False)
    rows = {
        "database": found["database"],
        "written": f"yes, by {found['by']}" if found["up"] else f"no: {found['error']}",
        "waiting": f"{counted(found['waiting'], 'receipt')}, the oldest for {found['lag_s']:.1f} s",
        "holds": counted(found["receipts"], "receipt") if found["reachable"] else "it is unavailable",
    }
    if found["reachable"] and found["receipts"]:
        rows["from, to"] = f"{found['first']}, {found['last']}"
    if found.get("partitions"):
        of_days = found["partitions"]
        rows["partitions"] = f"{of_days['days']} days, the last is {of_days['until']}"
        if of_days["in_default"]:
            rows["partitions"] += f"; {of_days['in_default']} more days are in the default partition"
    if "replica" in found:
        lag = found["replica_lag_s"]
        rows["replica"] = f"{found['replica']}, " + ("unavailable" if lag is None else f"{lag:.1f} s behind")
    if found.get("unreadable"):
        rows["unreadable"] = f"{found['unreadable']}, in the table `usage_unreadable`. Run `{COMMAND}`"
    for name, value in rows.items():
        table.add_row(name, value)
    Console(soft_wrap=True, highlight=False, markup=False).print(table)


def _where(since: str | None, until: str | None, tenant: str | None) -> ReceiptFilter:
    """Return a filter of receipts. A day in `until` is inclusive. Raises BadParameter."""
    begin = None if since is None else _moment(since, "--since", whole_day=False)
    end = None if until is None else _moment(until, "--until", whole_day=True)
    if begin is not None and end is not None and begin >= end:
        raise typer.BadParameter("must be before --until", param_hint="--since")
    return ReceiptFilter(begin, end, tenant)


def _moment(text: str, option: str, *, whole_day: bool) -> float:
    try:
        if re.match(r"\d{4}-", text):
            at = _MOMENT.validate_python(f"{text}T00:00:00Z" if _DAY.fullmatch(text) else text)
            return at + DAY_S if whole_day and _DAY.fullmatch(text) else at
        return time.time() - duration_s(text)
    except (ValidationError, InvalidValue):
        raise typer.BadParameter(
            "must be a duration like 24h or 7d, a day like 2026-11-01, or a time like 2026-11-01T12:00:00Z",
            param_hint=option,
        ) from None
