"""`gkt-gateway archive`: fill the archive of receipts, look at it, export from it, and make sums anew from it."""

from __future__ import annotations

import secrets
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import structlog
import typer
from rich.console import Console
from rich.table import Table

from gateway.archive.building import archive_of, archiving
from gateway.archive.database import ArchiveError, Where
from gateway.cli import SETTINGS
from gateway.cli.admin_commands import JsonOption, in_json
from gateway.cli.archive_export import export as export_rows
from gateway.cli.archive_export import progress
from gateway.cli.archive_span import SinceOption, TenantOption, UntilOption, where_of
from gateway.cli.stores_away import result_of
from gateway.errors import StartupError
from gateway.logs import set_up_logs
from gateway.metrics import Metrics
from gateway.policy.files import PolicyFiles
from gateway.redis_client import RedisClient
from gateway.redis_keys import RedisKeys
from gateway.rollups.rebuild import Rebuild, RebuildFailed
from gateway.rollups.rollups import Rollups
from gateway.rollups.sums import SECONDS, Retention, periods
from gateway.tasks import Tasks
from gateway.workers.stopping import asked_to_stop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.archive.archive import Archive
    from gateway.archive.building import Archiving
    from gateway.config import Settings

log = structlog.get_logger()

archive = typer.Typer(
    name="archive",
    help=(
        "The archive of receipts: in SQLite, or in PostgreSQL, as `archive.url` of config.yaml says.\n\nThe gateway "
        "fills it by itself, unless `archive.run` says `command`: then `gkt-gateway archive run` does, in a process of "
        "its own. `status` says how far it is, `export` writes receipts as CSV or JSON lines, and `rebuild` makes the "
        "sums in Redis anew from it.\n\ndocs/archive.md tells all of it, with SQL to begin with."
    ),
    no_args_is_help=True,
    **SETTINGS,
)

ConfigOption: TypeAlias = Annotated[
    Path, typer.Option("--config", "-c", help="The gateway's configuration file, for the archive and Redis.")
]
CONFIG = Path("config.yaml")
_REDIS_S = 5.0


class Format(StrEnum):
    """How receipts are written."""

    CSV = "csv"
    JSONL = "jsonl"


@archive.command()
def run(config: ConfigOption = CONFIG) -> None:
    """Fill the archive, until SIGTERM or Ctrl-C.

    One process is enough; with two, one of them rests until the other has ended. It may be stopped at any time, and
    killed: what it had taken is archived by the next, once. The gateway goes on meanwhile, and keeps receipts in Redis
    for it (`receipts.max_buffered`).

    `archive.run` of config.yaml should say `command`: else the gateway's own processes fill it, too.
    """
    settings = _settings(config)
    set_up_logs(settings.log.level, settings.log.format)
    result_of(_fill(settings, keep_s=settings.archive.keep_s))


@archive.command()
def status(as_json: JsonOption = False, config: ConfigOption = CONFIG) -> None:
    """Say where the archive is, what it holds, and how many receipts wait for it.

    Leaves with 1 where the archive is away, or nobody fills it.
    """
    found = result_of(_status(_settings(config)))
    if as_json:
        typer.echo(in_json(found))
    else:
        _show(found)
    if not (found["up"] and found["reachable"]):
        raise typer.Exit(1)


@archive.command()
def export(
    since: SinceOption = None,
    until: UntilOption = None,
    tenant: TenantOption = None,
    form: Annotated[
        Format,
        typer.Option("--format", "-f", help="csv: a line for each, money in USD. jsonl: whole receipts, as JSON."),
    ] = Format.CSV,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write. Default: standard output.", metavar="FILE")
    ] = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Write receipts to a file, or to standard output, as a stream: however many, in little memory.

    `gkt-gateway archive export --since 2026-11-01 --until 2026-11-30 -o november.csv` is a whole month, in UTC.

    Times are those at which requests came. Progress is shown on standard error. Shadows are in it, under the mode
    `shadow`: their cost was paid, and their baseline is 0.
    """
    where = where_of(since, until, tenant)
    count = result_of(_export(_settings(config), where, form, output))
    typer.echo(f"{count} receipts" + (f" in {output}" if output is not None else ""), err=True)


@archive.command()
def rebuild(
    forget_older: Annotated[
        bool,
        typer.Option("--forget-older", help="Do it although there are sums of days that the archive does not have."),
    ] = False,
    config: ConfigOption = CONFIG,
) -> None:
    """Make the sums in Redis anew from the archive, while the gateway goes on.

    They are what usage and the dashboard show. It is needed where Redis has lost them, or where `rollups` of
    config.yaml keeps them for longer than it did. Who looks at them sees the old ones until the new ones are whole;
    what is settled meanwhile is counted, once. It may be broken off: then nothing has changed.

    Sums of days before the archive's first receipt would be gone, as where it is a new one: then nothing is done,
    unless --forget-older says so.
    """
    try:
        count = result_of(_rebuild(_settings(config), forget_older=forget_older))
    except RebuildFailed as error:
        raise StartupError(str(error)) from None
    typer.echo(f"made anew from {count} receipts")


def _settings(config: Path) -> Settings:
    """Raises ConfigError, and StartupError where it names no archive."""
    if not config.exists():
        raise StartupError(f"There is no {config}. Name it with --config.")
    settings, _, _ = PolicyFiles.open(config)
    if settings.archive.url is None:
        raise StartupError(f"There is no archive: archive.url in {config} is null.")
    return settings


@dataclass(frozen=True, slots=True)
class _Parts:
    client: RedisClient
    keys: RedisKeys
    archiving: Archiving


@asynccontextmanager
async def _connected(settings: Settings) -> AsyncIterator[_Parts]:
    url = settings.redis.url.get_secret_value()
    if url == "embedded":
        raise StartupError(
            "redis.url is embedded: that Redis is the gateway's alone. Name one that this command can reach as well."
        )
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        client = RedisClient(url, timeout_s=max(_REDIS_S, settings.redis.timeout_s), metrics=metrics)
        stack.push_async_callback(client.close)
        await client.require(embedded=False)
        keys = RedisKeys(settings.redis.prefix)
        owner = f"{socket.gethostname()}-{secrets.token_hex(6)}"
        parts = archiving(settings, client, keys, owner, metrics)
        assert parts is not None
        stack.push_async_callback(parts.close)
        yield _Parts(client, keys, parts)


async def _fill(settings: Settings, *, keep_s: float | None) -> None:
    stop, tasks = asked_to_stop(), Tasks()
    async with _connected(settings) as parts:
        if settings.archive.run == "gateway":
            log.warning("archive_run_is_gateway", hint="write 'run: command' under archive in config.yaml")
        await parts.archiving.archive.open()
        tasks.keep("archive", parts.archiving.archiver.run())
        tasks.keep("redis", parts.client.watch())
        log.info("filling", archive=parts.archiving.archive.where, keep_s=keep_s)
        try:
            await stop.wait()
            await parts.archiving.archiver.finish()
        finally:
            await tasks.close()
        log.info("stopped")


async def _status(settings: Settings) -> dict[str, Any]:
    async with _connected(settings) as parts:
        board, archive_ = parts.archiving.board, parts.archiving.archive
        await board.hear()
        await board.hear()  # twice unheard is gone
        behind = await parts.archiving.archiver.behind()
        found: dict[str, Any] = {
            "archive": archive_.where,
            "run": settings.archive.run,
            "up": board.state.up is True,
            "error": board.state.error,
            "by": board.state.by,
            "waiting": behind.waiting,
            "lag_s": round(behind.lag_s, 3),
            "reachable": True,
        }
        try:
            span = await archive_.span()
            found |= {"receipts": await archive_.count(Where()), "unreadable": await archive_.unreadable()}
            found |= {"first": _time(span and span[0]), "last": _time(span and span[1])}
        except ArchiveError:
            found["reachable"] = False
        return found


async def _export(settings: Settings, where: Where, form: Format, output: Path | None) -> int:
    archive_ = _archive(settings)
    try:
        with progress("exporting", await archive_.count(where)) as told:
            return await export_rows(archive_.rows(where), form.value, output, told)
    finally:
        await archive_.close()


async def _rebuild(settings: Settings, *, forget_older: bool) -> int:
    kept = settings.rollups
    retention = Retention(kept.minutes_s, kept.hours_s, kept.days_s, kept.max_rows)
    async with _connected(settings) as parts:
        if not forget_older:
            await _check_reach(parts, retention)
        total = await parts.archiving.archive.count(Where())
        with progress("rebuilding", total) as told:
            return await Rebuild(parts.client.commands, parts.keys, retention, parts.archiving.archive, told).run()


async def _check_reach(parts: _Parts, retention: Retention) -> None:
    """Raises StartupError where there are sums of days of which the archive has nothing."""
    span, now = await parts.archiving.archive.span(), time.time()
    days = [
        day for day in periods("day", now - retention.day, now) if span is None or day.start + SECONDS["day"] <= span[0]
    ]
    counted = [
        (day, row.requests) for day, row in await Rollups(parts.client.commands, parts.keys, retention).totals(days)
    ]
    older = [(day, requests) for day, requests in counted if requests]
    if older:
        goes_back = "is empty" if span is None else f"goes back to {_time(span[0])}"
        raise StartupError(
            f"The archive {goes_back}, and the sums to {_time(older[0][0].start)}: {sum(n for _, n in older)} requests "
            "of days before would no longer be counted. Name the archive that has them, or do it with --forget-older."
        )


def _archive(settings: Settings) -> Archive:
    found = archive_of(settings)
    assert found is not None
    return found


def _time(unix_s: int | None) -> str | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _show(found: dict[str, Any]) -> None:
    table = Table(box=None, show_header=False)
    filled = f"yes, by {found['by']}" if found["up"] else f"no: {found['error']}"
    rows = {
        "archive": found["archive"],
        "filled": filled,
        "waiting": f"{found['waiting']} receipts, the oldest for {found['lag_s']:.1f} s",
        "holds": f"{found['receipts']} receipts" if found["reachable"] else "it is away",
    }
    if found["reachable"] and found["receipts"]:
        rows["from, to"] = f"{found['first']}, {found['last']}"
    if found.get("unreadable"):
        rows["unreadable"] = f"{found['unreadable']}, in the table `unreadable`"
    for name, value in rows.items():
        table.add_row(name, value)
    Console(soft_wrap=True, highlight=False, markup=False).print(table)
