"""Serving: the two listeners of a gateway, from the moment its ports are open until it has drained."""

from __future__ import annotations

import asyncio
import errno
import gc
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from gateway.api import keys
from gateway.api.connection import Runner
from gateway.api.loop_scheduler import LoopScheduler
from gateway.app import gateway
from gateway.errors import StartupError
from gateway.runtime import open_files
from gateway.runtime.addresses import GatewayAddresses
from gateway.telemetry.logs import log_loop_exception

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.app import WatchedFiles
    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet

log = structlog.get_logger()

_ADMIN_CONNECTIONS = 256
_OTHER_FILES = 256

# Of the requests in flight, one in so many may be read on after its caller disconnected.
_READING_ON_SHARE = 8

# After the drain, for handlers that are cut.
_CUT_S = 2.0
# How many more objects there must be before Python looks for cycles. Its own 700 are less than a request makes.
_COLLECT_AFTER = 10_000
# After so long, a thread yields the interpreter lock to the event loop. A request takes the lock a dozen times, so
# Python's own 5 ms would add up while a thread decodes or hashes.
_SWITCH_INTERVAL_S = 0.0005


async def serve(
    settings: Settings,
    book: PolicySet,
    redis_url: str,
    *,
    stop: asyncio.Event,
    announce: Callable[[GatewayAddresses], None],
    worker: int | None = None,
    watched: WatchedFiles | None = None,
) -> None:
    """Serve until `stop` is set, then drain: refuse what is new, finish what is under way, keep every receipt.

    `worker` is this process's number among those that share its ports; None when it is alone. Raises StartupError when
    a port is taken or Redis is not there.
    """
    async with gateway(settings, book, redis_url, worker, watched) as parts, AsyncExitStack() as stack:
        _allow_open_files(settings)
        metrics = parts.public[keys.METRICS]
        public = Runner(
            parts.public,
            metrics=metrics,
            listener="public",
            max_connections=settings.server.max_connections,
            scheduler=LoopScheduler(metrics),
            max_reading_on=max(1, settings.server.max_in_flight // _READING_ON_SHARE),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=_CUT_S,
        )
        admin = Runner(
            parts.admin,
            metrics=metrics,
            listener="admin",
            max_connections=_ADMIN_CONNECTIONS,
            access_log=None,
            shutdown_timeout=_CUT_S,
        )
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        _spare_the_collector()  # it holds the loop: before the ports are open
        for runner in (admin, public):
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
        shared = worker is not None
        await _listen(public, settings.server.host, settings.server.port, "server.port", shared=shared)
        await _listen(admin, settings.admin.host, settings.admin.port, "admin.port", shared=shared)
        there = parts.admin[keys.CALLERS_LISTENER]
        there.host, there.port = public.addresses[0][:2]
        asyncio.get_running_loop().set_exception_handler(log_loop_exception)
        announce(GatewayAddresses(_url(public), _url(admin), parts.admin[keys.OWNER]))
        await stop.wait()

        log.info("draining", in_flight=parts.admission.in_flight)
        if shared:  # the other workers take what connects now
            for site in list(public.sites):
                await site.stop()
        # While requests finish, new ones still get an answer: a 503 that sends them to another replica.
        cut = await parts.admission.drain(settings.server.drain_timeout_s)
        await public.cleanup()
        await parts.tasks.drain(_CUT_S)
        await parts.batcher.stop()
        kept = await parts.store.flush()
        spooled = 0 if kept else await parts.spooler.save()
        log.info("stopped", cut=cut, receipts_kept=kept, receipts_spooled=spooled)


def _allow_open_files(settings: Settings) -> None:
    """For all connections that may be: of callers, of operators, and two to engines for each request.

    There may be twice max_in_flight requests (pipeline/admission.py).
    """
    server = settings.server
    wanted = server.max_connections + _ADMIN_CONNECTIONS + 4 * server.max_in_flight + _OTHER_FILES
    if (allowed := open_files.raise_limit(wanted)) < wanted:
        log.warning("few_open_files", allowed=allowed, wanted=wanted, hint="raise the hard limit: ulimit -Hn")


def _spare_the_collector() -> None:
    """What is here at the start stays: modules, schemas, price tables. Looking through took an eighth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])


async def _listen(runner: web.AppRunner, host: str, port: int, field: str, *, shared: bool) -> None:
    try:
        await web.TCPSite(runner, host, port, reuse_port=shared).start()
    except OSError as error:
        raise listen_error(error, host, port, field) from error


def listen_error(error: OSError, host: str, port: int, field: str) -> StartupError:
    """What to say when `host:port`, out of the setting `field`, cannot be listened on."""
    why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
    return StartupError(
        f"{host}:{port} {why}. Stop what listens there, or choose another port: {field} in config.yaml, --port of "
        "the demo."
    )


def _url(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://{'127.0.0.1' if host in {'0.0.0.0', '::'} else host}:{port}"  # noqa: S104  compared, not bound
