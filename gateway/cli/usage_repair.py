"""`gkt-gateway usage repair`: write receipts again that the usage database rejected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gateway.cli.lazy import CONFIG
from gateway.cli.stores import ConfigOption, result_of, settings_of, usage_store
from gateway.errors import StartupError
from gateway.usage.repair import repair as repair_database

if TYPE_CHECKING:
    from gateway.config.settings import Settings
    from gateway.usage.repair import Repair


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
