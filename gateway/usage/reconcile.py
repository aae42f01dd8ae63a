"""Compare the hourly cost of engines with the charges of requests, by day. Pure.

Requests are charged at token rates. An engine that is paid by the hour also costs money while it is idle. The
difference is reported, and never distributed over requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gateway.pricing import quantized
from gateway.usage.counters import usd
from gateway.usage.uptime import DAY_S, MINUTES_A_DAY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gateway.usage.uptime import EngineUptime


@dataclass(frozen=True, slots=True)
class EngineDay:
    """An engine on one day.

    Attributes:
        charged_usd: charges of the day's receipts for this engine.
        uptime: None if the engine was not paid by the hour.
        elapsed_minutes: minutes of the day that have begun.
    """

    engine: str
    charged_usd: Decimal
    uptime: EngineUptime | None
    elapsed_minutes: int

    @property
    def wall_usd(self) -> Decimal | None:
        """Return the cost of the minutes in which the engine was up, or None if it is not paid by the hour."""
        if self.uptime is None:
            return None
        return quantized(self.uptime.hourly_usd * self.uptime.up_minutes / 60)


@dataclass(frozen=True, slots=True)
class ReconciledDay:
    """All engines on one UTC day.

    Attributes:
        start: start of the day in Unix seconds.
        complete: whether the day is over.
    """

    start: int
    complete: bool
    engines: tuple[EngineDay, ...]


def reconciled_day(
    start: int, now: float, charged_pico: Mapping[str, int], uptimes: Mapping[str, EngineUptime]
) -> ReconciledDay:
    """Compare the charges and the uptime of one day.

    Args:
        start: start of the day in Unix seconds.
        now: Unix seconds.
        charged_pico: charges of the day's receipts by engine.
        uptimes: uptime by engine, for engines that were paid by the hour.
    """
    # The current minute counts, because an engine may have been checked in it.
    elapsed = min(MINUTES_A_DAY, int(now - start) // 60 + 1)
    engines = tuple(
        EngineDay(engine, usd(charged_pico.get(engine, 0)), uptimes.get(engine), elapsed)
        for engine in sorted(charged_pico.keys() | uptimes.keys())
    )
    return ReconciledDay(start, now >= start + DAY_S, engines)


def engine_view(day: EngineDay) -> dict[str, Any]:
    """Return the JSON of the admin API. Money is text."""
    if day.uptime is None:
        return {"engine": day.engine, "usd_per_hour": None, "minutes": None} | _sides(None, day.charged_usd)
    up, seen = day.uptime.up_minutes, day.uptime.seen_minutes
    minutes = {"up": up, "down": max(0, seen - up), "unseen": max(0, day.elapsed_minutes - seen)}
    return {"engine": day.engine, "usd_per_hour": _text(day.uptime.hourly_usd), "minutes": minutes} | _sides(
        day.wall_usd, day.charged_usd
    )


def totals(days: Sequence[ReconciledDay]) -> dict[str, Any]:
    """Return totals of several days: both sides of engines paid by the hour, and the charges of other engines."""
    entries = [entry for day in days for entry in day.engines]
    hourly = [entry for entry in entries if entry.wall_usd is not None]
    wall = _sum(entry.wall_usd for entry in hourly if entry.wall_usd is not None)
    charged = _sum(entry.charged_usd for entry in entries)
    by_hour = _sum(entry.charged_usd for entry in hourly)
    return {"by_hour": _sides(wall, by_hour), "by_token_usd": _text(charged - by_hour), "charged_usd": _text(charged)}


def _sides(wall_usd: Decimal | None, charged_usd: Decimal) -> dict[str, Any]:
    return {
        "wall_usd": None if wall_usd is None else _text(wall_usd),
        "charged_usd": _text(charged_usd),
        "difference_usd": None if wall_usd is None else _text(wall_usd - charged_usd),
        "utilisation": round(float(charged_usd / wall_usd), 4) if wall_usd else None,
    }


def _sum(amounts: Iterable[Decimal]) -> Decimal:
    return sum(amounts, Decimal(0))


def _text(amount: Decimal) -> str:
    return f"{amount.normalize():f}" if amount else "0"
