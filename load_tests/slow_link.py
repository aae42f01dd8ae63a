"""A slow link, like that of a phone, in front of a server on this machine.

The link shapes HTTP traffic over TCP. Each direction has a rate, shared by all connections, and a delay of half the
round trip. A new connection waits one round trip for its handshake. TLS, loss, slow start and packet headers are not
modelled, so a real link is slower.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from types import TracebackType

# Payload of a packet. Larger pieces would arrive at once, unlike on a real link.
_PACKET_BYTES = 1400
_MOST_UNDER_WAY = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of link: rates in kbit/s from the device's point of view, and the round trip in milliseconds."""

    name: str
    down_kbit: float
    up_kbit: float
    rtt_ms: float


# Firefox's Network Monitor, documentation "Throttling": Regular 3G, Regular 4G/LTE and Wi-Fi, with its minimum latency
# as the round trip.
SHAPES = {
    "3g": Shape("3G", 750, 250, 100),
    "4g": Shape("4G", 4_000, 3_000, 20),
    "wifi": Shape("wifi", 30_000, 15_000, 2),
}


@dataclass(slots=True)
class Lane:
    """A direction. Pure: callers pass the time, in seconds of any clock."""

    kbit: float
    delay_s: float
    bytes: int = 0
    _free_at: float = field(default=0.0)

    def arrives(self, now: float, size_bytes: int) -> float:
        """Return the arrival time of bytes that are sent now."""
        self.bytes += size_bytes
        self._free_at = max(now, self._free_at) + size_bytes * 8 / (self.kbit * 1000)
        return self._free_at + self.delay_s


class SlowLink:
    """A proxy on a free port of this machine in front of the server at `url`, as an async context manager.

    Attributes:
        up, down: bytes sent and received by the device so far.
    """

    def __init__(self, url: str, shape: Shape) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None, "the address has no host"
        self._server = parts.hostname, parts.port
        self._rtt_s = shape.rtt_ms / 1000
        self.up = Lane(shape.up_kbit, self._rtt_s / 2)
        self.down = Lane(shape.down_kbit, self._rtt_s / 2)
        self.url = ""

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    async def _connected(self, device: asyncio.StreamReader, to_device: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self._rtt_s)
        try:
            server, to_server = await asyncio.open_connection(*self._server)
        except OSError:
            to_device.close()
            return
        async with asyncio.TaskGroup() as both:
            both.create_task(_carried(device, to_server, self.up), name="up")
            both.create_task(_carried(server, to_device, self.down), name="down")


async def _carried(source: asyncio.StreamReader, target: asyncio.StreamWriter, lane: Lane) -> None:
    """Forward bytes until the source ends, each at its arrival time."""
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MOST_UNDER_WAY)

    async def deliver() -> None:
        while True:
            at, data = await under_way.get()
            await asyncio.sleep(max(0.0, at - loop.time()))
            if not data:
                return
            target.write(data)
            await target.drain()

    async def read() -> None:
        with suppress(ConnectionError):
            while data := await source.read(_PACKET_BYTES):
                await under_way.put((lane.arrives(loop.time(), len(data)), data))
        await under_way.put((loop.time() + lane.delay_s, b""))

    with suppress(ConnectionError):
        reading = loop.create_task(read(), name="read")
        try:
            await deliver()
        finally:
            reading.cancel()
            target.close()
