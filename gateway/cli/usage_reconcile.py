"""`gkt-gateway usage reconcile`: compare the hourly cost of engines with the charges of requests, by day."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
from rich.text import Text

from gateway.cli.admin_client import AdminClient, ConfigOption, UrlOption, without_none
from gateway.cli.lazy import CONFIG
from gateway.cli.tables import JsonOption, console_for, in_json, plain_table


def reconcile(
    since: Annotated[
        str, typer.Option(help="First day: a day in UTC, or a number of days up to today, like 7d.", metavar="DAY")
    ] = "7d",
    until: Annotated[str | None, typer.Option(help="Last day. Default: today.", metavar="2026-12-01")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = CONFIG,
    url: UrlOption = None,
) -> None:
    """Compare the hourly cost of engines with the charges of requests at token rates.

    **wall** is the cost of the hours in which an engine was up, and **charged** the sum of that day's receipts. The
    **difference** is cost that no receipt has. A negative difference means that the engine is faster than its
    `input_tokens_per_s` and `output_tokens_per_s`. **used** is charged divided by wall. **unseen** minutes, in which no
    gateway observed the engine, are not in wall. Engines with token prices have no hours.

    See `gkt-gateway docs cost`.
    """
    query = urlencode(without_none(since=since, until=until))
    reply = AdminClient(url, config, keyed=True).call("GET", f"/reconciliation?{query}")
    if as_json:
        typer.echo(in_json(reply))
    else:
        print_reconciliation(reply)


def print_reconciliation(reply: dict[str, Any]) -> None:
    """Print a reconciliation."""
    console = console_for(pipe_width=160)
    head = ("day", "engine", "USD/h", "up", "down", "unseen", "wall", "charged", "difference", "used")
    table = plain_table(*head, right=slice(2, None))
    for day in reply["days"]:
        for index, entry in enumerate(day["engines"]):
            name = day["day"] + ("" if day["complete"] else " so far")
            table.add_row("" if index else name, Text(entry["engine"]), *_hours(entry), *_amounts(entry))
    if not table.row_count:
        console.print("No engine has cost in this time.")
        return
    table.add_section()
    total = reply["total"]
    table.add_row("all", "by the hour", "", "", "", "", *_amounts(total["by_hour"]))
    table.add_row("", "by the token", "", "", "", "", "", _usd(total["by_token_usd"]), "", "")
    console.print(table)


def _hours(entry: dict[str, Any]) -> list[str]:
    if entry["minutes"] is None:
        return ["", "", "", ""]
    return [entry["usd_per_hour"], *(f"{entry['minutes'][name] / 60:.2f} h" for name in ("up", "down", "unseen"))]


def _amounts(entry: dict[str, Any]) -> list[str | Text]:
    if entry["wall_usd"] is None:
        return ["", _usd(entry["charged_usd"]), "", ""]
    is_negative = entry["difference_usd"].startswith("-")
    used = "-" if entry["utilization"] is None else f"{entry['utilization']:.1%}"
    return [
        _usd(entry["wall_usd"]),
        _usd(entry["charged_usd"]),
        Text(_usd(entry["difference_usd"]), "red" if is_negative else ""),
        used,
    ]


def _usd(amount: str) -> str:
    """Return an amount in USD with 6 decimals. Smaller amounts are shown as <0.000001, not as 0."""
    text = f"{Decimal(amount):.6f}"
    return text if Decimal(text) or not Decimal(amount) else ("-" if amount.startswith("-") else "") + "<0.000001"
