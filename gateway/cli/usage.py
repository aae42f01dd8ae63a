"""`gkt-gateway usage`: usage and cost from a running gateway, and the usage database."""

from __future__ import annotations

from typing import ClassVar

import typer

from gateway.cli.lazy import SETTINGS, LazyGroup


class _Usage(LazyGroup):
    summaries: ClassVar = {
        "show": "Show usage, cost and savings by tenant, key, model or mode.",
        "split": "Compare the variants of a split route: requests, cost and outcomes.",
        "reconcile": "Compare the hourly cost of engines with the charges of requests at token rates.",
        "status": "Show the database's URL, its content, and the number of receipts that wait in Redis.",
        "export": "Write receipts to a file or to standard output, as a stream.",
        "verify": "Recompute the sums of each day from its receipts, and compare them with the sums in the database.",
        "repair": "Write receipts again that the database rejected.",
        "worker": "Write receipts from Redis to the usage database, until SIGTERM or Ctrl-C.",
    }
    prefix = "gateway.cli.usage_"


usage = typer.Typer(
    name="usage",
    cls=_Usage,
    help=(
        "Show usage and cost, and maintain the usage database.\n\n"
        "`show`, `split` and `reconcile` call the admin listener of a running gateway.\n\n"
        "`status`, `export`, `verify`, `repair` and `worker` open the usage database, SQLite or PostgreSQL "
        "(`usage.url` in config.yaml). It has the receipts and their sums. `gkt-gateway docs deployment` describes the "
        "tables, with SQL examples."
    ),
    **SETTINGS,
)


@usage.callback()
def _all() -> None: ...
