"""`gkt-gateway usage export`: write receipts to a file or to standard output."""

from __future__ import annotations

import re
import time
from pathlib import Path  # noqa: TC003  typer reads it
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer
from pydantic import TypeAdapter, ValidationError

from gateway.cli.lazy import CONFIG
from gateway.cli.stores import ConfigOption, result_of, settings_of, usage_store
from gateway.cli.tables import counted
from gateway.cli.usage_files import progress, write_receipts
from gateway.config.scalars import InvalidValue, Moment, duration_s
from gateway.errors import StartupError
from gateway.usage.queries import ReceiptFilter
from gateway.usage.tables import DAY_S

if TYPE_CHECKING:
    from gateway.config.settings import Settings

_MOMENT: TypeAdapter[float] = TypeAdapter(Moment)
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
SinceOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Start: a duration before now, a day in UTC, or a time. Default: the first receipt.",
        metavar="7d|2026-11-01",
    ),
]
UntilOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="End: a duration before now, a day in UTC (inclusive), or a time. Default: now.",
        metavar="1d|2026-11-30",
    ),
]


def export(
    since: SinceOption = None,
    until: UntilOption = None,
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Only this tenant.")] = None,
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

    `gkt-gateway usage export --since 2026-11-01 --until 2026-11-30 -o november.csv` exports a month, in UTC.

    Receipts are selected by the time of their request. Progress is shown on standard error. Shadow requests are
    included with mode `shadow`; their baseline is 0.
    """
    where = _where(since, until, tenant)
    count = result_of(_export(settings_of(config), where, form, output))
    typer.echo(counted(count, "receipt") + (f" in {output}" if output is not None else ""), err=True)


async def _export(settings: Settings, where: ReceiptFilter, form: str, output: Path | None) -> int:
    async with usage_store(settings, replica=True) as store:
        if not await store.exists():
            raise StartupError(f"The usage database {store.engine} does not exist yet: a usage worker creates it.")
        with progress("exporting", await store.count(where)) as on_progress:
            return await write_receipts(store.receipts(where), form, output, on_progress)


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
