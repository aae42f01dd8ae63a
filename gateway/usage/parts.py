"""What single periods came to, told apart as a question wants it: so that what is asked again and again is cheap.

Whatever is added to a period changes its mark (`SumsReader.marks`), and never back: what is kept holds for as long as
the mark does. A period that goes on growing is folded anew, but not all the time.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from itertools import groupby
from operator import itemgetter
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from gateway.usage.rests import ThreadPauses
from gateway.usage.rollup import SumRow
from gateway.usage.usage import MAX_ROWS, too_large

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.usage.sums import Period, StoredRow
    from gateway.usage.usage import UsageQuery, UsageResult

Names: TypeAlias = tuple[str, ...]
Question: TypeAlias = tuple[Names, tuple[tuple[str, str], ...]]
"""What is told apart, and what alone is counted; of whatever time."""

_MOST_BYTES = 32_000_000
# A group's names, and what Python has around each thing.
_GROUP_BYTES = 250
# A period that grows is folded for a fifth of the time at most, and told as it was up to so long ago.
_REST_TIMES, _LONGEST_REST_S = 4, 2.0


def query_key(ask: UsageQuery) -> Question:
    """What makes two questions the same but for their time."""
    return ask.by, tuple(sorted(ask.only.items()))


class FoldedPeriod(NamedTuple):
    """A period, folded: encoded sums by their names. `cpu_s` is what it took."""

    period: Period
    groups: list[tuple[Names, bytes]]
    cpu_s: float


class _Kept(NamedTuple):
    mark: bytes
    part: FoldedPeriod
    rests_until: float
    held_bytes: int


class FoldedPeriods:
    """The last ones that were asked for. Threads may call it."""

    def __init__(self, most_bytes: int = _MOST_BYTES, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_bytes = most_bytes
        self._clock = clock
        self._kept: OrderedDict[tuple[Question, Period], _Kept] = OrderedDict()
        self._lock = Lock()
        self.held_bytes = 0

    def get(self, question: Question, period: Period, mark: bytes | None) -> FoldedPeriod | None:
        """What is kept of a period, if it still holds."""
        with self._lock:
            kept = self._kept.get((question, period))
            if kept is None or (kept.mark != mark and self._clock() >= kept.rests_until):
                return None
            self._kept.move_to_end((question, period))
            return kept.part

    def put(self, question: Question, mark: bytes, part: FoldedPeriod, read_at: float) -> None:
        """Keep one.

        Args:
            mark: that of the period before it was read: what came in between makes another one.
            read_at: when that was, by the clock.
        """
        held = _GROUP_BYTES + sum(_GROUP_BYTES + len(raw) for _, raw in part.groups)
        rests_until = read_at + min(_LONGEST_REST_S, _REST_TIMES * part.cpu_s)
        with self._lock:
            self._drop((question, part.period))
            if held > self._most_bytes:
                return
            self._kept[question, part.period] = _Kept(mark, part, rests_until, held)
            self.held_bytes += held
            while self.held_bytes > self._most_bytes:
                self._drop(next(iter(self._kept)))

    def _drop(self, at: tuple[Question, Period]) -> None:
        if (kept := self._kept.pop(at, None)) is not None:
            self.held_bytes -= kept.held_bytes


def add_folded_periods(usage: UsageResult, parts: Iterable[FoldedPeriod]) -> None:
    """Count what was folded before. Call it in a thread. Raises InvalidRequest where the answer becomes too long."""
    rests = ThreadPauses()
    for part in parts:
        usage.count_sums(len(part.groups))
        for names, raw in part.groups:
            usage.add_folded(part.period, names, SumRow.from_bytes(raw))
            rests.pause_if_due()


def fold(usage: UsageResult, ask: UsageQuery, rows: Iterable[StoredRow], keep: Callable[[FoldedPeriod], None]) -> None:
    """Fold rows, which come period by period, into groups and count these. Call it in a thread.

    Args:
        keep: gets each period.

    Raises InvalidRequest where the answer becomes too long.
    """
    rests = ThreadPauses()
    for period, some in groupby(rows, itemgetter(0)):
        began = time.thread_time()
        folded: dict[Names, SumRow] = {}
        for _, where, raw in some:
            usage.count_sums(1)
            if ask.matches(where):
                names = tuple(getattr(where, name) for name in ask.by)
                held = folded.get(names)
                if held is not None:
                    held.merge(SumRow.from_bytes(raw))
                elif len(folded) < MAX_ROWS:
                    folded[names] = SumRow.from_bytes(raw)
                else:
                    raise too_large(f"the answer would have more than {MAX_ROWS:,} rows")
            rests.pause_if_due()
        spent_s = time.thread_time() - began
        groups = []
        for names, row in folded.items():
            groups.append((names, row.to_bytes()))
            usage.add_folded(period, names, row)  # which the row is part of from here on
            rests.pause_if_due()
        keep(FoldedPeriod(period, groups, spent_s))
