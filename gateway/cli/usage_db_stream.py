"""`gkt-gateway usage-db export-stream`: show the export stream, and send receipts again."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gateway.cli.lazy import CONFIG, SETTINGS
from gateway.cli.stores import ConfigOption, result_of, settings_of, stores, usage_store
from gateway.cli.tables import JsonOption, counted, in_json
from gateway.errors import StartupError
from gateway.telemetry.metrics import Metrics
from gateway.usage.export_outbox import COUNT_LIMIT, add_exports, export_backlog, replayable
from gateway.usage.state import WorkerStateReader
from gateway.usage.tables import DAY_S

if TYPE_CHECKING:
    from gateway.config.settings import Settings

export_stream = typer.Typer(
    name="export-stream",
    help=(
        "Show the export stream, and send receipts again.\n\nWith `export.kafka` in config.yaml, usage workers send "
        "receipts to a topic, each at least once. `gkt-gateway docs cost` describes the messages."
    ),
    **SETTINGS,
)


@export_stream.command()
def status(as_json: JsonOption = False, config: ConfigOption = CONFIG) -> None:
    """Show the number of receipts that no broker has confirmed, the age of the oldest, and the last error.

    Exits with 1 if no usage worker sends, or if its last batch failed.
    """
    found = result_of(_status(settings_of(config)))
    if as_json:
        typer.echo(in_json(found))
    else:
        _show(found)
    if not found["sending"]:
        raise typer.Exit(1)


@export_stream.command()
def replay(
    start: Annotated[str, typer.Option("--from", help="First day of the receipts, in UTC.", metavar="2026-11-01")],
    until: Annotated[str | None, typer.Option("--to", help="Last day. Default: today.", metavar="2026-11-30")] = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Send receipts of these days again, after those that wait.

    Use it for receipts from before the export, and after a loss of data in the brokers. Consumers recognize repeated
    messages by id, tenant and revision. Days follow the time in the id.
    """
    first, last = _day(start, "--from"), None if until is None else _day(until, "--to")
    if last is not None and last < first:
        raise typer.BadParameter("must not be before --from", param_hint="--to")
    settings = settings_of(config)
    if settings.export.kafka is None:
        raise StartupError("There is no export stream: set export.kafka in config.yaml.")
    count = result_of(_replay(settings, first, last))
    typer.echo(f"{counted(count, 'receipt')} {'is' if count == 1 else 'are'} sent again")


async def _status(settings: Settings) -> dict[str, Any]:
    async with stores(settings) as opened:
        kafka = settings.export.kafka
        workers = WorkerStateReader(opened.client.commands, opened.keys.ledger(), Metrics(), str(opened.usage.engine))
        export = (await workers.read()).export
        backlog = await opened.usage.read(export_backlog) if await opened.usage.exists() else None
        oldest = None if backlog is None else backlog.oldest
        return {
            "topic": None if kafka is None else kafka.topic,
            "brokers": [] if kafka is None else list(kafka.brokers),
            "sending": export is not None and export.error is None,
            "error": None if export is None else export.error,
            "fix": None if export is None else export.fix,
            "waiting": 0 if backlog is None else backlog.waiting,
            "lag_s": 0.0 if oldest is None else round(max(0.0, time.time() - oldest), 3),
        }


def _show(found: dict[str, Any]) -> None:
    error = found["error"] or ("no usage worker sends" if found["topic"] else "export.kafka is not set in config.yaml")
    if found["fix"]:
        error = f"{error}: {found['fix']}"
    more = " or more" if found["waiting"] == COUNT_LIMIT else ""
    table = Table(box=None, show_header=False)
    table.add_row("topic", f"{found['topic'] or 'none'} {' '.join(found['brokers'])}".strip())
    table.add_row("sent", "yes" if found["sending"] else f"no: {error}")
    table.add_row("waiting", f"{found['waiting']}{more} receipts, the oldest for {found['lag_s']:.1f} s")
    Console(soft_wrap=True, highlight=False, markup=False).print(table)


async def _replay(settings: Settings, first: int, last: int | None) -> int:
    """Add the receipts of these days to the outbox. Return their number."""
    count = 0
    async with usage_store(settings) as store:
        if not await store.exists():
            raise StartupError(f"The usage database {store.engine} does not exist yet: a usage worker creates it.")
        for day in range(first, (int(time.time() // DAY_S) + 1 if last is None else last) + 1):
            after = None
            while some := await store.read(replayable, day, after):
                await store.change(add_exports, some, time.time())
                count, after = count + len(some), some[-1][0]
    return count


def _day(text: str, option: str) -> int:
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp() // DAY_S)
    except ValueError:
        raise typer.BadParameter("must be a day like 2026-11-01", param_hint=option) from None
