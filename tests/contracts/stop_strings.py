"""Stop strings at known places of an answer, relative to the seam."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_CHARS = 12
_FEWEST_CHARS = 6

PLACES: Final[Mapping[str, Callable[[int, int, int], bool]]] = {
    "within the guidance": lambda start, end, seam: start >= seam // 3 and end <= seam,
    "across the seam, mostly before it": lambda start, end, seam: start < seam - _CHARS // 2 and end > seam,
    "across the seam, mostly behind it": lambda start, end, seam: seam - _CHARS // 2 <= start < seam < end,
    "at the seam": lambda start, end, seam: start in {seam, seam + 1},
    "behind the seam": lambda start, end, seam: start >= seam + 2 * _CHARS,
}
"""By name of a place, whether a stop string from `start` to `end` is there. The seam is the end of the guidance."""


def stop_strings(answer: str, seam: int) -> dict[str, str]:
    """Return by place the first stop string there. A place is missing if the answer has none that is unambiguous.

    A stop string ends an answer where it occurs first, so text that also occurs earlier is none.
    """
    found: dict[str, str] = {}
    for start in range(len(answer) - _FEWEST_CHARS + 1):
        stop = answer[start : start + _CHARS].rstrip()
        is_usable = len(stop) >= _FEWEST_CHARS and stop == stop.lstrip() and "\n" not in stop
        if is_usable and answer.find(stop) == start:
            for place, is_there in PLACES.items():
                if place not in found and is_there(start, start + len(stop), seam):
                    found[place] = stop
    return found
