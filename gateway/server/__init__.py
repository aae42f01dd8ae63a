"""Processes and ports. `gkt-gateway serve --workers N` runs N processes behind one port.

The kernel distributes new connections among the workers (`ports.py`). Workers are equal, and coordinate through Redis,
like replicas. The supervisor starts, restarts and drains the workers, and handles no requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True)
class GatewayAddresses:
    """The addresses of a running gateway, and its process id in Redis as shown by `gkt-gateway queue`."""

    public: str
    admin: str
    process: str


class ListeningSockets(msgspec.Struct, frozen=True):
    """Descriptors of listening sockets that a worker inherits, where workers cannot listen on one port themselves."""

    public: tuple[int, ...] = ()
    admin: tuple[int, ...] = ()


class WorkerStarted(msgspec.Struct, frozen=True, omit_defaults=True):
    """A worker's message to the supervisor, one line of JSON on stdout: its addresses, or the error of its start."""

    addresses: GatewayAddresses | None = None
    error: str | None = None
