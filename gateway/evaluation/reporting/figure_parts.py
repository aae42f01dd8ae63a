"""Parts of figures: title, caption and table of one on a page, and the lines and markers of settings."""

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
    """A drawing (`drawing.svg`) with its data as a table; `alt` gives them as text."""

    name: str
    title: str
    caption: str
    svg: str
    table: ReportTable

    @property
    def alt(self) -> str:
        """Return the alternative text with all data."""
        heads = self.table.columns[1:]
        data = "; ".join(
            f"{row[0]}: " + ", ".join(f"{head} {cell}" for head, cell in zip(heads, row[1:], strict=True))
            for row in self.table.rows
        )
        return f"{self.title}. {data}."


@dataclass(frozen=True, slots=True)
class OmittedFigure:
    """A figure that cannot be drawn, with the reason."""

    title: str
    reason: str


def kind_of(row: ReportRow, among: Sequence[ReportRow]) -> str:
    mode = row.summary.mode
    return line(row.summary.setting, [one.summary.setting for one in among]) if mode == "guided" else row.short_label


def styles_by_kind(rows: Sequence[ReportRow]) -> dict[str, tuple[str, str]]:
    """Return the color and marker of each kind of guidance, and of the teacher and the student."""
    guided = list(dict.fromkeys(kind_of(row, rows) for row in rows if row.summary.mode == "guided"))
    found = {
        kind: (d.SERIES[index % len(d.SERIES)], d.MARKERS[index % len(d.MARKERS)]) for index, kind in enumerate(guided)
    }
    return _ALONE | found


def styles_by_setting(rows: Sequence[ReportRow]) -> dict[str, tuple[str, str]]:
    """Return a separate color and marker for each setting."""
    guided = dict.fromkeys(row.short_label for row in rows if row.summary.mode == "guided")
    return _ALONE | {
        label: (d.SERIES[index % len(d.SERIES)], d.MARKERS[index % len(d.MARKERS)])
        for index, label in enumerate(guided)
    }


def curve(
    axes: Axes, xs: list[float], summaries: list[SettingSummary], color: str, marker: str, label: str, dash: str
) -> None:
    shares = [one.accuracy for one in summaries]
    low = [one.accuracy - one.interval.low for one in summaries]
    high = [one.interval.high - one.accuracy for one in summaries]
    axes.errorbar(
        xs, shares, yerr=(not_negative(low), not_negative(high)), color=color, marker=marker, linestyle=dash,
        elinewidth=0.9, label=label,
    )  # fmt: skip


def not_negative(lengths: list[float]) -> list[float]:
    """Replace negative lengths of error bars, caused by rounding, with 0."""
    return [max(0.0, length) for length in lengths]


def accuracy(name: str, summary: SettingSummary) -> tuple[str, str, str]:
    return name, w.percent(summary.accuracy), w.percents(summary.interval)
