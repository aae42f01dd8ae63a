"""`gkt-gateway usage show`: show usage, cost and savings from a running gateway."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlencode

import typer
from rich.measure import Measurement
from rich.text import Text

from gateway.accounting.savings import (
    ABOUT_ZERO,
    CLASSES,
    FAILED,
    GUIDED,
    MEASURING,
    NOT_GUIDABLE,
    REPORTED,
    STUDENT_BY_POLICY,
    TEACHER_UNAVAILABLE,
)
from gateway.cli.admin_client import AdminClient, ConfigOption, UrlOption, without_none
from gateway.cli.lazy import CONFIG
from gateway.cli.tables import console_for, in_json, plain_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table


def show(
    by: Annotated[
        str,
        typer.Option(
            "--by",
            "-b",
            help="Group by these, separated by commas: tenant, key, model (or route), mode, teacher, student, tag, "
            "label:NAME. --by '' prints only the total.",
            metavar="NAMES",
        ),
    ] = "tenant",
    since: Annotated[
        str | None,
        typer.Option(
            help="Start: 24h or 7d ago, a date, a time, today, yesterday, this_month or last_month.",
            metavar="WHEN",
            show_default="24h; per minute 1h, per day 30d",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            help="End, in the same format. A date and a month are inclusive.", metavar="WHEN", show_default="now"
        ),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            "--granularity",
            "-g",
            help="Print a line for each minute, hour or day. Default: one for the whole time.",
            metavar="PERIOD",
        ),
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Only this tenant.", metavar="NAME")] = None,
    key: Annotated[str | None, typer.Option(help="Only keys with this id.", metavar="ID")] = None,
    model: Annotated[str | None, typer.Option("--model", "--route", help="Only this route.", metavar="NAME")] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="Only this mode: guided, teacher_complete, student, teacher, embeddings, shadow, guidance or edge.",
            metavar="MODE",
        ),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Only requests with this label.", metavar="NAME=VALUE")] = None,
    form: Annotated[
        Literal["table", "csv", "json"], typer.Option("--format", "-f", help="Output format.", case_sensitive=False)
    ] = "table",
    config: ConfigOption = CONFIG,
    url: UrlOption = None,
) -> None:
    """Show usage, cost and savings by tenant, key, model or mode.

    - `gkt-gateway usage show --by tenant,model --since 7d`: the last seven days by tenant and model.
    - `gkt-gateway usage show --since last_month --until last_month --format csv > bill.csv`: a bill of last month.
    - `gkt-gateway usage show --by '' --granularity hour --tenant acme`: one tenant's last day by hour.

    --by tag groups by the callers' tags, and can be combined with tenant, key, model and mode. A request with several
    tags counts for each, so there is no total. --by label:team groups by a label of the tenants' policies, and can be
    combined with further labels.

    Times are UTC. The range is extended to whole periods; the first line has the actual range. The sums are exactly
    those of the receipts. Saved is the baseline minus the cost, with failed requests and measuring. The baseline is
    the cost of the teacher alone where guidance or a policy's choice of the student caused the difference. Saved is
    red if it is negative, and "about 0" if it is not larger than its error.

    This command calls the admin listener of a running gateway, at admin.host and admin.port of config.yaml or at
    --url. It sends the admin key from the environment variable GKT_ADMIN_KEY or from admin.key of config.yaml.
    `gkt-gateway docs cost#usage` describes every column.
    """
    query = without_none(since=since, until=until, by=by or None, granularity=granularity)
    query |= without_none(tenant=tenant, key=key, route=model, mode=mode, label=label)
    client = AdminClient(url, config, keyed=True)
    if form == "csv":
        typer.echo(client.send("GET", f"/usage?{urlencode(query | {'format': 'csv'})}").decode(), nl=False)
        return
    reply = client.call("GET", f"/usage?{urlencode(query)}")
    if form == "json":
        typer.echo(in_json(reply))
    elif label is not None or any(name == "tag" or name.startswith("label:") for name in reply["by"]):
        _print_receipt_sums(reply)
    else:
        print_usage(reply)


def _print_receipt_sums(reply: dict[str, Any]) -> None:
    """Print sums by tags and labels, which have fewer figures."""
    console = console_for(pipe_width=240)
    console.print(f"{_when(reply['since'])} to {_when(reply['until'])} UTC", highlight=False)
    if not reply["rows"]:
        console.print(_NO_TAGS if "tag" in reply["by"] else _NO_LABELS)
        return
    figures = ("requests", "failed", "input tokens", "output tokens", "cost USD", "baseline USD", "saved USD")
    by = [*(["start"] if reply["granularity"] else []), *reply["by"]]
    heads = ["model" if name == "route" else name.removeprefix("label:") for name in by]
    table = plain_table(*heads, *figures, right=slice(len(heads), None))
    total = [{**dict.fromkeys(by, ""), **reply["total"], by[0]: "total"}] if by and "total" in reply else []
    for row in [*reply["rows"], *total]:
        counts = (Text(f"{row[name]:,}") for name in ("requests", "errors", "input_tokens", "output_tokens"))
        money = (Text(usd(row[f"{name}_usd"])) for name in ("cost", "baseline", "savings"))
        table.add_row(*(Text(row[name]) for name in by), *counts, *money)
    console.print(table)


_NO_TAGS = "No requests with tags in this time. Callers send tags in x-gkt-tags or metadata.tags."
_NO_LABELS = "No requests with this label in this time. Labels are declared in policy files, under `labels`."
_NONE = "-"
_LEGEND = (
    "Requests: answered, failed and disconnected ones, without shadows. Tokens: input + output. Saved: baseline "
    "minus cost. +/-: error of the saved amount, which is about 0 if it is not larger than its error. Failed USD: part "
    "of the cost for failed requests. Measuring: part of the cost for shadows and quality samples. Teacher away: "
    "requests that the student answered because the teacher was unavailable; they save nothing. Cost share: cost as a "
    "share of the baseline. Teacher share: share of the answers' tokens that the teacher wrote. p50, p95: time of the "
    "whole answer."
)


def print_usage(reply: dict[str, Any]) -> None:
    """Print a reply of the admin API as a table."""
    console = console_for(pipe_width=280)
    console.print(f"{_when(reply['since'])} to {_when(reply['until'])} UTC", highlight=False)
    total = reply["total"]
    if not total["requests"] and not total["shadows"]:
        console.print(
            "No requests in this time. A request is counted about a second after its end; see --since for other times.",
            soft_wrap=True,
        )
        return
    titles, omitted = list(_FIGURES), []
    table = _table(reply, titles)
    unwrapped = console.options.update(max_width=10_000)
    for title in _OMIT_ORDER:
        if Measurement.get(console, unwrapped, table).maximum <= console.width:
            break
        titles.remove(title)
        omitted.append(title)
        table = _table(reply, titles)
    console.print(table)
    for line in _sums_in_words(total):
        console.print(line, soft_wrap=not console.is_terminal, highlight=False)
    console.print(_LEGEND, style="dim", soft_wrap=not console.is_terminal, highlight=False)
    if omitted:
        console.print(f"Omitted: {', '.join(omitted)}. Use a wider terminal or --format csv.", style="dim")


def _table(reply: dict[str, Any], titles: list[str]) -> Table:
    names = (["start"] if reply["granularity"] else []) + reply["by"]
    heads = ("model" if name == "route" else name for name in names)
    table = plain_table(*heads, *titles, right=slice(len(names), None))
    for row in reply["rows"]:
        values = (Text(_when(row[name]) if name == "start" else row[name] or "(none)") for name in names)
        table.add_row(*values, *(_FIGURES[title](row) for title in titles))
    if names:
        table.add_section()
        figures = (_FIGURES[title](reply["total"]) for title in titles)
        table.add_row("all", *[""] * (len(names) - 1), *figures, style="bold")
    return table


def _sums_in_words(total: dict[str, Any]) -> Iterator[str]:
    """Yield how counts and exact amounts of the total add up."""
    errors, classes = sum(total["errors"].values()), total["savings_classes"]
    saved = {name: classes.get(name, {}).get("savings_usd", "0") for name in CLASSES}
    unguided = Decimal(saved[TEACHER_UNAVAILABLE]) + Decimal(saved[NOT_GUIDABLE])
    yield (
        f"Requests: {total['requests']:,} = {total['answers']:,} answered + {errors:,} failed + "
        f"{total['disconnected']:,} disconnected. Shadows apart: {total['shadows']:,}."
    )
    yield (
        f"USD: teacher alone {total['baseline_usd']} - answers {total['answers_usd']} - disconnected "
        f"{total['disconnected_usd']} - failed requests {total['failed_usd']} - measuring {total['measuring_usd']} = "
        f"saved {total['savings_usd']}"
    )
    yield (
        f"Saved: guidance {saved[GUIDED]}, student by policy {saved[STUDENT_BY_POLICY]}, reported by devices and not "
        f"verified {saved[REPORTED]}, other unguided answers {unguided:f}, failed requests {saved[FAILED]}, measuring "
        f"{saved[MEASURING]}"
    )


def _tokens(row: dict[str, Any], role: str) -> Text:
    tokens = row["tokens"][role]
    return Text(f"{tokens['input'] + tokens['cached'] + tokens['cache_write']:,} + {tokens['output']:,}")


def _failures(count: int) -> Text:
    return Text(f"{count:,}", "red" if count else "")


def _saved(row: dict[str, Any]) -> Text:
    if row.get("savings_about_zero"):
        return Text(ABOUT_ZERO)
    saved = Decimal(row["savings_usd"])
    return Text(usd(row["savings_usd"]), "red" if saved < 0 else "green" if saved else "")


def _seconds(row: dict[str, Any], part: str) -> Text:
    spent_ms = row["latency_ms"]["total"][part]
    return Text(_NONE if spent_ms is None else f"{float(spent_ms) / 1000:,.3f}")


_FIGURES: dict[str, Callable[[dict[str, Any]], Text]] = {
    "requests": lambda row: Text(f"{row['requests']:,}"),
    "failed": lambda row: _failures(sum(row["errors"].values())),
    "disconnected": lambda row: Text(f"{row['disconnected']:,}"),
    "shadows": lambda row: Text(f"{row['shadows']:,}"),
    "unguided": lambda row: Text(f"{sum(row['unguided'].values()):,}"),
    "teacher tokens": lambda row: _tokens(row, "teacher"),
    "student tokens": lambda row: _tokens(row, "student"),
    "cost USD": lambda row: Text(usd(row["cost_usd"])),
    "failed USD": lambda row: Text(usd(row["failed_usd"])),
    "measuring USD": lambda row: Text(usd(row["measuring_usd"])),
    "baseline USD": lambda row: Text(usd(row["baseline_usd"])),
    "saved USD": _saved,
    "+/- USD": lambda row: Text(usd(row["savings_error_usd"])),
    "teacher away": lambda row: _failures(
        row.get("savings_classes", {}).get(TEACHER_UNAVAILABLE, {}).get("requests", 0)
    ),
    "cost share": lambda row: Text(_percent(row["cost_share"])),
    "teacher share": lambda row: Text(_percent(row["teacher_token_share"])),
    "p50 s": lambda row: _seconds(row, "p50"),
    "p95 s": lambda row: _seconds(row, "p95"),
}
_OMIT_ORDER = (
    *("p50 s", "unguided", "student tokens", "teacher tokens", "p95 s", "shadows", "disconnected"),
    *("teacher share", "failed", "measuring USD", "failed USD", "teacher away", "+/- USD"),
)


def usd(amount: str) -> str:
    """Return an amount in USD with 6 decimals."""
    value = Decimal(amount)
    if value and abs(value) < Decimal("0.000001"):
        return f"{'>-' if value < 0 else '<'}0.000001"
    return f"{value:,.6f}"


def _percent(share: Decimal | float | None) -> str:
    return _NONE if share is None else f"{float(share) * 100:.1f} %"


def _when(moment: str) -> str:
    return moment.replace("T", " ").removesuffix("Z").removesuffix(":00")
