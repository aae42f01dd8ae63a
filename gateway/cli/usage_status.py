"""`gkt-gateway usage status`: show what the usage database has, and the receipts that wait in Redis."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import typer

from gateway.cli.lazy import CONFIG
from gateway.cli.stores import ConfigOption, result_of, settings_of, stores, usage_store
from gateway.cli.tables import JsonOption, console_for, in_json, values_table
from gateway.errors import StartupError
from gateway.telemetry.metrics import Metrics
from gateway.usage.engine import UsageDatabaseError
from gateway.usage.feed import OutboxFeed
from gateway.usage.partitions import days_in_default, partitions
from gateway.usage.queries import UsageQueries
from gateway.usage.span import rfc3339
from gateway.usage.state import WorkerStateReader
from gateway.usage.tables import DAY_S, RECEIPTS

if TYPE_CHECKING:
    from gateway.config.settings import Settings


def status(as_json: JsonOption = False, config: ConfigOption = CONFIG) -> None:
    """Show the database's URL, its content, and the number of receipts that wait in Redis.

    `gkt-gateway usage repair` writes unreadable entries again. Exits with 1 if the database is unavailable or no usage
    worker writes it.
    """
    found = result_of(_status(settings_of(config)))
    if as_json:
        typer.echo(in_json(found))
    else:
        console_for(pipe_width=160).print(values_table(found))
    if not (found["up"] and found["reachable"]):
        raise typer.Exit(1)


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
