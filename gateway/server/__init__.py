"""Processes and ports. `gkt-gateway serve --workers N` runs N processes behind one port.

    supervisor.py    starts, restarts and drains the workers
    ports.py         reserves the ports that the workers share
    worker.py        one worker: a gateway process
    listeners.py     the two listeners of a gateway, and its graceful shutdown
    stopping.py      signals, and the end of stdin
    usage_child.py   runs the usage worker as a child process
    usage_worker.py  the process of a usage worker
    in_process.py    a gateway inside another process

The kernel distributes new connections among the workers. Workers are equal, and coordinate through Redis, like
replicas. The supervisor handles no requests.
"""

from __future__ import annotations

import msgspec

from gateway.runtime.addresses import GatewayAddresses


class WorkerStarted(msgspec.Struct, frozen=True, omit_defaults=True):
    """A worker's message to the supervisor, one line of JSON on stdout: its addresses, or the error of its start."""

    addresses: GatewayAddresses | None = None
    error: str | None = None
