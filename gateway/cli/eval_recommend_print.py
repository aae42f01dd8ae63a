"""What `gkt-gateway eval recommend` shows: a table of the settings, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.evaluation.advice.policy_file import comments, usd_per_1k
from gateway.evaluation.advice.target import percent
from gateway.evaluation.statistics import wilson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.evaluation.advice.bounds import BoundedMean
    from gateway.evaluation.advice.evidence import CandidateSetting
    from gateway.evaluation.advice.recommend import Recommendation

_PIPE_WIDTH = 200
_POINTS, _THOUSAND = 100, 1000
_VERDICTS = {
    "guided": ("guidance pays", "green"),
    "none_pays": ("none pays", "red"),
    "too_few": ("too few questions", "yellow"),
}


def recommendations_shown(said: Sequence[tuple[str, Recommendation]]) -> None:
    """Print each: its settings by their cost, and what is recommended."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    for route, one in said:
        console.print(
            f"{route}: {', '.join(one.evidence.sources)}, {len(one.evidence.questions)} questions, wanted: "
            f"{one.target}",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
        console.print(_table(one))
        words, colour = _VERDICTS[one.verdict]
        name = "nothing" if one.setting is None else one.setting.name
        console.print(Text(f"{words}: {name}", f"bold {colour}"), soft_wrap=True)
        for line in comments(one):
            console.print(f"  {line}", soft_wrap=True, markup=False, highlight=False)
        for line in _chosen(one):
            console.print(f"  {line}", soft_wrap=True, markup=False, highlight=False)


def _table(said: Recommendation) -> Table:
    unit = "points" if said.target.minimizes_cost else "USD/1000"
    table = Table(
        "setting",
        "right",
        "95 %",
        "USD/1000",
        "of teacher's",
        f"within, {unit}",
        "over mixture, points",
        box=box.SIMPLE,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    teacher = said.evidence.candidates[said.evidence.teacher]
    places = sorted(range(len(said.results)), key=lambda place: said.evidence.candidates[place].cost_usd)
    for place in places:
        one, standing = said.evidence.candidates[place], said.results[place]
        low, high = wilson(one.correct, len(one.examples))
        own = place == said.evidence.teacher and said.target.minimizes_cost
        table.add_row(
            Text(f"{'> ' if place == said.chosen else '  '}{_short(one, said)}"),
            percent(one.accuracy),
            f"{low * 100:.1f} to {high * 100:.1f}",
            usd_per_1k(one.cost_usd),
            percent(float(one.cost_usd / teacher.cost_usd), 0) if teacher.cost_usd else "",
            "yes" if own else _claim(standing.within, _POINTS if said.target.minimizes_cost else _THOUSAND),
            "" if standing.pays is None else _claim(standing.pays, _POINTS),
            style="bold" if place == said.chosen else None,
        )
    return table


def _short(one: CandidateSetting, said: Recommendation) -> str:
    """Its name without what is the same for all."""
    name = one.name.replace(f", {said.evidence.request_form}", "", 1)
    limits = {other.setting["max_tokens"] for other in said.evidence.candidates}
    return name.replace(f", {one.setting['max_tokens']} tokens", "", 1) if len(limits) == 1 else name


def _claim(claim: BoundedMean, unit: int) -> str:
    """As measured, at least so much, and whether it is shown."""
    word = "yes" if claim.shown else "perhaps" if claim.likely else "no"
    digits = "+.1f" if unit == _POINTS else "+.3g"
    return f"{claim.point * unit:{digits}} (at least {claim.bound * unit:{digits}}) {word}"


def _chosen(said: Recommendation) -> list[str]:
    lines = []
    if said.favorite is not None and said.favorite != said.chosen:
        lines.append(
            f"By the figures alone, without a test, it would be: {said.evidence.candidates[said.favorite].name}."
        )
    if said.held_out is not None:
        often = "; ".join(f"{times} x {name}" for name, times in said.held_out.chosen.items())
        lines.append(f"Chosen in the {said.held_out.folds} folds: {often}.")
    return lines


def in_json(said: Sequence[tuple[str, Recommendation]]) -> str:
    """For programs."""
    return msgspec.json.format(msgspec.json.encode({"routes": [_plain(*one) for one in said]}), indent=2).decode()


def _plain(route: str, said: Recommendation) -> dict[str, Any]:
    held, evidence = said.held_out, said.evidence
    settings = [
        {
            "setting": dict(one.setting),
            "accuracy": one.accuracy,
            "interval": wilson(one.correct, len(one.examples)),
            "cost_usd": one.cost_usd,
            "teacher_output_tokens": one.teacher_tokens,
            "student_output_tokens": one.student_tokens,
            "within": standing.within._asdict(),
            "pays": None if standing.pays is None else standing.pays._asdict(),
        }
        for one, standing in zip(evidence.candidates, said.results, strict=True)
    ]
    return {
        "route": route,
        "sources": evidence.sources,
        "asked": evidence.request_form,
        "questions": len(evidence.questions),
        "target": {"kind": said.target.kind, "amount": said.target.amount},
        "confidence": said.confidence,
        "verdict": said.verdict,
        "why": said.reason,
        "more_questions": said.more,
        "chosen": None if said.setting is None else said.setting.name,
        "favourite": None if said.favorite is None else evidence.candidates[said.favorite].name,
        "teacher": evidence.candidates[evidence.teacher].name,
        "student": evidence.candidates[evidence.student].name,
        "settings": settings,
        "held_out": None
        if held is None
        else {
            "folds": held.folds,
            "questions": held.n,
            "accuracy": held.accuracy,
            "interval": held.interval,
            "teacher_accuracy": held.teacher,
            "cost_usd": held.cost_usd,
            "cost_interval": held.cost_interval,
            "teacher_cost_usd": held.teacher_usd,
            "chosen": held.chosen,
        },
        "notes": evidence.notes,
    }
