"""Output of `gkt-gateway eval recommend`: a table of the settings, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from rich.text import Text

from gateway.cli.tables import console_for, plain_table
from gateway.evaluation.advice.policy_file import comments, usd_per_1k
from gateway.evaluation.advice.target import percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from gateway.evaluation.advice.recommend import Recommendation
    from gateway.evaluation.advice.target import BoundedMean
    from gateway.evaluation.summary import SettingSummary

_POINTS, _THOUSAND = 100, 1000
_VERDICTS = {
    "guided": ("guidance pays", "green"),
    "none_pays": ("none pays", "red"),
    "too_few": ("too few questions", "yellow"),
}


def print_recommendations(recommendation: Sequence[tuple[str, Recommendation]]) -> None:
    """Print the settings of each route by cost, and the recommendation."""
    console = console_for(pipe_width=200)
    for route, one in recommendation:
        head = f"{route}: {', '.join(one.evidence.sources)}, {len(one.evidence.questions)} questions"
        console.print(f"{head}, target: {one.target}", soft_wrap=True, markup=False, highlight=False)
        console.print(_table(one))
        verdict, color = _VERDICTS[one.verdict]
        name = "nothing" if one.setting is None else one.setting.name
        console.print(Text(f"{verdict}: {name}", f"bold {color}"), soft_wrap=True)
        lines = list(comments(one))
        if one.favorite_setting is not None and one.favorite != one.chosen:
            lines.append(f"Without a test, the best setting would be: {one.favorite_setting.name}.")
        if one.held_out is not None:
            often = "; ".join(f"{times} x {name}" for name, times in one.held_out.chosen.items())
            lines.append(f"Chosen in {one.held_out.folds} folds: {often}.")
        for line in lines:
            console.print(f"  {line}", soft_wrap=True, markup=False, highlight=False)


def _table(recommendation: Recommendation) -> Table:
    evidence, cheapest = recommendation.evidence, recommendation.target.minimizes_cost
    titles = ("setting", "right", "95 %", "USD/1000", "of teacher's")
    within = f"within, {'points' if cheapest else 'USD/1000'}"
    table = plain_table(*titles, within, "over mixture, points", right=slice(1, None))
    teacher = evidence.candidates[evidence.teacher]
    for index in sorted(range(len(evidence.candidates)), key=lambda index: evidence.candidates[index].cost_per_answer):
        one, standing = evidence.candidates[index], recommendation.results[index]
        is_chosen, own = index == recommendation.chosen, index == evidence.teacher and cheapest
        table.add_row(
            Text(f"{'> ' if is_chosen else '  '}{_short(one, recommendation)}"),
            percent(one.accuracy),
            f"{one.interval.low * 100:.1f} to {one.interval.high * 100:.1f}",
            usd_per_1k(one.cost_per_answer),
            percent(float(one.cost_usd / teacher.cost_usd), 0) if teacher.cost_usd else "",
            "yes" if own else _claim(standing.within, _POINTS if cheapest else _THOUSAND),
            "" if standing.pays is None else _claim(standing.pays, _POINTS),
            style="bold" if is_chosen else None,
        )
    return table


def _short(one: SettingSummary, recommendation: Recommendation) -> str:
    name = one.name.replace(f", {recommendation.evidence.request_form}", "", 1)
    limits = {other.setting["max_tokens"] for other in recommendation.evidence.candidates}
    return name.replace(f", {one.setting['max_tokens']} tokens", "", 1) if len(limits) == 1 else name


def _claim(claim: BoundedMean, unit: int) -> str:
    word = "yes" if claim.shown else "perhaps" if claim.likely else "no"
    digits = "+.1f" if unit == _POINTS else "+.3g"
    return f"{claim.point * unit:{digits}} (at least {claim.bound * unit:{digits}}) {word}"


def in_json(recommendation: Sequence[tuple[str, Recommendation]]) -> str:
    routes = [_plain(*one) for one in recommendation]
    return msgspec.json.format(msgspec.json.encode({"routes": routes}), indent=2).decode()


def _plain(route: str, recommendation: Recommendation) -> dict[str, Any]:
    held, evidence = recommendation.held_out, recommendation.evidence
    settings = [
        {
            "setting": dict(one.setting),
            "accuracy": one.accuracy,
            "interval": one.interval,
            "cost_usd": one.cost_per_answer,
            "teacher_output_tokens": one.teacher_output_tokens / one.n,
            "student_output_tokens": one.student_output_tokens / one.n,
            "within": standing.within._asdict(),
            "pays": None if standing.pays is None else standing.pays._asdict(),
        }
        for one, standing in zip(evidence.candidates, recommendation.results, strict=True)
    ]
    return {
        "route": route,
        "sources": evidence.sources,
        "asked": evidence.request_form,
        "questions": len(evidence.questions),
        "target": {"kind": recommendation.target.kind, "amount": recommendation.target.amount},
        "confidence": recommendation.confidence,
        "verdict": recommendation.verdict,
        "why": recommendation.reason,
        "more_questions": recommendation.more,
        "chosen": None if recommendation.setting is None else recommendation.setting.name,
        "favourite": None if recommendation.favorite_setting is None else recommendation.favorite_setting.name,
        "teacher": evidence.candidates[evidence.teacher].name,
        "student": evidence.candidates[evidence.student].name,
        "settings": settings,
        "held_out": None if held is None else held._asdict(),
        "notes": evidence.notes,
    }
