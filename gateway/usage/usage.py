"""Group sums as a question wants them, and write the answer as JSON. Pure.

Sums are those of the receipts, exactly. Only latencies and shares are rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.accounting.savings import CLASSES, MEASURING, is_about_zero
from gateway.errors import InvalidRequest
from gateway.usage.counters import STAGES, ClassSum, usd
from gateway.usage.rests import with_pauses
from gateway.usage.rollup import SumDimensions, SumRow
from gateway.usage.span import rfc3339
from gateway.usage.sums import SECONDS, Period

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from gateway.protocol.body import Json
    from gateway.usage.counters import TokenSums
    from gateway.usage.span import UsageSpan
    from gateway.usage.sums import Granularity, StoredRow

MAX_ROWS = 10_000
"""Rows of one answer."""
MAX_SUMS = 200_000
"""Sums that one answer may be added up from: some seconds of one core."""
MAX_SUMS_OF_ALL = 500_000
"""Sums of an answer about all tenants. Periods that are over are cached (parts.py), and not added up again."""

MODES = ("guided", "teacher_complete", "student", "teacher", "embeddings", "shadow", "guidance", "edge")
"""What a receipt's `mode` may be."""
UNCLASSIFIED = "unclassified"
"""The savings class, in sums, of what a version without classes added."""
_SHARE_DIGITS = 6
_PERCENTILES = (50, 95, 99)


class UsageQuery(NamedTuple):
    """A question.

    Attributes:
        by: what to tell apart, besides the time.
        granularity: how long a period each row is of; None: one row for the whole time.
        only: what rows must be counted under.
    """

    span: UsageSpan
    granularity: Granularity | None
    by: tuple[str, ...]
    only: Mapping[str, str]

    @property
    def is_total(self) -> bool:
        """Whether the sums of all tenants together answer it."""
        return not self.by and not self.only

    def matches(self, where: SumDimensions) -> bool:
        """Return whether rows of these dimensions belong to the answer."""
        return all(getattr(where, name) == wanted for name, wanted in self.only.items())

    def for_tenant(self, tenant: str) -> UsageQuery:
        """The same, asked of one tenant."""
        return self._replace(only={**self.only, "tenant": tenant})


class UsageGroup(NamedTuple):
    """A row of an answer: of what time, and of what."""

    start: int | None
    names: tuple[str, ...]


class UsageResult:
    """The answer to a question, as it grows.

    Args:
        shows_money: whether money of such rows may be told.
    """

    def __init__(self, ask: UsageQuery, shows_money: Callable[[SumDimensions], bool] = lambda _: True) -> None:
        self._ask = ask
        self._shows_money = shows_money
        self._rows: dict[UsageGroup, SumRow] = {}
        self._mute: set[UsageGroup] = set()
        self._added = 0
        if not ask.by and (ask.is_total or ask.granularity is not None):
            # A chart has a place for every period, whether anything happened or not.
            self._rows = {UsageGroup(self._start(one), ()): SumRow() for one in ask.span.periods}

    def add_rows(self, rows: Iterable[StoredRow]) -> None:
        """Add rows that match the question. Call it in a thread. Raises InvalidRequest where the answer is too long."""
        for period, where, raw in with_pauses(rows):
            self.count_sums(1)
            if self._ask.matches(where):
                self._add(period, where, SumRow.from_bytes(raw))

    def count_sums(self, rows: int) -> None:
        """So many rows are about to be added up. Raises InvalidRequest where they become too many."""
        self._added += rows
        most = MAX_SUMS if "tenant" in self._ask.only else MAX_SUMS_OF_ALL
        if self._added > most:
            raise too_large(f"more than {most:,} sums would have to be added up")

    def add_folded(self, period: Period, names: tuple[str, ...], row: SumRow) -> None:
        """Count what a period's rows of these names came to; the row is the answer's from here on. All is told."""
        self._merge(UsageGroup(self._start(period), names), row)

    def _add(self, period: Period, where: SumDimensions, row: SumRow) -> None:
        group = UsageGroup(self._start(period), tuple(getattr(where, name) for name in self._ask.by))
        if not self._shows_money(where):
            self._mute.add(group)
        self._merge(group, row)

    def _merge(self, group: UsageGroup, row: SumRow) -> None:
        mine = self._rows.get(group)
        if mine is not None:
            mine.merge(row)
        elif len(self._rows) < MAX_ROWS:
            self._rows[group] = row
        else:
            raise too_large(f"the answer would have more than {MAX_ROWS:,} rows")

    def _start(self, period: Period) -> int | None:
        return None if self._ask.granularity is None else Period.of(self._ask.granularity, period.start).start

    @property
    def by(self) -> tuple[str, ...]:
        """What the names of a group are."""
        return self._ask.by

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all was counted."""
        return not any(row.requests or row.baseline_pico for row in self._rows.values())

    def rows(self) -> list[tuple[UsageGroup, SumRow]]:
        """By time; of one time, what cost most comes first. Money that is not told is not told by the order either."""
        return sorted(self._rows.items(), key=self._place)

    def _place(self, one: tuple[UsageGroup, SumRow]) -> tuple[int, int, tuple[str, ...]]:
        group, row = one
        return group.start or 0, -row.cost_pico if self.includes_money(group) else 0, group.names

    def bounds(self, group: UsageGroup) -> tuple[int, int]:
        """Of which time a row is: [start, end) in Unix seconds."""
        span, granularity = self._ask.span, self._ask.granularity
        if group.start is None or granularity is None:
            return span.since, span.until
        return group.start, group.start + SECONDS[granularity]

    def header(self) -> Json:
        """What the answer is to."""
        ask = self._ask
        return {
            "object": "usage",
            "since": rfc3339(ask.span.since),
            "until": rfc3339(ask.span.until),
            "granularity": ask.granularity,
            "by": list(ask.by),
        }

    def rows_as_json(self) -> Iterator[Json]:
        """Each row as it is told, and at last all of them together. It takes some 100 us a row."""
        total = SumRow()
        for group, row in self.rows():
            total.merge(row)
            names = {"start": rfc3339(group.start)} if group.start is not None else {}
            yield {
                **names,
                **dict(zip(self.by, group.names, strict=True)),
                **figures(row, money=self.includes_money(group)),
            }
        yield figures(total, money=not self._mute)

    def as_dict(self) -> Json:
        """The whole answer."""
        *rows, total = self.rows_as_json()
        return {**self.header(), "rows": rows, "total": total}

    def includes_money(self, group: UsageGroup) -> bool:
        """Whether a row tells of money."""
        return group not in self._mute


def too_large(why: str) -> InvalidRequest:
    """A question whose answer would be too long, or take too long."""
    return InvalidRequest(
        f"This asks for too much: {why}. Ask for a shorter time (since, until), a coarser granularity, or fewer "
        "dimensions (by); or for one tenant, key, route or mode alone.",
        param="by",
    )


def figures(row: SumRow, *, money: bool = True) -> Json:
    """A row as it is told: counts, tokens, money as text, shares and latencies."""
    told: Json = {
        "requests": row.requests,
        "errors": dict(sorted(row.errors.items())),
        "unguided": dict(sorted(row.unguided.items())),
        "tokens": {
            "teacher": _tokens(row.teacher),
            "student": _tokens(row.student),
            "failed": _tokens(row.failed),
            "kept": row.kept_tokens,
            "answer": row.answer_tokens,
            "answer_by_teacher": row.teacher_answer_tokens,
        },
        "teacher_token_share": _share(row.teacher_answer_tokens, row.answer_tokens),
        "batches": _batches(row.batches),
        "latency_ms": {stage: _latency(row, place) for place, stage in enumerate(STAGES)},
    }
    if money:
        about_zero = is_about_zero(usd(row.savings_pico), usd(row.savings_error_pico))
        told |= {
            "cost_usd": text(row.cost_pico),
            "teacher_cost_usd": text(row.teacher_pico),
            "student_cost_usd": text(row.student_pico),
            "failed_cost_usd": text(row.failed_pico),
            "baseline_usd": text(row.baseline_pico),
            "savings_usd": text(row.savings_pico),
            "savings_error_usd": text(row.savings_error_pico),
            "savings_about_zero": about_zero,
            "measuring_usd": text(row.classes.get(MEASURING, ClassSum()).cost_pico),
            "savings_classes": {name: _class_sum(one) for name, one in classes_of(row).items()},
            "baseline_estimated": row.baseline_estimated,
            "baseline_error_usd": text(row.baseline_error_pico),
            "cost_share": None if about_zero else _share(row.baseline_pico - row.savings_pico, row.baseline_pico),
        }
    return told


def classes_of(row: SumRow) -> dict[str, ClassSum]:
    """Return the sums by savings class, in the order of `CLASSES`, without classes that have no receipt."""
    found: dict[str, ClassSum] = {name: row.classes[name] for name in CLASSES if name in row.classes}
    rest = row.unclassified
    return found if rest == ClassSum() else {**found, UNCLASSIFIED: rest}


def _class_sum(one: ClassSum) -> Json:
    return {
        "requests": one.requests,
        "cost_usd": text(one.cost_pico),
        "baseline_usd": text(one.baseline_pico),
        "savings_usd": text(one.savings_pico),
    }


def text(picos: int) -> str:
    """USD as receipts tell it: without an exponent, which every reader takes."""
    return f"{usd(picos).normalize():f}"


def _tokens(tokens: TokenSums) -> Json:
    return tokens._asdict()


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, _SHARE_DIGITS) if whole > 0 else None


def _batches(sizes: Mapping[int, int]) -> Json:
    """A batch of which others have a part counts as that part."""
    calls = sum(sizes.values())
    count = sum(times / size for size, times in sizes.items())
    whole = round(count) if abs(count - round(count)) < 1e-6 else round(count, 3)
    return {"count": whole, "mean_size": round(calls / count, 3) if calls else None}


def _latency(row: SumRow, place: int) -> Json:
    times = row.stages[place]
    told: dict[str, Any] = {"count": times.count, "mean": _ms(times.mean_us)}
    quantiles = times.quantiles_us([part / 100 for part in _PERCENTILES])
    return told | {f"p{part}": _ms(value) for part, value in zip(_PERCENTILES, quantiles, strict=True)}


def _ms(microseconds: float | None) -> float | None:
    # To whole microseconds first: round() to digits takes 5 us, and an answer has thousands of times.
    return None if microseconds is None else round(microseconds) / 1000
