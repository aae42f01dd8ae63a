"""The plan: a teacher that opens answers and a student that finishes them, beside the teacher alone."""

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
    """What callers ask for: `rps` requests in a second, each with a prompt and an answer of so many tokens.

    The teacher writes the first `guidance_tokens` of the answer. `shown_tokens`: what it alone reads beside the prompt,
    such as exemplars; `shown_cached`: its prefix cache holds them.
    """

    rps: Decimal
    prompt_tokens: int
    answer_tokens: int
    guidance_tokens: int
    shown_tokens: int = 0
    shown_cached: bool = False

    def opening(self) -> RequestWork:
        """Of the teacher, with guidance."""
        read = self.prompt_tokens + (0 if self.shown_cached else self.shown_tokens)
        return RequestWork(read, self.guidance_tokens, self.shown_tokens if self.shown_cached else 0)

    def finishing(self) -> RequestWork:
        """Of the student: it reads the prompt and the guidance."""
        return RequestWork(self.prompt_tokens + self.guidance_tokens, self.answer_tokens - self.guidance_tokens)

    def alone(self) -> RequestWork:
        """Of the teacher, without a student."""
        return RequestWork(self.prompt_tokens, self.answer_tokens)


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """What a load needs with guidance, and what the teacher alone would need.

    `student` is None where students stand on callers' own devices: then nobody here pays for them, and how long they
    take is not known. Times are means in seconds; money is USD. `savings_share`: of what the teacher alone costs;
    negative where guidance costs more.
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
        """Until the caller hears the teacher's first token, as it is written."""
        return self.teacher.standing.first_s

    @property
    def guidance_s(self) -> float:
        """Until the guidance is whole: the first that is heard with `guidance.stream: false`."""
        return self.teacher.standing.total_s

    @property
    def total_s(self) -> float | None:
        """Until the answer is whole; None: the students are elsewhere."""
        return None if self.student is None else self.guidance_s + self.student.standing.total_s

    @property
    def met(self) -> bool:
        """Whether teacher and student bear the load and keep the demands."""
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
    """Size both fleets, or see how the load would stand on so many replicas of each.

    Raises StartupError where a curve has no price, or the guidance would be the whole answer.
    """
    if load.guidance_tokens >= load.answer_tokens:
        raise StartupError(
            f"--tokens {load.guidance_tokens} leaves nothing to the student: it must be less than --answer "
            f"{load.answer_tokens}."
        )
    opens = fleet("teacher", teacher, load.opening(), load.rps, demands, teacher_replicas)
    ends = None
    if student is not None:
        # Of both, the teacher alone decides when the first token comes.
        ends = fleet("student", student, load.finishing(), load.rps, FleetDemands(demands.headroom), student_replicas)
    alone = fleet("teacher", teacher, load.alone(), load.rps, demands)
    sides = [opens] if ends is None else [opens, ends]
    hourly_usd = total_usd(*(one.usd_per_hour for one in sides))
    per_1000_usd = total_usd(*(one.usd_per_1000 for one in sides))
    saved_usd = savings_usd(alone.usd_per_hour, hourly_usd)
    return CapacityPlan(
        load=load,
        demands=demands,
        teacher=opens,
        student=ends,
        alone=alone,
        usd_per_hour=hourly_usd,
        usd_per_1000=per_1000_usd,
        savings_usd_per_hour=saved_usd,
        savings_usd_per_1000=savings_usd(alone.usd_per_1000, per_1000_usd),
        savings_share=float(saved_usd / alone.usd_per_hour) if alone.usd_per_hour else None,
        assumptions=tuple(_assumptions(load, demands, opens, ends, alone)),
        warnings=(
            *_doubts("teacher", opens, demands),
            *(() if ends is None else _doubts("student", ends, FleetDemands(demands.headroom))),
            *_doubts("teacher alone", alone, demands, already=tuple(_doubts("teacher alone", opens, demands))),
            *_dearer(saved_usd),
        ),
    )


def _assumptions(
    load: RequestLoad, demands: FleetDemands, opens: ReplicaFleet, ends: ReplicaFleet | None, alone: ReplicaFleet
) -> Iterator[str]:
    yield (
        "Arrivals: requests come at random and independent of each other (Poisson), each replica gets an equal share "
        "at random, and the rate holds all hour."
    )
    yield (
        "Batched server: an engine reads waiting prompts in one pass, then gives each answer of its batch a token; the "
        "number of answers is a birth-death chain with the curve's steps. Waits follow by Little's law."
    )
    yield f"Headroom: each replica works at {1 - demands.headroom:.0%} of what it bears, at most."
    yield (
        f"Lengths: prompts of {load.prompt_tokens} and answers of {load.answer_tokens} tokens, all of them. Every "
        f"answer is guided with {load.guidance_tokens} tokens, which are all kept; none comes out of the guidance "
        "cache. Both models count tokens alike."
    )
    if load.shown_tokens:
        how = "out of its prefix cache" if load.shown_cached else "afresh"
        yield f"The teacher reads {load.shown_tokens} tokens beside each prompt {how}; alone it would not."
    for role, side in (("teacher", opens), ("student", ends), ("teacher alone", alone)):
        if side is not None and side.replicas is not None and side.curve.cache_tokens is None:
            places = side.curve.places(side.work.context)
            yield (
                f"Memory, {role}: {places} answers of {side.work.context} tokens fit beside the weights. The curve "
                "does not say (cache_tokens)."
            )
        if side is not None and side.replicas is None and role != "teacher alone":
            yield f"The {role} is bought by the token, and stays as fast as its curve says at any load."
    if ends is None:
        yield "Students are on callers' devices: their time and cost are not in these figures."
    yield (
        "Left out: the gateway's own 2 ms, its window for batches (10 ms at most, none while the teacher has room), "
        "and networks."
    )


def _doubts(role: str, side: ReplicaFleet, demands: FleetDemands, already: tuple[str, ...] = ()) -> Iterator[str]:
    """What makes a side's figures less than they look, without what was said `already`."""
    for doubt in (*_doubts_of_curve(side), *_doubts_of_load(side, demands)):
        if f"{role}: {doubt}" not in already:
            yield f"{role}: {doubt}"


def _doubts_of_curve(side: ReplicaFleet) -> Iterator[str]:
    curve, work = side.curve, side.work
    if curve.origin.kind == "assumed":
        yield f"the numbers of its curve are assumed, not measured ({curve.origin.source})"
    if side.replicas is None:
        return
    places = curve.places(work.context)
    if places > curve.measured_batch:
        yield (
            f"extrapolated: up to {places} answers may be decoded together, and the curve was measured up to "
            f"{curve.measured_batch}; measure more, or set max_batch"
        )
    if side.standing.batch < curve.decode[0].batch and places >= curve.decode[0].batch:
        yield (
            f"extrapolated: {side.standing.batch:.1f} answers are decoded together, and the smallest batch of the "
            f"curve is {curve.decode[0].batch}; steps may be shorter"
        )
    held = curve.origin.context_tokens
    if held is not None and work.read + work.cached + work.written / 2 > _LONGER * held:
        yield (
            f"extrapolated: answers hold {work.read + work.cached + work.written // 2} tokens on average while they "
            f"are decoded, and the curve was measured with {held}; steps may be longer"
        )


def _doubts_of_load(side: ReplicaFleet, demands: FleetDemands) -> Iterator[str]:
    standing = side.standing
    if not standing.stable:
        yield (
            f"unstable: {side.replicas} replicas bear {side.most_rps / (1 - demands.headroom):.4g} requests in a "
            "second at most; more come, so waits grow without end"
        )
        return
    if side.replicas is not None and standing.utilisation > 1 - demands.headroom + 1e-9:
        yield f"the headroom is not kept: {standing.utilisation:.0%} of what the replicas bear is used"
    wanted_s = demands.first_p95_s
    if wanted_s is not None and standing.first_p95_s > wanted_s:
        alone_s = idle_first_s(side.curve, side.work)
        mend = "add replicas" if alone_s < wanted_s else f"an idle replica takes {alone_s:.3g} s, so more do not help"
        yield (
            f"the first token comes too late: within {standing.first_p95_s:.3g} s for 95 of 100, and {wanted_s:g} s "
            f"were asked for; {mend}"
        )
    if side.replicas == 1:
        yield "one replica: when it is away, nothing is left"


def _dearer(saved_usd: Decimal) -> Iterator[str]:
    if saved_usd < 0:
        yield "guidance costs more than the teacher alone: two models read each prompt, and replicas are whole"
