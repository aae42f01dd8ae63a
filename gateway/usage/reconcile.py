"""Engines that are paid by the hour, day by day: what their hours cost against what requests were charged. Pure.

Requests are charged at token rates; an engine that idles is paid for all the same. The difference is shown, and never
spread over requests.
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
    """One engine on one day. `uptime` is None where it was not paid by the hour."""

    engine: str
    charged_usd: Decimal
    uptime: EngineUptime | None
    elapsed_minutes: int

    @property
    def wall_usd(self) -> Decimal | None:
        """What its hours cost, as far as it was seen to be up."""
        if self.uptime is None:
            return None
        return quantized(self.uptime.hourly_usd * self.uptime.up_minutes / 60)


@dataclass(frozen=True, slots=True)
class ReconciledDay:
    """All engines on the UTC day that begins at `start`, in Unix seconds. `complete`: it is over."""

    start: int
    complete: bool
    engines: tuple[EngineDay, ...]


def reconciled_day(
    start: int, now: float, charged_pico: Mapping[str, int], watched: Mapping[str, EngineUptime]
) -> ReconciledDay:
    """Set the two sides of a day beside each other.

    Args:
        charged_pico: by engine, what receipts of that day were charged for it.
        watched: by engine, for those that were paid by the hour that day.
    """
    # The minute that has begun counts: an engine may have been seen in it.
    elapsed = min(MINUTES_A_DAY, int(now - start) // 60 + 1)
    engines = tuple(
        EngineDay(engine, usd(charged_pico.get(engine, 0)), watched.get(engine), elapsed)
        for engine in sorted(charged_pico.keys() | watched.keys())
    )
    return ReconciledDay(start, now >= start + DAY_S, engines)


def engine_view(one: EngineDay) -> dict[str, Any]:
    """As the admin API tells it; money is text."""
    if one.uptime is None:
        return {"engine": one.engine, "usd_per_hour": None, "minutes": None} | _sides(None, one.charged_usd)
    up, seen = one.uptime.up_minutes, one.uptime.seen_minutes
    minutes = {"up": up, "down": max(0, seen - up), "unseen": max(0, one.elapsed_minutes - seen)}
    return {"engine": one.engine, "usd_per_hour": _text(one.uptime.hourly_usd), "minutes": minutes} | _sides(
        one.wall_usd, one.charged_usd
    )


def totals(days: Sequence[ReconciledDay]) -> dict[str, Any]:
    """Of some days: engines that are paid by the hour together, and beside them what the others were charged."""
    entries = [one for day in days for one in day.engines]
    hourly = [one for one in entries if one.wall_usd is not None]
    wall = _sum(one.wall_usd for one in hourly if one.wall_usd is not None)
    charged = _sum(one.charged_usd for one in entries)
    by_hour = _sum(one.charged_usd for one in hourly)
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
