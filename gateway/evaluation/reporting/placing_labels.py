"""Placement of labels next to points of a figure with the least overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.evaluation.reporting import drawing as d

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

# Offsets in points from the marker, with the text's alignment: the first one without overlap is used.
_OFFSETS = (
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
    """Write each label (x, y, text in units of the axes) near its point, with the least overlap.

    Call it after everything else is drawn.
    """
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
                text, (x, y), (across, up), textcoords="offset points", ha=horizontal, va=vertical, color=d.INK,
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
