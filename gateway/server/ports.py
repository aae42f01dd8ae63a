"""Reserve the ports that workers share, while workers start and end.

With SO_REUSEPORT, several sockets may listen on one port, and the kernel distributes new connections among them. A
socket that is bound but does not listen gets no connections: it only reserves the port.
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
    """Reserve `port` on every address of `host` for processes of this user. Yield its number. 0: any free port.

    Raises StartupError, which names the setting `field`, if the port is in use.
    """
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
        except OSError as error:
            raise listen_error(error, host, port, field) from error
        yield port


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
