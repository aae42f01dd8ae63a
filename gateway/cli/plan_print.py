"""What `gkt-gateway plan` shows: a table of teacher, student, both and the teacher alone; and what it rests on."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import orjson
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    from gateway.planning.fleet import ReplicaFleet
    from gateway.planning.plan import CapacityPlan

_PIPE_WIDTH = 140


def plan_shown(plan: CapacityPlan) -> None:
    """Print a plan."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    table = Table("", "teacher", "student", "together", "teacher alone", box=box.SIMPLE)
    for column in table.columns[1:]:
        column.justify = "right"
    for title, of_fleet, together in _ROWS:
        sides = ["" if side is None else of_fleet(side) for side in (plan.teacher, plan.student)]
        table.add_row(title, *sides, together(plan), of_fleet(plan.alone))
    console.print(table)
    share = "" if plan.savings_share is None else f", {abs(plan.savings_share):.1%} of what the teacher alone costs"
    said = "Saved" if plan.savings_usd_per_hour >= 0 else "It costs more"
    console.print(
        f"{said}: {_usd(abs(plan.savings_usd_per_hour))} USD an hour, {_usd(abs(plan.savings_usd_per_1000))} USD per "
        f"1000 answers{share}.",
        highlight=False,
    )
    for head, lines, style in (("Assumed", plan.assumptions, ""), ("Warnings", plan.warnings, "yellow")):
        if lines:
            console.print(Text(f"\n{head}", "bold"))
        for line in lines:
            console.print(Text(f"- {line}", style))


def as_json(plan: CapacityPlan) -> str:
    """The plan as JSON: money as text, exactly; a time that has no end is null."""
    load, demands = plan.load, plan.demands
    shown = {
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
    return orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode()


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
        return "by the token"
    return f"{side.gpus} {side.curve.gpu or ''}".strip()


def _together(plan: CapacityPlan) -> str:
    known = [side.gpus for side in (plan.teacher, plan.student) if side is not None and side.gpus is not None]
    return str(sum(known)) if known else ""


def _nothing(_: CapacityPlan) -> str:
    return ""


_ROWS: tuple[tuple[str, Callable[[ReplicaFleet], str], Callable[[CapacityPlan], str]], ...] = (
    ("model", lambda side: side.curve.model, _nothing),
    ("replicas", lambda side: "" if side.replicas is None else str(side.replicas), _nothing),
    ("GPUs", _gpus, _together),
    ("utilisation", lambda side: "" if side.replicas is None else f"{side.load.utilization:.0%}", _nothing),
    ("decoded together", lambda side: f"{side.load.batch:.1f}", _nothing),
    ("requests waiting", lambda side: f"{side.load.queued:.2f}" if side.load.stable else "no end", _nothing),
    ("a step", lambda side: f"{side.load.step_s * 1000:.1f} ms", _nothing),
    ("first token", lambda side: _seconds(side.load.first_s), lambda plan: _seconds(plan.first_s)),
    (
        "95 of 100 within",
        lambda side: _seconds(side.load.first_p95_s),
        lambda plan: _seconds(plan.teacher.load.first_p95_s),
    ),
    ("last token", lambda side: _seconds(side.load.total_s), lambda plan: _seconds(plan.total_s)),
    ("USD an hour", lambda side: _usd(side.usd_per_hour), lambda plan: _usd(plan.usd_per_hour)),
    ("USD per 1000 answers", lambda side: _usd(side.usd_per_1000), lambda plan: _usd(plan.usd_per_1000)),
)
