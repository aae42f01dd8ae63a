"""`gkt-gateway reconcile`: engines paid by the hour, day by day, against what requests were charged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import typer

from gateway.cli.admin_client import AdminClient, ConfigOption, UrlOption
from gateway.cli.admin_commands import JsonOption, ask, given, in_json
from gateway.cli.reconcile_print import days_shown


def reconcile(
    since: Annotated[
        str, typer.Option(help="From when: so many days back, today being the first, or a day of UTC.", metavar="DAY")
    ] = "7d",
    until: Annotated[
        str | None, typer.Option(help="To when, with that day. Default: today.", metavar="2026-12-01")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = Path("config.yaml"),
    url: UrlOption = None,
) -> None:
    """Show what engines cost by the hour, and what requests were charged for them at token rates.

    **wall** is what the hours cost in which an engine was seen to be up; **charged** what receipts of that day say of
    it; the **difference** was paid and is in no receipt, or, when it is negative, was charged and not paid: then the
    engine does more than its `input_tokens_per_s` and `output_tokens_per_s` say. **used** is charged over wall.
    Minutes in which no gateway looked are **unseen**, and not in wall. Engines paid by the token have no hours.

    docs/cost.md tells all of it.
    """
    query = urlencode(given(since=since, until=until))
    found = ask(AdminClient(url, config, keyed=True), "GET", f"/reconciliation?{query}")
    if as_json:
        typer.echo(in_json(found))
    else:
        days_shown(found)
