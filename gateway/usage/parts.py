"""What single periods came to, told apart as a question wants it: so that what is asked again and again is cheap.

Whatever is added to a period changes its mark (`Rollups.marks`), and never back: what is kept holds for as long as the
mark does. A period that goes on growing is folded anew, but not all the time.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from gateway.rollups.rollup import Row
from gateway.usage.rests import Rests
from gateway.usage.usage import MOST_ROWS, too_much

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.rollups.rollups import Page, Period
    from gateway.usage.usage import Ask, Usage

Names: TypeAlias = tuple[str, ...]
Question: TypeAlias = tuple[Names, tuple[tuple[str, str], ...]]
"""What is told apart, and what alone is counted; of whatever time."""

_MOST_BYTES = 32_000_000
# A group's names, and what Python has around each thing.
_GROUP_BYTES = 250
# A period that grows is folded for a fifth of the time at most, and told as it was up to so long ago.
_REST_TIMES, _LONGEST_REST_S = 4, 2.0


def question_of(ask: Ask) -> Question:
    """What makes two questions the same but for their time."""
    return ask.by, tuple(sorted(ask.only.items()))


class Part(NamedTuple):
    """A period, folded: sums as they are kept in Redis, by their names. `cpu_s` is what it took."""

    period: Period
    groups: list[tuple[Names, bytes]]
    cpu_s: float


class _Kept(NamedTuple):
    mark: bytes
    part: Part
    rests_until: float
    held_bytes: int


class Parts:
    """The last ones that were asked for. It is for the event loop's thread alone."""

    def __init__(self, most_bytes: int = _MOST_BYTES, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_bytes = most_bytes
        self._clock = clock
        self._kept: OrderedDict[tuple[Question, Period], _Kept] = OrderedDict()
        self.held_bytes = 0

    def get(self, question: Question, period: Period, mark: bytes | None) -> Part | None:
        """What is kept of a period, if it still holds."""
        kept = self._kept.get((question, period))
        if kept is None or (kept.mark != mark and self._clock() >= kept.rests_until):
            return None
        self._kept.move_to_end((question, period))
        return kept.part

    def put(self, question: Question, mark: bytes, part: Part, read_at: float) -> None:
        """Keep one.

        Args:
            mark: that of the period before it was read: what came in between makes another one.
            read_at: when that was, by the clock.
        """
        self._drop((question, part.period))
        held = _GROUP_BYTES + sum(_GROUP_BYTES + len(raw) for _, raw in part.groups)
        if held > self._most_bytes:
            return
        rests_until = read_at + min(_LONGEST_REST_S, _REST_TIMES * part.cpu_s)
        self._kept[question, part.period] = _Kept(mark, part, rests_until, held)
        self.held_bytes += held
        while self.held_bytes > self._most_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, at: tuple[Question, Period]) -> None:
        if (kept := self._kept.pop(at, None)) is not None:
            self.held_bytes -= kept.held_bytes


class Folding:
    """Folds rows into groups, one period after another, and counts them in an answer. Its work is for a thread."""

    def __init__(self, usage: Usage, ask: Ask) -> None:
        self._usage = usage
        self._ask = ask
        self._period: Period | None = None
        self._groups: dict[Names, Row] = {}
        self._cpu_s = 0.0
        self._rests = Rests()

    def kept(self, parts: Iterable[Part]) -> None:
        """Count what was folded before. Raises InvalidRequest where the answer becomes too long."""
        self._rests = Rests()
        for part in parts:
            self._usage.adds(len(part.groups))
            for names, raw in part.groups:
                self._usage.add_part(part.period, names, Row.from_bytes(raw))
                self._rests.take_if_due()

    def pages(self, pages: Iterable[Page]) -> list[Part]:
        """Fold rows, which come period by period: the periods before the last, of which there is no more.

        Raises as `kept`.
        """
        done: list[Part] = []
        self._rests, began = Rests(), time.thread_time()
        for page in pages:
            if page.period != self._period:
                self._cpu_s += time.thread_time() - began
                done += self._finished()
                self._period, began = page.period, time.thread_time()
            self._usage.adds(len(page.fields))
            for where, row in page.rows(self._ask.only):
                names = tuple(getattr(where, name) for name in self._ask.by)
                held = self._groups.get(names)
                if held is not None:
                    held.merge(row)
                elif len(self._groups) < MOST_ROWS:
                    self._groups[names] = row
                else:
                    raise too_much(f"the answer would have more than {MOST_ROWS:,} rows")
                self._rests.take_if_due()
        self._cpu_s += time.thread_time() - began
        return done

    def end(self) -> list[Part]:
        """The last period, after all pages. Raises as `kept`."""
        self._rests = Rests()
        return self._finished()

    def _finished(self) -> list[Part]:
        if self._period is None:
            return []
        groups = []
        for names, row in self._groups.items():
            groups.append((names, row.to_bytes()))
            self._usage.add_part(self._period, names, row)  # which the row is part of from here on
            self._rests.take_if_due()
        part = Part(self._period, groups, self._cpu_s)
        self._period, self._groups, self._cpu_s = None, {}, 0.0
        return [part]
