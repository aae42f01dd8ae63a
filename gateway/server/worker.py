"""The process of one worker, started by the supervisor:

    python -m gateway.server.worker CONFIG NUMBER SOCKETS

The worker reads the configuration itself. SOCKETS is `ListeningSockets` as JSON. Addresses and the URL of an embedded
Redis are in the environment. The worker writes `WorkerStarted` to stdout. When stdin ends it drains, like on SIGTERM.
"""

from __future__ import annotations

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
from gateway.server import ListeningSockets, WorkerStarted
from gateway.server.listeners import serve
from gateway.server.stopping import reload_on_sighup, stop_at_end_of_stdin, stop_on_signals
from gateway.telemetry.logs import set_up_logs

if TYPE_CHECKING:
    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet


def main(config: Path, number: int, sockets: ListeningSockets) -> int:
    """Serve until stopped, and return the exit status."""
    # Send all other output of this process to the log.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as supervisor:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            settings, book, files = ConfigFiles.open(config)
            set_up_logs(settings.log.level, settings.log.format, worker=number, console_processor=shorten_request_event)
            uvloop.run(_work(settings, book, files, number, sockets, supervisor))
        except StartupError as error:
            _send(supervisor, WorkerStarted(error=error.message))
            return 1
    return 0


async def _work(
    settings: Settings,
    book: PolicySet,
    files: ConfigFiles,
    number: int,
    sockets: ListeningSockets,
    supervisor: BinaryIO,
) -> None:
    stop = stop_on_signals()
    stop_at_end_of_stdin(stop)
    await serve(
        settings,
        book,
        settings.redis.url.get_secret_value(),
        stop=stop,
        announce=lambda addresses: _send(supervisor, WorkerStarted(addresses=addresses)),
        worker=number,
        sockets=sockets,
        watched=WatchedFiles(files, reload_on_sighup(stop)),
    )


def _send(supervisor: BinaryIO, message: WorkerStarted) -> None:
    supervisor.write(msgspec.json.encode(message) + b"\n")
    supervisor.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), msgspec.json.decode(sys.argv[3], type=ListeningSockets)))
