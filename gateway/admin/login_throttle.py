"""Limits of logins for each client address, and the delay of rejected logins."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager, suppress
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.errors import RateLimited

if TYPE_CHECKING:
    from collections.abc import Iterator

_IPV6_PREFIX = 64


class AddressSlots:
    """Bounds concurrent work: in all, and for each client address. The addresses of an IPv6 network of 64 bits count
    as one, because one client may have all of them."""

    def __init__(self, most: int, most_per_address: int) -> None:
        self.most, self.most_per_address = most, most_per_address
        self._held: Counter[str] = Counter()

    @property
    def held(self) -> int:
        return self._held.total()

    def is_full(self, address: str) -> bool:
        """Return whether this address has no free slot."""
        return self._held[_client(address)] >= self.most_per_address or self.held >= self.most

    @contextmanager
    def hold(self, address: str) -> Iterator[None]:
        """Hold a slot inside the block."""
        client = _client(address)
        self._held[client] += 1
        try:
            yield
        finally:
            self._held[client] -= 1
            if not self._held[client]:
                del self._held[client]


class LoginThrottle:
    """Delays replies to wrong admin keys by `pause_s`, and bounds how many may wait: in all, and per client address.

    It protects log and workers from a flood. The correct key is always accepted: otherwise a client that sends wrong
    keys could lock operators out, for example behind a shared proxy. Keys are too long to guess at any rate.
    """

    def __init__(self, pause_s: float = 1.0, max_waiting: int = 32, max_per_address: int = 4) -> None:
        self._pause_s = pause_s
        self._slots = AddressSlots(max_waiting, max_per_address)

    @property
    def waiting(self) -> int:
        return self._slots.held

    def admit(self, remote: str) -> None:
        """Raise RateLimited if too many rejected logins wait already."""
        if self._slots.is_full(remote):
            raise RateLimited("Too many logins with a wrong key. Wait a few seconds.", retry_after_s=self._pause_s)

    async def fail(self, remote: str) -> None:
        """Wait for the delay of a rejected login."""
        with self._slots.hold(remote):
            await asyncio.sleep(self._pause_s)


def _client(address: str) -> str:
    """Return the name under which an address is counted."""
    with suppress(ValueError):
        parsed = ip_address(address.partition("%")[0])
        if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        if isinstance(parsed, IPv6Address):
            return str(IPv6Network((parsed, _IPV6_PREFIX), strict=False))
    return address


ATTEMPTS = web.AppKey("attempts", LoginThrottle)
