"""Labels beside points of a figure, each where it covers the least."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.evaluation.reporting import drawing as d

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

# In points from the point, with the text's own alignment: the first that is free is taken.
_PLACES = (
    (11, 0, "left", "center"),
    (-11, 0, "right", "center"),
    (7, 9, "left", "bottom"),
    (7, -9, "left", "top"),
    (-7, 9, "right", "bottom"),
    (-7, -9, "right", "top"),
    (12, 22, "left", "bottom"),
    (12, -22, "left", "top"),
    (-12, 22, "right", "bottom"),
    (-12, -22, "right", "top"),
)
_POINT = 4.0


def place_labels(axes: Axes, labels: Sequence[tuple[float, float, str]], points: Sequence[tuple[float, float]]) -> None:
    """Write each label (x, y, text in units of the axes) near its point, off other labels and points as far as can be.

    Call it when everything else is drawn.
    """
    canvas = axes.get_figure(root=True)
    assert canvas is not None, "axes are of a drawing"
    canvas.draw_without_rendering()
    frame = axes.get_window_extent()
    dots = [axes.transData.transform(point) for point in points]
    taken: list[Bbox] = []
    for x, y, text in labels:
        best, least = None, float("inf")
        for across, up, horizontal, vertical in _PLACES:
            found = axes.annotate(
                text, (x, y), (across, up), textcoords="offset points", ha=horizontal, va=vertical, color=d.INK,
                fontsize=11,
            )  # fmt: skip
            box = found.get_window_extent().padded(1)
            covered = sum(box.padded(_POINT).contains(*dot) for dot in dots) + 6 * box.count_overlaps(taken)
            covered += 4 * (box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1)
            if covered < least:
                if best is not None:
                    best.remove()
                best, least = found, covered
            else:
                found.remove()
        if best is not None:
            taken.append(best.get_window_extent().padded(1))
