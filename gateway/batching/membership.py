"""What a process remembers of its fleet, and so how many calls it may have in flight while Redis is away.

Each process has an even share of what the teacher takes. But right after Redis went the calls of the others are still
under way, and may be more than their share: so for a lease, which no call outlives, a process has no more than it had
itself, or than the others had left when it last looked. (What the others were given since that look it cannot know. A
look is a heartbeat old at most, and under load a few milliseconds.)
"""

from __future__ import annotations

from collections import deque


class Membership:
    """Times are seconds on one clock, handed in as `now`."""

    def __init__(self) -> None:
        # The fleet at looks of the last lease: of those only that no later look surpassed, so the first is the largest.
        self._seen: deque[tuple[float, int]] = deque()
        self._in_flight = 0  # over the fleet, at the last look
        self._alone_since: float | None = None
        self._held = self._others = 0

    @property
    def fleet(self) -> int:
        """The most processes that the fleet had within the last lease in which Redis was there.

        Right after Redis began anew it knows few of them, and one that is not heard of may be alive until its lease
        is over.
        """
        return self._seen[0][1] if self._seen else 1

    def saw(self, fleet: int, in_flight: int, lease_s: float, now: float) -> None:
        """Redis told how many processes there are, and how many calls they have."""
        if self._alone_since is not None:
            # While it was away, nothing was forgotten.
            self._seen = deque([(now, self.fleet)])
            self._alone_since = None
        self._in_flight = in_flight
        while self._seen and self._seen[-1][1] <= fleet:
            self._seen.pop()
        self._seen.append((now, fleet))
        while self._seen[0][0] < now - lease_s:
            self._seen.popleft()

    def go_alone(self, held: int, now: float) -> None:
        """Redis is away; `held` permits of this process are in use."""
        self._alone_since, self._held, self._others = now, held, max(0, self._in_flight - held)

    def share(self, cap: int, lease_s: float, now: float) -> int:
        """How many of the `cap` calls in flight this process may have while it is alone."""
        share = cap // self.fleet
        if self._alone_since is None or now < self._alone_since + lease_s:
            return min(share, max(self._held, cap - self._others))
        return share
