"""Continuous batching: prompts wait in a queue, join the batch between two steps, and leave it with their last token.

One task runs the batch. The end of each pass is scheduled relative to the scheduled end of the previous pass. So a late
pass does not delay the next one, and the total time equals that of the timing file.
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
        """Called when the batch starts to process the prompt."""
        ...

    def token(self, sequence: Sequence) -> bool:
        """Receive token number `sequence.written`. Return whether it was the last one."""
        ...


@dataclass(slots=True, eq=False)
class Sequence:
    """An answer in progress. `unread` is the number of prompt tokens that are not processed yet."""

    reader: Reader
    number: int
    unread: int
    written: int = 0


class Batching:
    """The modelled engine.

    Args:
        profile: the durations of passes; it has `prefill` and `decode`.
    """

    def __init__(self, profile: Profile, stats: Stats) -> None:
        assert profile.prefill is not None
        assert profile.decode is not None
        self._prefill = profile.prefill
        self._steps_s = [0.0, *(profile.decode.step_s(size) for size in range(1, profile.max_batch_size + 1))]
        self._places = profile.max_batch_size
        self._jitter = profile.jitter
        self._stats = stats
        # A separate generator: the number of passes depends on the clock; other random values must not.
        self._random = Random(profile.seed)
        self._waiting: deque[Sequence] = deque()
        self._batch: list[Sequence] = []
        self._arrived = asyncio.Event()
        self._due = 0.0  # scheduled end of the last pass
        self._ended = 0.0  # actual end of the last pass

    def submit(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        self._waiting.append(sequence)
        self._arrived.set()

    async def run(self) -> None:
        """Run forever."""
        while True:
            if not self._batch and not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                self._due = self._ended = time.monotonic()
            await self._round()

    async def _round(self) -> None:
        """Process waiting prompts, if the batch has room, and decode one step."""
        read, joining = self._take_prompts()
        reading_s = self._prefill.fixed_s + self._prefill.per_token_s * read if read else 0.0
        self._stats.prefill_passes += read > 0
        if read and not self._prefill.chunked:
            await self._pass(reading_s)
            self._batch += self._with_next_token(joining)
            reading_s, joining = 0.0, []
            # Callers may have disconnected during a pass over prompts.
            self._batch = [sequence for sequence in self._batch if not sequence.reader.gone]
        if size := len(self._batch):
            self._stats.batch_sizes[size] += 1
        if size or reading_s:
            await self._pass(self._steps_s[size] + reading_s)
        # Sequences that joined in this step get their first token at its end.
        self._batch = self._with_next_token(self._batch) + self._with_next_token(joining)

    def _take_prompts(self) -> tuple[int, list[Sequence]]:
        """Take prompts from the queue. Return the tokens of this pass, and the sequences that it completes."""
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
        # Sleep even if the pass is late, so that the loop serves the clients. uvloop's timers have a resolution of
        # 1 ms: a pass may be 0.5 ms too short or too long, and the next one compensates for it.
        await asyncio.sleep(max(0.0, self._due - time.monotonic()))
        ended = time.monotonic()
        self._stats.modelled_s += seconds
        self._stats.busy_s += ended - self._ended
        self._stats.worst_lag_s = max(self._stats.worst_lag_s, ended - self._due)
        self._ended = ended

    @staticmethod
    def _with_next_token(sequences: list[Sequence]) -> list[Sequence]:
        """Write one token of each sequence. Return the unfinished ones."""
        staying = []
        for sequence in sequences:
            if sequence.reader.gone:
                continue
            sequence.written += 1
            if not sequence.reader.token(sequence):
                staying.append(sequence)
        return staying
