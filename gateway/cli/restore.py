"""`gkt-gateway restore`: write a backup to Redis and the usage database."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  typer reads it
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gateway.backup.file import records, verify
from gateway.backup.writer import RestoreWriter
from gateway.cli.backup import format_counts
from gateway.cli.lazy import CONFIG
from gateway.cli.stores import ConfigOption, result_of, settings_of, stores
from gateway.cli.tables import counted
from gateway.cli.usage_files import progress
from gateway.errors import StartupError
from gateway.usage.span import rfc3339

if TYPE_CHECKING:
    from gateway.backup.file import VerifiedBackup
    from gateway.backup.writer import DeploymentContents
    from gateway.config.settings import Settings


def restore(
    file: Annotated[Path, typer.Argument(help="File that `gkt-gateway backup` wrote.", metavar="FILE")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Verify the file, show existing data, and change nothing.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Delete existing data in Redis first, and add the receipts to those in the usage database.",
        ),
    ] = False,
    only: Annotated[
        Literal["redis", "usage"] | None, typer.Option(help="Restore only Redis or only the usage database.")
    ] = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Write a backup to Redis and the usage database that config.yaml names.

    Stop all gateways and usage workers on that Redis first. With `--only usage` they may run.

    The whole file is verified before anything is written. If Redis or the usage database has data already, nothing is
    written without --overwrite. See `gkt-gateway docs deployment#backups`.
    """
    with progress("checking the file", file.stat().st_size if file.exists() else None) as on_progress:
        backup = verify(file, on_progress)
    typer.echo(f"{file}, made by gateway {backup.header.gateway} at {rfc3339(backup.header.made)}, is complete")
    typer.echo(format_counts(backup.counts, redis=only != "usage", usage=only != "redis"))
    typer.echo(result_of(_restore(settings_of(config), file, backup, only, dry_run=dry_run, overwrite=overwrite)))


async def _restore(
    settings: Settings, file: Path, backup: VerifiedBackup, only: str | None, *, dry_run: bool, overwrite: bool
) -> str:
    async with stores(settings) as opened:
        usage = opened.usage if only != "redis" and backup.header.receipts else None
        if only == "usage" and usage is None:
            raise StartupError("The backup has no receipts: there is nothing to restore.")
        writer = RestoreWriter(opened.client.commands, opened.keys, usage, redis_too=only != "usage")
        present = await writer.inspect()
        _check(present, overwrite=overwrite)
        if dry_run:
            return _dry_run_result(present)
        if usage is not None:
            await usage.open()
        try:
            await writer.clear(present)
            with progress("restoring", backup.records) as on_progress:
                await writer.put(records(file), on_progress)
        except BaseException:
            typer.echo("The restore was interrupted. Run it again with --overwrite.", err=True)
            raise
    if only == "usage":
        return "Restored."
    return "Restored. Start the gateways."


def _dry_run_result(present: DeploymentContents) -> str:
    lines = ["The backup can be restored."]
    if present.kept:
        lines += ["A restore would first delete from Redis:", format_counts(present.counts, usage=False)]
    if present.counts.receipts:
        lines.append(f"The usage database would keep {counted(present.counts.receipts, 'receipt')}.")
    return "\n".join([*lines, "Nothing was changed."])


def _check(present: DeploymentContents, *, overwrite: bool) -> None:
    if present.alive:
        raise StartupError(
            f"{present.alive} processes (gateways, usage workers) use this Redis, or ended less than redis.lease ago. "
            "Stop all of them, wait for redis.lease, and try again. Nothing was changed."
        )
    if not present.is_empty and not overwrite:
        raise StartupError(
            f"There is data already:\n{format_counts(present.counts)}\nNothing was changed. With --overwrite the "
            "backup replaces the data in Redis, and its receipts are added to those in the usage database."
        )
