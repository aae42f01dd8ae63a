"""Counters of the fake engine, for GET /stats."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Stats:
    """Counts since the start or the last reset. Calls are HTTP requests for text; sequences are answers.

    Attributes:
        requests: all calls.
        refused: calls over max_concurrent_requests.
        rejected: invalid calls, and calls over another limit.
        failed: calls that ended with a configured fault.
        cancelled: calls whose client disconnected before the end.
        in_flight: queued and active sequences; `max_concurrent_requests` limits them.
        batch_sizes: decode steps by number of sequences.
        modelled_s: durations of the passes by the timing file.
        busy_s: actual durations of the passes.
        worst_lag_s: the largest delay of a pass.
    """

    requests: int = 0
    completed: int = 0
    cancelled: int = 0
    refused: int = 0
    rejected: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    tokens_written: int = 0
    prefill_passes: int = 0
    in_flight: int = 0
    busiest_in_flight: int = 0
    batch_sizes: Counter[int] = field(default_factory=Counter)
    modelled_s: float = 0.0
    busy_s: float = 0.0
    worst_lag_s: float = 0.0
    since: float = field(default_factory=time.monotonic)

    def enter(self, sequences: int) -> None:
        self.in_flight += sequences
        self.busiest_in_flight = max(self.busiest_in_flight, self.in_flight)

    def reset(self) -> None:
        """Set all counts to zero, except for in_flight."""
        fresh = Stats(in_flight=self.in_flight, busiest_in_flight=self.in_flight)
        for name in self.__slots__:
            setattr(self, name, getattr(fresh, name))

    def shown(self) -> dict[str, Any]:
        """Return all counts as JSON. The keys of the histogram are batch sizes."""
        steps = self.batch_sizes.total()
        served = sum(size * count for size, count in self.batch_sizes.items())
        return {
            "requests": self.requests,
            "completed": self.completed,
            "cancelled": self.cancelled,
            "refused": self.refused,
            "rejected": self.rejected,
            "failed": self.failed,
            "in_flight": self.in_flight,
            "busiest_in_flight": self.busiest_in_flight,
            "prompt_tokens": self.prompt_tokens,
            "tokens_written": self.tokens_written,
            "prefill_passes": self.prefill_passes,
            "decode_steps": steps,
            "batch_size_mean": served / steps if steps else 0.0,
            "batch_size_histogram": {str(size): self.batch_sizes[size] for size in sorted(self.batch_sizes)},
            "modelled_s": self.modelled_s,
            "busy_s": self.busy_s,
            "worst_lag_s": self.worst_lag_s,
            "elapsed_s": time.monotonic() - self.since,
        }
