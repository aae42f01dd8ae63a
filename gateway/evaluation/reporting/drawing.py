"""The style of all figures: reproducible SVG with colors from CSS variables.

Figures use placeholder colors that become CSS variables, so one drawing serves light and dark themes. Text stays text.
"""

from __future__ import annotations

import re
from io import StringIO
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import PercentFormatter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from matplotlib.axes import Axes

WIDTH_IN = 5.0
"""The width of a phone, so that text is readable there and larger elsewhere."""

_HALF_WIDTH_CHARS = 18
_LEGEND_ROW_IN = 0.24

INK, SOFT, GRID, GROUND = "#010101", "#020202", "#030303", "#040404"
TEACHER, STUDENT = "#050505", "#060606"
SERIES = ("#070707", "#080808", "#090909", "#0a0a0a")
"""Placeholder colors of guided settings, by kind of guidance. Markers and dashes distinguish them as well."""
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", ":", "-.")

# Placeholder, name, light and dark color; distinguishable with color blindness, as on the other pages.
_COLORS = (
    (INK, "ink", "#17202a", "#e8edf2"),
    (SOFT, "soft", "#51606f", "#a3b1bf"),
    (GRID, "grid", "#d6dce3", "#2c353f"),
    (GROUND, "ground", "#ffffff", "#181e24"),
    (TEACHER, "teacher", "#a35200", "#f0a94a"),
    (STUDENT, "student", "#0072b2", "#56b4e9"),
    (SERIES[0], "first", "#00856f", "#3fcfa0"),
    (SERIES[1], "second", "#b03a86", "#e58fc6"),
    (SERIES[2], "third", "#7a6fbe", "#a99cf0"),
    (SERIES[3], "fourth", "#5f6b76", "#93a1af"),
)
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.xmargin": 0.06,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
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


def colors(theme: str) -> str:
    """Return the CSS declarations of the variables for the theme "light" or "dark"."""
    return " ".join(f"--fig-{name}: {light if theme == 'light' else dark};" for _, name, light, dark in _COLORS)


def sheet(height_in: float) -> tuple[Drawing, Axes]:
    """Return a drawing with one pair of axes; call it within `style()`."""
    drawing = Drawing(figsize=(WIDTH_IN, height_in), layout="constrained")
    FigureCanvasSVG(drawing)
    return drawing, drawing.add_subplot()


def style(name: str) -> AbstractContextManager[None]:
    """Return a context with the style; equal figures with equal names yield equal text."""
    return mpl.rc_context(STYLE | {"svg.hashsalt": name})


def percent_axis(axes: Axes, accuracies: Sequence[float]) -> None:
    """Set up the accuracy axis for these values."""
    low, high = min(accuracies), max(accuracies)
    room = max(0.02, (high - low) * 0.08)
    axes.set_ylim(max(-0.015, low - room), min(1.015, high + room))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.set_ylabel("accuracy")


def legend_below(drawing: Drawing, axes: Axes) -> None:
    """Add a legend below the axes, where narrow pages have room, and extend the drawing by it."""
    handles, names = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, names)) <= _HALF_WIDTH_CHARS else 1
    drawing.set_size_inches(WIDTH_IN, drawing.get_figheight() + _LEGEND_ROW_IN * -(-len(names) // columns) + 0.1)
    drawing.legend(handles, names, loc="outside lower center", ncols=columns)


def svg(drawing: Drawing, name: str) -> str:
    """Return the SVG without an XML header; it needs `colors` from its page. `name` is the prefix of its ids."""
    out = StringIO()
    drawing.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" ?', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*" ?', r"<svg \1", text, count=1)
    text = text.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
    for placeholder, variable, light, _ in _COLORS:
        text = text.replace(placeholder, f"var(--fig-{variable}, {light})")
    return text


def standalone(text: str, alt: str) -> str:
    """Return a drawing as a separate file that follows the viewer's theme."""
    dark = f"@media (prefers-color-scheme: dark) {{ svg {{ {colors('dark')} }} }}"
    rules = f"<style>svg {{ {colors('light')} }} {dark}</style>"
    title = f"<title>{alt.replace('&', '&amp;').replace('<', '&lt;')}</title>"
    return '<?xml version="1.0" encoding="utf-8"?>\n' + re.sub(
        r"(<svg [^>]*>)", lambda found: found[1] + title + rules, text, count=1
    )
