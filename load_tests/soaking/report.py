"""Results of a soak test, as tables and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from load_tests import markdown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from load_tests.soaking.books import Amount, Check
    from load_tests.soaking.flatness import Measure, Trend
    from load_tests.soaking.sampler import Minute

_MOST_MINUTES = 30
_OK, _BAD, _UNJUDGED = "yes", "NO", "too short to judge"


@dataclass(frozen=True)
class SoakReport:
    """The report of a soak test.

    Attributes:
        ended: the reason for an early end; empty without one.
        checks: empty if the counts could not be collected.
        broken: descriptions of the first failed replies. `errors`: the first errors in the logs of the gateways.
        replies: by kind and status. `statuses`: receipts by status. `disturbed`: number of disturbances by kind.
    """

    planned_s: float
    ran_s: float
    ended: str
    sent: int
    left: int
    shadows: int
    checks: Sequence[Check]
    trends: Sequence[Trend]
    minutes: Sequence[Minute]
    broken: Sequence[str]
    errors: Sequence[str]
    replies: Mapping[tuple[str, int], int]
    statuses: Mapping[str, int]
    disturbed: Mapping[str, int]

    @property
    def holds(self) -> bool:
        """Return whether all checks and trends hold. Without checks the result is false."""
        return bool(self.checks) and all(one.holds for one in self.checks) and all(one.holds for one in self.trends)


def shown(found: SoakReport) -> Iterator[str]:
    """Yield the lines of the report."""
    minutes = f"{found.ran_s / 60:.1f} of {found.planned_s / 60:g} minutes"
    yield f"{minutes}{f', ended early: {found.ended}' if found.ended else ''}"
    yield ""
    yield f"{found.sent:,} requests, {found.left:,} of them canceled by their callers, and {found.shadows:,} shadows."
    by_status = Counter[int]()
    for (_, status), count in found.replies.items():
        by_status[status] += count
    yield "Replies by status: " + ", ".join(f"{status}: {count:,}" for status, count in sorted(by_status.items())) + "."
    yield "Receipts: " + _counts(found.statuses)
    yield "Disturbances: " + _counts(found.disturbed)
    yield from (f"Broken: {line}" for line in found.broken)
    yield from (f"Logged: {line}" for line in found.errors)
    yield ""
    yield markdown.table(("check", "found", "expected", "passed"), map(_check_row, found.checks))
    yield ""
    yield markdown.table(
        ("measure", "of", "first", "last", "rise", "at least", "allowed", "flat"),
        map(_trend_row, sorted(found.trends, key=lambda one: (one.of, one.measure.name))),
    )
    yield ""
    each = -(-len(found.minutes) // _MOST_MINUTES) or 1
    yield markdown.table(
        ("after", "ordinary answers", "p50", "p95", "p99", "Redis", "keys"),
        map(_minute_row, found.minutes[each - 1 :: each]),
    )
    yield ""
    bad = [one.name for one in found.checks if not one.holds]
    bad += [f"{one.measure.name} of {one.of}" for one in found.trends if not one.holds]
    yield "The soak test passed." if found.holds else f"The soak test FAILED: {'; '.join(bad) or 'no counts'}."


def record(found: SoakReport) -> dict[str, Any]:
    """Return the report as JSON values. Amounts are text."""
    return {
        "holds": found.holds,
        "ended": found.ended,
        "planned_s": found.planned_s,
        "ran_s": found.ran_s,
        "requests": found.sent,
        "left": found.left,
        "shadows": found.shadows,
        "checks": [
            {"name": one.name, "holds": one.holds}
            | {name: _plain(getattr(one, name)) for name in ("found", "least", "most")}
            for one in found.checks
        ],
        "trends": [{**asdict(one), "measure": one.measure.name, "holds": one.holds} for one in found.trends],
        "minutes": [one._asdict() for one in found.minutes],
        "broken": list(found.broken),
        "errors": list(found.errors),
        "replies": {f"{kind}: {status}": count for (kind, status), count in sorted(found.replies.items())},
        "receipts": dict(found.statuses),
        "disturbed": dict(found.disturbed),
    }


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) + "."


def _check_row(one: Check) -> tuple[str, ...]:
    expected = _amount(one.least) if one.least == one.most else f"{_amount(one.least)} to {_amount(one.most)}"
    return one.name, _amount(one.found), expected, _OK if one.holds else _BAD


def _trend_row(one: Trend) -> tuple[str, ...]:
    verdict = _OK if one.holds else _BAD
    if not one.judged_s:
        return one.measure.name, one.of, _value(one.measure, one.first), "", "", "", "", _UNJUDGED
    values = (_value(one.measure, value) for value in (one.first, one.last))
    rises = (_value(one.measure, value, sign="+") for value in (one.rise, one.least_rise, one.allowed))
    return one.measure.name, one.of, *values, *rises, verdict


def _minute_row(one: Minute) -> tuple[str, ...]:
    times = ("" if value is None else f"{value * 1000:.1f} ms" for value in (one.p50_s, one.p95_s, one.p99_s))
    size = "away" if one.redis_bytes is None else f"{one.redis_bytes / 1e6:.1f} MB"
    keys = "" if one.redis_keys is None else f"{one.redis_keys:,}"
    return f"{one.at_s / 60:.1f} min", f"{one.answers:,}", *times, size, keys


def _value(measure: Measure, value: float, sign: str = "") -> str:
    return f"{value / measure.scale:{sign}.1f} {measure.unit}".rstrip()


def _amount(value: Amount) -> str:
    return f"{value:f}" if isinstance(value, Decimal) else f"{value:,}"


def _plain(value: Amount) -> int | str:
    return f"{value:f}" if isinstance(value, Decimal) else value
