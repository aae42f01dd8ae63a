"""How the adding up of receipts stands, for metrics and the operators' listener."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gateway.metrics import Metrics

Of = Literal["sums", "archive"]


class LedgerState:
    """What one process knows. Only the one that adds up knows more than that it does not.

    Args:
        metrics: None: only the attributes are kept.

    Attributes:
        leads: whether this process adds up.
        added: receipts that it added up.
        lag_s: the age of the oldest receipt that is not added up, at the end of the last round.
        waiting: receipts that wait to be added up; None: not known yet.
        buffered: receipts in all outboxes, to be added up or archived.
        lost: what went before it was added up (sums), or before it was archived (archive).
    """

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._metrics = metrics
        self.leads = False
        self.added = 0
        self.lag_s = 0.0
        self.waiting: int | None = None
        self.buffered: int | None = None
        self.lost: dict[Of, int] = {"sums": 0, "archive": 0}
        self._rolled_at = time.monotonic()

    def lead(self, *, leads: bool) -> None:
        """Whether this process adds up from now on. Of what it no longer knows it says 0, not what it knew last."""
        if self.leads and not leads:
            self._lag(0.0)
            self.looked(0, 0)
        self.leads = leads

    def rolled(self, count: int, oldest_ms: int | None) -> None:
        """A round is over. `oldest_ms`: when the first of what it added was settled, if more waits."""
        self.added += count
        self._rolled_at = time.monotonic()
        if self._metrics is not None:
            self._metrics.receipts_added_up.inc(count)
        self._lag(max(0.0, time.time() - oldest_ms / 1000) if oldest_ms is not None else 0.0)

    def stuck(self) -> None:
        """A round failed: what came since the last one waits."""
        if self.leads:
            self._lag(time.monotonic() - self._rolled_at)

    def _lag(self, lag_s: float) -> None:
        self.lag_s = lag_s
        if self._metrics is not None:
            self._metrics.rollup_lag.set(lag_s)

    def looked(self, waiting: int, buffered: int) -> None:
        """All outboxes were looked at."""
        self.waiting, self.buffered = waiting, buffered
        if self._metrics is not None:
            self._metrics.receipts_not_added_up.set(waiting)
            self._metrics.receipts_buffered.set(buffered)

    def lose(self, of: Of, count: int) -> None:
        """So many went before their time."""
        self.lost[of] += count
        if self._metrics is not None:
            self._metrics.receipts_unkept.labels(of).inc(count)

    def as_dict(self) -> dict[str, object]:
        """For the readiness detail."""
        told: dict[str, object] = {"adds_up": self.leads}
        if self.leads:
            told |= {
                "lag_s": round(self.lag_s, 3),
                "waiting": self.waiting,
                "buffered": self.buffered,
                "added": self.added,
                "lost": dict(self.lost),
            }
        return told
