"""`gkt-gateway serve`: run the gateway."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path  # noqa: TC003  typer reads it
from typing import TYPE_CHECKING, Annotated

import structlog
import typer
import uvloop

from gateway.accounting.request_log import shorten_request_event
from gateway.app import WatchedFiles
from gateway.cli.lazy import CONFIG, config_option
from gateway.config.sections import MAX_PORT, MAX_WORKERS
from gateway.policy.config_files import ConfigFiles
from gateway.server.listeners import serve as serve_gateway
from gateway.server.stopping import reload_on_sighup, stop_on_signals
from gateway.server.supervisor import Supervisor
from gateway.telemetry.logs import set_up_logs
from gateway.version import __version__

if TYPE_CHECKING:
    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet
    from gateway.server import GatewayAddresses

log = structlog.get_logger()


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

    Valid changes of policy files take effect at once, and so do changes of models, defaults, alerts and log.requests
    in config.yaml. Other settings need a restart. SIGHUP reloads the files immediately.

    GKT_HOST, GKT_PORT, GKT_WORKERS, GKT_ADMIN_HOST, GKT_ADMIN_PORT, GKT_REDIS_URL and GKT_POLICIES override the
    configuration file. --workers, --port and --admin-port override both.
    """
    # Variables apply in child processes, and whenever the configuration is read again.
    for variable, given in (("GKT_PORT", port), ("GKT_ADMIN_PORT", admin_port)):
        if given is not None:
            os.environ[variable] = str(given)
    settings, book, files = ConfigFiles.open(config)
    set_up_logs(settings.log.level, settings.log.format, console_processor=shorten_request_event)
    if not uvloop.run(run(settings, book, files, config, workers or settings.server.workers)):
        raise typer.Exit(1)


async def run(settings: Settings, book: PolicySet, files: ConfigFiles, config: Path, workers: int) -> bool:
    """Serve until a signal. Return whether all workers stopped in order."""
    stop = stop_on_signals()
    reload = reload_on_sighup(stop)

    def announce(at: GatewayAddresses) -> None:
        log.info("listening", public=at.public, admin=at.admin, process=at.process, version=__version__)

    async with AsyncExitStack() as stack:
        embedded = None
        if settings.redis.url.get_secret_value() == "embedded":
            from gateway.local.redis import EmbeddedRedis

            embedded = (await stack.enter_async_context(EmbeddedRedis())).url
        if settings.usage.run == "host":
            from gateway.server.supervisor import usage_child

            # It stops after the listeners have drained, so that it writes their last receipts.
            await stack.enter_async_context(usage_child(config, embedded))
        if workers > 1:
            return await Supervisor(settings, config, workers, redis_url=embedded).run(stop, reload)
        redis_url, watched = embedded or settings.redis.url.get_secret_value(), WatchedFiles(files, reload)
        await serve_gateway(settings, book, redis_url, stop=stop, announce=announce, watched=watched)
        return True
