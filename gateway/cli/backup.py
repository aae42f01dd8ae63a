"""`gkt-gateway backup`: one file with API keys, budgets and receipts."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  typer reads it
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.backup.file import verify, writing
from gateway.backup.reader import BackupReader
from gateway.backup.usage import usage_records
from gateway.cli.lazy import CONFIG
from gateway.cli.stores import ConfigOption, result_of, settings_of, stores
from gateway.cli.usage_files import progress

if TYPE_CHECKING:
    from gateway.backup.records import BackupCounts
    from gateway.config.settings import Settings


def backup(
    file: Annotated[Path, typer.Argument(help="File to write, with mode 0600.", metavar="FILE")],
    without_usage: Annotated[bool, typer.Option("--without-usage", help="Leave out the usage database.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing file.")] = False,
    config: ConfigOption = CONFIG,
) -> None:
    """Write API keys, budgets and receipts to one file. Gateways and usage workers may run.

    It reads Redis and then the usage database that config.yaml names. The file has only hashes of keys, and no text of
    prompts or answers, no admin key and no password. Policies and config.yaml are not included: back them up
    separately. See `gkt-gateway docs deployment#backups`.
    """
    result_of(_backup(settings_of(config), file, receipts=not without_usage, overwrite=overwrite))
    size = file.stat().st_size
    with progress("checking the file", size) as on_progress:
        verified = verify(file, on_progress)
    typer.echo(f"{file}, {size} bytes, verified\n{format_counts(verified.counts)}")


async def _backup(settings: Settings, file: Path, *, receipts: bool, overwrite: bool) -> None:
    async with stores(settings) as opened:
        if receipts:
            await opened.usage.open()
        created_s, _ = await opened.client.commands.time()
        with writing(file, created_s, receipts=receipts, overwrite=overwrite) as writer:
            reader = BackupReader(opened.client.commands, opened.keys)
            inventory = await reader.inventory()
            with progress("reading Redis", sum(map(len, inventory.values()))) as on_progress:
                async for record in reader.redis(inventory, on_progress):
                    writer.put(record)
            if receipts:
                with progress("reading the usage database", await opened.usage.count()) as on_progress:
                    async for record in usage_records(opened.usage, created_s, on_progress):
                        writer.put(record)


def format_counts(counts: BackupCounts, *, redis: bool = True, usage: bool = True) -> str:
    """Return a line for each count of a backup or deployment: of Redis and of the usage database."""
    by_name: dict[str, int | str] = {}
    if redis:
        by_name = {
            "API keys": counts.keys,
            "budgets": counts.budgets,
            "receipts waiting in Redis": counts.waiting,
            "other Redis keys": counts.sums,
        }
    if usage:
        by_name["receipts"] = "not included" if counts.receipts is None else counts.receipts
        if counts.rows:
            by_name["other rows"] = counts.rows
    return "\n".join(f"  {name:<28} {count}" for name, count in by_name.items())
