"""The capacity plan: a teacher that writes guidance and a student that completes answers, versus the teacher alone."""

from __future__ import annotations

from bisect import bisect_left
from decimal import Context, Decimal
from math import ceil, inf
from typing import TYPE_CHECKING, NamedTuple

from gateway.errors import StartupError
from gateway.planning.replica import ReplicaLoad, RequestWork, idle_first_s, replica_load, replica_s
from gateway.pricing import cost_usd, savings_usd, total_usd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.planning.curve import Curve

_MAX_REPLICAS = 1_000_000
_EXACT = Context(prec=40)
_SECONDS_PER_HOUR = Decimal(3600)
_THOUSAND = Decimal(1000)
_LONGER = 1.5
_DEARER = "guidance costs more than the teacher alone: two models read each prompt, and replicas are whole"


class FleetDemands(NamedTuple):
    """Demands on a fleet: the share of each replica's capacity that stays free, and the maximum time to first token.

    `first_p95_s` limits the 95th percentile of that time, in seconds; None: no limit.
    """

    headroom: float = 0.3
    first_p95_s: float | None = None


class ReplicaFleet(NamedTuple):
    """Replicas of one engine, and the state of each replica under its share of the load.

    `replicas` and `gpus` are None if the engine is paid by the token. `max_rps` is the highest rate of requests per
    second at which the headroom is kept. `met` states whether the demands are met.
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
    """Return the replicas that a load of `rps` requests per second needs, or the state of a fixed number of them.

    Replicas receive equal shares of the requests. `role` is "teacher" or "student", for error messages. Raises
    StartupError if the curve has no price, or the load needs too many replicas.
    """
    price = curve.price
    if price is None:
        raise StartupError(f"The {role}'s curve has no price: add price to the file, or set --{role}-usd-per-hour.")
    if (tokens := price.tokens) is not None:
        each_usd = cost_usd(tokens, work.read + work.cached, work.written, work.cached)
        hourly_usd = _EXACT.multiply(_EXACT.multiply(each_usd, rps), _SECONDS_PER_HOUR)
        # A provider's engine is assumed to be as fast as its smallest measured batch.
        first_s, step_s = idle_first_s(curve, work), curve.step_s(1)
        load = ReplicaLoad(0.0, 1.0, 0.0, 0.0, first_s, first_s, step_s, first_s + work.steps * step_s)
        met = _fast(load, demands)
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


class RequestLoad(NamedTuple):
    """Requests per second and their tokens. The teacher writes the first `guidance_tokens` of the answer.

    Only the teacher reads the `shown_tokens`, such as exemplars. `shown_cached`: its prefix cache holds them.
    """

    rps: Decimal
    prompt_tokens: int
    answer_tokens: int
    guidance_tokens: int
    shown_tokens: int = 0
    shown_cached: bool = False


class CapacityPlan(NamedTuple):
    """The resources that a load needs with guidance, and with the teacher `alone`.

    `student` is None if students run on callers' devices, so that their cost and time are unknown. `savings_share` is a
    part of the cost of the teacher alone; negative if guidance costs more. `assumptions` and `warnings` are sentences.
    """

    load: RequestLoad
    demands: FleetDemands
    teacher: ReplicaFleet
    student: ReplicaFleet | None
    alone: ReplicaFleet
    usd_per_hour: Decimal
    usd_per_1000: Decimal
    savings_usd_per_hour: Decimal
    savings_usd_per_1000: Decimal
    savings_share: float | None
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def total_s(self) -> float | None:
        """Return the mean seconds to the end of the answer; None if students run elsewhere."""
        return None if self.student is None else self.teacher.load.total_s + self.student.load.total_s

    @property
    def met(self) -> bool:
        """Return whether teacher and student serve the load and meet the demands."""
        return self.teacher.met and (self.student is None or self.student.met)


def plan(
    load: RequestLoad,
    teacher: Curve,
    student: Curve | None,
    demands: FleetDemands,
    *,
    teacher_replicas: int | None = None,
    student_replicas: int | None = None,
) -> CapacityPlan:
    """Compute the replicas of both fleets, or evaluate fixed numbers of replicas.

    Raises StartupError as `fleet` does, and if the guidance leaves no tokens for the student.
    """
    if load.guidance_tokens >= load.answer_tokens:
        raise StartupError(
            f"--tokens {load.guidance_tokens} leaves no tokens for the student: it must be less than --answer "
            f"{load.answer_tokens}."
        )
    prompt, guidance, answer = load.prompt_tokens, load.guidance_tokens, load.answer_tokens
    shown, cached = (0, load.shown_tokens) if load.shown_cached else (load.shown_tokens, 0)
    work = RequestWork(prompt + shown, guidance, cached)
    teacher_fleet = fleet("teacher", teacher, work, load.rps, demands, teacher_replicas)
    student_fleet = None
    # Only the teacher determines when the first token arrives.
    of_student = FleetDemands(demands.headroom)
    if student is not None:
        work = RequestWork(prompt + guidance, answer - guidance)
        student_fleet = fleet("student", student, work, load.rps, of_student, student_replicas)
    alone = fleet("teacher", teacher, RequestWork(prompt, answer), load.rps, demands)
    sides = [teacher_fleet] if student_fleet is None else [teacher_fleet, student_fleet]
    hourly_usd = total_usd(*(one.usd_per_hour for one in sides))
    per_1000_usd = total_usd(*(one.usd_per_1000 for one in sides))
    saved_usd = savings_usd(alone.usd_per_hour, hourly_usd)
    known = set(_warnings("teacher alone", teacher_fleet, demands))
    return CapacityPlan(
        load=load,
        demands=demands,
        teacher=teacher_fleet,
        student=student_fleet,
        alone=alone,
        usd_per_hour=hourly_usd,
        usd_per_1000=per_1000_usd,
        savings_usd_per_hour=saved_usd,
        savings_usd_per_1000=savings_usd(alone.usd_per_1000, per_1000_usd),
        savings_share=float(saved_usd / alone.usd_per_hour) if alone.usd_per_hour else None,
        assumptions=tuple(_assumptions(load, demands, teacher_fleet, student_fleet, alone)),
        warnings=(
            *_warnings("teacher", teacher_fleet, demands),
            *(() if student_fleet is None else _warnings("student", student_fleet, of_student)),
            *(one for one in _warnings("teacher alone", alone, demands) if one not in known),
            *((_DEARER,) if saved_usd < 0 else ()),
        ),
    )


def _assumptions(
    load: RequestLoad, demands: FleetDemands, teacher: ReplicaFleet, student: ReplicaFleet | None, alone: ReplicaFleet
) -> Iterator[str]:
    yield (
        "Arrivals: requests arrive at random and independently (Poisson), each replica receives an equal share at "
        "random, and the rate is constant."
    )
    yield (
        "Batched server: an engine reads waiting prompts in one pass, then gives each answer of its batch a token. The "
        "number of answers is a birth-death chain with the curve's steps. Waits follow from Little's law."
    )
    yield f"Headroom: each replica runs at no more than {1 - demands.headroom:.0%} of its capacity."
    yield (
        f"Lengths: all prompts have {load.prompt_tokens} tokens and all answers {load.answer_tokens}. Every answer has "
        f"{load.guidance_tokens} tokens of guidance, which are all kept; none comes from the guidance cache. Both "
        "models count tokens alike."
    )
    if load.shown_tokens:
        how = "from its prefix cache" if load.shown_cached else "without a cache"
        yield (f"The teacher reads {load.shown_tokens} tokens besides each prompt {how}; the teacher alone does not.")
    for role, side in (("teacher", teacher), ("student", student), ("teacher alone", alone)):
        if side is not None and side.replicas is not None and side.curve.cache_tokens is None:
            slots = side.curve.slots(side.work.context)
            yield (
                f"Memory, {role}: {slots} answers of {side.work.context} tokens fit next to the weights. The curve "
                "does not set cache_tokens."
            )
        if side is not None and side.replicas is None and role != "teacher alone":
            yield f"The {role} is paid by the token, and is as fast as its curve at any load."
    if student is None:
        yield "Students run on callers' devices: their time and cost are not included."
    yield (
        "Not included: the gateway's own 2 ms, its batching window (at most 10 ms, none while the teacher has free "
        "slots), and networks."
    )


def _warnings(role: str, side: ReplicaFleet, demands: FleetDemands) -> Iterator[str]:
    for warning in (*_curve_warnings(side), *_load_warnings(side, demands)):
        yield f"{role}: {warning}"


def _curve_warnings(side: ReplicaFleet) -> Iterator[str]:
    curve, work = side.curve, side.work
    if curve.origin.kind == "assumed":
        yield f"the numbers of its curve are assumed, not measured ({curve.origin.source})"
    if side.replicas is None:
        return
    slots = curve.slots(work.context)
    if slots > curve.measured_batch:
        yield (
            f"extrapolated: up to {slots} answers may be decoded together, and the curve is measured up to "
            f"{curve.measured_batch}; measure more, or set max_batch"
        )
    if side.load.batch < curve.decode[0].batch and slots >= curve.decode[0].batch:
        yield (
            f"extrapolated: {side.load.batch:.1f} answers are decoded together, and the smallest batch of the "
            f"curve is {curve.decode[0].batch}; steps may be shorter"
        )
    measured_tokens = curve.origin.context_tokens
    if measured_tokens is not None and work.read + work.cached + work.written / 2 > _LONGER * measured_tokens:
        yield (
            f"extrapolated: answers hold {work.read + work.cached + work.written // 2} tokens on average during "
            f"decoding, and the curve is measured with {measured_tokens}; steps may be longer"
        )


def _load_warnings(side: ReplicaFleet, demands: FleetDemands) -> Iterator[str]:
    load = side.load
    if not load.stable:
        yield (
            f"unstable: {side.replicas} replicas serve at most {side.max_rps / (1 - demands.headroom):.4g} requests "
            "per second; more arrive, so waits grow without limit"
        )
        return
    if side.replicas is not None and load.utilization > 1 - demands.headroom + 1e-9:
        yield f"the headroom is not kept: {load.utilization:.0%} of the replicas' capacity is used"
    limit_s = demands.first_p95_s
    if limit_s is not None and load.first_p95_s > limit_s:
        alone_s = idle_first_s(side.curve, side.work)
        advice = "add replicas" if alone_s < limit_s else f"an idle replica takes {alone_s:.3g} s, so more do not help"
        yield (
            f"the first token is too late: 95 of 100 arrive within {load.first_p95_s:.3g} s, and the limit is "
            f"{limit_s:g} s; {advice}"
        )
    if side.replicas == 1:
        yield "one replica: no capacity is left if it fails"
