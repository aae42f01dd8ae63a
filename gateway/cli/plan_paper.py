"""`gkt-gateway plan paper`: the paper's rows, by the planner's arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from gateway.evaluation.reporting.published import ALONE, PAIRS, TEACHER_BATCH, PublishedPair
from gateway.planning.paper import PaperRow

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIPE_WIDTH = 160


def paper() -> None:
    """Hold the paper's times against what its own single-model rows come to.

    A pair's time must lie between guidance in batches that scale perfectly and in batches that gain nothing. Where it
    does not, the row says why; docs/design/planning.md tells more.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    table = Table("", "m > n", "perfect, s", "none, s", "printed, s", "speed-up", "printed", "", box=box.SIMPLE)
    for column in table.columns[1:7]:
        column.justify = "right"
    for data in PAIRS:
        table.add_row(data)
        for pair, row in rows(data):
            remark = row.reason + ("; another speed-up is printed" if row.misprinted else "")
            table.add_row(
                f"  {pair.teacher} > {pair.student}" + ("" if pair.projection == "cutoff" else f" ({pair.projection})"),
                f"{row.m} > {row.n}",
                f"{row.perfect_s:,.0f}",
                f"{row.none_s:,.0f}",
                f"{row.printed_s:,.2f}",
                f"{row.speed_up:.2f}",
                f"{row.printed_speed_up:.2f}",
                remark.removeprefix("; "),
            )
    console.print(table)


def rows(data: str) -> Iterator[tuple[PublishedPair, PaperRow]]:
    """The pairs of one of the paper's two data sets whose times it prints, with what they are held against."""
    alone_s = {(one.model, one.limit): one.seconds for one in ALONE[data] if one.seconds is not None}
    for pair in PAIRS[data]:
        if pair.seconds is None or pair.speed_up is None:
            continue
        yield (
            pair,
            PaperRow(
                teacher_s=alone_s[pair.teacher, pair.limit],
                student_s=alone_s[pair.student, pair.limit],
                m=pair.m,
                n=pair.limit,
                batch=TEACHER_BATCH.get(pair.teacher),
                printed_s=pair.seconds,
                printed_speed_up=pair.speed_up,
            ),
        )
