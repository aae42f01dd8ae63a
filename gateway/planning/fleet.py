"""The number of replicas of one engine that a load needs, and their cost."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from decimal import Context, Decimal
from math import ceil, inf
from typing import TYPE_CHECKING

from gateway.errors import StartupError
from gateway.planning.replica import ReplicaLoad, RequestWork, idle_first_s, replica_load, replica_s
from gateway.pricing import cost_usd

if TYPE_CHECKING:
    from gateway.planning.curve import Curve

_MAX_REPLICAS = 1_000_000
_EXACT = Context(prec=40)
_SECONDS_PER_HOUR = Decimal(3600)
_THOUSAND = Decimal(1000)


@dataclass(frozen=True, slots=True)
class FleetDemands:
    """Requirements of a fleet.

    Attributes:
        headroom: The part of each replica that must stay free, from 0 to 1.
        first_p95_s: The seconds within which 95 of 100 callers must receive the first token; None for no limit.
    """

    headroom: float = 0.3
    first_p95_s: float | None = None


@dataclass(frozen=True, slots=True)
class ReplicaFleet:
    """Replicas of one engine, and the state of each under its share of the load.

    Attributes:
        replicas, gpus: None for an engine that is paid by the token, since its provider runs it.
        load: The state of each replica.
        max_rps: Requests per second that the fleet serves with its headroom kept.
        met: Whether the demands are met.
    """

    curve: Curve
    work: RequestWork
    replicas: int | None
    gpus: int | None
    load: ReplicaLoad
    max_rps: float
    met: bool
    usd_per_hour: Decimal
    usd_per_1000: Decimal


def fleet(
    role: str, curve: Curve, work: RequestWork, rps: Decimal, demands: FleetDemands, replicas: int | None = None
) -> ReplicaFleet:
    """Return the replicas that the load needs, or the state of a fixed number of replicas.

    Replicas receive equal shares of the requests.

    Args:
        role: "teacher" or "student", for error messages.
        curve: The engine.
        work: The tokens of one request.
        rps: Requests per second.
        demands: The requirements.
        replicas: A fixed number of replicas; None computes it.

    Raises:
        StartupError: The curve has no price, or the load needs too many replicas.
    """
    price = curve.price
    if price is None:
        raise StartupError(f"The {role}'s curve has no price: add price to the file, or set --{role}-usd-per-hour.")
    if (tokens := price.tokens) is not None:
        each_usd = cost_usd(tokens, work.read + work.cached, work.written, work.cached)
        hourly_usd = _EXACT.multiply(_EXACT.multiply(each_usd, rps), _SECONDS_PER_HOUR)
        met = demands.first_p95_s is None or idle_first_s(curve, work) <= demands.first_p95_s
        load = _provider_load(curve, work)
        return ReplicaFleet(curve, work, None, None, load, inf, met, hourly_usd, _EXACT.multiply(each_usd, _THOUSAND))
    rate = float(rps)
    count = replicas or _needed(curve, work, rate, demands)
    load = replica_load(curve, work, rate / count)
    assert price.gpu_usd_per_hour is not None
    gpus = count * curve.gpus_per_replica
    hourly_usd = _EXACT.multiply(price.gpu_usd_per_hour, Decimal(gpus))
    per_1000_usd = _EXACT.divide(_EXACT.multiply(hourly_usd, _THOUSAND), _EXACT.multiply(rps, _SECONDS_PER_HOUR))
    max_rps = count * (1 - demands.headroom) / replica_s(curve, work)
    met = load.stable and _fast(load, demands) and rate <= max_rps * (1 + 1e-9)
    return ReplicaFleet(curve, work, count, gpus, load, max_rps, met, hourly_usd, per_1000_usd)


def _needed(curve: Curve, work: RequestWork, rate: float, demands: FleetDemands) -> int:
    """Return the fewest replicas that meet both demands; those that keep the headroom if none is fast enough."""
    lower_bound = max(1, ceil(rate * replica_s(curve, work) / (1 - demands.headroom) - 1e-9))
    if lower_bound > _MAX_REPLICAS:
        raise StartupError(f"The load needs {lower_bound} replicas of {curve.model}: correct --rps, or the curve.")

    def is_fast(count: int) -> bool:
        return _fast(replica_load(curve, work, rate / count), demands)

    upper_bound = lower_bound
    while not is_fast(upper_bound):
        upper_bound *= 2
        if upper_bound > _MAX_REPLICAS:
            return lower_bound
    # Waits get shorter with each further replica.
    return lower_bound + bisect_left(range(lower_bound, upper_bound + 1), True, key=is_fast)


def _fast(load: ReplicaLoad, demands: FleetDemands) -> bool:
    return demands.first_p95_s is None or load.first_p95_s <= demands.first_p95_s


def _provider_load(curve: Curve, work: RequestWork) -> ReplicaLoad:
    """Return the state of an external provider's engine, assumed to be as fast as its smallest measured batch."""
    first_s, step_s = idle_first_s(curve, work), curve.step_s(1)
    return ReplicaLoad(0.0, 1.0, 0.0, 0.0, first_s, first_s, step_s, first_s + work.steps * step_s)
