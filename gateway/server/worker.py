"""The process of one worker, started by the supervisor:

    python -m gateway.server.worker CONFIG OPTIONS

The worker reads the configuration itself. OPTIONS is `WorkerOptions` as JSON. The worker writes `WorkerStarted` to
stdout, and reads `SupervisorMessage` from stdin. When stdin ends it drains, like on SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec
import uvloop

from gateway.accounting.request_log import shorten_request_event
from gateway.app import WatchedFiles
from gateway.errors import StartupError
from gateway.policy.config_files import ConfigFiles
from gateway.server import SupervisorMessage, WorkerOptions, WorkerStarted
from gateway.server.listeners import serve
from gateway.server.stopping import reload_on_sighup, stop_at_end_of_stdin, stop_on_signals
from gateway.telemetry.logs import set_up_logs

if TYPE_CHECKING:
    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet


def main(config: Path, options: WorkerOptions) -> int:
    """Serve until stopped, and return the exit status."""
    # Send all other output of this process to the log.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as supervisor:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            settings, book, files = ConfigFiles.open(config)
            log = settings.log
            set_up_logs(log.level, log.format, worker=options.number, console_processor=shorten_request_event)
            uvloop.run(_work(settings, book, files, options, supervisor))
        except StartupError as error:
            _send(supervisor, WorkerStarted(error=error.message))
            return 1
    return 0


async def _work(
    settings: Settings, book: PolicySet, files: ConfigFiles, options: WorkerOptions, supervisor: BinaryIO
) -> None:
    stop, retire = stop_on_signals(), asyncio.Event()
    watched = WatchedFiles(files, reload_on_sighup(stop))

    def on_message(message: SupervisorMessage) -> None:
        if message.edit is not None:
            watched.edits.put_nowait(message.edit)
        if message.retire:
            retire.set()

    stop_at_end_of_stdin(stop, on_message)
    await serve(
        settings,
        book,
        options.redis_url or settings.redis.url.get_secret_value(),
        stop=stop,
        retire=retire,
        announce=lambda addresses: _send(supervisor, WorkerStarted(addresses=addresses)),
        worker=options.number,
        sockets=options.sockets,
        waits_until_ready=options.replaces,
        watched=watched,
    )


def _send(supervisor: BinaryIO, message: WorkerStarted) -> None:
    supervisor.write(msgspec.json.encode(message) + b"\n")
    supervisor.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=WorkerOptions)))
