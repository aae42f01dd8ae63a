"""`gkt-gateway usage-worker`: write receipts to the usage database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.errors import StartupError
from gateway.server.usage_worker import main


def usage_worker(
    config: Annotated[
        Path,
        typer.Option(
            "--config", "-c", help="The gateway's configuration file: its sections redis, usage, data and log."
        ),
    ] = Path("config.yaml"),
) -> None:
    """Write receipts from Redis to the usage database, until SIGTERM or Ctrl-C.

    The gateway puts a receipt of each request into Redis. This process moves receipts from there to the database that
    `usage.url` names, SQLite or PostgreSQL, and adds them to the sums that usage, the dashboard and exports show.

    - `gkt-gateway serve` starts one by itself where `usage.run` is `host`. With `usage.run: command` you start it.
    - Several may run at once, on any host: each receipt is counted once. SQLite is a file: all workers that use it run
      on one host. For more than one host use PostgreSQL.
    - It may be stopped or killed at any time. Receipts wait in Redis meanwhile, up to `receipts.max_buffered`; beyond,
      the oldest are lost. On SIGTERM it writes what waits and exits with 0 within a few seconds.
    - While the database is away it tries again every few seconds. Gateways show its state: `gkt_usage_up`,
      `gkt_usage_lag_seconds` and `gkt_usage_waiting` on /metrics, and `usage` on the admin listener's /readyz.
    - It creates the tables, migrates them after an upgrade, deletes receipts older than `usage.keep`, and imports the
      archive of an earlier version.

    Environment variables override the file: GKT_REDIS_URL, GKT_USAGE_URL, GKT_DATA.
    """
    if not config.exists():
        raise StartupError(f"There is no {config}. Name it with --config.")
    main(config, child=False)
