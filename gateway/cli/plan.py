"""`gkt-gateway plan`: compute the GPUs and the cost of a load, with and without guidance."""

from __future__ import annotations

from decimal import Decimal
from functools import partial
from pathlib import Path  # noqa: TC003  typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import orjson
import typer
from rich.text import Text

from gateway.cli.admin_client import usd_of
from gateway.cli.lazy import SETTINGS, LazyGroup
from gateway.cli.tables import console_for, plain_table
from gateway.planning.curve import read_curve
from gateway.planning.plan import DEFAULT_HEADROOM, RequestLoad
from gateway.planning.plan import plan as planned

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.planning.plan import CapacityPlan, ReplicaFleet

NOT_MET = 3
"""Exit status if the replicas do not keep the headroom."""
_length = partial(typer.Option, metavar="N", max=10_000_000)
_replicas = partial(typer.Option, metavar="N", min=1)
_USD = "USD per hour of one {} GPU, instead of the file's price."
_REPLICAS = "Evaluate this number of {} replicas instead of computing it."


class _Plans(LazyGroup):
    summaries: ClassVar = {
        "measure": "Measure an engine's curve: step time by batch size, and prefill speed.",
        "paper": "Compare the paper's times with estimates from its single-model rows.",
    }
    prefix = "gateway.cli.plan_"


plan = typer.Typer(
    name="plan",
    cls=_Plans,
    invoke_without_command=True,
    help=(
        "Compute the GPUs and the cost of a load, with guidance and with the teacher alone.\n\n"
        "`gkt-gateway plan --rps 200 --prompt 600 --answer 300 --tokens 40 --teacher 70b.json --student 8b.json`\n\n"
        "Each file is an engine's curve: step time by batch size, prefill speed, and GPU price. `gkt-gateway plan "
        "measure` measures a running engine, and `gkt-gateway schema curve` describes the format. Without --student, "
        "students run on callers' devices. Assumptions are printed with the result; `gkt-gateway docs planning` has an "
        "example of a curve and the formulas.\n\n"
        "Exits with 3 if the replicas do not keep the headroom."
    ),
    **SETTINGS,
)


@plan.callback()
def _plan(
    context: typer.Context,
    teacher: Annotated[Path | None, typer.Option(help="Curve of the teacher.", metavar="FILE")] = None,
    student: Annotated[
        Path | None, typer.Option(help="Curve of the student. Default: students run elsewhere.", metavar="FILE")
    ] = None,
    rps: Annotated[float | None, typer.Option(help="Requests per second.", metavar="N")] = None,
    prompt: Annotated[int | None, _length(help="Tokens of a prompt.", min=1)] = None,
    answer: Annotated[int | None, _length(help="Tokens of a whole answer, guidance included.", min=2)] = None,
    tokens: Annotated[int, _length(help="Tokens of guidance (guidance.tokens).", min=1)] = 40,
    headroom: Annotated[
        float, typer.Option(help="Share of each replica that is kept free for bursts and failures.", min=0, max=0.95)
    ] = DEFAULT_HEADROOM,
    shown: Annotated[int, _length(help="Additional prompt tokens of the teacher: exemplars.", min=0)] = 0,
    shown_cached: Annotated[
        bool, typer.Option("--shown-cached", help="The tokens of --shown are in the teacher's prefix cache.")
    ] = False,
    teacher_usd_per_hour: Annotated[str | None, typer.Option(help=_USD.format("teacher"), metavar="USD")] = None,
    student_usd_per_hour: Annotated[str | None, typer.Option(help=_USD.format("student"), metavar="USD")] = None,
    teacher_replicas: Annotated[int | None, _replicas(help=_REPLICAS.format("teacher"))] = None,
    student_replicas: Annotated[int | None, _replicas(help=_REPLICAS.format("student"))] = None,
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    if teacher is None or rps is None or prompt is None or answer is None:
        needed = {"--teacher": teacher, "--rps": rps, "--prompt": prompt, "--answer": answer}
        raise typer.BadParameter(f"needs {', '.join(name for name, value in needed.items() if value is None)} too")
    if not 1e-6 <= rps <= 1e9:
        raise typer.BadParameter("must be more than 0, and at most 1e9", param_hint="--rps")
    if student is None and (student_usd_per_hour is not None or student_replicas is not None):
        raise typer.BadParameter("--student-usd-per-hour and --student-replicas need --student, the students' curve")
    result = planned(
        RequestLoad(Decimal(str(rps)), prompt, answer, tokens, shown, shown_cached),
        read_curve(teacher).priced(usd_of(teacher_usd_per_hour, "--teacher-usd-per-hour")),
        None if student is None else read_curve(student).priced(usd_of(student_usd_per_hour, "--student-usd-per-hour")),
        headroom,
        teacher_replicas=teacher_replicas,
        student_replicas=student_replicas,
    )
    if as_json_:
        typer.echo(as_json(result))
    else:
        print_plan(result)
    if not result.met:
        raise typer.Exit(NOT_MET)


def print_plan(plan: CapacityPlan) -> None:
    console = console_for(pipe_width=140)
    table = plain_table("", "teacher", "student", "together", "teacher alone", right=slice(1, None))
    for title, of_fleet, together in _ROWS:
        sides = ["" if side is None else of_fleet(side) for side in (plan.teacher, plan.student)]
        table.add_row(title, *sides, together(plan) if together else "", of_fleet(plan.alone))
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
    """Return the plan as JSON. Amounts of money are exact text; an unlimited rate is null."""
    document = {
        "object": "plan",
        "load": plan.load._asdict() | {"rps": str(plan.load.rps)},
        "headroom": plan.headroom,
        "met": plan.met,
        "guided": {
            "teacher": _fleet(plan.teacher),
            "student": None if plan.student is None else _fleet(plan.student),
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
    return {
        "model": side.curve.model,
        "gpu": side.curve.gpu,
        "replicas": side.replicas,
        "gpus": side.gpus,
        "met": side.met,
        "max_rps": side.max_rps,
        "utilization": side.utilization,
        "usd_per_hour": str(side.usd_per_hour),
        "usd_per_1000_answers": str(side.usd_per_1000),
    }


def _usd(amount: Decimal) -> str:
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.4f}"


def _gpus(side: ReplicaFleet) -> str:
    if side.gpus is None:
        return "paid per token"
    return f"{side.gpus} {side.curve.gpu or ''}".strip()


def _total_gpus(plan: CapacityPlan) -> str:
    known = [side.gpus for side in (plan.teacher, plan.student) if side is not None and side.gpus is not None]
    return str(sum(known)) if known else ""


_ROWS: tuple[tuple[str, Callable[[ReplicaFleet], str], Callable[[CapacityPlan], str] | None], ...] = (
    ("model", lambda side: side.curve.model, None),
    ("replicas", lambda side: "" if side.replicas is None else str(side.replicas), None),
    ("GPUs", _gpus, _total_gpus),
    ("utilization", lambda side: "" if side.utilization is None else f"{side.utilization:.0%}", None),
    ("USD per hour", lambda side: _usd(side.usd_per_hour), lambda plan: _usd(plan.usd_per_hour)),
    ("USD per 1000 answers", lambda side: _usd(side.usd_per_1000), lambda plan: _usd(plan.usd_per_1000)),
)
