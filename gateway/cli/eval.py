"""`gkt-gateway eval`: measure whether guidance pays for your questions and models."""

from __future__ import annotations

from typing import ClassVar

import typer

from gateway.cli.lazy import SETTINGS, LazyGroup


class _Evals(LazyGroup):
    summaries: ClassVar = {
        "run": "Answer every question under every setting of a grid with real models, and store the answers.",
        "collect": "Write a sample of a tenant's requests to a file, for `eval run --data`.",
        "report": "Write a report of a run: accuracy, tokens, cost and time of every setting.",
        "recommend": "Recommend a route's guidance from a run, or report that none pays.",
    }
    prefix = "gateway.cli.eval_"


eval = typer.Typer(  # noqa: A001  the command's name
    name="eval",
    cls=_Evals,
    help=(
        "Measure accuracy, cost and speed of teacher, student and guided student on your questions.\n\n"
        "1. `gkt-gateway eval run FOLDER` sends the questions to real models and stores every answer in FOLDER. "
        "Without options it uses small models on this machine and 200 word problems of GSM8K.\n\n"
        "2. `gkt-gateway eval report FOLDER` reports accuracy, cost and speed of each setting, with confidence "
        "intervals.\n\n"
        "3. `gkt-gateway eval recommend FOLDER` selects the setting that pays, if any, and writes a policy.\n\n"
        "`eval recommend FOLDER --sheets shipped` reports also whether guidance pays at the list prices of several "
        "models. "
        "See `gkt-gateway docs evaluation`."
    ),
    **SETTINGS,
)


@eval.callback()
def _all() -> None: ...
