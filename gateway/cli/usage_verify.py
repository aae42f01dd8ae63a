"""`gkt-gateway usage verify`: compare the sums of the usage database with its receipts."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import typer

from gateway.cli.lazy import CONFIG
from gateway.cli.stores import ConfigOption, result_of, settings_of, usage_store
from gateway.cli.tables import counted
from gateway.cli.usage_files import progress
from gateway.usage.queries import UsageQueries
from gateway.usage.span import rfc3339
from gateway.usage.tables import DAY_S
from gateway.usage.verify import differences

if TYPE_CHECKING:
    from gateway.config.settings import Settings
    from gateway.usage.rollup import SumRow
    from gateway.usage.verify import SumPlace

_MAX_DIFFERENCES = 20


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
