"""The process of a usage worker: `gkt-gateway usage worker`, or the child of `gkt-gateway serve`.

    python -m gateway.server.usage_worker CONFIG

The child stops when its stdin ends. The URL of an embedded Redis is in GKT_REDIS_URL.
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import socket
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import uvloop

from gateway.config.settings import worker_settings
from gateway.errors import StartupError
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.runtime.tasks import BackgroundTasks
from gateway.server.stopping import USAGE_FINISH_S, stop_at_end_of_stdin, stop_on_signals
from gateway.telemetry.logs import set_up_logs
from gateway.telemetry.metrics import Metrics
from gateway.usage.feed import OutboxFeed
from gateway.usage.state import WorkerLease
from gateway.usage.store import replica_lag_of, store_of
from gateway.usage.upkeep import keep_partitions
from gateway.usage.uptime_table import minutes_in_redis
from gateway.usage.worker import UsageWorker
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.config.settings import Settings, WorkerSettings

log = structlog.get_logger()

_REDIS_TIMEOUT_S = 5.0
_NICE = 5
_COLLECT_AFTER = 300_000
"""Allocations between two runs of the garbage collector: more than one batch needs. Batches create few cycles."""


def main(config: Path, *, child: bool) -> int:
    """Run a usage worker until SIGTERM or SIGINT or, as a `child`, the end of stdin. Raises StartupError."""
    settings = worker_settings(config)
    set_up_logs(settings.log.level, settings.log.format)
    uvloop.run(_work(settings, child=child))
    # Exit without waiting for threads, because one may hang in the database.
    sys.stderr.flush()
    os._exit(0)


async def _work(settings: WorkerSettings, *, child: bool) -> None:
    stop = stop_on_signals()
    if child:
        stop_at_end_of_stdin(stop)
    url = settings.redis.url.get_secret_value()
    if url == "embedded":
        raise StartupError(
            "redis.url is embedded: only the worker that the gateway starts can use it ('run: host' under usage in "
            "config.yaml). To run a separate worker, start a Redis and set redis.url."
        )
    async with _running(settings, url, stop) as running:
        # Do not slow the gateways on this host. Windows lacks os.nice, and a container may forbid it.
        with suppress(AttributeError, OSError):
            os.nice(_NICE)
        collect_less_often()
        running.add_done_callback(lambda _: stop.set())
        await stop.wait()


def collect_less_often() -> None:
    """Run the garbage collector less often, because transactions create many objects without cycles."""
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])


@asynccontextmanager
async def usage_worker_in_process(settings: WorkerSettings | Settings, redis_url: str) -> AsyncIterator[None]:
    """Run a usage worker in this process until the context ends. Then it writes waiting receipts."""
    async with _running(settings, redis_url, stop := asyncio.Event()):
        try:
            yield
        finally:
            stop.set()


@asynccontextmanager
async def _running(
    settings: WorkerSettings | Settings, url: str, stop: asyncio.Event
) -> AsyncIterator[asyncio.Task[None]]:
    """Run a worker until `stop` is set. The end of the context waits for its last writes. Raises StartupError."""
    async with AsyncExitStack() as stack:
        client = RedisClient(url, timeout_s=max(_REDIS_TIMEOUT_S, settings.redis.timeout_s), metrics=Metrics())
        stack.push_async_callback(client.close)
        await client.require(embedded=False)
        store = store_of(settings, clock=client.now)
        stack.push_async_callback(store.close)
        replica = replica_lag_of(settings)
        if replica is not None:
            stack.push_async_callback(replica.close)
        keys = RedisKeys(settings.redis.prefix)
        lease = WorkerLease(client.commands, keys.ledger(), f"{socket.gethostname()}-{secrets.token_hex(6)}")
        await lease.join()
        feed = OutboxFeed(client.commands, keys, f"worker-{lease.number}")
        minutes = partial(minutes_in_redis, client.commands, keys.ledger())
        worker = UsageWorker(
            client,
            feed,
            store,
            lease,
            minutes,
            keep_s=settings.usage.keep_s,
            replica_lag=None if replica is None else replica.lag_s,
        )
        tasks = BackgroundTasks()
        stack.push_async_callback(tasks.close)
        tasks.keep("redis", client.watch())
        tasks.keep("publish", worker.publish())
        tasks.keep("partitions", keep_partitions(store))
        if replica is not None:
            tasks.keep("replica", replica.run())
        log.info("usage_worker", number=lease.number, pid=os.getpid(), database=str(store.engine), version=__version__)
        running = tasks.spawn("usage", worker.run(stop))
        try:
            yield running
        finally:
            await tasks.drain(USAGE_FINISH_S)
            log.info("usage_worker_stopped", finished=running.done())


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), child=True))
    except StartupError as error:
        sys.stderr.write(f"gkt-gateway: {error.message}\n")
        sys.exit(1)
