"""Look for anomalies in the sums of hours: tenants and labels that spend unusually much, and engines without usage.

A usage worker checks once a minute, also the hour that has not ended: its spend can only grow. An anomaly ends after
three calm hours in a row. So it is reported once, even if some hours between are below the limit.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import structlog
from msgspec.structs import replace
from redis.exceptions import RedisError

from gateway.errors import StartupError
from gateway.usage import hours
from gateway.usage.anomalies import ENGINE, LABEL, TENANT, Anomaly, LabelValue
from gateway.usage.engine import UsageDatabaseError
from gateway.usage.entries import batched
from gateway.usage.hours import EVERYTHING, KEEP_S, OMITTED, HourSums, Series
from gateway.usage.label_hours import changed_tenants, read_labels
from gateway.usage.spend_limits import HOUR_S, WEEK_S, SpendLimit, SpendRule, neighbors, usual_share
from gateway.usage.threads import with_pauses

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.config.sections import AlertSettings, WorkerAlerts
    from gateway.usage.anomalies import AnomalyStore, Kind
    from gateway.usage.hours import HourRows
    from gateway.usage.queries import UsageQueries
    from gateway.usage.store import UsageStore

log = structlog.get_logger()

_CHECK_EVERY_S = 60.0
_CHECK_HELD_S = 50.0
_LATE_S = 26 * HOUR_S  # receipts of the last day may still arrive
_HOURS_AT_ONCE = 24
_CALM_HOURS = 3
_LONGEST_UNKNOWN_S = 24 * HOUR_S  # an anomaly ends after a day without a judgment
_CALM_SHARE = 0.5  # of the threshold
_PICOS = 1e12
_SPENDERS = (TENANT, LABEL)
_MAX_LABELS = 10
"""Most values of a tenant's labels with an anomaly at once."""
_TENANTS_AT_ONCE = 20
_LEAST_OF_LABELS, _NEGLIGIBLE = 0.01, 0.1
"""Parts of `min_usd`: the spend of a tenant's hour that has rows of labels, and the spend of an omitted value that
counts as zero."""

Key: TypeAlias = "tuple[Kind, Series]"


class _Judgment(NamedTuple):
    is_unusual: bool
    is_calm: bool
    figures: dict[str, Any]  # fields of Anomaly


class AnomalyWatch:
    """Check the hours of the usage database.

    `thresholds` are `alerts` of config.yaml, `process_id` is that of the worker, and `clock` returns Unix seconds.
    """

    def __init__(
        self,
        found: AnomalyStore,
        store: UsageStore,
        process_id: str,
        thresholds: WorkerAlerts | AlertSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._found, self._store, self._process_id, self._clock = found, store, process_id, clock
        self._spend, self._usage = thresholds.spend, thresholds.missing_usage
        self._rule = SpendRule(self._spend.min_usd, self._spend.factor, self._spend.min_history_s)
        self._last_hour: int | None = None
        self._limits: dict[tuple[Series, int], tuple[SpendLimit | None]] = {}
        self._near: dict[int, dict[Series, dict[int, int]]] = {}  # by hour: the spend at its neighbors
        self._first: dict[Series, int] = {}  # the first hours of series
        self._shares: dict[Series, tuple[int, float | None]] = {}

    async def run(self, every_s: float = _CHECK_EVERY_S) -> None:
        """Check once a minute until canceled, beside the writing of receipts. A failure is logged once."""
        failing = False
        while True:
            try:
                await self.check()
                failing = False
            except Exception as error:
                known = isinstance(error, (*UsageDatabaseError, RedisError, StartupError))
                if not failing or not known:
                    log.warning("anomalies_not_checked", error=type(error).__name__, exc_info=not known)
                failing = True
            await asyncio.sleep(every_s)

    async def check(self) -> None:
        """Store the sums of the last hours, and write the anomalies in them. Other workers skip this minute.

        Raises RedisError, OSError, and the errors of `UsageStore`.
        """
        if not await self._found.begin_check(self._process_id, _CHECK_HELD_S):
            return
        now = int(self._clock() // HOUR_S) * HOUR_S
        enabled = {"spend": self._spend.enabled, "usage": self._usage.enabled}
        recorded = await self._record(now) if any(enabled.values()) else {}
        before: dict[Key, Anomaly] = {
            (one.kind, Series(one.dimension, one.name)): one for one in await self._found.read()
        }
        active = {key: one for key, one in before.items() if enabled[one.kind]}
        for start in (now - HOUR_S, now):
            if (rows := recorded.get(start)) is not None:
                await self._check_hour(active, rows, start, is_whole=start < now)
        changed = [one for key, one in active.items() if before.get(key) != one]
        ended = [one for key, one in before.items() if key not in active]
        for one in ended:
            log.info("anomaly_ended", kind=one.kind, dimension=one.dimension, name=one.name)
        await self._found.write(changed, ended)

    async def _check_hour(self, active: dict[Key, Anomaly], rows: HourRows, start: int, *, is_whole: bool) -> None:
        """Update the anomalies by an hour. Each tenant has a bound on those of its labels."""
        for key in list(active):
            await self._update(active, key, start, _sums_of(rows, key[1]), is_whole=is_whole)
        labels = Counter(one.tenant for one in active.values() if one.dimension == LABEL)
        for key in await self._keys(rows, start):
            series = key[1]
            tenant = LabelValue.of(series.name).tenant if series.dimension == LABEL else None
            if key in active or (tenant is not None and labels[tenant] >= _MAX_LABELS):
                continue
            await self._update(active, key, start, rows[series], is_whole=is_whole)
            if tenant is not None:
                labels[tenant] += key in active

    async def _keys(self, rows: HourRows, start: int) -> list[Key]:
        """Return the series of an hour that may be unusual, the highest spend first."""
        keys: list[Key] = []
        if self._usage.enabled:
            keys += [("usage", one) for one, sums in rows.items() if one.dimension == ENGINE and sums.estimated]
        if self._spend.enabled:
            keys += [("spend", one) for one in await self._store.read(self._above_least, rows, start)]
        return keys

    def _above_least(self, queries: UsageQueries, rows: HourRows, start: int) -> list[Series]:
        """Return the series above the least limit that they can have. Few have, so few histories are read."""
        least_pico = self._rule.min_usd * _PICOS
        spent = {
            one: sums.cost_pico
            for one, sums in with_pauses(rows.items())
            if one.dimension in _SPENDERS and sums.cost_pico >= least_pico
        }
        if not spent:
            return []
        if (near := self._near.get(start)) is None:
            near = self._near[start] = hours.spend_at(queries, neighbors(start), _SPENDERS)
        in_order = with_pauses(sorted(spent, key=lambda one: -spent[one]))
        above = [one for one in in_order if spent[one] > self._rule.least(near.get(one, {}), start).limit_pico]
        return [one for one in with_pauses(above) if not self._is_new(queries, one, start)]

    def _is_new(self, queries: UsageQueries, series: Series, start: int) -> bool:
        """Return whether the history of a series is too short for a limit."""
        if (first := self._first.get(series)) is None:
            earliest = hours.first_of(queries, series)
            first = self._first[series] = start if earliest is None else earliest
        return start - first < self._rule.min_history_s

    async def _update(
        self, active: dict[Key, Anomaly], key: Key, start: int, sums: HourSums | None, *, is_whole: bool
    ) -> None:
        """Begin, continue or end the anomaly of a series by one hour. Without sums, they are unknown."""
        kind, series = key
        judgment = None
        if sums is not None:
            judge = self._judge_spend if kind == "spend" else self._judge_usage
            judgment = await judge(series, start, sums)
        one = active.get(key)
        if judgment is not None and judgment.is_unusual:
            since = one.since if one is not None else start
            active[key] = Anomaly(kind, *series, since, start, **judgment.figures)
        elif one is not None and is_whole and start > one.checked:
            calm = one.calm if judgment is None else one.calm + 1 if judgment.is_calm else 0
            if calm >= _CALM_HOURS or start - one.hour > _LONGEST_UNKNOWN_S:
                del active[key]
            else:
                active[key] = replace(one, calm=calm, checked=start)

    async def _judge_spend(self, series: Series, start: int, sums: HourSums) -> _Judgment | None:
        """Judge the spend of an hour. None: the history is too short."""
        known = self._limits.get((series, start))
        if known is None:
            known = self._limits[series, start] = (await self._store.read(self._limit_of, series, start),)
        if (limit := known[0]) is None:
            return None
        figures = {"spent_pico": sums.cost_pico, "expected_pico": limit.expected_pico, "limit_pico": limit.limit_pico}
        return _Judgment(sums.cost_pico > limit.limit_pico, sums.cost_pico <= limit.calm_pico, figures)

    def _limit_of(self, queries: UsageQueries, series: Series, start: int) -> SpendLimit | None:
        earlier = hours.history(queries, series, start)
        return self._rule.limit({hour: sums.cost_pico for hour, sums in earlier.items()}, start)

    async def _judge_usage(self, series: Series, start: int, sums: HourSums) -> _Judgment | None:
        """Judge the share of estimated usage of an hour. None: it has too few requests, or its history has."""
        if sums.requests < self._usage.min_requests:
            return None
        known = self._shares.get(series)
        if known is None or known[0] != start:
            known = self._shares[series] = start, await self._store.read(self._share_of, series, start)
        if (usual := known[1]) is None:
            return None
        share = sums.estimated / sums.requests
        figures = {"requests": sums.requests, "share": share, "usual_share": usual}
        rise = share - usual
        return _Judgment(rise > self._usage.share, rise <= _CALM_SHARE * self._usage.share, figures)

    def _share_of(self, queries: UsageQueries, series: Series, start: int) -> float | None:
        earlier = hours.history(queries, series, start)
        week = [sums for hour, sums in earlier.items() if hour >= start - WEEK_S]
        return usual_share([(sums.requests, sums.estimated) for sums in week])

    async def _record(self, now: int) -> dict[int, HourRows]:
        """Store the current hour, and once an hour the last day. Return the rows of hours that have any."""
        if self._last_hour == now:
            starts = [now]
        else:
            self._limits = {key: limit for key, limit in self._limits.items() if key[1] == now - HOUR_S}
            self._near = {start: near for start, near in self._near.items() if start == now - HOUR_S}
            self._first.clear()
            self._shares.clear()
            newest = await self._store.read(hours.newest)
            oldest = now - min(KEEP_S, int(self._store.retention.hour) // HOUR_S * HOUR_S)
            first = oldest if newest is None else max(oldest, min(newest, now - _LATE_S))
            starts = list(range(first, now + 1, HOUR_S))
        recorded: dict[int, HourRows] = {}
        for index in range(0, len(starts), _HOURS_AT_ONCE):
            part = starts[index : index + _HOURS_AT_ONCE]
            rows = await self._store.read(hours.read_sums, part)
            if now in part:
                rows.setdefault(now, {EVERYTHING: HourSums()})  # a worker runs, so no requests are no gap
            # Each hour has its own short transaction, since no worker writes receipts during it.
            for start, of_hour in (await self._store.read(hours.changed, rows)).items():
                await self._store.change(hours.write, {start: of_hour})
            recorded |= await self._with_labels(rows, now)
        if self._last_hour != now and now - HOUR_S not in recorded:
            # An hour without receipts is no gap if a worker ran.
            earlier = await self._store.read(hours.rows_of, now - HOUR_S)
            recorded |= {now - HOUR_S: earlier} if earlier else {}
        self._last_hour = now
        return recorded

    async def _with_labels(self, hours_rows: dict[int, HourRows], now: int) -> dict[int, HourRows]:
        """Store the rows of labels of the last day, and return all rows.

        In the current hour, only tenants that can have an unusual value count.
        """
        result = dict(hours_rows)
        if not self._spend.enabled:
            return result
        min_pico = self._spend.min_usd * _PICOS
        for start, rows in hours_rows.items():
            if start < now - _LATE_S:
                continue
            is_whole = start < now
            least_pico = round(min_pico * _LEAST_OF_LABELS if is_whole else min_pico)
            changed = await self._store.read(changed_tenants, start, rows, least_pico, is_whole)
            for some in batched(list(changed.items()), _TENANTS_AT_ONCE):
                labels = await self._store.read(read_labels, start, dict(some), round(min_pico * _NEGLIGIBLE))
                await self._store.change(hours.write_labels, start, labels)
            if start >= now - HOUR_S:  # others are not judged again
                result[start] = await self._store.read(hours.rows_of, start)
        return result


def _sums_of(rows: HourRows, series: Series) -> HourSums | None:
    """Return the sums of a series in an hour. None: the hour may have omitted the value of a label."""
    if series.dimension == LABEL and Series(OMITTED, LabelValue.of(series.name).tenant) in rows:
        return rows.get(series)
    return rows.get(series, HourSums())
