"""Processes and ports: `gkt-gateway serve` runs a supervisor, and N workers behind one port.

The kernel distributes new connections among the workers (`ports.py`). Workers are equal, and coordinate through Redis,
like replicas. The supervisor starts, restarts, replaces and drains the workers, and handles no requests. An edit of
config.yaml starts new workers. The earlier ones then accept no connection, and end with their last request.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from gateway.config.edits import EditResult


@dataclass(frozen=True, slots=True)
class GatewayAddresses:
    """The addresses of a running gateway, and its process id in Redis as shown by `gkt-gateway queue`."""

    public: str
    admin: str
    process: str


class ListeningSockets(msgspec.Struct, frozen=True):
    """Descriptors of bound sockets that a worker inherits and listens on.

    `shared`: other workers listen on the same sockets.
    """

    public: tuple[int, ...] = ()
    admin: tuple[int, ...] = ()
    shared: bool = False


class WorkerOptions(msgspec.Struct, frozen=True):
    """The options of a worker, as JSON in its command line.

    Attributes:
        number: the number of the worker in metrics, logs and `/readyz`.
        redis_url: the URL of the embedded Redis; None: the configuration has the URL.
        replaces: whether the worker replaces a running one, and so listens only when it is ready.
    """

    number: int
    sockets: ListeningSockets
    redis_url: str | None = None
    replaces: bool = False


class WorkerStarted(msgspec.Struct, frozen=True, omit_defaults=True):
    """A worker's message to the supervisor, one line of JSON on stdout: its addresses, or the error of its start."""

    addresses: GatewayAddresses | None = None
    error: str | None = None


class SupervisorMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message to a worker, one line of JSON on stdin.

    Attributes:
        edit: the result of an edit of config.yaml.
        retire: accept no more connections, and end with the last request.
    """

    edit: EditResult | None = None
    retire: bool = False
