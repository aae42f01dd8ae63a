"""How many replicas of one engine a load needs, and what they cost."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from decimal import Context, Decimal
from math import ceil, inf
from typing import TYPE_CHECKING

from gateway.errors import StartupError
from gateway.planning.replica import ReplicaLoad, RequestWork, idle_first_s, replica_s, stand
from gateway.pricing import cost_usd

if TYPE_CHECKING:
    from gateway.planning.curve import Curve

_MOST_REPLICAS = 1_000_000
_EXACT = Context(prec=40)
_SECONDS_PER_HOUR = Decimal(3600)
_ANSWERS = Decimal(1000)


@dataclass(frozen=True, slots=True)
class FleetDemands:
    """What a fleet must keep: `headroom`, the part of each replica that stays free; and `first_p95_s`, within how many
    seconds 95 of 100 callers hear the first token, where that is asked for."""

    headroom: float = 0.3
    first_p95_s: float | None = None


@dataclass(frozen=True, slots=True)
class ReplicaFleet:
    """Replicas of one engine, and how each stands under its share of the load.

    `replicas` and `gpus` are None for an engine that is paid by the token: its seller sees to them. `most_rps`: the
    requests in a second that the fleet bears with its headroom kept. `met`: whether the demands are.
    """

    curve: Curve
    work: RequestWork
    replicas: int | None
    gpus: int | None
    standing: ReplicaLoad
    most_rps: float
    met: bool
    usd_per_hour: Decimal
    usd_per_1000: Decimal


def fleet(
    role: str, curve: Curve, work: RequestWork, rps: Decimal, demands: FleetDemands, replicas: int | None = None
) -> ReplicaFleet:
    """As many replicas as the load needs, or how it would stand with `replicas`.

    Replicas get equal shares of the requests. Raises StartupError where the curve has no price.
    """
    price = curve.price
    if price is None:
        raise StartupError(f"The {role}'s curve has no price: add price to the file, or give --{role}-usd-per-hour.")
    if (tokens := price.tokens) is not None:
        each_usd = cost_usd(tokens, work.read + work.cached, work.written, work.cached)
        hourly_usd = _EXACT.multiply(_EXACT.multiply(each_usd, rps), _SECONDS_PER_HOUR)
        met = demands.first_p95_s is None or idle_first_s(curve, work) <= demands.first_p95_s
        standing = _bought(curve, work)
        return ReplicaFleet(
            curve, work, None, None, standing, inf, met, hourly_usd, _EXACT.multiply(each_usd, _ANSWERS)
        )
    rate = float(rps)
    count = replicas or _needed(curve, work, rate, demands)
    standing = stand(curve, work, rate / count)
    assert price.gpu_usd_per_hour is not None
    gpus = count * curve.gpus_per_replica
    hourly_usd = _EXACT.multiply(price.gpu_usd_per_hour, Decimal(gpus))
    per_1000_usd = _EXACT.divide(_EXACT.multiply(hourly_usd, _ANSWERS), _EXACT.multiply(rps, _SECONDS_PER_HOUR))
    most_rps = count * (1 - demands.headroom) / replica_s(curve, work)
    met = standing.stable and _fast(standing, demands) and rate <= most_rps * (1 + 1e-9)
    return ReplicaFleet(curve, work, count, gpus, standing, most_rps, met, hourly_usd, per_1000_usd)


def _needed(curve: Curve, work: RequestWork, rate: float, demands: FleetDemands) -> int:
    """The fewest replicas that keep both demands; where none is fast enough, those that keep the headroom."""
    least = max(1, ceil(rate * replica_s(curve, work) / (1 - demands.headroom) - 1e-9))
    if least > _MOST_REPLICAS:
        raise StartupError(f"The load needs {least} replicas of {curve.model}: correct --rps, or the curve.")

    def fast(count: int) -> bool:
        return _fast(stand(curve, work, rate / count), demands)

    most = least
    while not fast(most):
        most *= 2
        if most > _MOST_REPLICAS:
            return least
    # Waits get shorter with each further replica.
    return least + bisect_left(range(least, most + 1), True, key=fast)


def _fast(standing: ReplicaLoad, demands: FleetDemands) -> bool:
    return demands.first_p95_s is None or standing.first_p95_s <= demands.first_p95_s


def _bought(curve: Curve, work: RequestWork) -> ReplicaLoad:
    """An engine of somebody else's, who keeps it as fast as it was measured with its smallest batch."""
    first_s, step_s = idle_first_s(curve, work), curve.step_s(1)
    return ReplicaLoad(0.0, 1.0, 0.0, 0.0, first_s, first_s, step_s, first_s + work.steps * step_s)
