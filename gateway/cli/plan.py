"""`gkt-gateway plan`: how many GPUs a load needs with guidance and without, what that costs, how long callers wait."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path  # noqa: TC003  typer reads the annotations
from typing import Annotated, ClassVar

import typer

from gateway.cli import SETTINGS
from gateway.cli.admin_commands import usd_of
from gateway.cli.lazy import LazyGroup
from gateway.cli.plan_print import as_json, plan_shown
from gateway.config.scalars import InvalidValue, duration_s
from gateway.planning.curve import read_curve
from gateway.planning.fleet import FleetDemands
from gateway.planning.plan import RequestLoad
from gateway.planning.plan import plan as planned

NOT_MET = 3
"""How the command leaves when the load is more than the replicas bear, or the first token comes too late."""
_LONG = 10_000_000


class _Plans(LazyGroup):
    summaries: ClassVar = {
        "measure": (
            "Measure how long the steps of an engine take, by how many answers it decodes together, and how fast it "
            "reads."
        ),
        "paper": "Hold the paper's times against what its own single-model rows come to.",
    }
    prefix = "gateway.cli.plan_"


plan = typer.Typer(
    name="plan",
    cls=_Plans,
    invoke_without_command=True,
    help=(
        "Say how many teacher and student GPUs a load needs, what they cost and how long callers wait; and the same "
        "for the teacher alone.\n\n"
        "`gkt-gateway plan --rps 200 --prompt 600 --answer 300 --tokens 40 --teacher 70b.json --student 8b.json`\n\n"
        "Each file is an engine's curve: how long a step takes by how many answers are decoded together, how fast "
        "prompts are read, and what a GPU costs. deploy/curves has one; `gkt-gateway plan measure` makes one of an "
        "engine that runs, and `gkt-gateway schema curve` says what one may hold. Without --student, students stand on "
        "callers' devices. What the figures rest on is printed with them; docs/design/planning.md has the formulas "
        "and their accuracy.\n\n"
        "Leaves with 3 where the load does not fit, or the first token comes later than --ttft."
    ),
    no_args_is_help=True,
    **SETTINGS,
)


@plan.callback()
def _plan(
    context: typer.Context,
    teacher: Annotated[Path | None, typer.Option(help="The teacher's curve.", metavar="FILE")] = None,
    student: Annotated[
        Path | None, typer.Option(help="The student's curve. Default: students are elsewhere.", metavar="FILE")
    ] = None,
    rps: Annotated[float | None, typer.Option(help="Requests in a second.", metavar="N")] = None,
    prompt: Annotated[int | None, typer.Option(help="Tokens of a prompt.", metavar="N", min=1, max=_LONG)] = None,
    answer: Annotated[
        int | None, typer.Option(help="Tokens of a whole answer, guidance included.", metavar="N", min=2, max=_LONG)
    ] = None,
    tokens: Annotated[
        int, typer.Option(help="Tokens of it that the teacher writes (guidance.tokens).", metavar="N", min=1, max=_LONG)
    ] = 40,
    ttft: Annotated[
        str | None,
        typer.Option(help="Within how long 95 of 100 callers must hear the first token.", metavar="500ms"),
    ] = None,
    headroom: Annotated[
        float, typer.Option(help="The part of each replica that stays free, for bursts and failures.", min=0, max=0.95)
    ] = 0.3,
    shown: Annotated[
        int,
        typer.Option(
            help="Tokens that the teacher alone reads beside the prompt: exemplars.", metavar="N", min=0, max=_LONG
        ),
    ] = 0,
    shown_cached: Annotated[
        bool, typer.Option("--shown-cached", help="The teacher's prefix cache holds what --shown counts.")
    ] = False,
    teacher_usd_per_hour: Annotated[
        str | None,
        typer.Option(help="USD for an hour of one teacher's GPU, instead of the file's price.", metavar="USD"),
    ] = None,
    student_usd_per_hour: Annotated[
        str | None, typer.Option(help="The same for one of the student's.", metavar="USD")
    ] = None,
    teacher_replicas: Annotated[
        int | None,
        typer.Option(help="See how so many would stand, instead of as many as are needed.", metavar="N", min=1),
    ] = None,
    student_replicas: Annotated[int | None, typer.Option(help="The same for students.", metavar="N", min=1)] = None,
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    needed = {"--teacher": teacher, "--rps": rps, "--prompt": prompt, "--answer": answer}
    if missing := [name for name, value in needed.items() if value is None]:
        raise typer.BadParameter(f"needs {', '.join(missing)} too")
    assert teacher is not None
    assert rps is not None
    assert prompt is not None
    assert answer is not None
    if not 1e-6 <= rps <= 1e9:
        raise typer.BadParameter("must be more than 0, and at most 1e9", param_hint="--rps")
    if student is None and (student_usd_per_hour is not None or student_replicas is not None):
        raise typer.BadParameter("--student-usd-per-hour and --student-replicas need --student, the students' curve")
    found = planned(
        RequestLoad(Decimal(str(rps)), prompt, answer, tokens, shown, shown_cached),
        read_curve(teacher).priced(usd_of(teacher_usd_per_hour, "--teacher-usd-per-hour")),
        None if student is None else read_curve(student).priced(usd_of(student_usd_per_hour, "--student-usd-per-hour")),
        FleetDemands(headroom, _seconds(ttft)),
        teacher_replicas=teacher_replicas,
        student_replicas=student_replicas,
    )
    if as_json_:
        typer.echo(as_json(found))
    else:
        plan_shown(found)
    if not found.met:
        raise typer.Exit(NOT_MET)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return duration_s(text)
    except InvalidValue as wrong:
        raise typer.BadParameter(str(wrong), param_hint="--ttft") from None
