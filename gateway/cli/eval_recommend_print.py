"""Output of `gkt-gateway eval recommend`: a table of the settings, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from rich.text import Text

from gateway.cli.tables import console_for, plain_table
from gateway.evaluation.advice.evidence import request_form_of
from gateway.evaluation.advice.explanation import comments, incomplete, usd_per_1k
from gateway.evaluation.advice.target import percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from gateway.evaluation.advice.evidence import Evidence
    from gateway.evaluation.advice.recommend import Benefit, Recommendation
    from gateway.evaluation.advice.target import Advantage
    from gateway.evaluation.summary import SettingSummary

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
        for index in (*one.evidence.teachers, one.evidence.student):
            alone = one.evidence.candidates[index]
            name = f"{alone.mode.capitalize()} alone"
            if not one.evidence.is_selectable(index):
                name = f"{name} ({request_form_of(alone.setting)}; a baseline only)"
            text = f"{name}: {percent(alone.accuracy)} right, {incomplete(alone)}"
            console.print(text, soft_wrap=True, markup=False, highlight=False)
        if one.benefit is not None:
            guided = one.evidence.candidates[one.benefit.setting]
            which = "Recommended" if one.benefit.setting == one.chosen else "Nearest"
            text = f"{which} guided setting: {percent(guided.accuracy)} right, {incomplete(guided)} ({guided.name})"
            console.print(text, soft_wrap=True, markup=False, highlight=False)
        console.print(_table(one))
        verdict, color = _VERDICTS[one.verdict]
        if one.verdict == "too_few" and one.more is None:
            verdict = "undecided"
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
    evidence = recommendation.evidence
    titles = ("setting", "right", "95 %", "USD/1000", "saves", "loss, points", "target")
    table = plain_table(*titles, "over mixture, points", right=slice(1, None))
    for index in sorted(range(len(evidence.candidates)), key=lambda index: evidence.candidates[index].cost_per_answer):
        one, result = evidence.candidates[index], recommendation.results[index]
        is_chosen, loss = index == recommendation.chosen, recommendation.losses[index]
        low, high = (f"{end * 100:+.1f}" for end in loss.interval)
        table.add_row(
            Text(f"{'> ' if is_chosen else '  '}{_short(one, recommendation)}"),
            percent(one.accuracy),
            f"{one.interval.low * 100:.1f} to {one.interval.high * 100:.1f}",
            usd_per_1k(one.cost_per_answer),
            _saves(
                one, None if result.pays is None else evidence.candidates[result.pays.teacher], len(evidence.teachers)
            ),
            "" if index == recommendation.best_teacher else f"{loss.value * 100:+.1f} ({low} to {high})",
            "reached" if result.reaches else "missed",
            "" if result.pays is None else _pays(result.pays),
            style="bold" if is_chosen else None,
        )
    return table


def _short(one: SettingSummary, recommendation: Recommendation) -> str:
    evidence = recommendation.evidence
    if request_form_of(one.setting) != evidence.request_form:
        return one.name
    name = one.name.replace(f", {evidence.request_form}", "", 1)
    own = [other for place, other in enumerate(evidence.candidates) if evidence.is_selectable(place)]
    limits = {other.setting["max_tokens"] for other in own}
    return name.replace(f", {one.setting['max_tokens']} tokens", "", 1) if len(limits) == 1 else name


def _saves(one: SettingSummary, against: SettingSummary | None, teachers: int) -> str:
    """Return the savings compared with the teacher of the mixture, which is named if there are several."""
    if against is None or not against.cost_usd:
        return ""
    which = f" ({request_form_of(against.setting)})" if teachers > 1 else ""
    return f"{(1 - one.cost_usd / against.cost_usd) * 100:z.0f} %{which}"


def _pays(one: Advantage) -> str:
    return f"{one.claim.point * 100:+.1f} (at least {one.claim.bound * 100:+.1f}) {one.answer}"


def in_json(recommendation: Sequence[tuple[str, Recommendation]], list_prices: Sequence[dict[str, Any]]) -> str:
    """Return the recommendations and the results at list prices as JSON. Money is exact text."""
    body = {"routes": [_plain(*one) for one in recommendation], "list_prices": list_prices}
    return msgspec.json.format(msgspec.json.encode(body), indent=2).decode()


def _plain(route: str, recommendation: Recommendation) -> dict[str, Any]:
    held, evidence = recommendation.held_out, recommendation.evidence
    settings = [
        {
            "setting": dict(one.setting),
            "accuracy": one.accuracy,
            "interval": one.interval,
            "truncated": one.cut,
            "failed": sum(one.errors.values()),
            "cost_usd": one.cost_per_answer,
            "teacher_output_tokens": one.teacher_output_tokens / one.n,
            "student_output_tokens": one.student_output_tokens / one.n,
            "selectable": result.selectable,
            "reaches_target": result.reaches,
            "margin": result.margin,
            "loss": loss._asdict(),
            "pays": None if result.pays is None else _advantage(result.pays, evidence),
        }
        for one, result, loss in zip(evidence.candidates, recommendation.results, recommendation.losses, strict=True)
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
        "teachers": [evidence.candidates[index].name for index in evidence.teachers],
        "best_teacher": evidence.candidates[recommendation.best_teacher].name,
        "student": evidence.candidates[evidence.student].name,
        "best_guided": None if recommendation.benefit is None else _benefit(recommendation.benefit, evidence),
        "settings": settings,
        "held_out": None if held is None else held._asdict(),
        "notes": evidence.notes,
    }


def _benefit(one: Benefit, evidence: Evidence) -> dict[str, Any]:
    """Return the three answers about the best guided setting."""
    against = evidence.candidates[one.advantage.teacher].name
    share = None if one.saved_share is None else one.saved_share._asdict()
    return {
        "setting": evidence.candidates[one.setting].name,
        "beats_mixture": _advantage(one.advantage, evidence),
        "loss": {"against": evidence.candidates[one.best_teacher].name, **one.loss._asdict()},
        "savings": {"against": against, "share": share, "usd": one.saved_usd},
    }


def _advantage(one: Advantage, evidence: Evidence) -> dict[str, Any]:
    return {"answer": one.answer, "against": evidence.candidates[one.teacher].name, **one.claim._asdict()}
