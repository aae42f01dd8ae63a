"""Hold the ports that workers share, while workers start, are replaced, and end.

The supervisor binds the sockets, and the workers inherit them and listen. On Linux, SO_REUSEPORT lets several sockets
listen on one port, and the kernel distributes new connections among them, so each worker has its own. A worker that is
replaced passes its socket on: connections that wait in its queue are accepted by the new worker. A socket that is bound
but does not listen gets no connections. Other systems give all connections to one of several sockets. There all workers
share one.
"""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator


DISTRIBUTES_CONNECTIONS = sys.platform == "linux"
"""True if the kernel distributes the connections to a port among the sockets that listen on it."""


class SharedPort:
    """A port of several workers.

    Attributes:
        address: host and port as configured; port 0 is any free port.
        number: the port.
    """

    def __init__(self, host: str, port: int, field: str, *, exclusive: bool = True) -> None:
        """Bind the port on every address of `host`.

        `exclusive`: fail if another process listens on the port. Raises StartupError, which names the setting `field`,
        if the port is in use.
        """
        self.address = host, port
        self._field = field
        reserved = _bind_all(host, port, field, exclusive=exclusive)
        self.number: int = reserved[0].getsockname()[1]
        self._by_slot = {1: reserved}

    def descriptors(self, slot: int) -> tuple[int, ...]:
        """Return the descriptors of the sockets for the worker of a slot, from 1 on."""
        if not DISTRIBUTES_CONNECTIONS:
            slot = 1
        if slot not in self._by_slot:
            self._by_slot[slot] = _bind_all(self.address[0], self.number, self._field, exclusive=False)
        return tuple(one.fileno() for one in self._by_slot[slot])

    def renew(self, slot: int) -> None:
        """Replace the sockets of a slot whose worker has ended, so that they get no connections before its restart.

        Raises StartupError if the port cannot be bound again. The sockets stay as they are then.
        """
        if DISTRIBUTES_CONNECTIONS and slot in self._by_slot:
            former = self._by_slot[slot]
            # Before the former are closed, so that no other process takes the port.
            self._by_slot[slot] = _bind_all(self.address[0], self.number, self._field, exclusive=False)
            _close(former)

    def keep(self, slots: int) -> None:
        """Close the sockets of higher slots."""
        for slot in [slot for slot in self._by_slot if slot > slots]:
            _close(self._by_slot.pop(slot))

    def close(self) -> None:
        """Close the sockets: the kernel rejects new connections once all workers have closed theirs."""
        self.keep(0)


@contextmanager
def reserved_port(host: str, port: int, field: str) -> Iterator[int]:
    """Reserve `port` on every address of `host` for processes of this user. Yield its number. 0: any free port.

    Raises StartupError, which names the setting `field`, if the port is in use.
    """
    held = SharedPort(host, port, field)
    try:
        yield held.number
    finally:
        held.close()


def listen_error(error: OSError, host: str, port: int, field: str) -> StartupError:
    """Return the error for an address that cannot be opened. `field` is the setting of the port, or an option."""
    reason = "is already in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
    where = field if field.startswith("--") else f"{field} in config.yaml"
    return StartupError(
        f"{host}:{port} {reason}. Stop the process that listens there, or choose another port: {where}."
    )


def _bind_all(host: str, port: int, field: str, *, exclusive: bool) -> list[socket.socket]:
    with ExitStack() as stack:
        sockets: list[socket.socket] = []
        try:
            resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, _, _, _, resolved_address in dict.fromkeys(resolved):
                address = (resolved_address[0], port, *resolved_address[2:])
                if port and exclusive:
                    # Fail if another gateway of this user already shares the port.
                    _bound(family, address, shared=False).close()
                bound = stack.enter_context(_bound(family, address, shared=True))
                port = bound.getsockname()[1]
                sockets.append(bound)
        except UnicodeError as error:  # a label of the host name is empty or too long
            raise StartupError(f"{host!r} is no host name or address: correct the host beside {field}.") from error
        except OSError as error:
            raise listen_error(error, host, port, field) from error
        stack.pop_all()
        return sockets


def _bound(family: int, address: tuple[object, ...], *, shared: bool) -> socket.socket:
    """Return a bound socket with the options of asyncio's listening sockets. Raises OSError."""
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


def _close(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()
