"""Compute figures from rounds, and gates from figures. Pure."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from load_tests.systems import (
    BARE,
    GUIDED,
    GUIDED_LIMITED,
    GUIDED_TWO,
    OTHER_APIS,
    STUDENT,
    STUDENT_LIMITED,
    STUDENT_TWO,
    UPSTREAM,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from load_tests.systems import StartUp
    from load_tests.wrk import Kind, Reading

# Concurrency of the gates.
THROUGHPUT_AT = 32
LATENCY_AT = 1
# A larger backlog is unfinished work, which would overstate the throughput.
BACKLOG_S = 1.0
# Requests/s times bare's, and their goals.
_THROUGHPUT: Mapping[tuple[str, Kind], tuple[float, float]] = {
    (STUDENT, "json"): (0.50, 0.60),
    (GUIDED, "json"): (0.25, 0.30),
    (STUDENT_LIMITED, "json"): (0.42, 0.48),
    (GUIDED_LIMITED, "json"): (0.21, 0.24),
    (STUDENT, "stream"): (0.28, 0.40),
    (GUIDED, "stream"): (0.14, 0.20),
}
_ADDED_MS = {STUDENT: (0.6, 0.4), GUIDED: (1.2, 1.0)}
# Requests/s times chat completions', for the other APIs and both kinds of answer.
_OTHER_API = (0.85, 0.95)
_TWO_WORKERS = {STUDENT_TWO: STUDENT, GUIDED_TWO: GUIDED}
PACED = (BARE, STUDENT, GUIDED)
"""The systems that are also measured at PACE of their largest rate."""
PACE = 0.7
PACED_AT = 128


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
        rates: requests per second in each round.
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
    backlog_s: float
    rates: tuple[float, ...]

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
        rates=tuple(rates),
    )


def added_ms(figures: Mapping[BenchCase, CaseFigures], case: BenchCase) -> float | None:
    """Return p50 minus the upstream's p50 of the same run.

    None without the upstream's figures.
    """
    own = figures.get(BenchCase(UPSTREAM, case.kind, case.concurrency))
    return None if own is None else figures[case].p50_ms - own.p50_ms


def of_bare(figures: Mapping[BenchCase, CaseFigures], case: BenchCase) -> float | None:
    """Return the median ratio of requests per second to the bare pass-through's in the same round; None without its
    figures. The machine's speed changes between rounds."""
    return _ratio(figures, case, BARE)


def of_chat(figures: Mapping[BenchCase, CaseFigures], case: BenchCase) -> float | None:
    """Return the median ratio of requests per second to chat completions' in the same round.

    None without their figures, and for a row of chat completions.
    """
    return _ratio(figures, case, STUDENT) if case.system in OTHER_APIS else None


def _ratio(figures: Mapping[BenchCase, CaseFigures], case: BenchCase, system: str) -> float | None:
    other = figures.get(BenchCase(system, case.kind, case.concurrency))
    if other is None or not all(other.rates):
        return None
    return statistics.median(own / rate for own, rate in zip(figures[case].rates, other.rates, strict=True))


def pause_ms(largest_rate: float) -> float:
    """Return the mean pause of each of PACED_AT callers, so that they make nearly PACE of a rate together."""
    return PACED_AT * 1000 / (PACE * largest_rate)


def gates(
    figures: Mapping[BenchCase, CaseFigures], paced_p99_ms: Mapping[str, float], start_ups: Sequence[StartUp]
) -> list[Gate]:
    """Return all gates. Raise KeyError if a required case was not measured.

    Args:
        paced_p99_ms: p99 of JSON calls at PACE of the largest rate, by system.
        start_ups: starts of the gateway.
    """
    found: list[Gate] = []
    for (name, kind), (limit, goal) in _THROUGHPUT.items():
        ratio = of_bare(figures, BenchCase(name, kind, THROUGHPUT_AT))
        if ratio is None:
            raise KeyError(BenchCase(BARE, kind, THROUGHPUT_AT))
        found.append(Gate(f"{name}, {kind}: requests/s, times bare's", ratio, limit, goal, at_least=True))
    for case in _other_api_cases():
        ratio = of_chat(figures, case) or 0.0  # there is none if chat completions had no answer
        name = f"{case.system}, {case.kind}: requests/s, times chat completions'"
        found.append(Gate(name, ratio, *_OTHER_API, at_least=True))
    for name, (limit, goal) in _ADDED_MS.items():
        added = added_ms(figures, BenchCase(name, "json", LATENCY_AT))
        if added is None:
            raise KeyError(BenchCase(UPSTREAM, "json", LATENCY_AT))
        found.append(Gate(f"{name}: added p50, ms, one caller", added, limit, goal, at_least=False))
    for name in PACED[1:]:
        bare_ms = paced_p99_ms[BARE]
        ratio = paced_p99_ms[name] / bare_ms if math.isfinite(bare_ms) else math.inf
        found.append(Gate(f"{name}: p99 at {PACE:.0%} of the largest rate, times bare's", ratio, 3, 2, at_least=False))
    for two, one in _TWO_WORKERS.items():
        per_cpu_s = [figures[BenchCase(name, "json", THROUGHPUT_AT)].per_cpu_s or 0.0 for name in (two, one)]
        ratio = per_cpu_s[0] / per_cpu_s[1] if per_cpu_s[1] else 0.0
        found.append(Gate(f"{two}: requests per CPU second, times one worker's", ratio, 0.9, 1.0, at_least=True))
    ready_s = statistics.median(one.ready_s for one in start_ups)
    found.append(Gate("start until /readyz, s", ready_s, 1.5, 1.0, at_least=False))
    rss_mb = statistics.median(one.rss_mb for one in start_ups)
    found.append(Gate("memory of an idle gateway, MB", rss_mb, 120, 100, at_least=False))
    backlog_s = max(figures[case].backlog_s for case in needed_by_gates() if case.concurrency == THROUGHPUT_AT)
    name = "usage worker: backlog at the end of a round, s"
    return [*found, Gate(name, backlog_s, BACKLOG_S, BACKLOG_S, at_least=False)]


def needed_by_gates() -> set[BenchCase]:
    """Return the cases that `gates` requires."""
    throughput = {BenchCase(name, kind, THROUGHPUT_AT) for name, kind in _THROUGHPUT}
    throughput |= {BenchCase(BARE, kind, THROUGHPUT_AT) for _, kind in _THROUGHPUT}
    throughput |= {BenchCase(name, "json", THROUGHPUT_AT) for name in _TWO_WORKERS} | set(_other_api_cases())
    return throughput | {BenchCase(name, "json", LATENCY_AT) for name in (UPSTREAM, *_ADDED_MS)}


def _other_api_cases() -> list[BenchCase]:
    kinds: tuple[Kind, ...] = ("json", "stream")
    return [BenchCase(name, kind, THROUGHPUT_AT) for name in OTHER_APIS for kind in kinds]
