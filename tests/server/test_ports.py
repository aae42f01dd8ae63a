"""Workers share reserved ports."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from gateway.errors import StartupError
from gateway.server import ports
from gateway.server.ports import SharedPort, reserved_port

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def inherited(port: SharedPort, slot: int) -> socket.socket:
    """Listen on the socket of a slot like its worker, on a copy of the descriptor."""
    (descriptor,) = port.descriptors(slot)
    copy = socket.socket(fileno=os.dup(descriptor))
    copy.listen(64)
    copy.setblocking(False)
    return copy


@pytest.fixture
def port() -> Iterator[SharedPort]:
    held = SharedPort(HOST, 0, "server.port")
    yield held
    held.close()


def accepted(server: socket.socket) -> int:
    """Accept all connections that wait."""
    count = 0
    while True:
        try:
            server.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def test_a_port_gets_no_connections_before_a_worker_listens(port: SharedPort) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, port.number), timeout=10)


def test_a_new_worker_accepts_the_connections_that_wait_for_the_former_one(port: SharedPort) -> None:
    with inherited(port, 1) as former, ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(socket.create_connection((HOST, port.number), timeout=10))
        new = stack.enter_context(inherited(port, 1))
        former.close()
        for _ in range(8):
            stack.enter_context(socket.create_connection((HOST, port.number), timeout=10))
        assert accepted(new) == 16


@pytest.mark.skipif(not ports.DISTRIBUTES_CONNECTIONS, reason="all workers share one socket")
def test_the_slot_of_an_ended_worker_gets_no_connections(port: SharedPort) -> None:
    """The former socket is closed, and the new one gets none before the worker listens again."""
    with ExitStack() as stack:
        other = stack.enter_context(inherited(port, 2))
        inherited(port, 1).close()
        port.renew(1)
        for _ in range(16):
            stack.enter_context(socket.create_connection((HOST, port.number), timeout=10))
        assert accepted(other) == 16
        again = stack.enter_context(inherited(port, 1))
        for _ in range(64):
            stack.enter_context(socket.create_connection((HOST, port.number), timeout=10))
        assert accepted(again) > 0
        port.keep(1)
        assert accepted(other) + accepted(again) > 0


def test_all_workers_share_one_socket_where_the_kernel_distributes_no_connections(
    port: SharedPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "DISTRIBUTES_CONNECTIONS", False)
    assert port.descriptors(1) == port.descriptors(2)
    with inherited(port, 1) as one, socket.create_connection((HOST, port.number), timeout=10):
        port.renew(1)
        with inherited(port, 2) as two:
            assert accepted(two) == 1
        assert accepted(one) == 0


def test_an_edit_may_bind_the_gateways_own_port_on_another_host(port: SharedPort) -> None:
    with inherited(port, 1):
        other = SharedPort("0.0.0.0", port.number, "server.port", exclusive=False)
        assert other.number == port.number
        other.close()
