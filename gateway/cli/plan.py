"""`gkt-gateway plan`: compute the GPUs, cost and latency of a load, with and without guidance."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path  # noqa: TC003  typer reads the annotations
from typing import Annotated, ClassVar

import typer

from gateway.cli.admin_commands import usd_of
from gateway.cli.lazy import SETTINGS, LazyGroup
from gateway.cli.plan_print import as_json, print_plan
from gateway.config.scalars import InvalidValue, duration_s
from gateway.planning.curve import read_curve
from gateway.planning.fleet import FleetDemands
from gateway.planning.plan import RequestLoad
from gateway.planning.plan import plan as planned

NOT_MET = 3
"""Exit status if the replicas cannot serve the load or miss --ttft."""
_MAX_LENGTH = 10_000_000


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
        "Compute the GPUs, cost and latency of a load, with guidance and with the teacher alone.\n\n"
        "`gkt-gateway plan --rps 200 --prompt 600 --answer 300 --tokens 40 --teacher 70b.json --student 8b.json`\n\n"
        "Each file is an engine's curve: step time by batch size, prefill speed, and GPU price. deploy/curves has an "
        "example, `gkt-gateway plan measure` measures a running engine, and `gkt-gateway schema curve` describes the "
        "format. Without --student, students run on callers' devices. Assumptions are printed with the result; "
        "docs/design/planning.md has the formulas and a comparison with a simulation.\n\n"
        "Exits with 3 if the replicas cannot serve the load or miss --ttft."
    ),
    no_args_is_help=True,
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
    prompt: Annotated[int | None, typer.Option(help="Tokens of a prompt.", metavar="N", min=1, max=_MAX_LENGTH)] = None,
    answer: Annotated[
        int | None,
        typer.Option(help="Tokens of a whole answer, guidance included.", metavar="N", min=2, max=_MAX_LENGTH),
    ] = None,
    tokens: Annotated[
        int, typer.Option(help="Tokens of guidance (guidance.tokens).", metavar="N", min=1, max=_MAX_LENGTH)
    ] = 40,
    ttft: Annotated[
        str | None,
        typer.Option(help="Limit of the 95th percentile of the time to first token.", metavar="500ms"),
    ] = None,
    headroom: Annotated[
        float, typer.Option(help="Share of each replica that is kept free for bursts and failures.", min=0, max=0.95)
    ] = 0.3,
    shown: Annotated[
        int,
        typer.Option(help="Additional prompt tokens of the teacher: exemplars.", metavar="N", min=0, max=_MAX_LENGTH),
    ] = 0,
    shown_cached: Annotated[
        bool, typer.Option("--shown-cached", help="The tokens of --shown are in the teacher's prefix cache.")
    ] = False,
    teacher_usd_per_hour: Annotated[
        str | None,
        typer.Option(help="USD per hour of one teacher GPU, instead of the file's price.", metavar="USD"),
    ] = None,
    student_usd_per_hour: Annotated[
        str | None, typer.Option(help="USD per hour of one student GPU, instead of the file's price.", metavar="USD")
    ] = None,
    teacher_replicas: Annotated[
        int | None,
        typer.Option(help="Evaluate this number of teacher replicas instead of computing it.", metavar="N", min=1),
    ] = None,
    student_replicas: Annotated[
        int | None,
        typer.Option(help="Evaluate this number of student replicas instead of computing it.", metavar="N", min=1),
    ] = None,
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
    result = planned(
        RequestLoad(Decimal(str(rps)), prompt, answer, tokens, shown, shown_cached),
        read_curve(teacher).priced(usd_of(teacher_usd_per_hour, "--teacher-usd-per-hour")),
        None if student is None else read_curve(student).priced(usd_of(student_usd_per_hour, "--student-usd-per-hour")),
        FleetDemands(headroom, _seconds(ttft)),
        teacher_replicas=teacher_replicas,
        student_replicas=student_replicas,
    )
    if as_json_:
        typer.echo(as_json(result))
    else:
        print_plan(result)
    if not result.met:
        raise typer.Exit(NOT_MET)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return duration_s(text)
    except InvalidValue as error:
        raise typer.BadParameter(str(error), param_hint="--ttft") from None
