"""The capacity plan: a teacher that writes guidance and a student that completes answers, versus the teacher alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.errors import StartupError
from gateway.planning.fleet import FleetDemands, ReplicaFleet, fleet
from gateway.planning.replica import RequestWork, idle_first_s
from gateway.pricing import savings_usd, total_usd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from decimal import Decimal

    from gateway.planning.curve import Curve

_LONGER = 1.5


@dataclass(frozen=True, slots=True)
class RequestLoad:
    """The load: requests per second and the tokens of each request.

    Attributes:
        rps: Requests per second.
        prompt_tokens, answer_tokens: Tokens of each prompt and of each whole answer.
        guidance_tokens: The tokens at the start of the answer that the teacher writes.
        shown_tokens: Tokens that only the teacher reads in addition to the prompt, such as exemplars.
        shown_cached: Whether the teacher's prefix cache holds the shown tokens.
    """

    rps: Decimal
    prompt_tokens: int
    answer_tokens: int
    guidance_tokens: int
    shown_tokens: int = 0
    shown_cached: bool = False

    def teacher_work(self) -> RequestWork:
        """Return the tokens of a teacher request with guidance."""
        read = self.prompt_tokens + (0 if self.shown_cached else self.shown_tokens)
        return RequestWork(read, self.guidance_tokens, self.shown_tokens if self.shown_cached else 0)

    def student_work(self) -> RequestWork:
        """Return the tokens of a student request: it reads the prompt and the guidance."""
        return RequestWork(self.prompt_tokens + self.guidance_tokens, self.answer_tokens - self.guidance_tokens)

    def baseline_work(self) -> RequestWork:
        """Return the tokens of a teacher request without a student."""
        return RequestWork(self.prompt_tokens, self.answer_tokens)


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """The resources that a load needs with guidance, and with the teacher alone.

    Attributes:
        student: None if students run on callers' devices, so that their cost and time are unknown.
        alone: The teacher without a student.
        usd_per_hour, usd_per_1000: Cost with guidance, per hour and per 1000 answers.
        savings_share: Savings as a part of the cost of the teacher alone; negative if guidance costs more.
        assumptions, warnings: Sentences for the reader of the plan.
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
    def first_s(self) -> float:
        """Return the mean seconds to the teacher's first token, sent as it is written."""
        return self.teacher.load.first_s

    @property
    def guidance_s(self) -> float:
        """Return the mean seconds to the end of the guidance: the first text with `guidance.stream: false`."""
        return self.teacher.load.total_s

    @property
    def total_s(self) -> float | None:
        """Return the mean seconds to the end of the answer; None if students run elsewhere."""
        return None if self.student is None else self.guidance_s + self.student.load.total_s

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
    """Size both fleets, or evaluate the load on a fixed number of replicas of each.

    Raises StartupError if a curve has no price or the guidance would be the whole answer.
    """
    if load.guidance_tokens >= load.answer_tokens:
        raise StartupError(
            f"--tokens {load.guidance_tokens} leaves no tokens for the student: it must be less than --answer "
            f"{load.answer_tokens}."
        )
    teacher_fleet = fleet("teacher", teacher, load.teacher_work(), load.rps, demands, teacher_replicas)
    student_fleet = None
    if student is not None:
        # Only the teacher determines when the first token arrives.
        student_fleet = fleet(
            "student", student, load.student_work(), load.rps, FleetDemands(demands.headroom), student_replicas
        )
    alone = fleet("teacher", teacher, load.baseline_work(), load.rps, demands)
    sides = [teacher_fleet] if student_fleet is None else [teacher_fleet, student_fleet]
    hourly_usd = total_usd(*(one.usd_per_hour for one in sides))
    per_1000_usd = total_usd(*(one.usd_per_1000 for one in sides))
    saved_usd = savings_usd(alone.usd_per_hour, hourly_usd)
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
            *(() if student_fleet is None else _warnings("student", student_fleet, FleetDemands(demands.headroom))),
            *_warnings(
                "teacher alone", alone, demands, known=tuple(_warnings("teacher alone", teacher_fleet, demands))
            ),
            *_cost_warning(saved_usd),
        ),
    )


def _assumptions(
    load: RequestLoad,
    demands: FleetDemands,
    teacher: ReplicaFleet,
    student: ReplicaFleet | None,
    alone: ReplicaFleet,
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


def _warnings(role: str, side: ReplicaFleet, demands: FleetDemands, known: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the limits of a side's figures, except the warnings that are `known` already."""
    for warning in (*_curve_warnings(side), *_load_warnings(side, demands)):
        if f"{role}: {warning}" not in known:
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


def _cost_warning(saved_usd: Decimal) -> Iterator[str]:
    if saved_usd < 0:
        yield "guidance costs more than the teacher alone: two models read each prompt, and replicas are whole"
