"""Group sums for a usage query, and encode the result as JSON. Pure.

Sums are exact. Only latencies and shares are rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.accounting.savings import CLASSES, DISCONNECTED, FAILED, MEASURING, is_about_zero
from gateway.errors import InvalidRequest
from gateway.pricing import dollars
from gateway.usage.counters import STAGES, ClassSum
from gateway.usage.rollup import SumDimensions, SumRow
from gateway.usage.span import rfc3339
from gateway.usage.sums import SECONDS, Period
from gateway.usage.threads import with_pauses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from gateway.protocol.body import Json
    from gateway.usage.counters import VariantSum
    from gateway.usage.histogram import Histogram
    from gateway.usage.span import UsageSpan
    from gateway.usage.sums import Granularity, StoredRow

MAX_ROWS = 10_000
"""Limit of rows of one result."""
MAX_SUMS = 200_000
"""Limit of sums to add up for a query about one tenant: some seconds of one core."""
MAX_SUMS_OF_ALL = 500_000
"""Limit of sums for a query about all tenants. Closed periods are cached (reader.py), and not added up again."""
MAX_TAG_ROWS = 5_000_000
"""Limit of rows to add up for a query by tag: one for each receipt and tag."""

MODES = ("guided", "teacher_complete", "student", "teacher", "embeddings", "shadow", "guidance", "edge")
"""All values of a receipt's `mode`."""
UNCLASSIFIED = "unclassified"
"""Savings class of sums that a version without savings classes added."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_SHARE_DIGITS = 6
_PERCENTILES = (50, 95, 99)


class UsageQuery(NamedTuple):
    """A query about usage, grouped by the dimensions `by`. `only` has required values by dimension."""

    span: UsageSpan
    granularity: Granularity | None
    """Length of the period of each row; None: one row for the whole span."""
    by: tuple[str, ...]
    only: Mapping[str, str]

    @property
    def is_total(self) -> bool:
        """Return whether the sums over all tenants answer the query."""
        return not self.by and not self.only

    def matches(self, dims: SumDimensions) -> bool:
        """Return whether the result includes sums with these dimensions."""
        return all(getattr(dims, name) == value for name, value in self.only.items())

    def for_tenant(self, tenant: str) -> UsageQuery:
        """Return this query restricted to one tenant."""
        return self._replace(only={**self.only, "tenant": tenant})


class UsageGroup(NamedTuple):
    """Key of a row of a result: the start of its period in Unix seconds, and the values of the dimensions `by`."""

    start: int | None
    names: tuple[str, ...]


class UsageResult:
    """The growing result of a query. `shows_money` returns whether money of sums with these dimensions is shown."""

    def __init__(self, query: UsageQuery, shows_money: Callable[[SumDimensions], bool] = lambda _: True) -> None:
        self._query = query
        self.by = query.by
        self._shows_money = shows_money
        self._rows: dict[UsageGroup, SumRow] = {}
        self._without_money: set[UsageGroup] = set()
        self._added = 0
        if not query.by and (query.is_total or query.granularity is not None):
            # A chart needs a row for every period, including empty ones.
            self._rows = {UsageGroup(self._start(period), ()): SumRow() for period in query.span.periods}

    def add_rows(self, rows: Iterable[StoredRow]) -> None:
        """Add the rows that match the query. Call it in a thread. Raises InvalidRequest if the result is too large."""
        for period, dims, raw in with_pauses(rows):
            self.count_sums(1)
            if self._query.matches(dims):
                group = UsageGroup(self._start(period), tuple(getattr(dims, name) for name in self.by))
                if not self._shows_money(dims):
                    self._without_money.add(group)
                self._merge(group, SumRow.from_bytes(raw))

    def count_sums(self, number: int) -> None:
        """Count sums before they are added. Raises InvalidRequest if they are too many."""
        self._added += number
        limit = MAX_SUMS if "tenant" in self._query.only else MAX_SUMS_OF_ALL
        if self._added > limit:
            raise too_large(f"it would have to add up more than {limit:,} sums")

    def add_folded(self, period: Period, names: tuple[str, ...], row: SumRow) -> None:
        """Add the sum of a period and group, including money. The caller must not use the row afterwards."""
        self._merge(UsageGroup(self._start(period), names), row)

    def _merge(self, group: UsageGroup, row: SumRow) -> None:
        present = self._rows.get(group)
        if present is not None:
            present.merge(row)
        elif len(self._rows) < MAX_ROWS:
            self._rows[group] = row
        else:
            raise too_large(f"the result would have more than {MAX_ROWS:,} rows")

    def _start(self, period: Period) -> int | None:
        return None if self._query.granularity is None else Period.of(self._query.granularity, period.start).start

    @property
    def is_empty(self) -> bool:
        """Return whether the result has no requests and no baseline."""
        return not any(row.requests or row.baseline_pico for row in self._rows.values())

    def rows(self) -> list[tuple[UsageGroup, SumRow]]:
        """Return the rows by time, then by descending cost. The order does not reveal hidden costs."""

        def sort_key(item: tuple[UsageGroup, SumRow]) -> tuple[int, int, tuple[str, ...]]:
            group, row = item
            return group.start or 0, -row.cost_pico if self.includes_money(group) else 0, group.names

        return sorted(self._rows.items(), key=sort_key)

    def bounds(self, group: UsageGroup) -> tuple[int, int]:
        """Return the time range of a row: [start, end) in Unix seconds."""
        span, granularity = self._query.span, self._query.granularity
        if group.start is None or granularity is None:
            return span.since, span.until
        return group.start, group.start + SECONDS[granularity]

    def header(self) -> Json:
        """Return the JSON fields that describe the query."""
        return usage_header(self._query)

    def rows_as_json(self) -> Iterator[Json]:
        """Yield each row as JSON, then the total. It takes about 100 us per row."""
        for group, row in self.rows():
            names: Json = {"start": rfc3339(group.start)} if group.start is not None else {}
            names |= zip(self.by, group.names, strict=True)
            yield names | self._figures(row, money=self.includes_money(group))
        yield self._figures(self.total(), money=not self._without_money, is_total=True)

    def total(self) -> SumRow:
        """Return the sum of all rows. Call it in a thread."""
        total = SumRow()
        for row in with_pauses(self._rows.values()):
            total.merge(row)
        return total

    def _figures(self, row: SumRow, *, money: bool, is_total: bool = False) -> Json:
        """Return a row as JSON. Variants belong to one route of one tenant: other rows have none."""
        known = {*self._query.only, *(() if is_total else self._query.by)}
        fields = figures(row, money=money)
        if (variants := row.variants) and known.issuperset(("tenant", "route")):
            fields["variants"] = {name: _variant_sum(sums, money=money) for name, sums in variants.items()}
        return fields

    def includes_money(self, group: UsageGroup) -> bool:
        """Return whether money of a row may be shown."""
        return group not in self._without_money


def usage_header(query: UsageQuery) -> Json:
    """Return the JSON fields that describe a query."""
    return {
        "object": "usage",
        "since": rfc3339(query.span.since),
        "until": rfc3339(query.span.until),
        "granularity": query.granularity,
        "by": list(query.by),
    }


def too_large(reason: str) -> InvalidRequest:
    """Return the error for a query with a result that is too large or too slow."""
    return InvalidRequest(
        f"The query is too large: {reason}. Use a shorter time range (since, until), a coarser granularity, fewer "
        "dimensions (by), or a single tenant, key, route or mode.",
        param="by",
    )


def figures(row: SumRow, *, money: bool = True) -> Json:
    """Return a row as JSON: counts, tokens, money as text, shares and latencies."""
    fields: Json = {
        "requests": row.caller_requests,
        "answers": row.answers,
        "errors": dict(sorted(row.errors.items())),
        "disconnected": row.disconnected,
        "shadows": row.shadows,
        "unguided": dict(sorted(row.unguided.items())),
        "tokens": {
            "teacher": row.teacher._asdict(),
            "student": row.student._asdict(),
            "failed": row.failed._asdict(),
            "kept": row.kept_tokens,
            "answer": row.answer_tokens,
            "answer_by_teacher": row.teacher_answer_tokens,
        },
        "teacher_token_share": _share(row.teacher_answer_tokens, row.answer_tokens),
        "batches": _batches(row.batches),
        "latency_ms": {stage: _latency(times) for stage, times in zip(STAGES, row.stages, strict=True)},
    }
    if money:
        about_zero = is_about_zero(dollars(row.savings_pico), dollars(row.savings_error_pico))
        fields |= {
            "cost_usd": usd_text(row.cost_pico),
            **{name: usd_text(cost) for name, cost in costs_of(row).items()},
            "teacher_cost_usd": usd_text(row.teacher_pico),
            "student_cost_usd": usd_text(row.student_pico),
            "replaced_cost_usd": usd_text(row.failed_pico),
            "baseline_usd": usd_text(row.baseline_pico),
            "savings_usd": usd_text(row.savings_pico),
            "savings_error_usd": usd_text(row.savings_error_pico),
            "savings_about_zero": about_zero,
            "savings_classes": {name: _class_sum(sums) for name, sums in classes_of(row).items()},
            "baseline_estimated": row.baseline_estimated,
            "cost_share": None if about_zero else _share(row.cost_pico, row.baseline_pico),
        }
    return fields


def costs_of(row: SumRow) -> dict[str, int]:
    """Return the parts of `cost_pico` by their names in replies. The baseline less the four parts is the savings."""
    classes = row.classes
    parts = {name: classes.get(name, ClassSum()).cost_pico for name in (DISCONNECTED, FAILED, MEASURING)}
    return {"answers_usd": row.cost_pico - sum(parts.values()), **{f"{name}_usd": cost for name, cost in parts.items()}}


def classes_of(row: SumRow) -> dict[str, ClassSum]:
    """Return the sums by savings class, in the order of `CLASSES`, without empty classes."""
    classes: dict[str, ClassSum] = {name: row.classes[name] for name in CLASSES if name in row.classes}
    rest = row.unclassified
    return classes if rest == ClassSum() else {**classes, UNCLASSIFIED: rest}


def _class_sum(sums: ClassSum) -> Json:
    return {
        "requests": sums.requests,
        "cost_usd": usd_text(sums.cost_pico),
        "baseline_usd": usd_text(sums.baseline_pico),
        "savings_usd": usd_text(sums.savings_pico),
    }


def _variant_sum(sums: VariantSum, *, money: bool) -> Json:
    fields: Json = {"requests": sums.requests, "guided": sums.guided, "errors": sums.errors}
    return fields | {"cost_usd": usd_text(sums.cost_pico)} if money else fields


def escape_formula(name: str) -> str:
    """Return the name for a cell of CSV, escaped if a spreadsheet would read it as a formula."""
    return f"'{name}" if name.startswith(_FORMULA) else name


def usd_text(picos: int) -> str:
    """Return picodollars as text in USD, without an exponent, like in receipts."""
    return f"{dollars(picos).normalize():f}"


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, _SHARE_DIGITS) if whole > 0 else None


def _batches(sizes: Mapping[int, int]) -> Json:
    """Return the number of batches and their mean size. A receipt counts as 1/size of its batch."""
    calls = sum(sizes.values())
    count = sum(times / size for size, times in sizes.items())
    rounded = round(count) if abs(count - round(count)) < 1e-6 else round(count, 3)
    return {"count": rounded, "mean_size": round(calls / count, 3) if calls else None}


def _latency(times: Histogram) -> Json:
    latency: dict[str, Any] = {"count": times.count, "mean": _ms(times.mean_us)}
    quantiles = times.quantiles_us([percent / 100 for percent in _PERCENTILES])
    return latency | {f"p{percent}": _ms(value) for percent, value in zip(_PERCENTILES, quantiles, strict=True)}


def _ms(microseconds: float | None) -> float | None:
    # Round to whole microseconds first: round() with digits takes 5 us, and a result has thousands of times.
    return None if microseconds is None else round(microseconds) / 1000
