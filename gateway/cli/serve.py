"""`gkt-gateway serve`: run the gateway."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import typer
import uvloop

from gateway.app import serve as serve_gateway
from gateway.logs import set_up_logs
from gateway.policy.book import load_all
from gateway.version import __version__

if TYPE_CHECKING:
    from gateway.app import Addresses
    from gateway.config import Settings
    from gateway.policy.book import PolicyBook

log = structlog.get_logger()


def serve(
    config: Annotated[Path, typer.Option("--config", "-c", help="The configuration file.", show_default=True)] = Path(
        "config.yaml"
    ),
) -> None:
    """Run the gateway until SIGTERM or Ctrl-C; then finish what is under way.

    Addresses and ports stand in the configuration file; GKT_HOST, GKT_PORT, GKT_ADMIN_HOST, GKT_ADMIN_PORT,
    GKT_REDIS_URL and GKT_POLICIES override it.
    """
    settings, book = load_all(config)
    set_up_logs(settings.log.level, settings.log.format)
    uvloop.run(run(settings, book))


async def run(settings: Settings, book: PolicyBook) -> None:
    """Serve until a signal comes."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def announce(addresses: Addresses) -> None:
        log.info("listening", public=addresses.public, admin=addresses.admin, version=__version__)

    async with AsyncExitStack() as stack:
        redis_url = settings.redis.url.get_secret_value()
        if redis_url == "embedded":
            from gateway.local.redis import EmbeddedRedis

            redis_url = (await stack.enter_async_context(EmbeddedRedis())).url
        await serve_gateway(settings, book, redis_url, stop=stop, announce=announce)
