"""Workers share reserved ports."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

import pytest

from gateway.errors import StartupError
from gateway.server import ports
from gateway.server.ports import reserved_port, shared_port

HOST = "127.0.0.1"


def listening(port: int) -> socket.socket:
    """Listen like a worker."""
    return socket.create_server((HOST, port), reuse_port=True)


def test_a_reserved_port_is_available_only_to_its_sharers() -> None:
    with reserved_port(HOST, 0, "server.port") as port:
        assert port > 0
        with listening(port), listening(port), pytest.raises(OSError, match="in use"):
            socket.create_server((HOST, port))


def test_reserving_a_port_takes_no_connections_from_listeners() -> None:
    """The kernel gives each of many connections to one of the two sockets."""
    with (
        reserved_port(HOST, 0, "server.port") as port,
        listening(port) as one,
        listening(port) as other,
        ExitStack() as stack,
    ):
        for server in (one, other):
            server.setblocking(False)
        for _ in range(64):
            stack.enter_context(socket.create_connection((HOST, port), timeout=10))
        taken = [0, 0]
        for index, server in enumerate((one, other)):
            while True:
                try:
                    connection, _ = server.accept()
                except BlockingIOError:
                    break
                stack.enter_context(connection)
                taken[index] += 1
        assert sum(taken) == 64
        assert min(taken) > 0


@pytest.mark.parametrize("shares", [False, True])
def test_a_port_in_use_is_rejected(shares: bool) -> None:
    """A port that its process shares, which may be another gateway, counts as used."""
    with socket.create_server((HOST, 0), reuse_port=shares) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(StartupError, match=rf"127.0.0.1:{port} is already in use.*admin.port"),
            reserved_port(HOST, port, "admin.port"),
        ):
            pytest.fail("kept")


def test_every_address_of_a_host_gets_the_same_port() -> None:
    with reserved_port("localhost", 0, "server.port") as port:
        for family, _, _, _, address in socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM):
            with socket.socket(family, socket.SOCK_STREAM) as other, pytest.raises(OSError, match="in use"):
                other.bind(address)


def test_a_foreign_host_is_reported() -> None:
    with pytest.raises(StartupError, match="cannot be opened"), reserved_port("192.0.2.1", 0, "server.port"):
        pytest.fail("kept")


def test_no_socket_is_inherited_where_workers_listen_themselves() -> None:
    with shared_port(HOST, 0, "server.port") as held, listening(held.number), listening(held.number):
        assert held.descriptors == ()


def test_a_port_accepts_connections_at_once_where_workers_inherit_its_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of the descriptors stand for those of workers."""
    monkeypatch.setattr(ports, "DISTRIBUTES_CONNECTIONS", False)
    with shared_port(HOST, 0, "server.port") as held:
        (descriptor,) = held.descriptors
        workers = [socket.socket(fileno=os.dup(descriptor)) for _ in range(2)]
        for worker in workers:
            with socket.create_connection((HOST, held.number), timeout=10) as caller, worker.accept()[0] as accepted:
                assert accepted.getpeername() == caller.getsockname()
        held.close()
        workers[0].close()
        with socket.create_connection((HOST, held.number), timeout=10):
            workers[1].accept()[0].close()
        workers[1].close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, held.number), timeout=10)


def test_a_port_in_use_is_rejected_where_workers_inherit_its_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "DISTRIBUTES_CONNECTIONS", False)
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=rf":{port} is already in use"), shared_port(HOST, port, "admin.port"):
            pytest.fail("kept")
