"""`gkt-gateway usage`: what was used, by whom, and what it cost and saved, at a running gateway."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import typer
import uvloop

from gateway.cli.admin_client import AdminClient, ConfigOption, UrlOption
from gateway.cli.admin_commands import ask, given, in_json
from gateway.cli.usage_print import usage_shown


class UsageFormat(StrEnum):
    """How it is printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def usage(
    by: Annotated[
        str,
        typer.Option(
            "--by",
            "-b",
            help=(
                "What to tell apart, with commas between: tenant, key, model (or route), mode, teacher, student. "
                "An empty one, --by '', is all together."
            ),
            metavar="NAMES",
        ),
    ] = "tenant",
    since: Annotated[
        str | None,
        typer.Option(
            help="Where to begin: 24h or 7d ago, a date, a time, today, yesterday, this_month or last_month.",
            metavar="WHEN",
            show_default="24h; by the minute 1h, by the day 30d",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            help="Where to end, in the same words; a date and a month are meant with their end.",
            metavar="WHEN",
            show_default="now",
        ),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            "--granularity",
            "-g",
            help="A line for each minute, hour or day. Default: the whole time in one.",
            metavar="PERIOD",
        ),
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Only of this tenant.", metavar="NAME")] = None,
    key: Annotated[str | None, typer.Option(help="Only of keys with this id.", metavar="ID")] = None,
    model: Annotated[str | None, typer.Option("--model", "--route", help="Only of this route.", metavar="NAME")] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="Only what was answered so: guided, teacher_complete, student, teacher, embeddings, shadow, guidance "
            "or edge.",
            metavar="MODE",
        ),
    ] = None,
    form: Annotated[
        UsageFormat,
        typer.Option(
            "--format",
            "-f",
            help="A table to read, CSV for a spreadsheet, or the admin API's JSON.",
            case_sensitive=False,
        ),
    ] = UsageFormat.TABLE,
    config: ConfigOption = Path("config.yaml"),
    url: UrlOption = None,
) -> None:
    """Show what was used, by whom, and what it cost and saved.

    `gkt-gateway usage --by tenant,model --since 7d` is a table by tenant and model of the last seven days;
    `gkt-gateway usage --since last_month --until last_month --format csv > bill.csv` a bill for finance; and
    `gkt-gateway usage --by '' --granularity hour --tenant acme` acme's day, hour by hour.

    All times are UTC, and a range is widened to whole periods: the first line says what is covered. Sums are those of
    the receipts, exactly. Saved is the baseline less the cost, where guidance or a policy's choice of the student
    caused the difference. It is red, with a minus, where guidance cost more than it spared, and "about 0" where its
    error is as large.

    It asks the admin listener of a running gateway, at admin.host and admin.port of config.yaml or at --url, with the
    admin key: out of the environment variable GKT_ADMIN_KEY, or admin.key of config.yaml. docs/cost.md#usage tells what
    each column means, and how to check it.
    """
    query = given(
        since=since,
        until=until,
        by=by or None,
        granularity=granularity,
        tenant=tenant,
        key=key,
        route=model,
        mode=mode,
        format="csv" if form is UsageFormat.CSV else None,
    )
    client, path = AdminClient(url, config, keyed=True), f"/usage?{urlencode(query)}"
    if form is UsageFormat.CSV:
        typer.echo(uvloop.run(_raw(client, path)).decode(), nl=False)
        return
    told = ask(client, "GET", path)
    if form is UsageFormat.JSON:
        typer.echo(in_json(told))
    else:
        usage_shown(told)


async def _raw(client: AdminClient, path: str) -> bytes:
    async with client.session() as session:
        return await client.ask(session, "GET", path)
