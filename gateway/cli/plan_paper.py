"""`gkt-gateway plan paper`: compare the paper's rows with the planner's formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.cli.tables import console_for, plain_table
from gateway.evaluation.reporting.published import ALONE, PAIRS, TEACHER_BATCH, PublishedPair
from gateway.planning.paper import PaperRow

if TYPE_CHECKING:
    from collections.abc import Iterator


def paper() -> None:
    """Compare the paper's times with estimates from its single-model rows.

    A pair's time must be between the estimates for perfect batching and for no gain by batching. Where it is not, the
    row has the reason. See docs/design/planning.md.
    """
    console = console_for(pipe_width=160)
    table = plain_table(
        "", "m > n", "perfect, s", "none, s", "printed, s", "speed-up", "printed", "", right=slice(1, 7)
    )
    for data in PAIRS:
        table.add_row(data)
        for pair, row in rows(data):
            remark = row.reason + ("; the printed speed-up differs" if row.misprinted else "")
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
    """Yield the pairs of a data set for which the paper has times, with the planner's estimates."""
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
