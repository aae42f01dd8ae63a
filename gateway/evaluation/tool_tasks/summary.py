"""Totals of a run of the task set by setting, and the difference of two settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.evaluation.statistics import agresti_min, wilson

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gateway.evaluation.record import Example
    from gateway.evaluation.statistics import Interval


class RoleSummary(NamedTuple):
    """Totals of one engine over tasks of one kind, or of all kinds."""

    n: int
    solved: int
    interval: Interval
    turns: int
    calls: int
    tool_errors: int
    text_calls: int
    failed: int
    input_tokens: int
    output_tokens: int


class RoleDifference(NamedTuple):
    """First minus second engine, as shares of the tasks that both have, with the interval for pairs."""

    n: int
    difference: float
    interval: Interval
    only_first: int
    only_second: int


def summarize_role(examples: Iterable[Example]) -> RoleSummary:
    found = list(examples)
    facts = [one.tools for one in found if one.tools is not None]
    solved = sum(one.correct for one in found)
    return RoleSummary(
        n=len(found),
        solved=solved,
        interval=wilson(solved, len(found)),
        turns=sum(one.turns for one in facts),
        calls=sum(one.calls for one in facts),
        tool_errors=sum(one.errors for one in facts),
        text_calls=sum(one.text_calls for one in facts),
        failed=sum(one.error is not None for one in found),
        input_tokens=sum(one.teacher_input_tokens + one.student_input_tokens for one in found),
        output_tokens=sum(one.teacher_output_tokens + one.student_output_tokens for one in found),
    )


def difference(first: Mapping[str, Example], second: Mapping[str, Example]) -> RoleDifference | None:
    """Return the difference on the common tasks, by task id; None for fewer than two."""
    common = [name for name in first if name in second]
    if len(common) < 2:
        return None
    signs = [first[name].correct - second[name].correct for name in common]
    return RoleDifference(len(common), sum(signs) / len(common), agresti_min(signs), signs.count(1), signs.count(-1))
