"""Run the processes of `gkt-gateway serve`: start workers, replace them after an edit of config.yaml, and stop them.

A valid edit starts new workers. When all of them are ready they take over the ports, and the earlier workers end with
their last request. An invalid edit, or one with which the workers do not start, changes nothing and is reported.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack, ExitStack, contextmanager
from time import time
from typing import TYPE_CHECKING

import structlog

from gateway.config.changes import changed_settings
from gateway.config.edits import EditResult
from gateway.config.yaml_source import display_path
from gateway.errors import StartupError
from gateway.policy.config_files import version_of
from gateway.policy.reload import MAX_LOGGED, log_issues
from gateway.runtime.tasks import BackgroundTasks
from gateway.server.generation import Generation, HostParts
from gateway.server.ports import SharedPort
from gateway.telemetry.logs import set_up_logs
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.config.settings import Settings
    from gateway.policy.config_files import ConfigReading
    from gateway.server.config_watch import ConfigWatch

log = structlog.get_logger()

MAX_RETIRED = 3
"""Maximum number of earlier editions whose workers still finish requests. A further edit waits for one of them."""
_READY_LIMIT_S = 120.0


class Supervisor:
    """Run the workers of the gateway.

    Args:
        workers: the number of workers; None: `server.workers`.
    """

    def __init__(self, config: Path, watch: ConfigWatch, workers: int | None) -> None:
        self._config, self._watch, self._workers = config, watch, workers
        self._tasks = BackgroundTasks()
        self._host: HostParts
        self._current: Generation
        self._open: set[Generation] = set()  # the current one, one that starts, and the retired
        self._ending: set[asyncio.Task[None]] = set()
        self._drained = True
        self._issues: tuple[str, ...] = ()

    async def run(self, stop: asyncio.Event, reload: asyncio.Event) -> bool:
        """Keep the workers running until `stop` is set. Then drain them. Return whether all ended regularly in time.

        Each time `reload` is set, read config.yaml, and let the workers read their policies.

        Raises StartupError if a port is in use, or if a worker does not start.
        """
        settings = self._watch.settings
        async with AsyncExitStack() as stack:
            redis_url = None
            if settings.redis.url.get_secret_value() == "embedded":
                from gateway.local.redis import EmbeddedRedis

                redis_url = (await stack.enter_async_context(EmbeddedRedis())).url
            folder = stack.enter_context(_shared_folder())
            self._host = HostParts(self._config, folder, redis_url)
            ports = self._ports_of(settings, None)
            for port in ports:
                stack.callback(port.close)
            self._current = self._generation_of(settings, ports, replaces=False)
            serving = asyncio.get_running_loop().create_task(self._serve(reload), name="serve")  # its error is raised
            stopped = self._tasks.spawn("stop", stop.wait())
            try:
                await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    await serving  # raises the error of the start
            finally:
                serving.cancel()
                stopped.cancel()
                for port in (self._current.public, self._current.admin):
                    port.close()
                await self._stop_all()
        return self._drained

    async def _serve(self, reload: asyncio.Event) -> None:
        """Start the first workers, and then apply edits of config.yaml until canceled."""
        await self._current.start()
        self._announce("listening", version=__version__)
        now = asyncio.Event()

        async def forward() -> None:
            while True:
                await reload.wait()
                reload.clear()
                now.set()
                self._current.reload_policies()

        forwarding = self._tasks.spawn("forward_reload", forward())
        try:
            while True:
                edit = await self._watch.next(now)
                try:
                    await self._apply(edit)
                except Exception as error:
                    # The loop must survive any error to see the next edit.
                    log.exception("edit_failed")
                    self._refuse(edit, f"failed with {type(error).__name__}: see the log", retries=True)
        finally:
            forwarding.cancel()

    async def _apply(self, edit: ConfigReading) -> None:
        """Put an edit into effect, or report why it is not used."""
        settings = edit.settings
        if settings is None:
            self._refuse(edit, *edit.issues)
        elif edit.digest == self._watch.digest and settings == self._watch.settings:
            self._watch.accept(edit, settings)
            if self._issues:
                self._issues = ()
                log.info("config_valid_again", version=version_of(edit.digest))
                self._current.report(EditResult(time(), "applied"))
        elif len(self._open) > MAX_RETIRED:
            where = display_path(self._config)
            waiting = f"{where}: waits until workers of earlier edits have finished their requests"
            self._refuse(edit, waiting, retries=True)
        else:
            await self._replace(edit, settings)

    async def _replace(self, edit: ConfigReading, settings: Settings) -> None:
        """Start the workers of an edit, and retire the current ones when the new ones are ready."""
        former = self._current
        former.is_replaced = True
        try:
            new = await self._started(settings, former)
        except StartupError as error:
            self._refuse(edit, f"{display_path(self._config)}: {error.message}", retries=True)
            return
        finally:
            former.is_replaced = False
        self._retire(former, new)
        if former.outbox == new.outbox:
            former.stop_usage_worker()
        before, self._current, self._issues = self._watch.settings, new, ()
        self._watch.accept(edit, settings)
        set_up_logs(settings.log.level, settings.log.format)
        changed = changed_settings(before, settings)
        self._announce("config_loaded", version=version_of(edit.digest), settings=changed)
        new.report(EditResult(time(), "applied", settings=changed))

    async def _started(self, settings: Settings, former: Generation) -> Generation:
        """Start workers beside the former ones. Raises StartupError if they do not become ready."""
        embedded = settings.redis.url.get_secret_value() == "embedded"
        if embedded != (self._host.redis_url is not None):
            raise StartupError("redis.url: restart the gateway to begin or end the use of the embedded Redis.")
        ports = self._ports_of(settings, (former.public, former.admin))
        new = self._generation_of(settings, ports, replaces=True)
        try:
            await new.start(_READY_LIMIT_S)
        except Exception:
            self._retire(new, former)  # those that are ready may have requests
            raise
        return new

    def _retire(self, retired: Generation, current: Generation) -> None:
        """Let workers end with their last request. The current workers keep the ports that both have."""
        retired.retire()
        for port in (retired.public, retired.admin):
            if port in (current.public, current.admin):
                port.keep(current.workers)
            else:
                port.close()
        ending = self._tasks.spawn("retired", self._end(retired))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    def _refuse(self, edit: ConfigReading, *issues: str, retries: bool = False) -> None:
        """Report why the current config.yaml is not used."""
        self._watch.refuse(edit, retries=retries)
        if issues != self._issues:
            self._issues = issues
            log_issues("config_refused", version_of(self._watch.digest), issues)
            self._current.report(EditResult(time(), "refused", issues=issues[:MAX_LOGGED]))

    def _generation_of(self, settings: Settings, ports: tuple[SharedPort, SharedPort], *, replaces: bool) -> Generation:
        workers = self._workers or settings.server.workers
        generation = Generation(settings, self._host, ports, workers, replaces=replaces)
        self._open.add(generation)
        return generation

    @staticmethod
    def _ports_of(settings: Settings, current: tuple[SharedPort, SharedPort] | None) -> tuple[SharedPort, SharedPort]:
        """Return the two ports of the settings: those of `current` where host and port did not change."""
        own = set() if current is None else {port.number for port in current}
        server, admin = settings.server, settings.admin
        listeners = (server.host, server.port, "server.port"), (admin.host, admin.port, "admin.port")
        ports = list[SharedPort]()
        with ExitStack() as opened:
            for (host, number, field), port in zip(listeners, current or (None, None), strict=True):
                if port is not None and port.address == (host, number):
                    ports.append(port)
                else:
                    ports.append(SharedPort(host, number, field, exclusive=number not in own))
                    opened.callback(ports[-1].close)
            opened.pop_all()
        public, operators = ports
        return public, operators

    def _announce(self, event: str, **facts: object) -> None:
        addresses, workers = self._current.addresses, self._current.workers
        urls = {"public": addresses.public, "admin": addresses.admin}
        log.info(event, **facts, **urls, workers=workers)

    async def _end(self, generation: Generation) -> None:
        """Wait until a generation has ended."""
        drained = await generation.ended()
        self._open.discard(generation)
        self._drained = self._drained and drained

    async def _stop_all(self) -> None:
        """Drain all workers."""
        for generation in self._open:
            generation.stop()
        retired = set(self._ending)
        await asyncio.gather(*(self._end(one) for one in set(self._open)), *retired)


@contextmanager
def _shared_folder() -> Iterator[str]:
    """Yield a temporary folder for the workers' metrics. Raises StartupError."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="gkt-metrics-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StartupError(
            f"The folder for shared metrics of workers cannot be created ({error.strerror}). Set TMPDIR to a writable "
            "folder."
        ) from error
    with folder as path:
        yield path
