"""`gkt-gateway eval`: does guidance pay, for your questions and your models, and in which setting?"""

from __future__ import annotations

from typing import ClassVar

import typer

from gateway.cli import SETTINGS
from gateway.cli.lazy import LazyGroup


class _Evals(LazyGroup):
    summaries: ClassVar = {
        "run": "Ask real models every question under every setting of a grid, and keep what they write.",
        "report": "Say whether guidance pays: accuracy, tokens, cost and time of every setting of a run.",
        "recommend": (
            "Choose a route's guidance out of what `gkt-gateway eval run` has measured, or say that none pays."
        ),
        "exemplars": (
            "Find a few exemplars that make the teacher's first words tell more, and write them into a file."
        ),
        "fit": "Learn from a run how long guidance should be, request by request, and say whether that pays.",
    }
    prefix = "gateway.cli.eval_"


eval = typer.Typer(  # noqa: A001  the command's name
    name="eval",
    cls=_Evals,
    help=(
        "Measure whether guidance pays: how right the teacher alone is, the student alone, and the student after the "
        "teacher's first words; at what cost, and how fast.\n\n"
        "1. `gkt-gateway eval run FOLDER` asks real models and keeps every answer in FOLDER. Without options: small "
        "models on this machine, and word problems made for it, so nothing is needed to try it.\n\n"
        "2. `gkt-gateway eval report FOLDER` shows accuracy, cost and speed of each setting, with how sure that is.\n\n"
        "3. `gkt-gateway eval recommend FOLDER` picks the setting that pays, if one does, and writes a policy for "
        "it.\n\n"
        "`eval exemplars` finds worked examples that make the teacher's first words tell more, and `eval fit` learns "
        "from a run how long guidance should be, request by request. See docs/evaluation.md."
    ),
    no_args_is_help=True,
    **SETTINGS,
)


@eval.callback()
def _all() -> None: ...
