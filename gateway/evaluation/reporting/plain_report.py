"""Conversion of a report to JSON, with unrounded numbers and money as exact text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gateway.evaluation.reporting import wording as w
from gateway.evaluation.reporting.excerpts import flips
from gateway.evaluation.reporting.frontier import hull, pareto

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.evaluation.reporting.comparison import SettingComparison, ShareInterval
    from gateway.evaluation.reporting.report import ReportRow, ReportSection
    from gateway.evaluation.reporting.times import QuestionTimes


def as_plain(sections: Sequence[ReportSection], seed: int) -> dict[str, Any]:
    """Return plain values."""
    return {"seed": seed, "runs": [_section(section) for section in sections]}


def _section(section: ReportSection) -> dict[str, Any]:
    manifest = msgspec.to_builtins(section.run.manifest)
    manifest.pop("settings")
    manifest["prices"] = {
        role: [w.plain(one) for one in prices] for role, prices in section.run.manifest.prices.items()
    }
    return {
        "folder": section.run.path.name,
        "manifest": manifest,
        "remarks": list(section.run.remarks),
        "groups": [
            {
                "asked": group.title,
                "common_questions": group.questions,
                "settings": [_row(row) for row in group.rows],
                "pareto": [one.name for one in pareto(group.points)],
                "hull": [one.name for one in hull(group.points)],
                "best": None if group.best is None else group.best._asdict(),
            }
            for group in section.groups
        ],
        "stages": [msgspec.to_builtins(one) | {"seconds_per_call": one.seconds_per_call} for one in section.stages],
        "flips": [msgspec.to_builtins(one) for one in flips(section)],
    }


def _row(row: ReportRow) -> dict[str, Any]:
    own, measured = row.summary, row.measured
    return {
        "setting": dict(own.setting),
        "label": row.label,
        "n": own.n,
        "correct": own.correct,
        "accuracy": own.accuracy,
        "accuracy_interval": list(own.interval),
        "score": own.score,
        "opening_accuracy": None if own.guidance_correct is None else own.guidance_correct / own.n,
        "against_student": _comparison(row.student, row.student_p),
        "against_teacher": _comparison(row.teacher, row.teacher_p),
        "kept": _part(row.kept),
        "gap_closed": _part(row.gap),
        "tokens": {
            "teacher": {"input": own.teacher_input_tokens, "output": own.teacher_output_tokens},
            "student": {"input": own.student_input_tokens, "output": own.student_output_tokens},
            "kept": own.kept_tokens,
        },
        "teacher_token_share": {
            "of_teacher_alone": None if measured is None else measured.token_share,
            "of_all_output": own.teacher_token_share,
        },
        "cost_usd": w.plain(own.cost_usd),
        "teacher_usd": w.plain(own.teacher_usd),
        "measured": None
        if measured is None
        else {
            "n": measured.n,
            "cost_usd": w.plain(measured.cost_usd),
            "baseline_usd": w.plain(measured.teacher_usd),
            "savings_usd": w.plain(measured.savings_usd),
            "cost_share": measured.cost_share,
        },
        "on_this_answer": {
            "baseline_usd": w.plain(own.baseline_usd),
            "savings_usd": w.plain(own.baseline_usd - own.cost_usd),
            "cost_share": float(own.cost_usd / own.baseline_usd) if own.baseline_usd else None,
        },
        "seconds": _times(row.times) | {"speed_up": None if measured is None else measured.speed_up},
        "modes": dict(own.modes),
        "unguided": dict(own.unguided),
        "errors": dict(own.errors),
        "cut_for_length": own.cut,
        "lengths": [{"by": by, "tokens": m, "questions": count} for (by, m), count in sorted(own.lengths.items())],
    }


def _comparison(found: SettingComparison | None, holm: float | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "reference": found.reference,
        "pairs": found.n,
        "difference": found.difference,
        "interval": None if found.interval is None else list(found.interval),
        "only_this_right": found.test.only_first,
        "only_that_right": found.test.only_second,
        "p": found.test.p,
        "p_holm": holm,
        "won": list(found.won),
        "lost": list(found.lost),
    }


def _part(found: ShareInterval | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"value": found.value, "interval": None if found.interval is None else list(found.interval)}


def _times(found: QuestionTimes) -> dict[str, Any]:
    return {
        "teacher_wait": found.teacher_wait_s,
        "student_wait": found.student_wait_s,
        "teacher_at": found.teacher_concurrency,
        "student_at": found.student_concurrency,
        "teacher_stage": found.teacher_s,
        "student_stage": found.student_s,
        "both_stages": found.busy_s,
        "whole_answer": found.total_s,
    }
