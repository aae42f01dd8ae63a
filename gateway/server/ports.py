"""The ports that the workers share, kept by the supervisor while workers come and go.

With SO_REUSEPORT several sockets may listen on one port, and the kernel gives each of them its part of the new
connections. A socket that is bound and does not listen gets none: it only keeps the port.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from gateway.server.listeners import listen_error

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def reserved_port(host: str, port: int, field: str) -> Iterator[int]:
    """Keep `port` of every address of `host` for processes of this user that share it; yields its number, also for 0.

    `field` is the setting that an error names. Raises StartupError when the port is taken.
    """
    with ExitStack() as stack:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, _, _, _, address in dict.fromkeys(found):
                where = (address[0], port, *address[2:])
                if port:
                    # Sharing must be told from a port that another gateway of this user shares already.
                    _bound(family, where, shared=False).close()
                kept = stack.enter_context(_bound(family, where, shared=True))
                port = kept.getsockname()[1]
        except OSError as error:
            raise listen_error(error, host, port, field) from error
        yield port


def _bound(family: int, address: tuple[object, ...], *, shared: bool) -> socket.socket:
    """A bound socket with the options that asyncio gives to those that listen. Raises OSError."""
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
