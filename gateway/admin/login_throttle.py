"""Delay of rejected logins."""

from __future__ import annotations

import asyncio
from collections import Counter

from aiohttp import web

from gateway.errors import RateLimited


class LoginThrottle:
    """Delays replies to wrong admin keys by `pause_s`, and bounds how many may wait: in all, and per client address.

    It protects log and workers from a flood. The correct key is always accepted: otherwise a client that sends wrong
    keys could lock operators out, for example behind a shared proxy. Keys are too long to guess at any rate.
    """

    def __init__(self, pause_s: float = 1.0, max_waiting: int = 32, max_per_address: int = 4) -> None:
        self._pause_s = pause_s
        self._max_waiting = max_waiting
        self._max_per_address = max_per_address
        self._waiting: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        return self._waiting.total()

    def admit(self, remote: str) -> None:
        """Raise RateLimited if too many rejected logins wait already."""
        if self._waiting[remote] >= self._max_per_address or self._waiting.total() >= self._max_waiting:
            raise RateLimited("Too many logins with a wrong key. Wait a few seconds.", retry_after_s=self._pause_s)

    async def fail(self, remote: str) -> None:
        """Wait for the delay of a rejected login."""
        self._waiting[remote] += 1
        try:
            await asyncio.sleep(self._pause_s)
        finally:
            self._waiting[remote] -= 1
            if not self._waiting[remote]:
                del self._waiting[remote]


ATTEMPTS = web.AppKey("attempts", LoginThrottle)
