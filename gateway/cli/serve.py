"""`gkt-gateway serve`: run the gateway."""

from __future__ import annotations

import os
from pathlib import Path  # noqa: TC003  typer reads it
from typing import Annotated

import typer
import uvloop

from gateway.cli.lazy import CONFIG, config_option
from gateway.config.sections import MAX_PORT, MAX_WORKERS
from gateway.server.config_watch import ConfigWatch
from gateway.server.stopping import reload_on_sighup, stop_on_signals
from gateway.server.supervisor import Supervisor
from gateway.telemetry.logs import set_up_logs


def serve(
    config: Annotated[Path, config_option(help="The configuration file.")] = CONFIG,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_WORKERS, help="Number of processes that share the ports. Default: server.workers."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=MAX_PORT, help="Public port; 0: any free port. Default: server.port.")
    ] = None,
    admin_port: Annotated[
        int | None, typer.Option(min=0, max=MAX_PORT, help="Admin port; 0: any free port. Default: admin.port.")
    ] = None,
) -> None:
    """Run the gateway until SIGTERM or Ctrl-C, then finish requests in flight.

    Valid changes of policy files take effect at once. A valid change of config.yaml starts new workers, and the earlier
    ones end with their last request. SIGHUP reads all files immediately.

    GKT_HOST, GKT_PORT, GKT_WORKERS, GKT_ADMIN_HOST, GKT_ADMIN_PORT, GKT_REDIS_URL and GKT_POLICIES override the
    configuration file. --workers, --port and --admin-port override both.
    """
    # Variables apply in child processes, and whenever the configuration is read again.
    for variable, given in (("GKT_PORT", port), ("GKT_ADMIN_PORT", admin_port)):
        if given is not None:
            os.environ[variable] = str(given)
    watch = ConfigWatch(config)
    set_up_logs(watch.settings.log.level, watch.settings.log.format)
    if not uvloop.run(_run(Supervisor(config, watch, workers))):
        raise typer.Exit(1)


async def _run(supervisor: Supervisor) -> bool:
    """Serve until a signal. Return whether all workers stopped in order."""
    stop = stop_on_signals()
    return await supervisor.run(stop, reload_on_sighup(stop))
