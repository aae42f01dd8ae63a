"""Turn verdicts of slices into a verdict with the limits of the whole tenant. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from msgspec.structs import replace

from gateway.accounting.slices import parts_of, share
from gateway.accounting.verdict import LimitRemainder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.accounting.scopes import Scope
    from gateway.accounting.verdict import AdmissionVerdict, Refusal


class SliceVerdict(NamedTuple):
    """The verdict of a slice: the decision, the scopes that a refusal numbers, and Redis TIME in microseconds."""

    verdict: AdmissionVerdict
    scopes: tuple[Scope, ...]
    now_us: int | None

    @property
    def refusal(self) -> Refusal:
        assert self.verdict.refusal is not None, "the slice refused the request"
        return self.verdict.refusal

    @property
    def refused_by(self) -> tuple[str, str]:
        """Return the scope and the limit that refused the request."""
        return self.scopes[self.refusal.scope - 1].name, self.refusal.limit


def with_whole_limits(answer: SliceVerdict, whole: Sequence[Scope], number: int, slices: int) -> SliceVerdict:
    """Return the verdict of a slice with the limits of the tenant. Remainders are estimated from those of the slice."""
    if (left := answer.verdict.left) is None:
        return answer
    scaled = {kind: _scaled(kind, one, whole, number, slices) for kind, one in left.items()}
    return answer._replace(verdict=replace(answer.verdict, left=scaled))


def _scaled(
    kind: Literal["requests", "tokens"], part: LimitRemainder, whole: Sequence[Scope], number: int, slices: int
) -> LimitRemainder:
    limits = [(scope.rpm if kind == "requests" else scope.tpm, parts_of(scope, slices)) for scope in whole]
    # The script returns the part of the limit with the smallest remainder, without its scope.
    same = (one for one in limits if share(one[0], number, one[1]) == part.limit)
    limit, parts = min(same, default=(part.limit * slices, slices))
    return LimitRemainder(limit, min(limit, part.left * parts), part.reset_us)


def merged(answers: Mapping[int, SliceVerdict], whole: tuple[Scope, ...], slices: int) -> SliceVerdict:
    """Merge the refusals of slices, by number, into one with the shortest time until a retry."""
    # No time can be given for a budget, nor for a request above the part of a slice: their time is 0.
    number = min(answers, key=lambda one: answers[one].refusal.retry_us or float("inf"))
    chosen = answers[number]
    if chosen.now_us is None:
        return chosen  # this process decided while Redis was down, and names its own share
    name, kind = chosen.refused_by
    index = next(index for index, scope in enumerate(whole) if scope.name == name)
    same = {one: answer.refusal for one, answer in answers.items() if answer.refused_by == (name, kind)}
    # Other slices refused the request for another reason, or were not called. Their parts count as used.
    limit, parts = _limit(whole[index], kind), parts_of(whole[index], slices)
    others = sum(share(limit, one, parts) for one in range(parts) if one not in same)
    refusal = replace(
        chosen.refusal,
        scope=index + 1,
        maximum=str(others + sum(int(one.maximum) for one in same.values())),
        used=str(others + sum(int(one.used) for one in same.values())),
        slices=parts,
    )
    scaled = with_whole_limits(chosen, whole, number, slices)
    return SliceVerdict(replace(scaled.verdict, refusal=refusal), whole, chosen.now_us)


def _limit(scope: Scope, kind: str) -> int:
    budget = 0 if scope.budget is None else int(scope.budget.max)
    return {"requests": scope.rpm, "tokens": scope.tpm, "parallel": scope.parallel, "budget": budget}[kind]
