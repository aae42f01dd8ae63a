"""What figures are made of: the parts of one on a page, and the lines and marks by which settings are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.evaluation.reporting import drawing as d
from gateway.evaluation.reporting import wording as w
from gateway.evaluation.reporting.labels import line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from gateway.evaluation.reporting.report import ReportRow
    from gateway.evaluation.reporting.tables import ReportTable
    from gateway.evaluation.summary import SettingSummary

_ALONE = {"teacher alone": (d.TEACHER, "*"), "student alone": (d.STUDENT, "X")}


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing (`drawing.svg`), with its figures as a table; `alt` says them in a sentence."""

    name: str
    title: str
    caption: str
    svg: str
    table: ReportTable

    @property
    def alt(self) -> str:
        """What who cannot see it is told: all its figures."""
        heads = self.table.columns[1:]
        said = "; ".join(
            f"{row[0]}: " + ", ".join(f"{head} {cell}" for head, cell in zip(heads, row[1:], strict=True))
            for row in self.table.rows
        )
        return f"{self.title}. {said}."


@dataclass(frozen=True, slots=True)
class OmittedFigure:
    """A figure that is not there, and why."""

    title: str
    why: str


def kind_of(row: ReportRow, among: Sequence[ReportRow]) -> str:
    mode = row.summary.mode
    return line(row.summary.setting, [one.summary.setting for one in among]) if mode == "guided" else row.who


def looks_by_kind(rows: Sequence[ReportRow]) -> dict[str, tuple[str, str]]:
    """Colour and mark of each kind of guidance, and of the teacher and the student."""
    guided = list(dict.fromkeys(kind_of(row, rows) for row in rows if row.summary.mode == "guided"))
    found = {
        kind: (d.SERIES[place % len(d.SERIES)], d.MARKERS[place % len(d.MARKERS)]) for place, kind in enumerate(guided)
    }
    return _ALONE | found


def looks_apart(rows: Sequence[ReportRow]) -> dict[str, tuple[str, str]]:
    """Colour and mark of each setting by itself, where no two of a kind may look alike."""
    guided = dict.fromkeys(row.who for row in rows if row.summary.mode == "guided")
    return _ALONE | {
        who: (d.SERIES[place % len(d.SERIES)], d.MARKERS[place % len(d.MARKERS)]) for place, who in enumerate(guided)
    }


def curve(
    axes: Axes, xs: list[float], some: list[SettingSummary], colour: str, marker: str, label: str, dash: str
) -> None:
    shares = [one.accuracy for one in some]
    low = [one.accuracy - one.interval.low for one in some]
    high = [one.interval.high - one.accuracy for one in some]
    axes.errorbar(
        xs, shares, yerr=(above_0(low), above_0(high)), color=colour, marker=marker, linestyle=dash,
        elinewidth=0.9, label=label,
    )  # fmt: skip


def above_0(lengths: list[float]) -> list[float]:
    """Rounding may leave a bar of less than nothing."""
    return [max(0.0, length) for length in lengths]


def accuracy(name: str, summary: SettingSummary) -> tuple[str, str, str]:
    return name, w.percent(summary.accuracy), w.percents(summary.interval)
