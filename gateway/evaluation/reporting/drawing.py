"""The style of all figures: reproducible SVG files on a white ground. Text stays text."""

from __future__ import annotations

from contextlib import contextmanager
from io import StringIO
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import PercentFormatter

from gateway.evaluation.reporting import wording as w
from gateway.evaluation.reporting.wording import line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

    from gateway.evaluation.reporting.report import ReportRow
    from gateway.evaluation.reporting.tables import ReportTable
    from gateway.evaluation.statistics import Interval
    from gateway.evaluation.summary import SettingSummary

    Labels = Sequence[tuple[float, float, str]]
    Points = Sequence[tuple[float, float]]

WIDTH_IN = 5.0
"""The width of a phone, so that text is readable there and larger elsewhere."""

_HALF_WIDTH_CHARS = 18
_LEGEND_ROW_IN = 0.24
_POINT = 4.0
# Offsets in points from the marker, with the text's alignment: the first one without overlap is used.
_OFFSETS = (
    *((11, 0, "left", "center"), (-11, 0, "right", "center")),
    *((7, 9, "left", "bottom"), (7, -9, "left", "top"), (-7, 9, "right", "bottom"), (-7, -9, "right", "top")),
    *((12, 22, "left", "bottom"), (12, -22, "left", "top"), (-12, 22, "right", "bottom"), (-12, -22, "right", "top")),
)

# Colors that are distinguishable with color blindness, as on the other pages.
INK, SOFT, GRID, GROUND = "#17202a", "#51606f", "#d6dce3", "#ffffff"
TEACHER, STUDENT = "#a35200", "#0072b2"
SERIES = ("#00856f", "#b03a86", "#7a6fbe", "#5f6b76")
"""Colors of guided settings, by kind of guidance. Markers and dashes distinguish them as well."""
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", ":", "-.")
_ALONE = {"teacher alone": (TEACHER, "*"), "student alone": (STUDENT, "X")}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.facecolor": GROUND,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.xmargin": 0.06,
    "figure.facecolor": GROUND,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 11.5,
    "legend.columnspacing": 1.2,
    "legend.handletextpad": 0.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "errorbar.capsize": 2.5,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@contextmanager
def sheet(name: str, height_in: float) -> Iterator[tuple[Drawing, Axes]]:
    """Yield a drawing with one pair of axes in the common style. Equal figures with equal names yield equal text."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        drawing = Drawing(figsize=(WIDTH_IN, height_in), layout="constrained")
        FigureCanvasSVG(drawing)
        yield drawing, drawing.add_subplot()


def percent_axis(axes: Axes, spans: Iterable[Iterable[float]]) -> None:
    """Set up the accuracy axis for intervals, or other groups of accuracies."""
    accuracies = list(chain.from_iterable(spans))
    low, high = min(accuracies), max(accuracies)
    room = max(0.02, (high - low) * 0.08)
    axes.set_ylim(max(-0.015, low - room), min(1.015, high + room))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.set_ylabel("accuracy")


def svg(drawing: Drawing, axes: Axes, title: str, labels: Labels = (), points: Points = ()) -> str:
    """Add the legend and the labels, and return the text of the SVG file."""
    # Below the axes narrow pages have room: extend the drawing by the legend.
    handles, names = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, names)) <= _HALF_WIDTH_CHARS else 1
    drawing.set_size_inches(WIDTH_IN, drawing.get_figheight() + _LEGEND_ROW_IN * -(-len(names) // columns) + 0.1)
    drawing.legend(handles, names, loc="outside lower center", ncols=columns)
    if labels:
        _place_labels(axes, labels, points)
    out = StringIO()
    # No date and no version of the library: equal figures are equal files.
    drawing.savefig(out, format="svg", metadata={"Title": title, "Date": None, "Creator": None})
    return out.getvalue()


def _place_labels(axes: Axes, labels: Labels, points: Points) -> None:
    """Write each label (x, y, text in units of the axes) near its point, with the least overlap."""
    canvas = axes.get_figure(root=True)
    assert canvas is not None, "the axes belong to a drawing"
    canvas.draw_without_rendering()
    frame = axes.get_window_extent()
    dots = [axes.transData.transform(point) for point in points]
    occupied: list[Bbox] = []
    for x, y, text in labels:
        best, least_overlap = None, float("inf")
        for across, up, horizontal, vertical in _OFFSETS:
            annotation = axes.annotate(
                text, (x, y), (across, up), textcoords="offset points", ha=horizontal, va=vertical, color=INK,
                fontsize=11,
            )  # fmt: skip
            box = annotation.get_window_extent().padded(1)
            overlap = sum(box.padded(_POINT).contains(*dot) for dot in dots) + 6 * box.count_overlaps(occupied)
            overlap += 4 * (box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1)
            if overlap < least_overlap:
                if best is not None:
                    best.remove()
                best, least_overlap = annotation, overlap
            else:
                annotation.remove()
        if best is not None:
            occupied.append(best.get_window_extent().padded(1))


class Figure(NamedTuple):
    """A drawing (text of an SVG file) with its data as a table; `alt` gives them as text."""

    name: str
    title: str
    caption: str
    svg: str
    table: ReportTable

    @property
    def alt(self) -> str:
        heads = self.table.columns[1:]
        data = "; ".join(
            f"{row[0]}: " + ", ".join(f"{head} {cell}" for head, cell in zip(heads, row[1:], strict=True))
            for row in self.table.rows
        )
        return f"{self.title}. {data}."


class OmittedFigure(NamedTuple):
    """A figure that cannot be drawn, with the reason."""

    title: str
    reason: str


def kind_of(row: ReportRow, among: Sequence[ReportRow]) -> str:
    return line(row.summary.setting, [one.summary.setting for one in among]) if row.guided else row.short_label


def styles(labels: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return a color and a marker for each label of guided settings, and for the teacher and the student alone."""
    guided = (label for label in dict.fromkeys(labels) if label not in _ALONE)
    found = {label: (SERIES[at % len(SERIES)], MARKERS[at % len(MARKERS)]) for at, label in enumerate(guided)}
    return _ALONE | found


def curve(
    axes: Axes, xs: Sequence[float], ys: Sequence[float], spans: Sequence[Interval], mark: tuple[str, str], dash: str,
    label: str | None, size: float = 6,
) -> None:  # fmt: skip
    """Draw points with their intervals. `mark` is a color and a marker, and `dash` the style of the joining line."""
    # Rounding may cause error bars of negative length.
    low = [max(0.0, y - span.low) for y, span in zip(ys, spans, strict=True)]
    high = [max(0.0, span.high - y) for y, span in zip(ys, spans, strict=True)]
    color, marker = mark
    axes.errorbar(
        xs, ys, yerr=(low, high), color=color, marker=marker, ms=size, linestyle=dash, elinewidth=0.9, label=label
    )


def accuracy(name: str, summary: SettingSummary) -> tuple[str, str, str]:
    return name, w.percent(summary.accuracy), w.percents(summary.interval)
