"""What a process remembers of its fleet, and so how many calls it may have in flight while Redis is away.

Each process has an even share of what the teacher takes, those of other versions included. But right after Redis went
the others may have more than theirs: all that this process had not, since what they were given in that moment it cannot
know. Those calls end by their deadlines. So for as long as the longest deadline of late a process has no more calls
than it had when Redis went, nor than its share; then all have their shares.
"""

from __future__ import annotations

import math
from collections import deque


class _Most:
    """The largest number seen of late. Kept are only those that no later one surpassed, so the first is the largest."""

    def __init__(self) -> None:
        self.seen: deque[tuple[float, float]] = deque()

    def see(self, number: float, keep_s: float, now: float) -> None:
        while self.seen and self.seen[-1][1] <= number:
            self.seen.pop()
        self.seen.append((now, number))
        while self.seen[0][0] < now - keep_s:
            self.seen.popleft()

    def largest(self, otherwise: float) -> float:
        return self.seen[0][1] if self.seen else otherwise


class Membership:
    """Times are seconds on one clock, handed in as `now`."""

    def __init__(self) -> None:
        self._fleets = _Most()
        self._besides = _Most()
        self._deadlines = _Most()
        self._alone_since: float | None = None
        self._held = 0
        self.joined_s = math.inf
        """When Redis first answered. The others learn of this process within a heartbeat."""

    @property
    def fleet(self) -> int:
        """The most processes that the fleet had within the last lease in which Redis was there.

        Right after Redis began anew it knows few of them, and one that is not heard of may be alive until its lease
        is over.
        """
        return int(self._fleets.largest(1))

    @property
    def all(self) -> int:
        """The same, and the processes of versions that have a board of their own."""
        return self.fleet + int(self._besides.largest(0))

    def saw(self, fleet: int, lease_s: float, now: float, beside: int = 0) -> None:
        """Redis told how many processes there are, and how many of them have another board."""
        self.joined_s = min(self.joined_s, now)
        if self._alone_since is not None:
            # While it was away, nothing was forgotten.
            self._fleets.seen = deque([(now, self.fleet)])
            self._besides.seen = deque([(now, self.all - self.fleet)])
            self._alone_since = None
        self._fleets.see(fleet, lease_s, now)
        self._besides.see(beside, lease_s, now)

    def asked(self, deadline_s: float, lease_s: float, now: float) -> None:
        """Somebody wants a call to end within so long; others may want the same of other processes."""
        self._deadlines.see(deadline_s, lease_s, now)

    def go_alone(self, held: int, now: float) -> None:
        """Redis is away; `held` permits of this process are in use."""
        self._alone_since, self._held = now, held

    def share(self, cap: int, lease_s: float, now: float) -> int:
        """How many of the `cap` calls in flight this process may have while it is alone."""
        share = cap // self.all
        if self.all > 1 and self._alone_since is not None:
            longest_s = min(lease_s, self._deadlines.largest(lease_s))
            if now < self._alone_since + longest_s:
                return min(share, self._held)
        return share
