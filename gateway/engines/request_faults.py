"""Which failures of an engine are the fault of the request that was sent. Pure: it is told the time.

Some servers answer 500 to a request that they cannot take: llama.cpp does to invalid tools, to unreadable images and to
an unknown `reasoning_format`. Such a request fails each time, while others succeed. An engine that is broken fails at
others too; one that is broken now and then lets the same request succeed when it is sent again.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

_MOST = 1024
_KEPT_S = 300.0
_KEPT_SUCCESSES = 8
_LEAST_FAILURES = 2
# So long after a failed request succeeded on a retry, the engine counts as one that fails by chance.
_BY_CHANCE_S = 60.0


@dataclass(slots=True)
class _Failing:
    """A request that failed. `since` is when its first failed call was sent."""

    since: float
    last: float
    times: int = 1


class RequestFaults:
    """The requests that failed at one engine of late, and the evidence for and against each."""

    def __init__(self) -> None:
        self._failing: OrderedDict[bytes, _Failing] = OrderedDict()
        self._ids: OrderedDict[str, bytes] = OrderedDict()
        self._successes: deque[tuple[float, float]] = deque(maxlen=_KEPT_SUCCESSES)  # when each was sent, and answered
        self._by_chance_until = 0.0

    def failed(self, fingerprint: bytes, request_id: str, sent: float, now: float) -> int:
        """Note a failed call. Returns how many times the same request has failed.

        Args:
            fingerprint: a hash of what was sent.
            sent: when the call was sent.
        """
        failing = self._failing.pop(fingerprint, None)
        if failing is None or now - failing.last > _KEPT_S:
            failing = _Failing(sent, now)
        else:
            failing.times, failing.last = failing.times + 1, now
        self._failing[fingerprint] = failing
        if request_id:
            self._ids[request_id] = fingerprint
        for kept in (self._failing, self._ids):
            if len(kept) > _MOST:
                kept.popitem(last=False)
        return failing.times

    def succeeded(self, request_id: str, sent: float, now: float) -> None:
        """Note a call that the engine answered. `sent` is when it was sent."""
        self._successes.append((sent, now))
        if self._ids and (fingerprint := self._ids.pop(request_id, None)) is not None:
            self._failing.pop(fingerprint, None)
            self._by_chance_until = now + _BY_CHANCE_S

    def fails_by_chance(self, now: float) -> bool:
        """Return whether requests that failed have succeeded since: then no failure is proven to be a request's own."""
        return now < self._by_chance_until

    def is_proven(self, fingerprint: bytes, sent: float) -> bool:
        """Return whether the request itself makes the engine fail.

        It failed, then another call was sent and answered, and after that it was sent and failed again.

        Args:
            sent: when the last of its failed calls was sent.
        """
        failing = self._failing.get(fingerprint)
        if failing is None or failing.times < _LEAST_FAILURES or self.fails_by_chance(failing.last):
            return False
        return any(failing.since < since and answered <= sent for since, answered in self._successes)
