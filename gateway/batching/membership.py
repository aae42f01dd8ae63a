"""Fleet size seen by one process, and its share of the teacher's calls while Redis is unavailable.

Each process has an equal share of the teacher's limit. Right after Redis
becomes unavailable, other processes may hold more than their shares: all permits that this process does not hold. Their
calls end by their deadlines. Until the longest recent deadline has passed, a process therefore has no more calls than
its share or than it had at the start. Afterwards it uses its full share.
"""

from __future__ import annotations

import math
from collections import deque


class _RecentMaximum:
    """The largest recent sample. Samples that a later one surpassed are dropped, so the first is the largest."""

    def __init__(self) -> None:
        self.samples: deque[tuple[float, float]] = deque()  # time, value

    def add(self, value: float, keep_s: float, now: float) -> None:
        while self.samples and self.samples[-1][1] <= value:
            self.samples.pop()
        self.samples.append((now, value))
        while self.samples[0][0] < now - keep_s:
            self.samples.popleft()

    def maximum(self, default: float) -> float:
        return self.samples[0][1] if self.samples else default


class Membership:
    """The fleet as one process knows it. Times are seconds on one clock, passed as `now`."""

    def __init__(self) -> None:
        self._fleet_sizes = _RecentMaximum()
        self._deadlines = _RecentMaximum()
        self.outage_since: float | None = None  # None while Redis replies
        self._held = 0
        self.joined_s = math.inf
        """Time of the first reply from Redis. Other processes learn of this one within a heartbeat."""

    @property
    def fleet_size(self) -> int:
        """Return the largest fleet size of the last lease in which Redis was available.

        After Redis restarts empty it knows few processes, but a missing process may live until its lease expires.
        """
        return int(self._fleet_sizes.maximum(1))

    def record_fleet(self, fleet_size: int, lease_s: float, now: float) -> None:
        """Record the fleet size of a reply from Redis."""
        self.joined_s = min(self.joined_s, now)
        if self.outage_since is not None:
            # The counts did not expire during the outage.
            self._fleet_sizes.samples = deque([(now, value) for _, value in list(self._fleet_sizes.samples)[:1]])
            self.outage_since = None
        self._fleet_sizes.add(fleet_size, lease_s, now)

    def record_deadline(self, deadline_s: float, lease_s: float, now: float) -> None:
        """Record a request's deadline; other processes may have requests with the same deadline."""
        self._deadlines.add(deadline_s, lease_s, now)

    def record_outage(self, held: int, now: float) -> None:
        """Record that Redis is unavailable while this process holds `held` permits."""
        self.outage_since, self._held = now, held

    def share(self, max_in_flight: int, lease_s: float, now: float) -> int:
        """Return how many of the teacher's calls this process may have in flight without Redis."""
        share = max_in_flight // self.fleet_size
        if self.fleet_size > 1 and self.outage_since is not None:
            longest_s = min(lease_s, self._deadlines.maximum(lease_s))
            if now < self.outage_since + longest_s:
                return min(share, self._held)
        return share
