"""Output of `gkt-gateway plan`: a table of teacher, student, both and the teacher alone; and the assumptions."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import orjson
from rich.text import Text

from gateway.cli.tables import console_for, plain_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    from gateway.planning.fleet import ReplicaFleet
    from gateway.planning.plan import CapacityPlan

_PIPE_WIDTH = 140


def print_plan(plan: CapacityPlan) -> None:
    """Print a plan."""
    console = console_for(_PIPE_WIDTH)
    table = plain_table("", "teacher", "student", "together", "teacher alone", right=slice(1, None))
    for title, of_fleet, together in _ROWS:
        sides = ["" if side is None else of_fleet(side) for side in (plan.teacher, plan.student)]
        table.add_row(title, *sides, together(plan), of_fleet(plan.alone))
    console.print(table)
    share = "" if plan.savings_share is None else f", {abs(plan.savings_share):.1%} of the cost of the teacher alone"
    verdict = "Saved" if plan.savings_usd_per_hour >= 0 else "Additional cost"
    console.print(
        f"{verdict}: {_usd(abs(plan.savings_usd_per_hour))} USD per hour, {_usd(abs(plan.savings_usd_per_1000))} USD "
        f"per 1000 answers{share}.",
        highlight=False,
    )
    for head, lines, style in (("Assumed", plan.assumptions, ""), ("Warnings", plan.warnings, "yellow")):
        if lines:
            console.print(Text(f"\n{head}", "bold"))
        for line in lines:
            console.print(Text(f"- {line}", style))


def as_json(plan: CapacityPlan) -> str:
    """Return the plan as JSON. Amounts of money are exact text; infinite times are null."""
    load, demands = plan.load, plan.demands
    document = {
        "object": "plan",
        "load": {
            "rps": str(load.rps),
            "prompt_tokens": load.prompt_tokens,
            "answer_tokens": load.answer_tokens,
            "guidance_tokens": load.guidance_tokens,
            "shown_tokens": load.shown_tokens,
            "shown_cached": load.shown_cached,
        },
        "demands": {"headroom": demands.headroom, "first_p95_s": demands.first_p95_s},
        "met": plan.met,
        "guided": {
            "teacher": _fleet(plan.teacher),
            "student": None if plan.student is None else _fleet(plan.student),
            "first_s": _number(plan.first_s),
            "guidance_s": _number(plan.guidance_s),
            "total_s": None if plan.total_s is None else _number(plan.total_s),
            "usd_per_hour": str(plan.usd_per_hour),
            "usd_per_1000_answers": str(plan.usd_per_1000),
        },
        "teacher_alone": _fleet(plan.alone),
        "savings": {
            "usd_per_hour": str(plan.savings_usd_per_hour),
            "usd_per_1000_answers": str(plan.savings_usd_per_1000),
            "share": plan.savings_share,
        },
        "assumptions": plan.assumptions,
        "warnings": plan.warnings,
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()


def _fleet(side: ReplicaFleet) -> dict[str, Any]:
    load = side.load
    return {
        "model": side.curve.model,
        "gpu": side.curve.gpu,
        "replicas": side.replicas,
        "gpus": side.gpus,
        "met": side.met,
        "most_rps": _number(side.max_rps),
        "utilisation": load.utilization,
        "batch": load.batch,
        "queued": _number(load.queued),
        "queue_s": _number(load.queue_s),
        "first_s": _number(load.first_s),
        "first_p95_s": _number(load.first_p95_s),
        "step_s": load.step_s,
        "total_s": _number(load.total_s),
        "usd_per_hour": str(side.usd_per_hour),
        "usd_per_1000_answers": str(side.usd_per_1000),
    }


def _number(value: float) -> float | None:
    return value if isfinite(value) else None


def _usd(amount: Decimal) -> str:
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.4f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g} s" if isfinite(value) else "no end"


def _gpus(side: ReplicaFleet) -> str:
    if side.gpus is None:
        return "paid per token"
    return f"{side.gpus} {side.curve.gpu or ''}".strip()


def _total_gpus(plan: CapacityPlan) -> str:
    known = [side.gpus for side in (plan.teacher, plan.student) if side is not None and side.gpus is not None]
    return str(sum(known)) if known else ""


def _empty(_: CapacityPlan) -> str:
    return ""


_ROWS: tuple[tuple[str, Callable[[ReplicaFleet], str], Callable[[CapacityPlan], str]], ...] = (
    ("model", lambda side: side.curve.model, _empty),
    ("replicas", lambda side: "" if side.replicas is None else str(side.replicas), _empty),
    ("GPUs", _gpus, _total_gpus),
    ("utilisation", lambda side: "" if side.replicas is None else f"{side.load.utilization:.0%}", _empty),
    ("batch size", lambda side: f"{side.load.batch:.1f}", _empty),
    ("requests waiting", lambda side: f"{side.load.queued:.2f}" if side.load.stable else "no end", _empty),
    ("step", lambda side: f"{side.load.step_s * 1000:.1f} ms", _empty),
    ("first token", lambda side: _seconds(side.load.first_s), lambda plan: _seconds(plan.first_s)),
    (
        "first token, p95",
        lambda side: _seconds(side.load.first_p95_s),
        lambda plan: _seconds(plan.teacher.load.first_p95_s),
    ),
    ("last token", lambda side: _seconds(side.load.total_s), lambda plan: _seconds(plan.total_s)),
    ("USD per hour", lambda side: _usd(side.usd_per_hour), lambda plan: _usd(plan.usd_per_hour)),
    ("USD per 1000 answers", lambda side: _usd(side.usd_per_1000), lambda plan: _usd(plan.usd_per_1000)),
)
