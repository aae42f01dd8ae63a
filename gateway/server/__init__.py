"""More than one core: `gkt-gateway serve --workers N` runs N processes behind one port.

    supervisor.py   starts the workers, and again those that end; drains them; counts for those that are gone
    ports.py        the ports that the workers share, kept while they come and go
    worker.py       one worker: a whole gateway in a process of its own
    stopping.py     how either hears that it is to stop

The kernel hands each new connection to one of the workers, and none of them leads: they meet in Redis, as replicas do.
The supervisor touches no request.
"""

from __future__ import annotations

import msgspec

from gateway.runtime.addresses import GatewayAddresses


class WorkerStarted(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker tells the supervisor, once, as a line of JSON on its stdout: where it listens, or why it cannot."""

    addresses: GatewayAddresses | None = None
    error: str | None = None
