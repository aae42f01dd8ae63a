"""Serve the two listeners of a gateway, from the start until the end of the drain."""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
import sys
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from gateway.api import keys
from gateway.api.loop_scheduler import LoopScheduler
from gateway.api.probes import STARTUP
from gateway.api.runner import Runner
from gateway.app import gateway
from gateway.runtime.tasks import BackgroundTasks
from gateway.server import GatewayAddresses, ListeningSockets
from gateway.server.ports import listen_error
from gateway.telemetry.logs import log_loop_exception

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.app import Gateway, WatchedFiles
    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet

log = structlog.get_logger()

_ADMIN_CONNECTIONS = 256
_OTHER_FILES = 256
# macOS may reject more, although its hard limit is infinite.
_MACOS_MAX_FILES = 10_240

# At most 1/8 of `max_in_flight` handlers may continue after their caller disconnected.
_DETACHED_SHARE = 8

# A caller that reuses its connection within this time gets a reply that closes it. An earlier end could meet a request
# that is under way.
_IDLE_AFTER_RETIRE_S = 10.0
_RETIRE_POLL_S = 0.05

# Time after the drain for handlers that are canceled.
_CANCEL_S = 2.0
# New objects between two runs of the garbage collector. Python's default of 700 is less than one request creates.
_COLLECT_AFTER = 10_000
# Time after which a thread yields the interpreter lock to the event loop. A request acquires the lock a dozen times, so
# Python's default of 5 ms would add up while a thread decodes or hashes.
_SWITCH_INTERVAL_S = 0.0005


async def serve(
    settings: Settings,
    book: PolicySet,
    redis_url: str,
    *,
    stop: asyncio.Event,
    announce: Callable[[GatewayAddresses], None],
    retire: asyncio.Event | None = None,
    worker: int | None = None,  # number among the workers that share the ports; None: they are not shared
    sockets: ListeningSockets = ListeningSockets(),
    waits_until_ready: bool = False,
    watched: WatchedFiles | None = None,
) -> None:
    """Serve until `stop` is set. Then drain: reject new requests, finish requests in flight, store all receipts.

    Call `announce` when the ports are open. With `sockets`, listen on these instead of opening ports. Raises
    StartupError if a port is in use or Redis is unavailable.

    Args:
        retire: set it to accept no more connections, and to end with the last request. Other workers accept them.
        waits_until_ready: open the ports after the first probes of the engines.
    """
    async with gateway(settings, book, redis_url, worker, watched) as parts, AsyncExitStack() as stack:
        _allow_open_files(settings)
        metrics = parts.public[keys.METRICS]
        runner_of = partial(Runner, metrics=metrics, access_log=None, shutdown_timeout=_CANCEL_S)
        public = runner_of(
            parts.public,
            listener="public",
            max_connections=settings.server.max_connections,
            scheduler=LoopScheduler(metrics),
            max_detached=max(1, settings.server.max_in_flight // _DETACHED_SHARE),
            handler_cancellation=True,
        )
        admin = runner_of(parts.admin, listener="admin", max_connections=_ADMIN_CONNECTIONS)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        # Exclude permanent objects (modules, schemas, price tables) from collection, which took 1/8 of the CPU time.
        # The ports are not open yet, since this blocks the event loop.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])
        for runner in (admin, public):
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
        if waits_until_ready and not await _is_set_first(parts.public[STARTUP].finished, stop):
            return
        server, operators = settings.server, settings.admin
        inherited = await _listen(public, server.host, server.port, "server.port", sockets.public)
        await _listen(admin, operators.host, operators.port, "admin.port", sockets.admin)
        public_address = parts.admin[keys.CALLERS_LISTENER]
        public_address.host, public_address.port = public.addresses[0][:2]
        asyncio.get_running_loop().set_exception_handler(log_loop_exception)
        announce(GatewayAddresses(_url(public), _url(admin), parts.admin[keys.PROCESS_ID]))
        if retire is None:
            await stop.wait()
        elif await _is_set_first(retire, stop):
            log.info("retiring", in_flight=parts.admission.in_flight)
            if (reloader := parts.admin.get(keys.RELOADER)) is not None:
                reloader.retire()
            await _end_with_last_request(stop, parts, public, admin)
        else:
            await _leave_to_others(public, inherited, shared=sockets.shared)

        log.info("draining", in_flight=parts.admission.in_flight)
        # During the drain, new requests get a 503, so that callers use another replica.
        canceled = await parts.admission.drain(settings.server.drain_timeout_s)
        await public.cleanup()
        await parts.tasks.drain(_CANCEL_S)
        await parts.batcher.stop()
        stored = await parts.store.flush()
        spooled = 0 if stored else await parts.spooler.save()
        log.info("stopped", cut=canceled, receipts_kept=stored, receipts_spooled=spooled)


def _allow_open_files(settings: Settings) -> None:
    """Raise the limit of open files for callers, operators, and two connections to engines per request.

    Up to 2 * max_in_flight requests exist at once (pipeline/admission.py).
    """
    server = settings.server
    needed = server.max_connections + _ADMIN_CONNECTIONS + 4 * server.max_in_flight + _OTHER_FILES
    # The usual soft limit of 1024 exists for programs that use select(). The gateway does not use it.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    requested = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    allowed = next((limit for limit in (requested, _MACOS_MAX_FILES) if limit > soft and _set_limit(limit, hard)), soft)
    if allowed < needed:
        log.warning("few_open_files", allowed=allowed, needed=needed, hint="raise the hard limit: ulimit -Hn")


def _set_limit(soft: int, hard: int) -> bool:
    """Set the limit of open files. Return False if the system rejects it."""
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (OSError, ValueError):
        return False
    return True


async def _listen(
    runner: web.AppRunner, host: str, port: int, field: str, descriptors: Sequence[int]
) -> list[socket.socket]:
    """Listen on inherited sockets, and return them; without any, open the port."""
    inherited = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    try:
        for one in inherited:
            await web.SockSite(runner, one).start()
        if not inherited:
            await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise listen_error(error, host, port, field) from error
    return inherited


async def _leave_to_others(runner: Runner, inherited: Sequence[socket.socket], *, shared: bool) -> None:
    """Leave new connections to the workers that share the port of inherited sockets."""
    for one in () if shared else inherited:
        # Closing is not enough: the supervisor has the socket, too, and its connections would wait for a restart.
        with suppress(OSError):  # it no longer listens
            one.shutdown(socket.SHUT_RDWR)
    for site in list(runner.sites) if inherited else ():
        await site.stop()


async def _is_set_first(event: asyncio.Event, other: asyncio.Event) -> bool:
    """Wait until one of two events is set. Return whether it is `event`."""
    waits = BackgroundTasks()
    waiting = [waits.spawn("event", one.wait()) for one in (event, other)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    await waits.close()
    return event.is_set()


async def _end_with_last_request(stop: asyncio.Event, parts: Gateway, public: Runner, admin: Runner) -> None:
    """Accept no more connections, and wait until all requests and their tasks have ended, or `stop` is set."""
    for site in (*public.sites, *admin.sites):
        await site.stop()
    parts.admission.retiring = True
    close_idle_at = asyncio.get_running_loop().time() + _IDLE_AFTER_RETIRE_S
    while not stop.is_set() and (
        public.open_connections or admin.has_requests or parts.admission.in_flight or parts.tasks.finite
    ):
        if asyncio.get_running_loop().time() >= close_idle_at:
            public.close_idle(_IDLE_AFTER_RETIRE_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(_RETIRE_POLL_S):
                await stop.wait()


def _url(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://{'127.0.0.1' if host in {'0.0.0.0', '::'} else host}:{port}"  # noqa: S104 - compared, not bound
