"""The capacity plan: a teacher that writes guidance and a student that completes answers, versus the teacher alone."""

from __future__ import annotations

from decimal import Context, Decimal
from math import ceil, inf
from typing import TYPE_CHECKING, NamedTuple

from gateway.errors import StartupError
from gateway.planning.replica import RequestWork, replica_s
from gateway.pricing import cost_usd, savings_usd, total_usd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.planning.curve import Curve

DEFAULT_HEADROOM = 0.3
_MAX_REPLICAS = 1_000_000
_EXACT = Context(prec=40)
_SECONDS_PER_HOUR = Decimal(3600)
_THOUSAND = Decimal(1000)
_LONGER = 1.5
_DEARER = "guidance costs more than the teacher alone: two models read each prompt, and replicas are whole"


class ReplicaFleet(NamedTuple):
    """Replicas of one engine under their shares of the load.

    `replicas`, `gpus` and `utilization` (the used part of the capacity) are None if the engine is paid by the token.
    `max_rps` is the highest rate of requests per second at which the headroom is kept. `met` states whether it is kept.
    """

    curve: Curve
    work: RequestWork
    replicas: int | None
    gpus: int | None
    utilization: float | None
    max_rps: float
    met: bool
    usd_per_hour: Decimal
    usd_per_1000: Decimal


def fleet(
    role: str, curve: Curve, work: RequestWork, rps: Decimal, headroom: float, replicas: int | None = None
) -> ReplicaFleet:
    """Return the replicas that a load of `rps` requests per second needs, or the state of a fixed number of them.

    Replicas receive equal shares of the requests, and `headroom` is the part of each that stays free. `role` is
    "teacher" or "student", for error messages. Raises StartupError if the curve has no price, or the load needs too
    many replicas.
    """
    price = curve.price
    if price is None:
        raise StartupError(f"The {role}'s curve has no price: add price to the file, or set --{role}-usd-per-hour.")
    if (tokens := price.tokens) is not None:
        each_usd = cost_usd(tokens, work.read + work.cached, work.written, work.cached)
        hourly_usd = _EXACT.multiply(_EXACT.multiply(each_usd, rps), _SECONDS_PER_HOUR)
        per_1000_usd = _EXACT.multiply(each_usd, _THOUSAND)
        return ReplicaFleet(curve, work, None, None, None, inf, True, hourly_usd, per_1000_usd)
    rate = float(rps)
    count = replicas or _needed(curve, work, rate, headroom)
    assert price.gpu_usd_per_hour is not None
    gpus = count * curve.gpus_per_replica
    hourly_usd = _EXACT.multiply(price.gpu_usd_per_hour, Decimal(gpus))
    per_1000_usd = _EXACT.divide(_EXACT.multiply(hourly_usd, _THOUSAND), _EXACT.multiply(rps, _SECONDS_PER_HOUR))
    utilization = rate * replica_s(curve, work) / count
    max_rps = count * (1 - headroom) / replica_s(curve, work)
    met = rate <= max_rps * (1 + 1e-9)
    return ReplicaFleet(curve, work, count, gpus, utilization, max_rps, met, hourly_usd, per_1000_usd)


def _needed(curve: Curve, work: RequestWork, rate: float, headroom: float) -> int:
    """Return the fewest replicas that keep the headroom."""
    count = max(1, ceil(rate * replica_s(curve, work) / (1 - headroom) - 1e-9))
    if count > _MAX_REPLICAS:
        raise StartupError(f"The load needs {count} replicas of {curve.model}: correct --rps, or the curve.")
    return count


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

    `student` is None if students run on callers' devices, so that their cost is unknown. `savings_share` is a
    part of the cost of the teacher alone; negative if guidance costs more. `assumptions` and `warnings` are sentences.
    """

    load: RequestLoad
    headroom: float
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
    def met(self) -> bool:
        """Return whether teacher and student serve the load and keep the headroom."""
        return self.teacher.met and (self.student is None or self.student.met)


def plan(
    load: RequestLoad,
    teacher: Curve,
    student: Curve | None,
    headroom: float = DEFAULT_HEADROOM,
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
    teacher_fleet = fleet("teacher", teacher, work, load.rps, headroom, teacher_replicas)
    student_fleet = None
    if student is not None:
        work = RequestWork(prompt + guidance, answer - guidance)
        student_fleet = fleet("student", student, work, load.rps, headroom, student_replicas)
    alone = fleet("teacher", teacher, RequestWork(prompt, answer), load.rps, headroom)
    sides = [teacher_fleet] if student_fleet is None else [teacher_fleet, student_fleet]
    hourly_usd = total_usd(*(one.usd_per_hour for one in sides))
    per_1000_usd = total_usd(*(one.usd_per_1000 for one in sides))
    saved_usd = savings_usd(alone.usd_per_hour, hourly_usd)
    known = set(_warnings("teacher alone", teacher_fleet, headroom))
    return CapacityPlan(
        load=load,
        headroom=headroom,
        teacher=teacher_fleet,
        student=student_fleet,
        alone=alone,
        usd_per_hour=hourly_usd,
        usd_per_1000=per_1000_usd,
        savings_usd_per_hour=saved_usd,
        savings_usd_per_1000=savings_usd(alone.usd_per_1000, per_1000_usd),
        savings_share=float(saved_usd / alone.usd_per_hour) if alone.usd_per_hour else None,
        assumptions=tuple(_assumptions(load, headroom, teacher_fleet, student_fleet, alone)),
        warnings=(
            *_warnings("teacher", teacher_fleet, headroom),
            *(() if student_fleet is None else _warnings("student", student_fleet, headroom)),
            *(one for one in _warnings("teacher alone", alone, headroom) if one not in known),
            *((_DEARER,) if saved_usd < 0 else ()),
        ),
    )


def _assumptions(
    load: RequestLoad, headroom: float, teacher: ReplicaFleet, student: ReplicaFleet | None, alone: ReplicaFleet
) -> Iterator[str]:
    yield "Rate: it is constant, and each replica receives an equal share of the requests."
    yield (
        "Batched server: an engine reads waiting prompts in one pass, then gives each answer of its batch a token. A "
        "full replica decodes its largest batch. Bursts and waits are not modeled: the headroom is for them."
    )
    yield f"Headroom: each replica runs at no more than {1 - headroom:.0%} of its capacity."
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
            yield f"The {role} is paid by the token, and serves any load."
    if student is None:
        yield "Students run on callers' devices: their cost is not included."


def _warnings(role: str, side: ReplicaFleet, headroom: float) -> Iterator[str]:
    for warning in (*_curve_warnings(side), *_load_warnings(side, headroom)):
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
    measured_tokens = curve.origin.context_tokens
    if measured_tokens is not None and work.read + work.cached + work.written / 2 > _LONGER * measured_tokens:
        yield (
            f"extrapolated: answers hold {work.read + work.cached + work.written // 2} tokens on average during "
            f"decoding, and the curve is measured with {measured_tokens}; steps may be longer"
        )


def _load_warnings(side: ReplicaFleet, headroom: float) -> Iterator[str]:
    if side.utilization is None:
        return
    if side.utilization >= 1:
        yield (
            f"overloaded: {side.replicas} replicas serve at most {side.max_rps / (1 - headroom):.4g} requests per "
            "second; more arrive, so waits grow without limit"
        )
    elif not side.met:
        yield f"the headroom is not kept: {side.utilization:.0%} of the replicas' capacity is used"
    elif side.replicas == 1:
        yield "one replica: no capacity is left if it fails"
