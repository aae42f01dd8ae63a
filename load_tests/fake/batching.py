"""Continuous batching: prompts wait in a queue, join the batch between two steps, and leave it when they are answered.

One task runs it. Each pass ends at a moment counted from the end of the one before, not from when the loop got around
to it: a late pass does not delay the next, and the times of many add up to what the timing file says.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from load_tests.fake.profile import Profile
    from load_tests.fake.stats import Stats


class Reader(Protocol):
    """The receiver of a sequence's tokens."""

    @property
    def gone(self) -> bool:
        """Return whether the caller disconnected."""
        ...

    def joins(self) -> None:
        """Called when the batch starts to read the prompt."""
        ...

    def token(self, sequence: Sequence) -> bool:
        """Take the token that `sequence.written` now counts; returns whether it was the last."""
        ...


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer under way. `unread` counts the tokens of its prompt that are still to be read."""

    reader: Reader
    number: int
    unread: int
    written: int = 0


class Batching:
    """The modelled engine.

    Args:
        profile: how long its passes take; one with `prefill` and `decode`.
    """

    def __init__(self, profile: Profile, stats: Stats) -> None:
        assert profile.prefill is not None
        assert profile.decode is not None
        self._prefill = profile.prefill
        self._steps_s = [0.0, *(profile.decode.step_s(size) for size in range(1, profile.max_batch_size + 1))]
        self._places = profile.max_batch_size
        self._jitter = profile.jitter
        self._stats = stats
        # Its own: how many passes there are depends on the clock, and what else is drawn may not.
        self._random = Random(profile.seed)
        self._waiting: deque[Sequence] = deque()
        self._batch: list[Sequence] = []
        self._arrived = asyncio.Event()
        self._due = 0.0  # when the last pass should have ended
        self._ended = 0.0  # when it did

    def submit(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        self._waiting.append(sequence)
        self._arrived.set()

    async def run(self) -> None:
        """Work for ever."""
        while True:
            if not self._batch and not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                self._due = self._ended = time.monotonic()
            await self._round()

    async def _round(self) -> None:
        """Read new prompts, if there are any and there is room, and decode one step."""
        read, joining = self._take_prompts()
        reading_s = self._prefill.fixed_s + self._prefill.per_token_s * read if read else 0.0
        self._stats.prefill_passes += read > 0
        if read and not self._prefill.chunked:
            await self._pass(reading_s)
            self._batch += self._given_a_token(joining)
            reading_s, joining = 0.0, []
            # A pass over prompts is long enough for some to leave.
            self._batch = [sequence for sequence in self._batch if not sequence.reader.gone]
        if size := len(self._batch):
            self._stats.batch_sizes[size] += 1
        if size or reading_s:
            await self._pass(self._steps_s[size] + reading_s)
        # Whoever was read in this very step gets the first token at its end, as the others get their next.
        self._batch = self._given_a_token(self._batch) + self._given_a_token(joining)

    def _take_prompts(self) -> tuple[int, list[Sequence]]:
        """From the front of the queue: how many tokens one pass reads, and whose prompts it reads to the end."""
        left = self._prefill.max_tokens
        joining: list[Sequence] = []
        while self._waiting and left > 0 and len(self._batch) + len(joining) < self._places:
            first = self._waiting[0]
            if first.reader.gone:
                self._waiting.popleft()
                continue
            if first.unread > left and self._prefill.chunked:
                first.unread -= left
                left = 0
                break
            if first.unread > left and joining:
                break
            first.reader.joins()
            joining.append(self._waiting.popleft())
            left -= first.unread
        return self._prefill.max_tokens - left, joining

    async def _pass(self, seconds: float) -> None:
        if self._jitter:
            seconds *= 1 + self._jitter * self._random.uniform(-1, 1)
        self._due += seconds
        # Also when it is late, so that it still hears its clients. uvloop's timers are whole milliseconds: a pass may
        # end half of one too early or too late, and the next makes up for it.
        await asyncio.sleep(max(0.0, self._due - time.monotonic()))
        ended = time.monotonic()
        self._stats.modelled_s += seconds
        self._stats.busy_s += ended - self._ended
        self._stats.worst_lag_s = max(self._stats.worst_lag_s, ended - self._due)
        self._ended = ended

    @staticmethod
    def _given_a_token(sequences: list[Sequence]) -> list[Sequence]:
        """Write a token of each; returns those that go on."""
        staying = []
        for sequence in sequences:
            if sequence.reader.gone:
                continue
            sequence.written += 1
            if not sequence.reader.token(sequence):
                staying.append(sequence)
        return staying
