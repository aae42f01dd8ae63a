"""Hold the ports that workers share, while workers start and end.

On Linux, SO_REUSEPORT lets several sockets listen on one port, and the kernel distributes new connections among them. A
socket that is bound but does not listen gets no connections: it only reserves the port. Other systems give all
connections to one of the sockets. There the supervisor listens, and the workers inherit its sockets.
"""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.server.listeners import listen_error

if TYPE_CHECKING:
    from collections.abc import Iterator


_BACKLOG = 128
DISTRIBUTES_CONNECTIONS = sys.platform == "linux"
"""True if the kernel distributes the connections to a port among the sockets that listen on it."""


@dataclass(frozen=True, slots=True)
class HeldPort:
    """A port, and its listening sockets where workers must inherit them."""

    number: int
    listening: tuple[socket.socket, ...]

    @property
    def descriptors(self) -> tuple[int, ...]:
        return tuple(one.fileno() for one in self.listening)

    def close(self) -> None:
        """Close the listening sockets: the kernel rejects new connections once all workers have closed theirs."""
        for one in self.listening:
            one.close()


@contextmanager
def shared_port(host: str, port: int, field: str) -> Iterator[HeldPort]:
    """Hold a port of several workers like `reserved_port`. Listen on it where workers inherit sockets."""
    with _bound_port(host, port, field) as (number, sockets):
        if DISTRIBUTES_CONNECTIONS:
            yield HeldPort(number, ())
            return
        try:
            for one in sockets:
                one.listen(_BACKLOG)
        except OSError as error:
            raise listen_error(error, host, number, field) from error
        yield HeldPort(number, tuple(sockets))


@contextmanager
def reserved_port(host: str, port: int, field: str) -> Iterator[int]:
    """Reserve `port` on every address of `host` for processes of this user. Yield its number. 0: any free port.

    Raises StartupError, which names the setting `field`, if the port is in use.
    """
    with _bound_port(host, port, field) as (number, _):
        yield number


@contextmanager
def _bound_port(host: str, port: int, field: str) -> Iterator[tuple[int, list[socket.socket]]]:
    sockets: list[socket.socket] = []
    with ExitStack() as stack:
        try:
            resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, _, _, _, resolved_address in dict.fromkeys(resolved):
                address = (resolved_address[0], port, *resolved_address[2:])
                if port:
                    # Fail if another gateway of this user already shares the port.
                    _bound(family, address, shared=False).close()
                reserved = stack.enter_context(_bound(family, address, shared=True))
                port = reserved.getsockname()[1]
                sockets.append(reserved)
        except OSError as error:
            raise listen_error(error, host, port, field) from error
        yield port, sockets


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
