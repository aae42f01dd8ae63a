"""Compute figures from rounds, and gates from figures. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from load_tests.systems import BARE, GUIDED, GUIDED_LIMITED, STUDENT, STUDENT_LIMITED, UPSTREAM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from load_tests.wrk import Kind, Reading

# Concurrency of the gates.
THROUGHPUT_AT = 32
LATENCY_AT = 1
# A larger backlog is unfinished work, which would overstate the throughput.
BACKLOG_S = 1.0


@dataclass(frozen=True)
class BenchCase:
    """A cell of the comparison."""

    system: str
    kind: Kind
    concurrency: int


@dataclass(frozen=True)
class RoundResult:
    """Results of one round of one case.

    Attributes:
        cores: CPU seconds of the system's processes per second of the round.
        others: CPU seconds of unrelated processes per second of the round.
        unguided: requests of a guided route that were answered without guidance.
        backlog_s: age of the oldest receipt that was not in the database at the end, in seconds.
    """

    reading: Reading
    cores: float
    others: float = 0.0
    unguided: int = 0
    backlog_s: float = 0.0


@dataclass(frozen=True)
class CaseFigures:
    """Medians of a case over its rounds, and sums of its errors. Only successful replies count as requests.

    Attributes:
        per_cpu_s: requests per CPU second of the system. A busy machine changes it far less than requests per second.
            None if no process is measured.
    """

    per_second: float
    per_cpu_s: float | None
    p50_ms: float
    p99_ms: float
    cores: float
    others: float
    refused: int
    broken: int
    unguided: int
    backlog_s: float = 0.0

    @property
    def errors(self) -> int:
        return self.refused + self.broken + self.unguided


@dataclass(frozen=True)
class Gate:
    """A figure with its required limit and its goal.

    Attributes:
        at_least: whether limit and goal are lower bounds; otherwise they are upper bounds.
    """

    name: str
    value: float
    limit: float
    goal: float
    at_least: bool

    @property
    def holds(self) -> bool:
        return self._within(self.limit)

    @property
    def reaches_goal(self) -> bool:
        return self._within(self.goal)

    def _within(self, bound: float) -> bool:
        return self.value >= bound if self.at_least else self.value <= bound


def over_rounds(rounds: Sequence[RoundResult]) -> CaseFigures:
    """Return the median of each figure separately: p50 and p99 may come from different rounds."""
    readings = [one.reading for one in rounds]
    rates = [(one.requests - one.refused) / one.seconds for one in readings]
    by_cpu = [rate / one.cores for rate, one in zip(rates, rounds, strict=True) if one.cores > 0]
    return CaseFigures(
        per_second=statistics.median(rates),
        per_cpu_s=statistics.median(by_cpu) if by_cpu else None,
        p50_ms=statistics.median(one.p50_ms for one in readings),
        p99_ms=statistics.median(one.p99_ms for one in readings),
        cores=statistics.median(one.cores for one in rounds),
        others=statistics.median(one.others for one in rounds),
        refused=sum(one.refused for one in readings),
        broken=sum(one.broken for one in readings),
        unguided=sum(one.unguided for one in rounds),
        backlog_s=max(one.backlog_s for one in rounds),
    )


def added_ms(figures: Mapping[BenchCase, CaseFigures], case: BenchCase) -> float | None:
    """Return p50 minus the upstream's p50 of the same run.

    None without the upstream's figures.
    """
    own = figures.get(BenchCase(UPSTREAM, case.kind, case.concurrency))
    return None if own is None else figures[case].p50_ms - own.p50_ms


def of_bare(figures: Mapping[BenchCase, CaseFigures], case: BenchCase) -> float | None:
    """Return requests per second relative to the bare pass-through; None without its figures."""
    bare = figures.get(BenchCase(BARE, case.kind, case.concurrency))
    return None if bare is None or not bare.per_second else figures[case].per_second / bare.per_second


def gates(figures: Mapping[BenchCase, CaseFigures]) -> list[Gate]:
    """Return the gates on JSON calls. Raise KeyError if a required case was not measured."""
    found: list[Gate] = []
    throughput = {
        STUDENT: (0.36, 0.45),
        GUIDED: (0.17, 0.22),
        STUDENT_LIMITED: (1 / 3, 1 / 2),
        GUIDED_LIMITED: (1 / 6, 1 / 4),
    }
    for name, (limit, goal) in throughput.items():
        case = BenchCase(name, "json", THROUGHPUT_AT)
        ratio = of_bare(figures, case)
        if ratio is None:
            raise KeyError(BenchCase(BARE, "json", THROUGHPUT_AT))
        found.append(Gate(f"{name}: requests/s, times bare's, at {THROUGHPUT_AT}", ratio, limit, goal, at_least=True))
    for name, limit in ((STUDENT, 1.5), (GUIDED, 3.0), (STUDENT_LIMITED, 1.5), (GUIDED_LIMITED, 3.0)):
        added = added_ms(figures, BenchCase(name, "json", LATENCY_AT))
        if added is None:
            raise KeyError(BenchCase(UPSTREAM, "json", LATENCY_AT))
        found.append(Gate(f"{name}: added p50, ms, at {LATENCY_AT}", added, limit, limit, at_least=False))
    backlog_s = max(figures[BenchCase(name, "json", THROUGHPUT_AT)].backlog_s for name in throughput)
    name = f"usage worker: backlog at the end of a round, s, at {THROUGHPUT_AT}"
    return [*found, Gate(name, backlog_s, BACKLOG_S, BACKLOG_S, at_least=False)]


def needed_by_gates() -> set[BenchCase]:
    """Return the cases that `gates` requires."""
    ours = (STUDENT, GUIDED, STUDENT_LIMITED, GUIDED_LIMITED)
    throughput = {BenchCase(name, "json", THROUGHPUT_AT) for name in (BARE, *ours)}
    return throughput | {BenchCase(name, "json", LATENCY_AT) for name in (UPSTREAM, *ours)}
