"""`gkt-gateway plan paper`: compare the paper's times (Tables 2 to 5) with bounds from its single models.

Guidance takes teacher x m / n. If batches scale perfectly, a pair takes guidance / batch + student. If they do not
scale, it takes guidance + student. The student writes all n tokens in addition to the guidance: in Figure 3 it takes
10,364.28 s, and 10,304.18 s alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.cli.eval_options import of_the_extra
from gateway.cli.tables import console_for, plain_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.evaluation.reporting.published import PublishedPair


class PaperRow(NamedTuple):
    """A pair of the paper: m tokens of guidance and n of the answer. Seconds are totals over all questions.

    The teacher answers `batch` questions together; None if the paper does not give it. With perfect scaling, guidance
    then takes no time.
    """

    teacher_s: float
    student_s: float
    m: int
    n: int
    batch: int | None
    printed_s: float
    printed_speed_up: float

    @property
    def perfect_s(self) -> float:
        """Return the pair's time with perfect scaling of batches."""
        guidance_s = self.m * (self.teacher_s / self.n)
        return self.student_s if self.batch is None else guidance_s / self.batch + self.student_s

    @property
    def none_s(self) -> float:
        """Return the pair's time with no gain from batches."""
        return self.m * (self.teacher_s / self.n) + self.student_s

    @property
    def speed_up(self) -> float:
        return self.teacher_s / self.printed_s

    @property
    def misprinted(self) -> bool:
        """Return whether the printed speed-up differs from the ratio of the printed times."""
        return abs(self.printed_speed_up - self.speed_up) > 0.006

    @property
    def reason(self) -> str:
        """Return why the printed time contradicts the single models' rows; empty if it does not."""
        if self.printed_s > self.none_s:
            return f"{self.printed_s / self.none_s - 1:.1%} slower than without any gain from batches"
        if self.printed_s >= self.perfect_s:
            return ""
        if self.printed_s >= self.student_s:
            return f"{1 - self.printed_s / self.perfect_s:.2%} faster than with perfect batches"
        # The time may fit if the n tokens are guidance and answer together.
        fits = self.printed_s >= self.perfect_s - self.student_s * self.m / self.n
        return (
            f"{1 - self.printed_s / self.student_s:.1%} faster than its student alone, which is impossible if the "
            f"student writes {self.n} tokens{'' if fits else ', even if the guidance is included in them'}"
        )


def paper() -> None:
    """Compare the paper's times with estimates from its single-model rows.

    A pair's time must be between the estimates for perfect batching and for no gain by batching. Where it is not, the
    row has the reason. See `gkt-gateway docs planning`.
    """
    with of_the_extra():
        from gateway.evaluation.reporting.published import PAIRS
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
    with of_the_extra():
        from gateway.evaluation.reporting.published import ALONE, PAIRS, TEACHER_BATCH
    alone_s = {(one.model, one.limit): one.seconds for one in ALONE[data] if one.seconds is not None}
    for pair in PAIRS[data]:
        if pair.seconds is not None and pair.speed_up is not None:
            teacher_s, student_s = alone_s[pair.teacher, pair.limit], alone_s[pair.student, pair.limit]
            batch = TEACHER_BATCH.get(pair.teacher)
            yield pair, PaperRow(teacher_s, student_s, pair.m, pair.limit, batch, pair.seconds, pair.speed_up)
