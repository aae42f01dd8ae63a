"""Send a flood of requests with many connections and minimal CPU time per connection.

    python -m load_tests.floods.client --url http://127.0.0.1:9000/v1/chat/completions --flood JSON --for 10

It prints "ready" after its callers are connected. At its end it prints one line of JSON with the numbers of replies by
status, and of lost connections.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import signal
import socket
from collections import Counter
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import uvloop

from load_tests.floods.kinds import FLOODS, TOGETHER, Flood, named

if TYPE_CHECKING:
    from collections.abc import Sequence

_OPENED_PER_S = 2000
_READY_WITHIN_S = 5.0
_REOPEN_S = 0.2
_RETRY_S = 0.05
_RECEIVE_BYTES = 4096  # of an unread stream: a small buffer in the kernel
_CHUNKED = -1
_LAST_CHUNK = b"0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class FloodCallers:
    """All callers of one flood."""

    def __init__(self, flood: Flood, url: str) -> None:
        address = urlsplit(url)
        self.flood = flood
        self.request = flood.request(url)
        self.seen: Counter[str] = Counter()
        self._transports: set[asyncio.Transport] = set()  # uvloop drops a transport without references
        self._ended = False
        self._to = (address.hostname or "127.0.0.1", address.port or 80)

    async def open(self) -> None:
        """Connect one caller. Retry a failed connection."""
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        if self.flood.manner == "unread":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        try:
            await loop.sock_connect(sock, self._to)
            await loop.create_connection(lambda: FloodConnection(self), sock=sock)
        except OSError:
            sock.close()
            self.seen["not connected"] += 1
            self.reopen()
        else:
            self.seen["opened"] += 1

    def end(self) -> None:
        """Close all connections. Open no more."""
        self._ended = True
        for transport in self._transports:
            transport.abort()

    def reopen(self) -> None:
        if self._ended:
            return
        loop = asyncio.get_running_loop()
        loop.call_later(_REOPEN_S, lambda: loop.create_task(self.open()))

    def holds(self, transport: asyncio.Transport) -> None:
        self._transports.add(transport)

    def lost(self, transport: asyncio.Transport) -> None:
        """Count a lost connection and open another one."""
        self._transports.discard(transport)
        if not self._ended:
            self.seen["lost"] += 1
            self.reopen()

    async def run(self) -> None:
        """Open all of them at an even rate."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(self.flood.callers):
            await asyncio.sleep(began + number / _OPENED_PER_S - loop.time())
            await self.open()


class FloodConnection(asyncio.Protocol):
    """A connection of a flood."""

    def __init__(self, callers: FloodCallers) -> None:
        self._callers = callers
        self._left = 0  # remaining bytes of the reply; _CHUNKED: until its last chunk
        self._status = ""
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transport is no subclass of asyncio.Transport
        self._callers.holds(self._transport)
        self._transport.write(self._callers.request)

    def connection_lost(self, _: Exception | None) -> None:
        self._callers.lost(self._transport)

    def data_received(self, data: bytes) -> None:
        if self._left == 0:  # first bytes of a reply; its head arrives in one piece
            self._status = data[9:12].decode(errors="replace")
            self._callers.seen[self._status] += 1
            if self._callers.flood.manner == "unread" and self._status == "200":
                self._transport.pause_reading()
                return
            head, _, rest = data.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            self._left = int(length[1]) - len(rest) if length else _CHUNKED
            self._tail, data = b"", rest
        elif self._left > 0:
            self._left -= len(data)
        self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
        if self._left == 0 or (self._left < 0 and self._tail == _LAST_CHUNK):
            self._left = 0
            # Without a pause after 503 and 429, the callers would mostly measure themselves.
            wait_s = _RETRY_S if self._status in {"503", "429"} else 0.0
            if wait_s:
                asyncio.get_running_loop().call_later(wait_s, self._ask)
            else:
                self._ask()

    def _ask(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._callers.request)


async def run(floods: Sequence[Flood], url: str, for_s: float) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.call_later(for_s, stop.set)
    crowds = [FloodCallers(flood, url) for flood in floods]
    openers = [loop.create_task(crowd.run()) for crowd in crowds]
    await asyncio.wait(openers, timeout=_READY_WITHIN_S)
    print("ready", flush=True)
    await stop.wait()
    for task in openers:
        task.cancel()
    print(json.dumps(sum((crowd.seen for crowd in crowds), Counter())), flush=True)


def main() -> None:
    flags = argparse.ArgumentParser(description="A flood of requests to 127.0.0.1.")
    flags.add_argument("--url", required=True, help="of the chat completions, on the loopback interface")
    flags.add_argument("--flood", required=True, choices=[*(flood.name for flood in FLOODS), TOGETHER])
    flags.add_argument("--for", type=float, default=10.0, dest="for_s", help="time limit in seconds")
    given = flags.parse_args()
    if urlsplit(given.url).hostname != "127.0.0.1":
        flags.error("--url must be on 127.0.0.1")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(run(named(given.flood), given.url, min(given.for_s, 600.0)))


if __name__ == "__main__":
    main()
