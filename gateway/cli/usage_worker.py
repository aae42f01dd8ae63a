"""`gkt-gateway usage worker`: write receipts to the usage database."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  typer reads it
from typing import Annotated

from gateway.cli.lazy import CONFIG, config_option
from gateway.errors import StartupError
from gateway.server.usage_worker import main


def worker(
    config: Annotated[
        Path, config_option(help="Configuration file; only the sections redis, usage, data and log are read.")
    ] = CONFIG,
) -> None:
    """Write receipts from Redis to the usage database, until SIGTERM or Ctrl-C.

    The gateway stores a receipt of each request in Redis. This process moves the receipts to the database of
    `usage.url`, SQLite or PostgreSQL. It also adds them to the sums that usage, the dashboard and exports show.

    - `gkt-gateway serve` starts a usage worker if `usage.run` is `host`. With `usage.run: command` you start it.
    - Several workers may run at once; each receipt is counted once. With SQLite, all workers must run on one host.
      For more than one host use PostgreSQL.
    - It may be stopped or killed at any time. Receipts then wait in Redis, up to `receipts.max_buffered`; beyond that,
      the oldest are deleted. On SIGTERM it writes the waiting receipts and exits with 0 within a few seconds.
    - While the database is unavailable, it retries every few seconds. Gateways show its state: `gkt_usage_up`,
      `gkt_usage_lag_seconds` and `gkt_usage_waiting` on /metrics, and `usage` on the admin listener's /readyz.
    - It creates the tables, and deletes receipts older than `usage.keep`.

    Environment variables override the file: GKT_REDIS_URL, GKT_USAGE_URL, GKT_DATA.
    """
    if not config.exists():
        raise StartupError(f"There is no {config}. Name the configuration file with --config.")
    main(config, child=False)
