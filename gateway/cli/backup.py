"""`gkt-gateway backup`: one file with callers' keys, budgets and receipts."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  typer reads it
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.backup.file import verify, writing
from gateway.backup.taking import BackupReader
from gateway.backup.usage import usage_records
from gateway.cli.backup_counts import lines_of
from gateway.cli.stores import CONFIG, ConfigOption, settings_of, stores
from gateway.cli.stores_away import result_of
from gateway.cli.usage_db_export import progress

if TYPE_CHECKING:
    from gateway.config.settings import Settings


def backup(
    file: Annotated[Path, typer.Argument(help="The file to write, for its owner alone (0600).", metavar="FILE")],
    without_usage: Annotated[
        bool,
        typer.Option("--without-usage", help="Leave the usage database out, where it has backups of its own."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over a file that is there.")] = False,
    config: ConfigOption = CONFIG,
) -> None:
    """Write callers' keys, budgets and receipts to one file, while gateways and usage workers run.

    It reads Redis and then the usage database, as config.yaml names them. Of keys the file holds hashes. It holds no
    text of a prompt or an answer, no admin key and no password. Policies and config.yaml are files of yours: keep them
    beside it. See docs/deployment.md#backups.
    """
    result_of(_backup(settings_of(config), file, receipts=not without_usage, overwrite=overwrite))
    with progress("checking the file", file.stat().st_size) as told:
        made = verify(file, told)
    typer.echo(f"{file}, {file.stat().st_size} bytes, read again and found whole\n{lines_of(made.counts)}")


async def _backup(settings: Settings, file: Path, *, receipts: bool, overwrite: bool) -> None:
    async with stores(settings) as here:
        if receipts:
            await here.usage.open()
        made_s, _ = await here.client.commands.time()
        with writing(file, made_s, receipts=receipts, overwrite=overwrite) as writer:
            taking = BackupReader(here.client.commands, here.keys)
            inventory = await taking.inventory()
            with progress("reading Redis", len(inventory)) as told:
                async for record in taking.redis(inventory, told):
                    writer.put(record)
            if receipts:
                with progress("reading the usage database", await here.usage.count()) as told:
                    async for record in usage_records(here.usage, made_s, told):
                        writer.put(record)
